"""The verbs of a block, in numbers and FLOPs of one token, as columns.

What a policy of remat names. Experts' verbs are of the mean token of all layers: in a
model whose every layer has experts the dense feed-forward's are zero.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scaling_lab.cost.points import Points

Array = np.ndarray

#: Rows of an expert's own that no axis inside a block divides.
WHOLE = ("ffn/experts/sent", "ffn/experts/down")
#: Every verb that a policy may name, as families say them.
BLOCK_VERBS = (
    *("attention/attention_norm", "attention/query", "attention/key"),
    *("attention/value", "attention/attend", "attention/out"),
    *("ffn/ffn_norm", "ffn/gate", "ffn/up", "ffn/down"),
    *("ffn/experts/sent", "ffn/experts/gate", "ffn/experts/up", "ffn/experts/down"),
)


class Verb(NamedTuple):
    """A verb of a block: numbers it returns and FLOPs it does, of one token."""

    elements: Array
    between: bool
    flops: Array


def verbs(points: Points) -> dict[str, Verb]:
    """The verbs of a block by name, before division over any axis.

    ``between`` marks results of the model's width, which sequence parallelism divides
    and tensor parallelism does not. Attention is causal; FLOPs are forward.
    """
    width, gated = points.d_model, points.gated
    queries = points.n_heads * points.head_dim
    keys = points.kv_heads * points.head_dim
    far = np.where(points.window > 0, np.minimum(points.window, points.seq_len), 0)
    seen = points.seq_len / 2 * (1 - points.window_share) + points.window_share * far
    none = np.zeros(len(points))
    routed = routed_width(points)
    inner = feed_forward_width(points) - routed
    rows = _share(points) * points.top_k * width
    return {
        "attention/attention_norm": Verb(width, True, none),
        "attention/query": Verb(queries, False, 2 * width * queries),
        "attention/key": Verb(keys, False, 2 * width * keys),
        "attention/value": Verb(keys, False, 2 * width * keys),
        "attention/attend": Verb(queries, False, 4 * queries * seen),
        "attention/out": Verb(width, True, 2 * width * queries),
        "ffn/ffn_norm": Verb(width, True, none),
        "ffn/gate": Verb(inner * gated, False, 2 * width * inner * gated),
        "ffn/up": Verb(inner, False, 2 * width * inner),
        "ffn/down": Verb(width * (inner > 0), True, 2 * width * inner),
        "ffn/experts/sent": Verb(rows, False, none),
        "ffn/experts/gate": Verb(routed * gated, False, 2 * width * routed * gated),
        "ffn/experts/up": Verb(routed, False, 2 * width * routed),
        "ffn/experts/down": Verb(rows, False, 2 * width * routed),
    }


def feed_forward_width(points: Points) -> Array:
    """Feed-forward columns a token goes through, averaged over the layers."""
    routed = points.top_k * points.expert_d_ff + points.shared_d_ff
    sparse = _share(points)
    return sparse * routed + (1 - sparse) * points.d_ff


def room(points: Points) -> Array:
    """Rows that a device has room for, over those that come in the mean.

    Where experts are apart one device may be sent every token of the others, and what
    is compiled has one size (`parallel.experts.all_to_all`); so with a ring of them.
    Experts with places have those, apart or not.
    """
    held = np.maximum(points.n_experts / np.maximum(points.expert, 1), 1)
    most = points.expert * np.minimum(points.top_k, held)
    apart = (points.expert > 1) & (points.n_experts > 0)
    rows = np.where(apart, most / np.maximum(points.top_k, 1), 1.0)
    return np.where(np.isnan(points.places), rows, points.places)


def routed_width(points: Points) -> Array:
    """Of `feed_forward_width` what belongs to experts a token is sent to."""
    return _share(points) * points.top_k * points.expert_d_ff


def sparse_layers(points: Points) -> Array:
    """How many layers have experts."""
    return np.where(points.n_experts > 0, points.layers - points.dense_layers, 0.0)


def _share(points: Points) -> Array:
    return sparse_layers(points) / np.maximum(points.layers, 1)
