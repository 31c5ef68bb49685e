"""Does a compiled step take as long as the same step did on the clock?

Run:     python -m experiments.compiled_against_published [--compile] [--json]
Takes:   seconds from results/compiled_against_published.jsonl; with --compile about an
         hour of two CPU cores for what is not there, one row after another, resumable.
Expect:  public TPU runs that our families express, exactly or nearly, within 15 % of
         their published step in the median; the worst rows say why.

A module that was compiled here (under runs/) is priced again by today's prices. Rows of
the table that are not compiled, and why, are in `LEFT_OUT`.
"""

import dataclasses
from typing import Any

import scaling_lab as lab
from experiments import _compiled as kept
from scaling_lab.hardware import chip
from scaling_lab.models import gpt2, llama

RESULTS = kept.RESULTS / "compiled_against_published.jsonl"
RECIPES = "AI-Hypercomputer/tpu-recipes at c8cfe2f6 and 740c4ff2"
MARIN = "marin-community/marin adamw_llama_scaling at 38359f78 and 0343cb27"
#: Flags of these recipes, from MaxText's benchmarks/xla_flags_library.py at 05d3525e;
#: of the 70B on Ironwood, from its run_recipe.sh at bc90a992.
GATHERS = chip("tpu-v6e").flags["overlap"]
OVERLAP = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true "
    "--xla_tpu_data_parallel_opt_different_sized_ops=true"
)
IRONWOOD = chip("tpu-7x").flags["overlap"]
QKV = "save:attention/query,attention/key,attention/value"


@dataclasses.dataclass(frozen=True)
class Published:
    """A row of the public table as a config of ours.

    Attributes:
      run: of the table. model: what people call it. seconds: of its step.
      differs: what our step does otherwise; empty of an exact row.
      why: where the difference in time lies, read from the module by verb.
    """

    run: str
    model: str
    seconds: float
    config: lab.RunConfig
    differs: str = ""
    why: str = ""


def config(size: str, model: Any, target: str, layout: str, **words: Any):
    """A config of any dims."""
    family = type(model).__module__.rpartition(".")[2]
    base = lab.configure(family, "toy", layout, target, **words)
    return dataclasses.replace(base, model=model, size=size)


LLAMA = llama.SIZES
GPT3 = gpt2.Config(96, 12_288, 96, 96, 128, 49_152, 50_304, length=2048)
SMALL = (
    llama.Config(6, 512, 8, 8, 64, 1792, 128_256),
    llama.Config(24, 1024, 16, 8, 64, 3584, 128_256),
)
LEVANTER = (
    "the compiler's flags are its own; its splash kernel refused heads of 64, so "
    "attention was Levanter's in jnp, its loss writes all logits, and norms of every "
    "parameter are taken each 10 steps"
)
ROWS = (
    Published(
        "1a6cdf1b50",
        "gpt3-175b",
        17.182,
        config(
            *("175b", GPT3, "tpu-v6e:16x16", "fsdp=256"),
            **{"batch": 768, "length": 2048, "remat": "full"},
            xla_flags=f"{GATHERS} {OVERLAP}",
        ),
    ),
    Published(
        "88bd9b25c8",
        "llama3.1-70b",
        12.2,
        config(
            *("70b", LLAMA["70b"], "tpu-7x:4x4x4", "fsdp=128"),
            **{"batch": 256, "length": 8192, "remat": f"{QKV},attention/attend"},
            xla_flags=IRONWOOD,
        ),
    ),
    Published(
        "388dfcc22b",
        "llama3.1-70b",
        12.27,
        config(
            *("70b", LLAMA["70b"], "tpu-7x:4x8x8", "fsdp=512"),
            **{"batch": 1024, "length": 8192, "remat": f"{QKV},attention/attend"},
            xla_flags=IRONWOOD,
        ),
    ),
    Published(
        "cc95ced1be",
        "llama2-70b",
        9.052,
        config(
            *("2-70b", LLAMA["2-70b"], "tpu-v6e:16x16", "fsdp=256"),
            **{"batch": 512, "length": 4096, "remat": "full"},
        ),
        "projections are made again, there fetched from the host; the compiler's flags "
        "are its own, and one of the recipe's is unknown to it (xla_sc_disjoint_spmem)",
        "1.6 s of collectives that nothing hides; SparseCores run them there",
    ),
    Published(
        "27c4a3b8aa",
        "llama3.1-405b",
        131.474,
        config(
            *("405b", LLAMA["405b"], "tpu-v5p:8x8x8", "fsdp=512"),
            **{"batch": 1024, "length": 8192, "remat": "full"},
            accumulate=2,
        ),
        "attention is made again, there fetched from the host; the sequences of a "
        "device come one by one, since their layers' inputs fit no other way; the "
        "compiler's flags are its own",
        "weights are gathered for both sequences, 12 s that nothing hides",
    ),
    Published(
        "12e23d9c8a",
        "llama-130m",
        0.2269,
        config(
            *("130m", SMALL[0], "tpu-v5p:2x2x4", "fsdp=16"),
            **{"batch": 128, "length": 4096, "remat": "full"},
        ),
        LEVANTER,
        "logits of a device are 16.8 GB there, 7 ms a pass; here never whole",
    ),
    Published(
        "aab6fb4e35",
        "llama-520m",
        1.8913,
        config(
            *("520m", SMALL[1], "tpu-v5p:2x2x4", "fsdp=16"),
            **{"batch": 256, "length": 4096, "remat": "full"},
        ),
        LEVANTER,
    ),
)
CONFIGS = [row.config for row in ROWS]
#: Public TPU rows that no config of ours says nearly, by run; what is nearest to those
#: of MaxText's tables is compiled in `maxtext_tables`.
LEFT_OUT = {
    "c9149163da": "mistral-7b on 8 v6e keeps its layers' inputs on the host; without "
    "that it needs 33.9 GiB a device and has 31.3",
    "94cb8ac7f8": "int8 products",
    "8125e48b33": "int8 products",
    "18c45c7761": "float8 products",
    "9be30f37dd": "float8 products",
    "a88c674b95": "a context axis of 8",
    "febc18cb0d": "a context axis of 8, and float8 products",
    "f8a5b2c49a": "gemma3: local layers between global ones",
    "675aca8ca8": "gemma3, as above",
    "831a945067": "gemma3, as above",
    "1ad8327591": "experts",
    "ff588d97d4": "experts",
    "480b1e06d6": "experts and latent attention",
    "57ce84c3bb": "experts and latent attention",
    "ee9ff0f4f5": "experts",
    "5da4223aaa": "experts",
    "f35713aafc": "experts",
    "abb545bf17": "experts",
}


