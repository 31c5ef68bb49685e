"""Does communication hidden by hand beat what the compilers hide themselves?

Run:     python -m experiments.overlap_by_hand [--compile] [--only h100 fsdp] [--json]
Takes:   seconds from results/; with --compile about half a minute a row of a GPU and
         two minutes a row of a TPU on two CPU cores, for what is not there (extras
         tpu-compile and gpu-compile).
Expect:  no, on neither machine: where a row by hand hides more, it computes more
         slowly, and the chip's own flags (`--xla-flags overlap`) or the plain program
         are faster as a whole.

Forward and backward passes of all layers of a model, without its ends and optimizer, as
the compilers of two machines schedule them. Over ``tensor``, *in turns*: products in
steps of a piece each, while the next piece is on its way (collective matmul; query,
key and value share one ring, and so do gate and up). Over ``fsdp``, *ahead*: a layer's
weights are gathered while the layer before computes; of one layer in a turn of the loop
they are copied besides, of two not. *Windowed* is XLA's own form of the first: on the
GPU its flags change nothing, since arrays are told where to go before they are
multiplied. Seconds are compiled: the compiler's estimates, and our prices for the rest.
"""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import scaling_lab as lab
from experiments import _by_hand, _compiled
from scaling_lab import dims, models, record
from scaling_lab.compile.backends import NoCompiler
from scaling_lab.hardware import parse_target
from scaling_lab.models import ops
from scaling_lab.sweep import any_step
from scaling_lab.train.program import make_placement

RESULTS = _compiled.RESULTS / "overlap_by_hand.jsonl"
QKV = "attention/query,attention/key,attention/value,attention/attend"
#: axis: layout, length, remat; 64 chips.
POINTS = {
    "tensor": ("fsdp=16,tensor=4+sequence", 4096, f"save:{QKV}"),
    "fsdp": ("fsdp=64", 2048, "full"),
}
TARGETS = ("h100:8x8", "tpu-v5p:4x4x4")
CONFIGS = [
    lab.configure("llama", "8b", layout, target, batch=64, length=length, remat=remat)
    for target in TARGETS
    for layout, length, remat in POINTS.values()
]
#: XLA's products in turns, from any size on.
WINDOWED = {
    "gpu": (
        "--xla_gpu_threshold_for_windowed_einsum_mib=0 "
        "--xla_gpu_multi_streamed_windowed_einsum=true"
    ),
    "tpu": "--xla_jf_spmd_threshold_for_windowed_einsum_mib=0",
}
BY_HAND = {"tensor": "in turns", "fsdp": "ahead"}
#: With two layers in a turn of the loop.
TWO = "ahead by two"


def variants(config: lab.RunConfig) -> dict[str, str]:
    """How a point is compiled: words, and the compiler's flags."""
    chip = parse_target(config.target).chip
    assert chip is not None
    axis = axis_of(config)
    flags, hand = chip.flags["overlap"], BY_HAND[axis]
    found = {"plain": "", "flags": flags, hand: "", f"{hand}, flags": flags}
    if axis == "fsdp":
        found[f"{TWO}, flags"] = flags
    if axis == "tensor":
        found["windowed"] = WINDOWED[chip.compiler or ""]
    return found


def axis_of(config: lab.RunConfig) -> str:
    """The axis whose communication a point is about."""
    return "tensor" if "tensor" in config.layout.mesh else "fsdp"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="what is not there")
    parser.add_argument("--only", nargs="*", default=(), help="words of wanted rows")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.compile:
        for config in CONFIGS:
            compile_rows(config, given.only)
    _compiled.say(answer(), text, given.json)


def compile_rows(config: lab.RunConfig, only: Any = ()) -> None:
    """Compiles what the results lack of one point."""
    known = {(r.asked["target"], r.asked["variant"], r.asked["axis"]) for r in kept()}
    for variant, flags in variants(config).items():
        key = (config.target, variant, axis_of(config))
        if key in known or not all(word in " ".join(key) for word in only):
            continue
        try:
            found = compiled(config, variant, flags)
        except NoCompiler as error:
            print(f"{config.target}: {error}")
            return
        asked = found.asked | {"variant": variant, "axis": axis_of(config)}
        record.append(RESULTS, _compiled.small(dataclasses.replace(found, asked=asked)))


