"""Text that is on every machine: the standard library and the packages this one needs.

Source is taken whole; of the largest packages only the prose is, which keeps the whole
near 17 MB. No module is taken both ways, so no held-out prose sits in a train source.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from scaling_lab.data.readers import Reader

#: Packages whose source is taken, and those of which only the docstrings are.
SOURCE_PACKAGES = ("einops", "flax", "optax")
PROSE_PACKAGES = ("jax", "numpy", "orbax")

_SKIPPED_FOLDERS = frozenset(
    "__pycache__ dist-packages distutils encodings ensurepip experimental f2py idlelib "
    "internal_test_util lib2to3 mosaic mosaic_gpu pallas site-packages test testing "
    "tests turtledemo".split()
)
#: Names of files and folders that the build of this very interpreter wrote.
_BUILD_PREFIXES = ("_sysconfigdata", "config-")
_MIN_PROSE_CHARACTERS = 200


def files() -> list[tuple[Path, Reader]]:
    """Every file of the ``python`` source with its reader, in a fixed order."""
    found = [(path, source) for path in _modules(Path(sysconfig.get_path("stdlib")))]
    for package in SOURCE_PACKAGES:
        found += [(path, source) for path in _modules(_folder(package))]
    for package in PROSE_PACKAGES:
        found += [(path, prose) for path in _modules(_folder(package))]
    return found


def source(path: Path) -> Iterator[bytes]:
    """The file as one document; nothing where it is no UTF-8 text."""
    data = path.read_bytes()
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    if data.strip() and b"\0" not in data:
        yield data


def prose(path: Path) -> Iterator[bytes]:
    """The file's docstrings of some length as one document, in reading order."""
    for data in source(path):
        try:
            # What a caller makes of warnings (a stray escape warns) must not decide
            # what is read.
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(data)
        except SyntaxError:
            return
        long = [text for text in _docstrings(tree) if len(text) > _MIN_PROSE_CHARACTERS]
        document = "\n\n".join(long)
        if document and "\0" not in document:
            # A docstring may spell half a surrogate pair with an escape.
            yield document.encode(errors="ignore")


_Documented = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _docstrings(node: ast.Module | _Documented) -> Iterator[str]:
    # Only bodies are entered: a full walk of the tree costs four times as much.
    if text := ast.get_docstring(node):
        yield text
    for child in node.body:
        if isinstance(child, _Documented):
            yield from _docstrings(child)


def _modules(root: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if _wanted(name))
        for name in sorted(names):
            if name.endswith(".py") and _wanted(name):
                yield Path(folder, name)


def _wanted(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith(_BUILD_PREFIXES)


def _folder(package: str) -> Path:
    # The spec of a top-level name is found without importing the package.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"the 'python' source reads the package {package!r}, which is not "
            "installed: pip install scaling_lab"
        )
    return Path(next(iter(spec.submodule_search_locations)))
