"""Are GPU steps, which their compiler gives no time, priced as they run?

Run:     python -m experiments.gpu_prices [--compile] [--fit] [--json]
Takes:   seconds from results/gpu_prices.jsonl; with --compile about half an hour of two
         CPU cores; with --fit some minutes more.
Expect:  on rows that were left out of the fit a median error within 15 %.

Every second row, by the order of their names, is fitted; the others judge. What is
fitted are the shares of `compile.price.Efficiencies` in `FREE`, each pulled towards
what was believed before; the rest is assumed. The frozen values stand in
`compile.price.FITTED`. Most rows are PyTorch's: products, attention, memory and links
are the same machine's, the program is ours.
"""

import argparse
import dataclasses
import json
from typing import Any

import numpy as np

from experiments import _compiled as kept
from experiments.compiled_against_published import Published, config
from scaling_lab.compile import links, price
from scaling_lab.compile._groups import within_slice
from scaling_lab.compile._module import Module
from scaling_lab.compile._names import Names
from scaling_lab.compile.schedule import Schedule
from scaling_lab.hardware import parse_target
from scaling_lab.models import gpt2, llama

RESULTS = kept.RESULTS / "gpu_prices.jsonl"
FOUNDRY = "mosaicml/llm-foundry scripts/train/benchmarking/README.md"
ALL = (
    "save:attention/query,attention/key,attention/value,attention/attend,"
    "attention/out,ffn/gate,ffn/up,ffn/down"
)
#: What eager PyTorch keeps of a layer without recomputation, or nearly: what products
#: give. XLA would keep each elementwise step between them as well, which fits nowhere.
KEPT = ALL.replace("ffn/gate,", "")
#: PyTorch gathers weights beside compute. XLA does so for an H100 unasked, as in each
#: of its rows here; for an A100 it is asked.
BESIDE = "--xla_gpu_enable_latency_hiding_scheduler=true"
MPT = "MPT in PyTorch: ALiBi for learned positions, no biases, Lion for AdamW"


