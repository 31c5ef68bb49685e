"""What a block keeps for its backward pass, in bytes of one token, as columns.

Three books, by the software that runs (`points.STACKS`):

* ours (``xla``): the residuals of JAX's differentiation of the block, term by term,
  attention by a fused kernel; a test reads them off the jaxpr.
* Megatron's: Korthikanti et al. 2022 (Reducing Activation Recomputation in Large
  Transformer Models), equations 1 to 4, with what a gate and grouped heads change.
* everything else: Megatron's without dropout.

A policy is written as in a run: ``none``, ``full`` or ``save:VERB,VERB``, with
``offload:VERB`` for what rests in the host's memory.
"""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.blocks import (
    BLOCK_VERBS,
    WHOLE,
    Verb,
    feed_forward_width,
    room,
    routed_width,
    sparse_layers,
    verbs,
)
from scaling_lab.cost.points import PRECISIONS, STACKS, Points
from scaling_lab.parallel import policies

#: Dropout's masks, one byte an element: after attention and after the feed-forward.
DROPOUT_BYTES = 2
#: Scores of unfused attention: softmax's output, the dropped output, dropout's mask.
SCORE_BYTES = 5
SCORE_BYTES_WITHOUT_DROPOUT = 2
#: Float32 and compute-precision arrays of width D that a norm keeps, and of width F
#: that the feed-forward does with a gate, whose gradient is made in one pass, and
#: without (jaxprs of `models.ops.rms_norm`, of SwiGLU and GELU).
NORM_WIDE, NORM_NARROW, FFN_GATED, FFN_PLAIN = 2, 2, 3, 6

#: What a TPU's arrays are padded to along their fastest dim.
LANES = 128

Array = np.ndarray


def parts(points: Points) -> tuple[Array, Array, Array]:
    """What a token's elements are divided by: between blocks, inside, of keys.

    Key-value heads fewer than the axis are held whole by us (`layouts.fit_kv_heads`)
    and once per head by Megatron.
    """
    tensor, heads = points.tensor, np.maximum(points.kv_heads, 1)
    between = np.where(points.sequence_parallel > 0, tensor, 1.0)
    fewer = np.where(is_stack(points, "xla"), 1.0, np.minimum(heads, tensor))
    keys = np.where(heads % tensor == 0, tensor, fewer)
    return between, tensor, keys


def verb_bytes(points: Points, name: str) -> Array:
    """Bytes of a verb's result for one token on one device (context apart)."""
    return _bytes_of(points, name, verbs(points)[name])


def _bytes_of(points: Points, name: str, verb: Verb) -> Array:
    between, inside, keys = parts(points)
    over = between if verb.between else inside
    over = keys if name in ("attention/key", "attention/value") else over
    over = 1.0 if name in WHOLE else over
    wide = room(points) if name.startswith("ffn/experts/") else 1.0
    return verb.elements * wide * itemsize(points) / over


def input_bytes(points: Points) -> Array:
    """Bytes of a block's input for one token: all that remat ``full`` keeps."""
    return points.d_model * itemsize(points) / parts(points)[0]


def whole_bytes(points: Points) -> Array:
    """Bytes that a block keeps of one token under remat ``none``, scores included."""
    return fused_bytes(points) + score_bytes(points)


def fused_bytes(points: Points) -> Array:
    """The same without attention's scores: by a fused kernel, or made again."""
    kept = np.where(is_stack(points, "xla"), _ours(points), _megatron(points))
    return kept + _routed(points)


def made_bytes(points: Points) -> Array:
    """Bytes of one token that a block holds when it is made again for its gradient.

    Of ours the verbs' results and nothing between them, which the compiler makes where
    it is used. A TPU pads heads to its lanes, and its attention kernel says a row's
    normaliser in float32 once for each lane. Others hold what they would have kept.
    """
    each = (_bytes_of(points, name, verb) for name, verb in verbs(points).items())
    ours = sum(each, np.zeros(len(points)))
    heads = points.n_heads / points.tensor
    padded = np.ceil(points.head_dim / LANES) * LANES - points.head_dim
    lanes = heads * (2 * itemsize(points) * padded + 4 * LANES)
    ours = ours + np.where(points.torus_dims > 0, lanes, 0.0) + _routed(points)
    others = fused_bytes(points)
    return np.where(is_stack(points, "xla"), ours, others) + score_bytes(points)


def apart_bytes(points: Points) -> Array:
    """Bytes of one token that gradients of a block's weights are made of.

    Of each product what it is of, once where several share it, and the gradient of
    its result. Experts' weights have their gradients at once.
    """
    products = ("query", "key", "value", "out", "gate", "up", "down")
    rooms = ("attention",) * 4 + ("ffn",) * 3
    results = [f"{room}/{word}" for room, word in zip(rooms, products, strict=True)]
    taken = ("attention/attention_norm", "attention/attend", "ffn/ffn_norm", "ffn/up")
    dense = 1 - sparse_layers(points) / np.maximum(points.layers, 1)
    total, found = np.zeros(len(points)), verbs(points)
    for name in (*results, *taken):
        share = dense if name.startswith("ffn/") else 1.0
        total = total + share * _bytes_of(points, name, found[name])
    return total


