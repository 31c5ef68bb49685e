"""What cannot be, and why: the laws that a candidate must obey.

A law is a name and a mask; the same laws as `layouts.legality`, for many at once, and
those of axes that nothing trains on here yet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scaling_lab.plan.question import Question

#: Share of the places in a pipeline that layers fill, at least: embedding and head
#: take the rest (126 layers on 8 or 16 stages, 61 on 4, 94 on 8 are common).
NEARLY = 0.95

Table = dict[str, np.ndarray]
Law = tuple[str, np.ndarray]


def of_meshes(question: Question, table: Table) -> Iterator[Law]:
    """Laws of a mesh alone: each a sentence and where it is broken."""
    model, tensor = question.shape, table["tensor"]
    for letter, size, words in (
        ("N", model.n_heads, "query heads"),
        ("F", model.d_ff, "feed-forward width"),
        ("F", model.expert_d_ff, "expert width"),
        ("F", model.shared_d_ff, "shared expert width"),
        ("V", model.vocab, "vocabulary"),
    ):
        said = f"tensor does not divide {letter}={size} ({words})"
        yield said, size % tensor != 0
    keys = model.kv_heads
    said = f"tensor neither divides nor is a multiple of K={keys} (key-value heads)"
    yield said, (keys % tensor != 0) & (tensor % keys != 0)
    joined = scale_up(question)
    if not question.wide_tensor:
        said = f"tensor leaves the {joined} devices of one scale-up network"
        yield said, joined % tensor != 0
    yield f"fsdp does not divide D={model.d_model}", model.d_model % table["fsdp"] != 0
    said = f"stage does not divide L={model.layers}, nor nearly"
    yield said, ~_nearly_even(model.layers, table["stage"])
    halves = np.where(table["context"] > 1, 2 * table["context"], 1)
    said = f"context does not cut {question.length} positions into equal halves"
    yield said, question.length % halves != 0
    yield from _experts(question, table)
    replicas = table["data"] * table["fsdp"]
    said = f"data × fsdp does not divide a batch of {question.batch} sequences"
    yield said, question.batch % replicas != 0


def of_attention(question: Question, table: Table) -> Iterator[Law]:
    """Laws of attention over a divided sequence: heads enough to exchange."""
    parts = table["context"] * table["tensor"]
    ulysses, heads = table["ulysses"] == 1, question.shape.n_heads
    said = "positions are exchanged over a context axis"
    yield said, ulysses & (table["context"] == 1)
    said = f"context × tensor does not divide N={heads} (query heads)"
    yield said, ulysses & (heads % parts != 0)


def of_stages(question: Question, table: Table) -> Iterator[Law]:
    """Laws of a schedule: pieces divide the layers, and the pipeline can be filled."""
    stages, pieces = table["stage"], table["pieces"]
    said = "stage × pieces do not divide the layers, nor nearly"
    yield said, ~_nearly_even(question.shape.layers, stages * pieces)
    count = microbatches(question, table)
    yield "fewer microbatches than stages", (stages > 1) & (count < stages)
    said = "interleaving wants microbatches in multiples of the stages"
    yield said, (pieces > 1) & (count % stages != 0)


def of_state(question: Question, table: Table) -> Iterator[Law]:
    """Laws of ZeRO: something to divide over, and it divides."""
    zero, data = table["zero"], table["data"]
    width = question.shape.d_model
    wide = (zero == 1) | (zero == 2)
    yield "ZeRO-1 and 2 want a data axis", wide & (data == 1)
    yield "ZeRO-3 is the fsdp axis", (zero == 3) != ((table["fsdp"] > 1) & ~wide)
    over = table["data"] * table["fsdp"]
    yield f"data × fsdp does not divide D={width}", wide & (width % over != 0)


def microbatches(question: Question, table: Table) -> np.ndarray:
    """How many microbatches a step has on one replica."""
    replicas = table["data"] * table["fsdp"]
    return question.batch // np.maximum(replicas * table["sequences"], 1)


def scale_up(question: Question) -> int:
    """Devices that one scale-up network joins: a node, an NVLink domain, a torus."""
    target = question.target
    if target.chip is None:
        return 1
    if target.chip.torus_dims:
        joined = int(np.prod(target.topology))
    else:
        joined = target.topology[-1]
    return joined * target.chip.devices_per_chip


def _nearly_even(layers: int, parts: np.ndarray) -> np.ndarray:
    """Where the fullest part holds little more than its share."""
    fullest = -(-layers // parts)
    return (parts <= layers) & (layers >= NEARLY * fullest * parts)


def _experts(question: Question, table: Table) -> Iterator[Law]:
    experts, expert = question.shape.n_experts, table["expert"]
    if not experts:
        yield "expert divides nothing of a dense model", expert > 1
        return
    yield f"expert does not divide E={experts}", experts % expert != 0
    said = "expert is no subgroup of data × fsdp × context"
    group = table["data"] * table["fsdp"] * table["context"]
    yield said, group % expert != 0
