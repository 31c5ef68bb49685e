"""What does the target's compiler make of each mechanism, on a TPU and on a GPU?

Run:     python -m experiments.mechanisms_compiled [--compile] [--only h100] [--json]
Takes:   a second from results/; with --compile, for what is not there, ten minutes of
         two CPU cores for the GPU and forty for the TPU.
Expect:  every mechanism compiles for both, but optimizer state on the host for the TPU
         alone, and none is resharded where its layout does not imply it (``unasked`` is
         0).

Widths are true (Llama 8B, Mixtral 8x7B and others), layers as few as the mechanism
needs, eight chips. Nothing here has run. Collectives that stand in branches of a
conditional, which devices may take differently (``in branches``), would be executed on
simulated devices alone: on a TPU or GPU they are compiled and otherwise unverified.
"""

import dataclasses
from typing import Any

import numpy as np

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab import models, record
from scaling_lab.compile import hlo, implied, unasked
from scaling_lab.parallel.masks import Blocks
from scaling_lab.parallel.sight import Sight
from scaling_lab.sweep import compile_run

RESULTS = kept.RESULTS / "mechanisms_compiled.jsonl"
TARGETS = ("tpu-v5p:2x2x2", "h100:1x8")
#: mechanism -> family, layout, layers, microbatches.
MECHANISMS: dict[str, tuple[str, str, int, int]] = {
    "whole weights": ("llama", "data=8", 2, 1),
    "optimizer divided": ("llama", "data=8+zero1", 2, 1),
    "gradients divided": ("llama", "data=8+zero2", 2, 1),
    "weights gathered by layer": ("llama", "fsdp=8", 2, 1),
    "weights gathered once": ("llama", "fsdp=8+gather_once", 2, 1),
    "tensor": ("llama", "fsdp=4,tensor=2", 2, 1),
    "tensor, sequence": ("llama", "fsdp=4,tensor=2+sequence", 2, 1),
    "keys gathered": ("llama", "fsdp=2,context=4", 2, 1),
    "keys go round": ("llama", "fsdp=2,context=4+ring", 2, 1),
    "positions for heads": ("llama", "fsdp=2,context=4+ulysses", 2, 1),
    "experts here, sorted": ("mixtral", "fsdp=8", 1, 1),
    "experts here, places": ("mixtral", "fsdp=8+capacity", 1, 1),
    "rows to experts": ("mixtral", "expert=8", 1, 1),
    "ring of experts": ("mixtral", "expert=8+ring_of_experts", 1, 1),
    "places of experts": ("mixtral", "expert=8+capacity", 1, 1),
    "stages": ("llama", "stage=2,fsdp=4", 2, 4),
    "stages, gathered once": ("llama", "stage=2,fsdp=4+gather_once", 2, 4),
    "stages, interleaved": ("llama", "stage=2,fsdp=4+interleaved=2", 4, 4),
    "stages, alternating": ("llama", "stage=2,fsdp=4+1f1b", 2, 4),
    "stages, zero bubble": ("llama", "stage=2,fsdp=4+zero_bubble", 2, 4),
}
LENGTH = 2048
#: mechanism -> words of its run, under plain fsdp.
OPTIONS: dict[str, dict[str, Any]] = {
    "window": {"mask": "window=512"},
    "local and global layers": {"mask": "window=512,global=2"},
    "chunks": {"mask": "chunk=512"},
    "prefix": {"mask": "prefix=256"},
    "chosen blocks": {"mask": "top=2,block=128"},
    "map of blocks": {},  # its `block_map` is no word
    "latent attention": {"family": "deepseek", "size": "v2-lite"},
    "wide heads": {"family": "gemma3", "size": "4b"},
    "moments in 8 bits": {"moments": "int8"},
    "parameters in 16 bits": {"parameters": "bfloat16"},
    "gradients summed in 16 bits": {"reduce": "bfloat16"},
    "optimizer on the host": {"layout": "fsdp=8+offload_optimizer"},
    "activations on the host": {"remat": "save:ffn/gate;offload:ffn/up"},
}
SIZES = {"llama": "8b", "mixtral": "8x7b"}


def config_of(mechanism: str, target: str) -> lab.RunConfig:
    """One mechanism at true widths: a batch of 32 sequences of 2048."""
    words: dict[str, Any] = {"batch": 32, "length": LENGTH, "remat": "full"}
    if mechanism in MECHANISMS:
        family, layout, layers, parts = MECHANISMS[mechanism]
        words |= {"family": family, "layout": layout, "accumulate": parts}
    else:
        layers, words = 2, words | {"layout": "fsdp=8"} | OPTIONS[mechanism]
    family = words.pop("family", "llama")
    size = words.pop("size", SIZES.get(family))
    config = lab.configure(family, size, target=target, layers=layers, **words)
    if mechanism != "map of blocks":
        return config
    model = models.seeing(config.model, Sight(blocks=block_map()))
    return dataclasses.replace(config, model=model)


