"""The columns of the records table: name, where in the record, kind, meaning.

Bytes are per device and, for collectives, per step. ``<axis>`` columns exist for the
axes that some run communicated over, ``predicted_`` columns when some run has a
prediction, ``<convention>`` columns for the FLOP conventions some run reports.
``expert_`` columns are means over layers and steps, empty without experts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

#: Mesh axes in the order their columns and colours are given out.
AXES = ("data", "fsdp", "tensor", "context", "expert", "stage")

#: What the clock says about speed: it ranks nothing on simulated devices.
SPEED = frozenset(
    "step_seconds step_seconds_p5 step_seconds_p95 repeats tokens_per_second "
    "tokens_per_second_per_device hfu".split()
)
RANK_NOTHING = "simulated: do not rank"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
      name: the DataFrame's column.
      path: dotted place in the record; empty when computed.
      kind: text, time, flag, count, bytes, seconds, rate, number, fraction.
      heading: a few words for tables.
      meaning: one line for people.
    """

    name: str
    path: str
    kind: str
    heading: str
    meaning: str = ""

    @property
    def level(self) -> str:
        """asked, predicted, compiled, measured, provenance, or ''.

        The collective columns are compiled too, under a heading of their own.
        """
        if self.name.startswith(("loss", "tokens_per_second")):
            return "measured"
        if self.name.startswith("collective_bytes"):
            return "collectives by axis"
        return self.path.partition(".")[0] if "." in self.path else ""

    @property
    def is_speed(self) -> bool:
        """True where simulated devices give a number that ranks nothing."""
        return self.name in SPEED or self.name.startswith("mfu_")


_A, _C, _M, _P = "asked.", "compiled.", "measured.", "provenance."
_STEP = _M + "step_seconds."

