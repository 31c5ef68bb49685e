"""Points: what a prediction needs to know of many configurations, as columns.

One point is one model, run, layout, policy and machine; `Points` holds many of them
as equal-length numpy columns, so that ten thousand layouts cost one pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

#: What a code in a column means: the position in its tuple.
SCHEDULES = ("1f1b", "gpipe", "interleaved", "zero_bubble")
PRECISIONS = ("bfloat16", "float16", "float32", "float8", "int8", "mxfp8", "nvfp4")
REMATS = ("none", "selective", "full")
STACKS = ("xla", "megatron", "torch_compile", "torch_eager", "unknown")


@dataclasses.dataclass(frozen=True)
class Points:
    """Columns of one length; a scalar stands for a whole column.

    A size that does not apply is 1 (an axis) or 0 (experts), a flag is 0 or 1; what
    is not known is NaN only where the field says so. The axes multiply to ``devices``:
    ``data·fsdp·tensor·context·stage``. ``expert`` is a subgroup of
    ``data·fsdp·context`` (times ``tensor`` where experts are not split by it) and
    multiplies nothing.

    Attributes:
      layers: transformer blocks.
      d_model: model width.
      n_heads: query heads.
      kv_heads: key-value heads.
      head_dim: width of a head; where queries and values differ, their mean.
      attention_params: weights of one block's attention projections; NaN for
        ``D(N + 2K)H + NHD``.
      flash: 1 where scores are never written to memory, else 0.
      d_ff: feed-forward width of a dense block.
      gated: 1 where the feed-forward has a gate (three matrices), else 0.
      vocab: vocabulary.
      tied: 1 where embedding and head are one matrix.
      n_experts: routed experts of a MoE block; 0 in a dense model.
      top_k: routed experts a token visits; 0 in a dense model.
      expert_d_ff: feed-forward width of one expert; 0 in a dense model.
      shared_d_ff: feed-forward width of the shared experts together; 0 for none.
      dense_layers: leading blocks of a MoE model that are dense.
      window: keys that a local layer sees; 0 where every layer sees all.
      window_share: share of the layers that are local.
      params: all parameters.
      active_params: parameters a token meets (embedding included).
      seq_len: tokens of a sequence.
      global_batch_tokens: tokens of a step, all devices together.
      microbatch_seqs: sequences of one microbatch on one data replica.
      data: replicas; ZeRO-1 and -2 shard state or gradients over them.
      fsdp: ways parameters are sharded and gathered when used (ZeRO-3).
      zero_stage: 0 to 3: what is sharded over ``data·fsdp``; 3 over ``fsdp`` alone.
      tensor: ways of tensor parallelism.
      sequence_parallel: 1 where activations between blocks are sharded by ``tensor``.
      stage: pipeline stages.
      virtual_stages: pieces of the pipeline on one device.
      context: ways the sequence is sharded for attention.
      expert: ways of expert parallelism.
      schedule: code of `SCHEDULES`.
      overlap: 1 where tensor-parallel communication is said to overlap, else 0.
      precision: code of `PRECISIONS`, of the matrix products.
      stack: code of `STACKS`, the software that runs it.
      param_bytes: bytes of one parameter as it rests on a device (master copy apart).
      grad_bytes: bytes of one gradient element.
      optimizer_bytes: bytes of optimizer state of one parameter, master copy included.
      remat: code of `REMATS`.
      recompute: share of a block's forward FLOPs done again in the backward pass.
      kept: share of a block's activations (of ``remat`` none) that is kept.
      offload: share of what is kept that rests in the host's memory.
      devices: accelerators as the layout counts them; ``chips·devices_per_chip``.
      devices_per_chip: 2 where a chip shows two devices.
      chip: names of chips, as strings.
      flops_per_second: peak of one device in ``precision``.
      bf16_flops_per_second: peak of one device in bfloat16 (its 16-bit peak).
      hbm_bytes: memory of one device.
      hbm_bytes_per_second: its bandwidth.
      link_bytes_per_second: one-way into the scale-up network, of one device.
      scale_up: devices that this network joins (a node, NVLink domain, torus).
      torus_dims: dims of the torus; 0 where it is switched.
      network_bytes_per_second: one-way of one device into the data-centre network.
      ulysses: 1 where attention over ``context`` exchanges positions for heads, 0 where
        it brings every device all keys.
      ends_in_norm: 1 where a norm follows a block's last product, which is then made
        again unless it is saved, else 0.
      scores_again: share of attention's scores done again in the backward pass; NaN
        where it follows from ``remat`` and ``recompute``.
      away_bytes: bytes of optimizer state of one parameter that rest in the host's
        memory; ``optimizer_bytes`` is then what of them is on the device at a time.
      lockstep: 1 where all stages of a pipeline do the same kind of task in every tick,
        as ours do; they make layers' results again where they alternate, which
        ``recompute`` does not count.
      gathered_bytes: bytes of one parameter on the wires when ``fsdp`` gathers it.
      reduced_bytes: bytes of one gradient on the wires when ``fsdp`` reduces it, and of
        ours over ``data`` too; NaN where it is ``grad_bytes``.
      near_again: 1 where the backward pass gathers weights within the scale-up network,
        from a second copy that is sharded there alone, else 0.
      gathers: how often a microbatch gathers what ``fsdp`` divides: 2, or 1 where what
        was gathered is kept for the backward pass, by stages of ours for all of a step;
        between them where that of some layers is.
      host_bytes_per_second: one way of one device to its host's memory; infinite where
        nobody asks what offloading costs.
      low_experts: 1 where routed experts' products are in ``precision`` as a block's
        others are, 0 where they stay in 16 bits when it is of 8.
      low_gradients: the same of the products that weights' gradients are.
      places: places of an expert over the rows it gets in the mean, where all of them
        are sent and multiplied, taken or not; NaN where rows alone are.
      ring_of_experts: 1 where every token is brought to all that hold experts and the
        results are summed, 0 where its rows go to their experts.
      attend_times: attention's seconds over those of the kernel that the chip's vendor
        has, where scores are never written.
      ring_of_keys: 1 where keys go round ``context`` step by step, 0 where they come
        all together or nobody says how.
    """

    layers: Any
    d_model: Any
    n_heads: Any
    kv_heads: Any
    head_dim: Any
    attention_params: Any
    flash: Any
    d_ff: Any
    gated: Any
    vocab: Any
    tied: Any
    n_experts: Any
    top_k: Any
    expert_d_ff: Any
    shared_d_ff: Any
    dense_layers: Any
    window: Any
    window_share: Any
    params: Any
    active_params: Any
    seq_len: Any
    global_batch_tokens: Any
    microbatch_seqs: Any
    data: Any
    fsdp: Any
    zero_stage: Any
    tensor: Any
    sequence_parallel: Any
    stage: Any
    virtual_stages: Any
    context: Any
    expert: Any
    schedule: Any
    overlap: Any
    precision: Any
    stack: Any
    param_bytes: Any
    grad_bytes: Any
    optimizer_bytes: Any
    remat: Any
    recompute: Any
    kept: Any
    offload: Any
    devices: Any
    devices_per_chip: Any
    chip: Any
    flops_per_second: Any
    bf16_flops_per_second: Any
    hbm_bytes: Any
    hbm_bytes_per_second: Any
    link_bytes_per_second: Any
    scale_up: Any
    torus_dims: Any
    network_bytes_per_second: Any
    ulysses: Any = 0.0
    ends_in_norm: Any = 0.0
    scores_again: Any = np.nan
    away_bytes: Any = 0.0
    lockstep: Any = 0.0
    gathered_bytes: Any = 2.0
    reduced_bytes: Any = np.nan
    near_again: Any = 0.0
    gathers: Any = 2.0
    host_bytes_per_second: Any = np.inf
    low_experts: Any = 1.0
    low_gradients: Any = 1.0
    places: Any = np.nan
    ring_of_experts: Any = 0.0
    attend_times: Any = 1.0
    ring_of_keys: Any = 0.0

    def __post_init__(self) -> None:
        columns = {name: np.asarray(getattr(self, name)) for name in names()}
        shape = np.broadcast_shapes(*(c.shape for c in columns.values()), (1,))
        if len(shape) != 1:
            raise ValueError(f"points are columns, not arrays of shape {shape}")
        for name, column in columns.items():
            if name != "chip":
                column = column.astype(np.float64)
            object.__setattr__(self, name, np.broadcast_to(column, shape))

    def __len__(self) -> int:
        return len(self.layers)

    def take(self, index: Any) -> Points:
        """The points at an index: positions, a slice or a mask."""
        if np.ndim(index) == 0 and not isinstance(index, slice):
            index = [index]
        return Points(**{name: getattr(self, name)[index] for name in names()})

    def replace(self, **columns: Any) -> Points:
        """The same points with other columns."""
        return dataclasses.replace(self, **columns)

    @classmethod
    def concat(cls, parts: Sequence[Points]) -> Points:
        """All points of several, in order.

        Raises:
          ValueError: no part at all.
        """
        if not parts:
            raise ValueError("nothing to concatenate: give at least one Points")
        return cls(
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in names()
            }
        )

    @property
    def chips(self) -> np.ndarray:
        """Chips of the whole machine."""
        return self.devices / self.devices_per_chip

    @property
    def replicas(self) -> np.ndarray:
        """Ways the batch is split: ``data·fsdp``."""
        return self.data * self.fsdp

    @property
    def microbatches(self) -> np.ndarray:
        """Microbatches of a step on one replica, at least 1."""
        sequences = self.global_batch_tokens / self.seq_len / self.replicas
        return np.maximum(1.0, np.round(sequences / self.microbatch_seqs))


def names() -> tuple[str, ...]:
    """The names of the columns."""
    return tuple(field.name for field in dataclasses.fields(Points))
