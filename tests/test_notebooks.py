"""Every notebook runs from nothing, has its pictures, and tells no paths."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient", reason="pip install 'scaling_lab[notebooks]'")

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PUBLISHED = {"01_first_step", "02_layouts", "03_reading_a_record"}
#: A folder of somebody's machine, as text or as a link: any absolute path of two words.
MACHINE_PATH = re.compile(r"(?:(?<!\w)/[a-zA-Z]\w*/|[A-Z]:\\Users\\)\w")
CELL_SECONDS = 300


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def pictures(notebook):
    return [o for o in outputs(notebook) if "image/png" in o.get("data", {})]


def shown(notebook):
    """All text of the outputs, pictures left out."""
    texts = []
    for output in outputs(notebook):
        data = output.get("data", {})
        kept = {kind: text for kind, text in data.items() if kind != "image/png"}
        texts += [output.get("text", ""), json.dumps(kept, ensure_ascii=False)]
    return "\n".join(texts)


def test_the_published_notebooks_are_there():
    assert {path.stem for path in PATHS} >= PUBLISHED


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path):
    notebook = read(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [o for o in outputs(notebook) if o.output_type == "error"]
    assert pictures(notebook), "no picture"


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_tells_nothing_of_the_machine_that_ran_it(path):
    notebook = read(path)
    assert not MACHINE_PATH.findall(shown(notebook))
    assert str(Path.home()) not in shown(notebook)
    assert str(ROOT) not in shown(notebook)
    assert notebook.metadata == {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    assert not any(cell.metadata for cell in notebook.cells)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    """The name of a kernel that is this interpreter, offline, its caches its own."""
    folder = tmp_path_factory.mktemp("jupyter")
    spec = {
        "argv": [
            sys.executable,
            "-W",
            "ignore",
            "-c",
            OFFLINE,
            "-f",
            "{connection_file}",
        ],
        "display_name": "This interpreter",
        "language": "python",
        "env": {
            "IPYTHONDIR": str(folder / "ipython"),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # half the wait, the same program
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
            ),
            "SCALING_LAB_CACHE": str(folder / "cache"),
        },
    }
    place = folder / "kernels" / "this_interpreter"
    place.mkdir(parents=True)
    (place / "kernel.json").write_text(json.dumps(spec))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(folder))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "runtime"))
        yield place.name


#: The kernel, in a process that can look up no name and reach no other machine.
OFFLINE = """
import socket

connect, look_up = socket.socket.connect, socket.getaddrinfo

def near(host):
    if str(host) not in ("127.0.0.1", "::1", "localhost", "None"):
        raise OSError(f"a notebook reached for the network: {host}")

def connect_near(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        near(address[0])
    return connect(self, address)

def look_up_near(host, *args, **kwargs):
    near(host)
    return look_up(host, *args, **kwargs)

socket.socket.connect, socket.getaddrinfo = connect_near, look_up_near

from ipykernel.kernelapp import launch_new_instance

launch_new_instance()
"""


def left_in_the_repository():
    return sorted((ROOT / "notebooks").rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_nothing(path, kernel, tmp_path):
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    before = left_in_the_repository()
    NotebookClient(
        notebook,
        timeout=CELL_SECONDS,
        kernel_name=kernel,
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()  # raises with the cell and its traceback
    assert len(pictures(notebook)) == len(pictures(read(path)))
    assert left_in_the_repository() == before