COLUMNS: tuple[Column, ...] = (
    Column("id", "id", "text", "id", "digest of the config's non-default fields"),
    Column("status", "status", "text", "status", "ok, or the kind of failure"),
    Column("reason", "reason", "text", "reason", "why the status is not ok"),
    Column("family", _A + "family", "text", "family", "model family"),
    Column("size", _A + "size", "text", "size", "named size of the family"),
    Column("layout", _A + "layout", "text", "layout", "the layout as it was asked"),
    Column(
        "layout_name",
        _A + "layout_name",
        "text",
        "layout name",
        "the name alone, of records that keep it beside the layout",
    ),
    Column("mesh", _A + "mesh", "text", "mesh", "axis=size, comma separated"),
    Column("target", _A + "target", "text", "target", "the machine asked for"),
    Column("simulated", _A + "simulated", "flag", "simulated", "devices share a host"),
    Column("devices", _A + "devices", "count", "devices", "JAX's, of the mesh"),
    Column("batch", _A + "batch", "count", "batch", "sequences per step"),
    Column("length", _A + "length", "count", "length", "tokens per sequence"),
    Column("steps", _A + "steps", "count", "steps", "optimizer steps asked for"),
    Column("seed", _A + "seed", "count", "seed", "of parameters and data's order"),
    Column("mask", _A + "mask", "text", "mask", "what layers see of a document"),
    Column("routing", _A + "routing", "text", "routing", "of tokens to experts"),
    Column("remat", _A + "remat", "text", "remat", "what is computed again"),
    Column("precision", _A + "precision", "text", "precision", "of arithmetic"),
    Column("accumulate", _A + "accumulate", "count", "accumulate", "microbatches"),
    Column("optimizer", _A + "optimizer", "text", "optimizer", "its name"),
    Column(
        "learning_rate",
        _A + "learning_rate",
        "number",
        "learning rate",
        "the schedule's peak",
    ),
    Column("params", _A + "params", "count", "parameters", "with embedding and head"),
    Column(
        "params_without_embedding",
        _A + "params_without_embedding",
        "count",
        "parameters without embedding",
        "those a token is multiplied with: head, and of experts those it is sent to",
    ),
    Column(
        "tokens_per_step",
        _A + "tokens_per_step",
        "count",
        "tokens per step",
        "batch · length, over all devices",
    ),
    Column("data_digest", _A + "data.digest", "text", "data digest", "of the text"),
    Column(
        "tokenizer",
        _A + "data.tokenizer",
        "text",
        "tokenizer",
        "byte, bpe:SIZE or a file",
    ),
    Column(
        "compile_seconds",
        _C + "compile_seconds",
        "seconds",
        "compile",
        "wall time of XLA; of the cache where cache_hit",
    ),
    Column("cache_hit", _C + "cache_hit", "flag", "cache hit", "compile was cached"),
    Column(
        "argument_bytes",
        _C + "argument_bytes",
        "bytes",
        "arguments",
        "state and batch, as they rest",
    ),
    Column(
        "output_bytes",
        _C + "output_bytes",
        "bytes",
        "outputs",
        "new state and metrics, those in place included",
    ),
    Column(
        "temporary_bytes",
        _C + "temporary_bytes",
        "bytes",
        "temporaries",
        "all else while the step runs",
    ),
    Column("alias_bytes", _C + "alias_bytes", "bytes", "aliased", "outputs in place"),
    Column("peak_bytes", _C + "peak_bytes", "bytes", "peak", "by the compiler"),
    Column(
        "collective_bytes",
        _C + "collectives",
        "bytes",
        "all",
        "all kinds and axes, per device and step",
    ),
    Column("step_seconds", _STEP + "median", "seconds", "step", "median"),
    Column("step_seconds_p5", _STEP + "p5", "seconds", "p5", "5th percentile"),
    Column("step_seconds_p95", _STEP + "p95", "seconds", "p95", "95th percentile"),
    Column("repeats", _STEP + "repeats", "count", "repeats", "steps timed"),
    Column(
        "tokens_per_second",
        _M + "tokens_per_second",
        "rate",
        "tokens/s",
        "of all devices, at the median step",
    ),
    Column(
        "tokens_per_second_per_device",
        "",
        "rate",
        "tokens/s/device",
        "tokens_per_second / devices",
    ),
    Column(
        "measured_peak_bytes",
        _M + "peak_bytes",
        "bytes",
        "measured peak",
        "of the fullest device; empty where none tells, as on CPUs",
    ),
    Column("loss", _M + "loss.final", "number", "loss", "at the last step"),
    Column(
        "loss_relative_difference",
        "",
        "number",
        "difference",
        "|loss - reference| / reference, among runs that differ in layout only",
    ),
    Column("loss_reference", "", "text", "reference", "id of the median run"),
    Column(
        "held_out_bits_per_byte",
        _M + "held_out.final",
        "number",
        "held-out",
        "bits per byte at the last evaluation",
    ),
    Column("hfu", _M + "hfu", "fraction", "HFU", "hardware FLOPs utilisation"),
    Column(
        "expert_imbalance",
        _M + "experts.imbalance.mean",
        "number",
        "load imbalance",
        "rows of the busiest expert over an expert's mean",
    ),
    Column(
        "expert_dropped",
        _M + "experts.dropped.mean",
        "fraction",
        "rows dropped",
        "share of experts' rows that found no place",
    ),
    Column(
        "expert_entropy",
        _M + "experts.entropy.mean",
        "number",
        "router entropy",
        "of a token's affinities to experts, in nats",
    ),
    Column("jax", _P + "versions.jax", "text", "jax", "version"),
    Column(
        "xla_flags",
        _P + "xla_flags",
        "text",
        "XLA flags",
        "in force: the shell's and the run's",
    ),
    Column("host", _P + "host.name", "text", "host", "name of the machine that ran it"),
    Column(
        "device_kind",
        _P + "host.device_kind",
        "text",
        "device kind",
        "as JAX names the devices present, not the target's",
    ),
    Column(
        "git_commit",
        _P + "git.commit",
        "text",
        "commit",
        "of the package's checkout; empty outside one",
    ),
    Column(
        "git_dirty",
        _P + "git.dirty",
        "flag",
        "uncommitted changes",
        "the checkout differed from its commit",
    ),
    Column("started", _P + "started", "time", "started", "UTC, ISO 8601"),
    Column("run_seconds", _P + "seconds", "seconds", "run", "wall time of the run"),
    Column("environment", "environment", "text", "environment", "digest"),
)
_BY_NAME = {column.name: column for column in COLUMNS}


def column(name: str) -> Column:
    """The column of a name, those that depend on the runs included."""
    if name in _BY_NAME:
        return _BY_NAME[name]
    for prefix, path, kind, heading in (
        ("predicted_", "predicted.", "", ""),
        ("collective_bytes_", "compiled.collectives.", "bytes", ""),
        ("mfu_", "measured.mfu.", "fraction", "MFU "),
        ("flops_per_token_", "measured.flops_per_token.", "number", "FLOPs/token "),
    ):
        if name.startswith(prefix):
            rest = name.removeprefix(prefix)
            words = rest.replace("_", " ")
            for unit_word in (" seconds", " bytes"):
                words = words.removesuffix(unit_word)
            return Column(name, path + rest, kind or kind_of(rest), heading + words)
    return Column(name, "", "text", name.replace("_", " "))


def kind_of(name: str) -> str:
    """The kind a name's unit implies: ``"step_seconds" -> "seconds"``."""
    for ending, kind in (("per_second", "rate"), ("_bytes", "bytes")):
        if name.endswith(ending):
            return kind
    return "seconds" if name.endswith("seconds") else "number"


def ordered_axes(axes: Iterable[str]) -> list[str]:
    """Single axes in mesh order, then combinations, then ``unknown``."""
    return sorted(
        axes,
        key=lambda axis: (
            axis == "unknown",
            axis not in AXES,
            AXES.index(axis) if axis in AXES else 0,
            axis,
        ),
    )
