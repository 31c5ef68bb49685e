"""Published training runs as points: their habits normalised, what is assumed said.

The columns are those of the table of published runs (see `COLUMNS`). A blank or a 0
means 1 where a size is meant; ``fsdp`` may be a subgroup of ``data``, ``expert`` of
``data·context``; a chip may count as two devices. What a row leaves out is filled in
and written beside it; a row that cannot be read keeps its reason.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scaling_lab.cost.known import Known, known
from scaling_lab.cost.machines import machine_columns, peak_of
from scaling_lab.cost.points import PRECISIONS, SCHEDULES, STACKS, Points
from scaling_lab.cost.published_wires import node_of, on_the_wires
from scaling_lab.cost.remats import remat_of
from scaling_lab.hardware import Chip, chip, chip_for

#: Columns that are read; others are carried along.
COLUMNS = (
    "run source framework model params active_params layers d_model n_heads kv_heads "
    "head_dim d_ff mlp vocab n_experts top_k seq_len global_batch_tokens "
    "microbatch_seqs hardware chips data fsdp zero_stage tensor stage virtual_stages "
    "context expert schedule precision remat technique"
).split()
#: Without these a step has no size, and nothing else in a row says them.
NEEDED = "seq_len global_batch_tokens hardware chips".split()
#: What a line has beyond its heading; see `tables.read_table`.
SURPLUS = "cells beyond the heading"
#: Words that stand for a blank cell.
_BLANK = ("nan", "na", "n/a", "#n/a", "<na>", "null")
#: Software that wrote attention's scores to memory, as by ``Megatron-LM (2021)``.
_BEFORE_FUSED = re.compile(r"\(20(1\d|2[0-2])\)|megatron\+deepspeed")
#: Above this no size of a run is meant.
_MOST = 1e18


@dataclasses.dataclass(frozen=True)
class Rows:
    """What was read of a table.

    Attributes:
      points: of the rows that could be read, in order.
      index: their positions in the table.
      assumptions: one sentence a row of the table; empty where nothing was assumed.
      reasons: why a row could not be read; ``None`` where it could.
      labels: what to call each row in a message.
    """

    points: Points | None
    index: np.ndarray
    assumptions: list[str]
    reasons: list[str | None]
    labels: list[str]


def read_rows(table: pd.DataFrame) -> Rows:
    """Reads every row that can be read.

    Raises:
      ValueError: the table lacks a column that every row needs.
    """
    missing = [name for name in NEEDED if name not in table.columns]
    if missing:
        raise ValueError(
            f"the table has no column {', '.join(missing)}; a step has no size without "
            f"{', '.join(NEEDED)}"
        )
    points, index, assumptions, reasons, labels = [], [], [], [], []
    for position, (at, record) in enumerate(
        zip(table.index, table.to_dict("records"), strict=True)
    ):
        row = Row(record)
        number = at if isinstance(at, int) else position
        labels.append(f"row {number + 1} ({row.label})")
        try:
            columns = row.columns()
        except (ValueError, KeyError, TypeError) as error:
            reasons.append(f"{labels[-1]}: {error}")
        else:
            points.append(columns)
            index.append(position)
            reasons.append(None)
        assumptions.append("; ".join(row.said))
    joined = None
    if points:
        joined = Points(**{k: np.asarray([c[k] for c in points]) for k in points[0]})
    return Rows(joined, np.asarray(index, int), assumptions, reasons, labels)


class Row:
    """One row being read; `said` collects what was assumed."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.said: list[str] = []
        self.known = known(self.text("model")) or Known("")

    @property
    def label(self) -> str:
        """What to call the row in a message."""
        return self.text("run") or self.text("model") or "unnamed"

    def say(self, sentence: str) -> None:
        """Writes an assumption down, once."""
        if sentence not in self.said:
            self.said.append(sentence)

    def text(self, name: str) -> str:
        """A cell as text; blank is ''."""
        value = self.record.get(name)
        text = "" if value is None or value != value else str(value).strip()
        return "" if text.casefold() in _BLANK else text

    def number(self, name: str) -> float | None:
        """A cell as a number; ``None`` where it is blank.

        Raises:
          ValueError: it is neither.
        """
        text = self.text(name)
        if not text:
            return None
        try:
            value = float(text.replace(",", ""))
        except ValueError:
            raise ValueError(f"{name}={text!r} is not a number") from None
        if not 0 <= value <= _MOST:
            raise ValueError(
                f"{name}={text!r} must be a number of 0 or more, up to {_MOST:g}"
            )
        return value

    def needed(self, name: str) -> float:
        """A number that a step has no size without.

        Raises:
          ValueError: it is blank or 0.
        """
        value = self.number(name)
        if not value:
            said = "blank" if value is None else "0"
            raise ValueError(f"{name} is {said}, and a step has no size without it")
        return value

    def size(self, name: str) -> float:
        """A size where blank or 0 means 1."""
        return self.number(name) or 1.0

    def columns(self) -> dict[str, Any]:
        """The row as one point's columns.

        Raises:
          ValueError: it cannot be read; the message says why.
        """
        from scaling_lab.cost.published_layout import layout
        from scaling_lab.cost.published_model import model

        if surplus := self.text(SURPLUS):
            raise ValueError(f"it has more cells than the heading: {surplus!r}")
        found = self.chip()
        shape = model(self)
        machine = machine_columns(found, self.needed("chips"))
        if node := node_of(self):
            machine["scale_up"] = node * found.devices_per_chip
        precision = self.precision()
        peak, wide = peak_of(found, precision)
        if peak == wide and precision not in ("bfloat16", "float16"):
            self.say(f"{precision} on {found.name} priced at its 16-bit peak")
        per = found.devices_per_chip
        placed = layout(self, machine["devices"], per)
        placed["stack"] = STACKS.index(self.stack())
        return {
            **shape,
            **placed,
            **machine,
            **remat_of(self, shape, placed, machine),
            "precision": PRECISIONS.index(precision),
            "flops_per_second": peak / per,
            "bf16_flops_per_second": wide / per,
            "overlap": float(self.overlap()),
            "flash": float(self.flash(found)),
            "schedule": SCHEDULES.index(self.schedule()),
            **self.widths(precision),
            **on_the_wires(self),
        }

    def chip(self) -> Chip:
        """The chip, by our name of it, another, or what its driver calls it.

        Raises:
          ValueError: the cell is blank, or nobody knows the chip.
        """
        text = self.text("hardware")
        if not text:
            raise ValueError("hardware is blank, and a step has no size without it")
        try:
            return chip("-".join(text.lower().replace("_", " ").split()))
        except ValueError:
            found = chip_for(text) or chip_for(f"NVIDIA {text}")
            if found is None:
                raise
            self.say(f"hardware {text!r} read as {found.name}")
            return found

    def precision(self) -> str:
        """The precision of the products, by the first word that names one."""
        text = self.text("precision").lower()
        words = {
            "nvfp4": "nvfp4",
            "fp4": "nvfp4",
            "mxfp8": "mxfp8",
            "fp8-mx": "mxfp8",
            "fp8": "float8",
            "float8": "float8",
            "f8": "float8",
            "e4m3": "float8",
            "e5m2": "float8",
            "int8": "int8",
            "bf16": "bfloat16",
            "bfloat16": "bfloat16",
            "fp16": "float16",
            "float16": "float16",
            "tf32": "float32",
            "fp32": "float32",
            "float32": "float32",
        }
        found = [(text.find(w), -len(w), w) for w in words if w in text]
        if not found:
            self.say(f"precision {text!r} read as bfloat16")
            return "bfloat16"
        return words[min(found)[2]]

    def stack(self) -> str:
        """The software, by what the framework is called."""
        text = f"{self.text('framework')} {self.text('technique')}".lower()
        if any(w in text for w in ("jax", "maxtext", "paxml", "levanter", "t5x")):
            return "xla"
        if any(w in text for w in ("megatron", "megascale", "nemo", "primus", "neox")):
            return "megatron"
        if "eager" not in text and ("torch.compile" in text or "compile" in text):
            return "torch_compile"
        torch = ("torch", "deepspeed", "composer", "fsdp", "foundry", "nanotron")
        if any(w in text for w in (*torch, "huggingface", "lightning")):
            return "torch_eager"
        self.say("software not recognised: priced as the average one")
        return "unknown"

    def overlap(self) -> bool:
        """Whether tensor-parallel communication is said to overlap, or does so."""
        words = self.text("technique").lower()
        if any(w in words for w in ("async", "overlap")):
            return True
        bridge = "bridge" in self.text("framework").lower()
        if bridge and self.size("tensor") > 1:
            self.say("tensor-parallel communication overlapped, as its recipes have it")
        return bridge

    def flash(self, found: Chip) -> bool:
        """Whether attention is fused; before 2022 it was not."""
        text = f"{self.text('framework')} {self.text('remat')}".lower()
        old = found.name == "v100" or _BEFORE_FUSED.search(text) is not None
        if old or "core attention" in text:
            self.say("attention not fused: the software is older than it")
            return False
        if self.known.sinks:
            self.say("attention not fused: it has sinks, which fused kernels lacked")
            return False
        return True

    def schedule(self) -> str:
        """The pipeline schedule."""
        text = self.text("schedule").lower()
        if "zero" in text:
            return "zero_bubble"
        if "interleaved" in text or self.size("virtual_stages") > 1:
            return "interleaved"
        if text and not any(word in text for word in ("gpipe", "1f1b", "none")):
            self.say(f"schedule {text!r} read as 1f1b")
        return "gpipe" if "gpipe" in text else "1f1b"

    def widths(self, precision: str) -> dict[str, float]:
        """Bytes of a parameter, a gradient and the optimizer's state."""
        stack = self.stack()
        if stack in ("megatron", "unknown"):
            return {"param_bytes": 2.0, "grad_bytes": 4.0, "optimizer_bytes": 12.0}
        if "pure" in self.text("technique").lower():
            return {"param_bytes": 2.0, "grad_bytes": 2.0, "optimizer_bytes": 4.0}
        grads = 2.0 if stack == "xla" else 4.0
        return {"param_bytes": 4.0, "grad_bytes": grads, "optimizer_bytes": 8.0}