def main() -> None:
    given = kept.arguments(__doc__)
    found = kept.records(CONFIGS, RESULTS, compiles=given.compile)
    kept.say(answer(found), text, given.json)


def answer(found: dict[str, Any]) -> dict[str, Any]:
    """Rows with both times, and the median errors of exact rows and of all."""
    rows = []
    for row in ROWS:
        record = found.get(row.config.id)
        column = (record.compiled or {}) if record else {}
        rows.append(
            kept.beside(row, record)
            | {
                "scheduled_seconds": column.get("scheduled_seconds"),
                "modelled_seconds": column.get("modelled_seconds"),
                "why": row.why,
                "by_verb": column.get("by_verb"),
                "status": record.status if record else "not compiled",
            }
        )
    said = [row for row in rows if row["ratio"] is not None]
    return {
        "rows": rows,
        "exact": kept.errors(row["ratio"] for row in said if not row["differs"]),
        "exact_and_near": kept.errors(row["ratio"] for row in said),
        "left_out": LEFT_OUT,
    }


def text(found: dict[str, Any]) -> str:
    """The answer as tables to read."""
    lines = [
        f"{'run':11} {'model':14} {'target':14} {'published':>9} {'compiled':>9} "
        f"{'ratio':>6}   {'compiler':>9} {'priced':>8} {'exposed':>8}"
    ]
    for group, title in ((False, "exact"), (True, "near")):
        lines.append(title)
        lines += [_line(row) for row in found["rows"] if bool(row["differs"]) == group]
    for name, words in (("exact", "exact"), ("exact_and_near", "exact and near")):
        lines.append(f"{words}: {kept.error_text(found[name])}")
    known = [row for row in found["rows"] if row["ratio"] is not None]
    lines.append("the three worst:")
    for row in sorted(known, key=lambda row: -abs(row["ratio"] - 1))[:3]:
        lines += [f"  {row['run']} {row['model']}: {row['why']}", _where(row)]
    lines.append("near rows differ:")
    lines += [f"  {r['run']}: {r['differs']}" for r in found["rows"] if r["differs"]]
    lines.append("left out:")
    lines += [f"  {run}: {why}" for run, why in found["left_out"].items()]
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    start = f"{row['run']:11} {row['model']:14} {row['target']:14}"
    if row["ratio"] is None:
        return f"{start} {row['published_seconds']:9.3f} {row['status']}"
    return (
        f"{start} {row['published_seconds']:9.3f} {row['step_seconds']:9.3f} "
        f"{row['ratio']:6.2f}   {row['scheduled_seconds']:9.3f} "
        f"{row['modelled_seconds']:8.3f} {row['exposed_seconds']:8.3f}"
    )


def _where(row: dict[str, Any]) -> str:
    """The verbs that take longest."""
    found = (row["by_verb"] or {}).items()
    verbs = sorted(found, key=lambda pair: -pair[1]["seconds"])[:6]
    return "    " + ", ".join(f"{v} {each['seconds']:.3g} s" for v, each in verbs)


if __name__ == "__main__":
    main()
