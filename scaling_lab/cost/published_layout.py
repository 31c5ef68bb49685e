"""A published row's layout: axes that multiply to the devices, whatever its habits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scaling_lab.cost.published import Row


def layout(row: Row, devices: float, per_chip: int) -> dict[str, Any]:
    """The axes' columns.

    Raises:
      ValueError: the axes contradict the number of chips, however they are read.
    """
    tensor, stage = row.size("tensor"), row.size("stage")
    context = row.size("context")
    rest = devices / (tensor * stage * context)
    if rest < 1 or rest != int(rest):
        context, rest = _reread(row, devices, tensor, stage, context)
    data, fsdp = _replicas(row, rest, context, per_chip)
    zero = _zero_stage(row)
    if zero is None:
        zero = 3.0 if fsdp > 1 else 1.0
        row.say(f"zero_stage blank: {zero:g}")
    if zero >= 3 and fsdp == 1 and data > 1:
        data, fsdp = 1.0, data
    if zero < 3 and fsdp > 1:
        zero = 3.0
    return {
        "data": data,
        "fsdp": fsdp,
        "zero_stage": zero,
        "tensor": tensor,
        "sequence_parallel": float(_sequence_parallel(row, tensor)),
        "stage": stage,
        "virtual_stages": _virtual(row, stage),
        "context": context,
        "expert": min(row.size("expert"), devices / stage),
        "microbatch_seqs": _microbatch(row, data * fsdp, stage),
    }


def _reread(
    row: Row, devices: float, tensor: float, stage: float, context: float
) -> tuple[float, float]:
    """Context may be counted inside data, or tensor inside context."""
    rest = devices / (tensor * stage)
    if rest >= 1 and rest == int(rest) and context > 1:
        row.say(f"context={context:g} does not divide the chips: read as part of data")
        return 1.0, rest
    raise ValueError(
        f"tensor={tensor:g} × stage={stage:g} × context={context:g} do not divide "
        f"{devices:g} devices (column chips); correct one of them"
    )


def _replicas(
    row: Row, rest: float, context: float, per_chip: int
) -> tuple[float, float]:
    """Replicas and the ways parameters are sharded, which multiply to ``rest``."""
    data, fsdp = row.size("data"), row.size("fsdp")
    if data * fsdp == rest:
        return data, fsdp
    if data == rest and rest % fsdp == 0:
        if fsdp > 1:
            row.say(f"fsdp={fsdp:g} read as a subgroup of data={data:g}")
        return rest / fsdp, fsdp
    if fsdp == rest:
        row.say(f"data={data:g} read as a subgroup of fsdp={fsdp:g}")
        return 1.0, fsdp
    expert = row.size("expert")
    for factor, what in (
        (context, "context"),
        (expert, "expert"),
        (per_chip, "devices a chip"),
    ):
        if factor > 1 and data * fsdp == rest * factor and data % factor == 0:
            row.say(f"data={data:g} read as counting {what}={factor:g} too")
            return data / factor, fsdp
        if factor > 1 and data * fsdp * factor == rest:
            row.say(f"{what}={factor:g} read as another way of fsdp")
            return data, fsdp * factor
    if row.number("data") is None or (data == 1 and rest % fsdp == 0):
        row.say(f"data read as {rest / fsdp:g}, what the other axes leave of the chips")
        return rest / fsdp, fsdp
    raise ValueError(
        f"data={data:g} and fsdp={fsdp:g} leave {rest:g} replicas unexplained, "
        "whichever is the subgroup; correct data, fsdp, or the chips"
    )


def _zero_stage(row: Row) -> float | None:
    text = row.text("zero_stage").lower().replace("_", "-")
    text = text.removeprefix("zero").removeprefix("-").strip()
    if text in ("none", "no", ""):
        return 0.0 if text else None
    if text not in ("0", "1", "2", "3", "0.0", "1.0", "2.0", "3.0"):
        raise ValueError(f"zero_stage={text!r} is none of 0, 1, 2 and 3")
    return float(text)


def _sequence_parallel(row: Row, tensor: float) -> bool:
    if tensor == 1:
        return False
    text = row.text("technique").lower()
    return "without sequence" not in text and "(2022)" not in row.text("framework")


def _virtual(row: Row, stage: float) -> float:
    virtual, layers = row.size("virtual_stages"), row.number("layers")
    if layers and stage * virtual > layers:
        raise ValueError(
            f"stage={stage:g} × virtual_stages={virtual:g} are more than "
            f"layers={layers:g}; correct one of them"
        )
    if virtual == 1 and stage > 1 and "interleaved" in row.text("schedule").lower():
        row.say("interleaved without a count: 2 virtual stages")
        return 2.0
    return virtual if stage > 1 else 1.0


def _microbatch(row: Row, replicas: float, stage: float) -> float:
    sequences = row.needed("global_batch_tokens") / row.needed("seq_len") / replicas
    given = row.number("microbatch_seqs")
    if given:
        if given > sequences:
            row.say(f"microbatch_seqs={given:g}: a replica has only {sequences:g}")
        elif sequences % given:
            row.say(
                f"microbatch_seqs={given:g} does not divide a replica's {sequences:g}: "
                f"priced as {sequences / given:.3g} microbatches"
            )
        return min(given, sequences)
    if stage > 1:
        row.say("microbatch_seqs blank: 1, as pipelines do")
        return min(1.0, sequences)
    row.say(f"microbatch_seqs blank: {sequences:g}, the whole share of a replica")
    return sequences