def score_bytes(points: Points) -> Array:
    """Bytes of attention's scores for one token: ``5as²b`` of equation 1, per token.

    Zero where a fused kernel never writes them (FlashAttention).
    """
    dropped = np.where(_dropout(points), SCORE_BYTES, SCORE_BYTES_WITHOUT_DROPOUT)
    held = dropped * points.n_heads * points.seq_len / points.tensor
    return np.where(points.flash > 0, 0.0, held)


def kept_bytes(points: Points, policy: str) -> Array:
    """Bytes that a block keeps of one token under a policy, wherever, in our own stack.

    Raises:
      ValueError: not ``none``, ``full`` or ``save:`` with verbs of a block.
    """
    if policy == "none":
        return whole_bytes(points)
    total = input_bytes(points)
    for name in _read(policy).kept:
        total = total + verb_bytes(points, name)
    return total


def offloaded_share(points: Points, policy: str) -> Array:
    """The share of what is kept that rests in the host's memory.

    Raises:
      ValueError: as `kept_bytes`.
    """
    away = np.zeros(len(points))
    for name in _read(policy).offloaded:
        away = away + verb_bytes(points, name)
    return away / kept_bytes(points, policy)


def recomputed_share(points: Points, policy: str) -> Array:
    """The share of a block's forward FLOPs that its backward pass does again.

    A block's last result is the next block's input, so it is among them only where a
    norm follows it. An expert's last product is: its rows are weighed before they are
    summed.
    """
    if policy == "none":
        return np.zeros(len(points))
    saved = _read(policy).kept
    found = verbs(points)
    total = sum((verb.flops for verb in found.values()), np.zeros(len(points)))
    again = np.zeros(len(points))
    for name, verb in found.items():
        share = points.ends_in_norm if name == "ffn/down" else 1.0
        if name in saved:  # of attention without a kernel the scores were not kept
            share = np.where(points.flash > 0, 0.0, 0.5 * (name == "attention/attend"))
        again = again + share * verb.flops
    return again / total


def itemsize(points: Points) -> Array:
    """Bytes of one activation: 4 in float32, else 2, of eight-bit products too."""
    return np.where(points.precision == PRECISIONS.index("float32"), 4.0, 2.0)


def is_stack(points: Points, name: str) -> Array:
    """Where a point runs on that software."""
    return points.stack == STACKS.index(name)


def _read(policy: str) -> policies.Policy:
    said = (
        f"remat {policy!r}: write none, full, or save: and offload: with verbs of a "
        f"block, which are {', '.join(BLOCK_VERBS)}"
    )
    try:
        found = policies.parse(policy)
    except ValueError as error:
        raise ValueError(said) from error
    if found.kind == "recompute" or any(n not in BLOCK_VERBS for n in found.kept):
        raise ValueError(said)
    return found


def _ours(points: Points) -> Array:
    between, inside, keys = parts(points)
    narrow = itemsize(points)
    norm = NORM_WIDE * 4 + NORM_NARROW * narrow
    queries = points.n_heads * points.head_dim
    kept = 2 * norm * points.d_model / between
    kept = kept + 2 * narrow * queries / inside
    kept = kept + 2 * narrow * points.kv_heads * points.head_dim / keys
    arrays = np.where(points.gated > 0, FFN_GATED, FFN_PLAIN)
    wide = feed_forward_width(points) + (room(points) - 1) * routed_width(points)
    return kept + arrays * narrow * wide / inside


def _megatron(points: Points) -> Array:
    between, inside, keys = parts(points)
    narrow = itemsize(points)
    queries = points.n_heads * points.head_dim
    # Two norms' inputs and the inputs of the first products; masks of dropout.
    outside = 4 * narrow + np.where(_dropout(points), DROPOUT_BYTES, 0)
    arrays = np.where(points.gated > 0, 3, 2)
    kept = outside * points.d_model / between
    kept = kept + 2 * narrow * queries / inside
    kept = kept + 2 * narrow * points.kv_heads * points.head_dim / keys
    return kept + arrays * narrow * feed_forward_width(points) / inside


def _routed(points: Points) -> Array:
    """Copies of a token on their way to its experts and back, and gates."""
    share = sparse_layers(points) / np.maximum(points.layers, 1)
    ours = np.where(is_stack(points, "xla"), room(points), 1.0)
    copies = 2 * points.top_k * points.d_model * itemsize(points) * ours
    return share * (copies + 4 * points.n_experts) / parts(points)[0]


def _dropout(points: Points) -> Array:
    """GPT as Megatron trains it drops out; families with a gate do not."""
    return is_stack(points, "megatron") & (points.gated == 0)