def block_map(size: int = 128) -> Blocks:
    """Of a row's blocks the own, the one before it, and the first."""
    count = LENGTH // size
    seen = np.eye(count, dtype=bool) | np.eye(count, k=-1, dtype=bool)
    seen[:, 0] = True
    return Blocks.of(size, seen)


POINTS = {(t, m): config_of(m, t) for m in (*MECHANISMS, *OPTIONS) for t in TARGETS}
CONFIGS = list(POINTS.values())


def main() -> None:
    parser = kept.parser(__doc__)
    parser.add_argument("--only", default="", help="targets that begin so")
    given = parser.parse_args()
    found = record.latest(record.read(RESULTS)) if RESULTS.exists() else {}
    if given.compile:
        some = [c for c in CONFIGS if c.target.startswith(given.only)]
        found |= compiled({c.id: c for c in some if c.id not in found})
    kept.say(answer(found), text, given.json)


def compiled(missing: dict[str, lab.RunConfig]) -> dict[str, record.RunRecord]:
    """Records of configs, each added to the file as soon as it is there."""
    found = {}
    for name, config in missing.items():
        module = kept.MODULES / f"{name}.txt"
        try:
            made = compile_run(config, module=module)
        except ValueError as error:
            print(f"{config.size} for {config.target}: {error}")
            continue
        text = module.read_text() if module.exists() else ""
        found[name] = small(config, made, text)
        record.append(RESULTS, found[name])
    return found


def small(
    config: lab.RunConfig, made: record.RunRecord, module: str
) -> record.RunRecord:
    """The record with what nobody asked for, and its collectives by kind and axes."""
    if made.compiled is None:
        return kept.small(made)
    rows = made.compiled["collectives"]
    moves: dict[str, int] = {}
    for row in rows:
        key = f"{row['kind']} {'×'.join(row['axes'])}"
        moves[key] = moves.get(key, 0) + row["bytes"]
    own = {
        "moves": moves,
        "unasked": unasked(rows, implied(config)),
        "in_branches": hlo.in_branches(module),
    }
    smaller = kept.small(made)
    return dataclasses.replace(smaller, compiled=(smaller.compiled or {}) | own)


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """A row for every mechanism and target that is there."""
    rows = []
    for (target, mechanism), config in POINTS.items():
        made = found.get(config.id)
        column = (made.compiled if made else None) or {}
        extra = column.get("unasked") or []
        rows.append(
            {
                "mechanism": mechanism,
                "target": target,
                "layout": config.layout.name,
                "status": made.status if made else "not compiled",
                "reason": made.reason if made else None,
                "peak_bytes": column.get("peak_bytes"),
                "step_seconds": column.get("step_seconds"),
                "exposed_seconds": column.get("exposed_seconds"),
                "moves": column.get("moves"),
                "unasked_bytes": sum(row["unasked_bytes"] for row in extra)
                if column
                else None,
                "unasked": extra,
                "in_branches": column.get("in_branches"),
                "compile_seconds": column.get("compile_seconds"),
            }
        )
    return {"rows": rows}


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read; GB of one device in one step."""
    lines = [
        f"{'mechanism':26} {'target':14} {'GB':>6} {'seconds':>8} {'exposed':>8} "
        f"{'unasked':>8} {'in branches':>11}  GB moved"
    ]
    for row in found["rows"]:
        start = f"{row['mechanism']:26} {row['target']:14} "
        if row["peak_bytes"] is None:
            lines.append(f"{start}{row['status']} {row['reason'] or ''}")
            continue
        moves = sorted(row["moves"].items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{key} {size / 1e9:.2f}" for key, size in moves if size > 1e7)
        cells = [
            f"{size / unit:{width}.{digits}f}" if size is not None else "-".rjust(width)
            for size, unit, width, digits in (
                (row["peak_bytes"], 1e9, 6, 2),
                (row["step_seconds"], 1, 8, 4),
                (row["exposed_seconds"], 1, 8, 4),
                (row["unasked_bytes"], 1e9, 8, 2),
            )
        ]
        branches = len(row["in_branches"] or ())
        lines.append(f"{start}{' '.join(cells)} {branches:11}  {said}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
