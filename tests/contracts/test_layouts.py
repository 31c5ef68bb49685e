"""What every named layout must be, found by its file, and what people compose."""

import difflib
import functools
import importlib
import os
from pathlib import Path

import jax
import pytest

from scaling_lab import dims, layouts, models
from scaling_lab.config import RunConfig
from scaling_lab.layouts import Layout

SNAPSHOTS = Path(__file__).parent / "snapshots"
UPDATE = "UPDATE_SNAPSHOTS"

COMPOSED = [
    "fsdp=4,tensor=2+sequence",
    "data=2,fsdp=2,tensor=2+sequence+zero1",
    "data=2,tensor=4",
    "data=8+zero2",
    "fsdp=8+gather_once",
    "data=2,context=4",
    "fsdp=2,context=2,tensor=2+sequence+ring",
    "fsdp=2,context=2,tensor=2+sequence+ulysses",
    "stage=2,fsdp=4",
    "stage=2,data=2,tensor=2+interleaved=2",
]
#: What each file says, as people would compose it.
SAME = {
    "ddp": "data=8",
    "fsdp": "fsdp=8",
    "fsdp_tensor": "fsdp=4,tensor=2",
    "hsdp": "data=2,fsdp=4",
    "tensor": "tensor=8",
    "tensor_sequence": "tensor=8+sequence",
    "zero1": "data=8+zero1",
    "zero2": "data=8+zero2",
}
#: What a step holds, besides parameters.
SIGNATURES = ("BT", "BTD", "BTF", "BTNH", "BSKH", "BTV")


def of_text(text):
    """A named layout at its toy sizes, or a composed one."""
    return composed(text) if "=" in text else file_of(text).layout(**file_of(text).TOY)


def composed(text):
    return layouts.parse(text, 8)


def file_of(name):
    return importlib.import_module(f"scaling_lab.layouts.{name}")


def sizes_of(config, batch=32, length=64):
    return dims.sizes(config) | {"B": batch, "T": length}


def shapes_of(config):
    init = functools.partial(models.family_of(config).init, config)
    return jax.tree.map(lambda x: x.shape, dims.leaves(jax.eval_shape(init, KEY)))


KEY = jax.random.key(0)


@pytest.mark.parametrize("text", [*layouts.names(), *COMPOSED, "tensor=8"])
@pytest.mark.parametrize("family", models.families())
def test_legal_for_every_toy(text, family):
    config = models.size(family, "toy")
    layout = RunConfig(config, of_text(text), batch=32, length=64).placed_layout
    assert layout.devices == 8
    layouts.check(layout, sizes_of(config), shapes_of(config), 8)


@pytest.mark.parametrize("name", layouts.names())
@pytest.mark.parametrize("devices", [1, 2, 3, 8, 64])
def test_sized_for_any_number_of_devices(name, devices):
    layout = layouts.parse(name, devices)
    assert layout.devices == devices
    assert layout.name.partition(":")[0] == name
    assert layouts.parse(layout.name) == layout  # a name says how to get it again


@pytest.mark.parametrize("name", layouts.names())
def test_file_is_the_composition_of_its_axes(name):
    assert name in SAME, f"add {name} and its composition to SAME in {__file__}"
    assert of_text(name) == composed(SAME[name])


@pytest.mark.parametrize("text", [*layouts.names(), *COMPOSED])
def test_json_gives_the_layout_back(text, tmp_path):
    layout = of_text(text)
    again = Layout.from_json(layout.to_json())
    assert (again, again.name) == (layout, layout.name)
    assert list(again.mesh) == list(layout.mesh)
    assert hash(again) == hash(layout)


# --- Snapshots: where every parameter and activation lives, to be read in a diff


def written(spec, letters):
    words = (
        "@".join((x, "×".join(a))) if a else x
        for x, a in zip(letters, spec, strict=True)
    )
    return ", ".join(words)


def snapshot(layout, config):
    """One line per array; gradients and optimizer state where they rest elsewhere."""
    mesh = ",".join(f"{axis}={size}" for axis, size in layout.mesh.items())
    lines = [f"{mesh}  gather={layout.gather}", ""]
    for path in sorted(shapes_of(config)):
        name = path.rpartition("/")[2]
        letters = dims.letters(name)
        rests = written(layout.spec("params", letters, name), letters)
        lines.append(f"{path:<28} {rests}")
        for kind in ("grads", "optimizer"):
            other = written(layout.spec(kind, letters, name), letters)
            if other != rests:
                lines.append(f"  {kind:<26} {other}")
    lines.append("")
    for letters in SIGNATURES:
        lines.append(f"{letters:<28} {written(layout.spec('acts', letters), letters)}")
    return "\n".join(line.rstrip() for line in lines) + "\n"


@pytest.mark.parametrize("text", [*layouts.names(), *COMPOSED])
def test_snapshot(text):
    config = models.size("llama", "toy")
    found = snapshot(layouts.fit_kv_heads(of_text(text), sizes_of(config)), config)
    path = SNAPSHOTS / f"{text.replace('=', '')}.txt"
    if os.environ.get(UPDATE):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, "utf-8")
    kept = path.read_text("utf-8") if path.exists() else ""
    diff = "\n".join(difflib.unified_diff(kept.split("\n"), found.split("\n"), n=0))
    assert found == kept, (
        f"layout {text} places arrays otherwise than {path.name} says:\n{diff}\n"
        f"If that is meant, run {UPDATE}=1 pytest {Path(__file__).name} and commit."
    )


def test_no_snapshot_is_left_over():
    wanted = {f"{text.replace('=', '')}.txt" for text in [*layouts.names(), *COMPOSED]}
    assert {path.name for path in SNAPSHOTS.iterdir()} == wanted