def mpt(
    run: str, seconds: float, dims: tuple[int, int, int], target: str, *asked: Any
) -> Published:
    """A row of llm-foundry's tables.

    Args:
      dims: layers, width, heads. asked: tokens of a step, length, sequences of a
        microbatch, remat.
    """
    tokens, length, microbatch, remat = asked
    layers, width, heads = dims
    devices = parse_target(target).devices
    assert devices is not None
    batch = tokens // length
    whole = (layers, width, heads, heads, width // heads, 4 * width, 50_368)
    found = config(
        *(f"mpt-{layers}x{width}", gpt2.Config(*whole, length=length)),
        *(target, f"fsdp={devices}"),
        **{"batch": batch, "length": length, "remat": remat},
        accumulate=batch // devices // microbatch,
        xla_flags=BESIDE if target.startswith("a100") else "",
    )
    return Published(run, found.size, seconds, found, MPT)


B1, B3, B7 = (24, 2048, 16), (32, 2560, 20), (32, 4096, 32)
B13, B30 = (40, 5120, 40), (48, 7168, 56)
GPT_126M = gpt2.Config(12, 768, 12, 12, 64, 3072, 50_304, length=2048)
ROWS = sorted(
    (
        mpt("f0db5f1139", 0.63078, B1, "h100:1x8", 229_376, 2048, 14, KEPT),
        mpt("bb48a782e6", 0.92248, B1, "h100:8x8", 2_621_440, 2048, 20, KEPT),
        mpt("0f58870e5a", 2.9762, B1, "h100:1x8", 917_504, 4096, 7, KEPT),
        mpt("018532db05", 1.15456, B7, "h100:1x8", 98_304, 2048, 6, KEPT),
        mpt("06a5a0dab5", 12.84642, B7, "h100:1x8", 1_048_576, 1024, 64, "full"),
        mpt("0bc27caae0", 15.22146, B7, "h100:1x8", 1_048_576, 4096, 16, "full"),
        mpt("17ebb82ddb", 27.1498, B30, "h100:2x8", 983_040, 2048, 10, "full"),
        mpt("01bbee5e81", 37.26863, B30, "h100:4x8", 2_752_512, 2048, 14, "full"),
        mpt("558cc55e76", 5.43236, B13, "a100:1x8", 98_304, 2048, 2, KEPT),
        mpt("a4a3c0292a", 12.99355, B3, "a100:1x8", 983_040, 4096, 5, KEPT),
        mpt("802212ada6", 5.59099, B1, "a100:1x8", 917_504, 2048, 14, KEPT),
        Published(
            "5ad6da5631",
            "llama2-7b",
            0.721,
            config(
                *("2-7b", llama.SIZES["2-7b"], "h100:1x8", "fsdp=8"),
                **{"batch": 16, "length": 4096, "remat": ALL},
            ),
            "layers are not scanned there (NVIDIA/JAX-Toolbox at 740c4ff2)",
        ),
        Published(
            "528b2a705f",
            "llama2-13b",
            3.78908,
            config(
                *("2-13b", llama.SIZES["2-13b"], "a100:8x8", "fsdp=64"),
                **{"batch": 128, "length": 4096, "remat": ALL},
                xla_flags=BESIDE,
            ),
            "PyTorch, eager (pytorch/torchtitan docs/performance.md at 157a12c56)",
        ),
        Published(
            "a9ee342768",
            "gpt-126m",
            0.1364,
            config(
                *("126m", GPT_126M, "a100:8x8", "ddp"),
                **{"batch": 256, "length": 2048, "remat": "none"},
            ),
            "Pax without fused attention (NVIDIA/JAX-Toolbox at 12d19d5c)",
        ),
    ),
    key=lambda row: row.run,
)
CONFIGS = [row.config for row in ROWS]
FITTED, JUDGES = ROWS[::2], ROWS[1::2]
#: What is fitted: the share, and the spread of the logarithm that is believed. Of
#: products each chip reaches its own: an H100 that multiplies dense matrices for
#: seconds meets its power limit, and lowers its clock.
FREE = {"matmul": 0.15, "attention": 0.2, "memory": 0.1, "links": 0.15}
#: What was believed before any row.
BELIEVED = price.Efficiencies(
    matmul=0.78,
    matmul_depth=96.0,
    attention=0.55,
    links=0.82,
    link_half_bytes=6e7,
    hop_seconds=4e-6,
    launch_seconds=2e-6,
    host_bytes_per_second=5e10,
    source=(
        "assumed: 370 of 450 GB/s by large all-reduces and 150 at 58 MB (jax-ml/"
        "scaling-book gpus.md); products at about 770 of 989 TFLOP/s"
    ),
)
#: A row's own unexplained spread: what another program does otherwise.
NOISE = 0.08
#: What was fitted last, and how well it judges.
FITS = kept.RESULTS / "gpu_prices_fit.json"


class Parsed:
    """A row's scheduled module, parsed once and priced often."""

    def __init__(self, row: Published, text: str):
        target = parse_target(row.config.target)
        axes = row.config.placed_layout.mesh
        assert target.chip is not None
        self.chip = target.chip.name
        self._physics = price.physics(target.chip)
        self._module = Module(text)
        self._names = Names(self._module)
        self._meshes = within_slice(text, axes), axes
        self._links = links.of_axes(axes, target)

    def seconds(self, reached: price.Efficiencies) -> float:
        """Of its step."""
        facts = self._physics, reached
        schedule = Schedule(self._module, self._meshes, self._links, facts, self._names)
        return schedule.seconds


def fit(rows: list[Published]) -> dict[str, price.Efficiencies]:
    """Each chip's shares that bring rows nearest to their clocks.

    Gauss-Newton in logarithms, from what was believed.

    Raises:
      FileNotFoundError: a row's module is not here; --compile makes it.
    """
    modules = [
        Parsed(row, (kept.MODULES / f"{row.config.id}.txt").read_text()) for row in rows
    ]
    clock = np.log([row.seconds for row in rows])
    chips = sorted({module.chip for module in modules})
    slots = [("matmul", chip) for chip in chips]
    slots += [(name, "") for name in FREE if name != "matmul"]
    believed = np.log([getattr(BELIEVED, name) for name, _ in slots])
    spread = np.array([FREE[name] for name, _ in slots])

    def of(chip: str, logs: np.ndarray) -> price.Efficiencies:
        shares = zip(slots, np.minimum(np.exp(logs), 1.0).tolist(), strict=True)
        mine = {name: share for (name, whose), share in shares if whose in ("", chip)}
        return dataclasses.replace(BELIEVED, **mine)

    def missed(logs: np.ndarray) -> np.ndarray:
        said = np.log([each.seconds(of(each.chip, logs)) for each in modules])
        return np.concatenate([(said - clock) / NOISE, (logs - believed) / spread])

    logs = believed.copy()
    for _ in range(4):
        here = missed(logs)
        steps = np.eye(len(slots)) * 0.02
        slope = np.stack([(missed(logs + each) - here) / 0.02 for each in steps], 1)
        logs = logs - np.linalg.lstsq(slope, here, rcond=None)[0]
    return {chip: of(chip, logs) for chip in chips}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--compile", action="store_true", help="what is not there")
    parser.add_argument("--fit", action="store_true", help="fit again, and keep it")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = kept.records(CONFIGS, RESULTS, compiles=given.compile)
    if given.fit:
        fitted = fit([row for row in FITTED if row.config.id in found])
        shares = {
            chip: {name: round(getattr(each, name), 3) for name in FREE}
            for chip, each in fitted.items()
        }
        FITS.write_text(json.dumps(shares, indent=1) + "\n")
        print(f"fitted, to stand in compile.price: {shares}")
    kept.say(answer(found), text, given.json)


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """Rows with both times, and the errors of both halves."""
    rows = [
        kept.beside(row, found.get(row.config.id))
        | {"half": "fitted" if row in FITTED else "left out"}
        for row in ROWS
    ]
    said = [row for row in rows if row["ratio"] is not None]
    return {
        "rows": rows,
        **{
            half: kept.errors(row["ratio"] for row in said if row["half"] == half)
            for half in ("fitted", "left out")
        },
    }


def text(found: dict[str, Any]) -> str:
    """The answer as a table to read."""
    lines = [
        f"{'run':11} {'model':14} {'target':9} {'half':9} {'published':>9} "
        f"{'compiled':>9} {'ratio':>6} {'exposed':>8} {'hidden':>8}"
    ]
    for row in found["rows"]:
        start = (
            f"{row['run']:11} {row['model']:14} {row['target']:9} {row['half']:9} "
            f"{row['published_seconds']:9.3f}"
        )
        if row["ratio"] is None:
            lines.append(f"{start} not compiled")
            continue
        lines.append(
            f"{start} {row['step_seconds']:9.3f} {row['ratio']:6.2f} "
            f"{row['exposed_seconds']:8.3f} {row['hidden_seconds']:8.3f}"
        )
    for half in ("fitted", "left out"):
        lines.append(f"{half}: {kept.error_text(found[half])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