def kept() -> list[record.RunRecord]:
    """The records that are there."""
    return list(record.read(RESULTS)) if RESULTS.exists() else []


def compiled(config: lab.RunConfig, variant: str, flags: str) -> record.RunRecord:
    """All layers forward and backward, from the target's compiler."""
    place = make_placement(config, list(any_step.target_devices(config.target)))
    step, arguments, shardings = layers(config, bound(place, variant))
    results = (shardings[1], shardings[0], shardings[1])
    jitted = jax.jit(step, in_shardings=shardings, out_shardings=results)
    return lab.compile_step(
        jitted, arguments, shardings, config.target, xla_flags=flags
    )


def bound(place: Any, variant: str) -> Any:
    """The placement with its products, or its layers, done by hand."""
    if variant.startswith("in turns"):
        fields = {f.name: getattr(place, f.name) for f in dataclasses.fields(place)}
        return _by_hand.Turning(**fields)
    if variant.startswith("ahead"):
        return dataclasses.replace(
            place, stack_with=_by_hand.ahead(place, 1 + variant.startswith(TWO))
        )
    return place


def layers(config: lab.RunConfig, place: Any) -> tuple[Any, Any, Any]:
    """A function of all layers and their gradients, its arguments, where they live."""
    model = config.model
    family = models.family_of(model)
    stacked = {
        path.rpartition("/")[2]: leaf
        for path, leaf in dims.leaves(config.abstract_params["layers"]).items()
    }

    def step(stacked: Any, x_BTD: Any, positions_BT: Any, d_BTD: Any) -> Any:
        tables = ops.rope_tables(
            positions_BT, model.H, model.rope_base, model.rope_scaling
        )
        one = jnp.zeros_like(positions_BT)
        per_batch = {"positions_BT": positions_BT, "segments_BT": one, **tables}

        def run(stacked: Any, x_BTD: Any) -> Any:
            segment = ops.segment(family.Block, model, stacked)
            return place.stack([segment], x_BTD, per_batch)[0]

        out_BTD, back = jax.vjp(run, stacked, x_BTD)
        gradients, d_BTD = back(d_BTD)
        placed = {
            name: place.constrain(array, "grads", dims.letters(name), name)
            for name, array in gradients.items()
        }
        return out_BTD, placed, d_BTD

    compute = jnp.dtype(config.precision)
    x_BTD = jax.ShapeDtypeStruct((config.batch, config.length, model.D), compute)
    at_BT = jax.ShapeDtypeStruct(x_BTD.shape[:2], jnp.int32)
    rests = {
        name: place.sharding("params", dims.letters(name), name) for name in stacked
    }
    of_BTD, of_BT = place.sharding("acts", "BTD"), place.sharding("acts", "BT")
    return step, (stacked, x_BTD, at_BT, x_BTD), (rests, of_BTD, of_BT, of_BTD)


def answer() -> dict[str, Any]:
    """Every row that is there, the fastest of its point marked."""
    rows = [
        {
            "target": found.asked["target"],
            "axis": found.asked["axis"],
            "variant": found.asked["variant"],
            "status": found.status,
            **{
                name: (found.compiled or {}).get(name)
                for name in ("step_seconds", "exposed_seconds", "temporary_bytes")
            },
        }
        for found in kept()
    ]
    for row in rows:
        rivals = [
            other["step_seconds"]
            for other in rows
            if (other["target"], other["axis"]) == (row["target"], row["axis"])
            and other["step_seconds"]
        ]
        row["fastest"] = bool(rivals) and row["step_seconds"] == min(rivals)
    return {"rows": sorted(rows, key=lambda row: (row["target"], row["axis"]))}


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    head = ("target", "axis", "variant", "layers", "exposed", "held")
    lines = ["{:14} {:7} {:16} {:>9} {:>9} {:>8}".format(*head)]
    for row in found["rows"]:
        start = f"{row['target']:14} {row['axis']:7} {row['variant']:16} "
        if row["step_seconds"] is None:
            lines.append(start + row["status"])
            continue
        lines.append(
            start + f"{1e3 * row['step_seconds']:6.1f} ms "
            f"{1e3 * row['exposed_seconds']:6.1f} ms "
            f"{row['temporary_bytes'] / 1e9:5.1f} GB"
            + ("  fastest" if row["fastest"] else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
