"""Seconds of one device's arithmetic: products, attention, memory, the update."""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.blocks import room
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.points import PRECISIONS, Points
from scaling_lab.cost.shapes import Column, Shapes, alternates, is_remat

#: Passes of two bytes over a token's vector in one block, fused: two norms, two
#: residuals, and what the products read and write again.
_WIDTH_PASSES, _GATE_PASSES, _HEAD_PASSES = 12.0, 3.0, 4.0
_SCORE_PASSES, _ROUTE_PASSES, _LOGIT_BYTES = 4.0, 8.0, 20.0
#: Casts of a product's operands by precision: blocks of MXFP8 are scaled along rows
#: and along columns, NVFP4 is rotated besides.
_CASTS = np.array(
    [
        {"float8": 1.0, "int8": 1.0, "mxfp8": 2.2, "nvfp4": 3.0}.get(n, 0.0)
        for n in PRECISIONS
    ]
)
_FLOAT32 = PRECISIONS.index("float32")
#: Width of a head whose products take as long as its exponentials.
_EXPONENTIAL = 64.0
#: Bytes an optimizer reads and writes for each parameter: state, master and gradient.
_UPDATE_BYTES = 28.0


class Arithmetic:
    """Prices the arithmetic of one microbatch; columns in seconds."""

    def __init__(self, points: Points, shapes: Shapes, eff: Calibration) -> None:
        self.p, self.s = points, shapes
        self._of = lambda name: eff.of(name, points)
        self.tile, self.depth = self._of("tile"), self._of("depth")
        wide = self._of("matmul")
        gain = points.flops_per_second / points.bf16_flops_per_second
        kept = np.where(gain > 1, gain ** self._of("low_precision"), gain)
        #: The head and the scores run in 16 bits, or in 32 where all does.
        self.narrow = points.bf16_flops_per_second * np.minimum(gain, 1.0)
        self.rate_16 = self.narrow * wide
        self.rate = points.bf16_flops_per_second * wide * kept
        self.number_bytes = np.where(points.precision == _FLOAT32, 4.0, 2.0)
        self.memory = points.hbm_bytes_per_second * self._of("memory")
        #: Wider chips need larger products to fill them.
        self.tile = self.tile * points.bf16_flops_per_second / 9.89e14

    def product(
        self, m: Column, k: Column, n: Column, rate: Column, groups: Column | float = 1
    ) -> Column:
        """Forward, gradient and weight gradient of one product: (m, k) by (k, n)."""
        third = 2 * m * k * n * groups / rate
        waste = self.depth * (1 / k + 1 / n + 1 / m)
        waste = waste + self.tile / groups * (1 / (m * n) + 1 / (m * k) + 1 / (k * n))
        return third * (3 + waste)

    def attention_products(self) -> Column:
        """The projections of one block."""
        p, s = self.p, self.s
        wide = p.n_heads * p.head_dim / p.tensor
        inner = (p.n_heads + 2 * p.kv_heads) * p.head_dim / p.tensor
        formula = p.d_model * (2 * p.n_heads + 2 * p.kv_heads) * p.head_dim
        seconds = self.product(s.tokens, p.d_model, inner, self.rate)
        seconds = seconds + self.product(s.tokens, wide, p.d_model, self.rate)
        return seconds * s.attention_params / formula

    def feed_forward(self, width: Column, tensor: Column) -> Column:
        """A dense feed-forward of that width."""
        p, s = self.p, self.s
        shard = np.maximum(width, 1) / tensor
        up = self.product(s.tokens, p.d_model, shard * s.gates, self.rate)
        down = self.product(s.tokens, shard, p.d_model, self.rate)
        return np.where(width > 0, up + down, 0.0)

    def experts(self) -> Column:
        """The routed experts of one block: grouped products, uneven groups."""
        p, s = self.p, self.s
        local = np.maximum(p.n_experts / p.expert, 1)
        tokens = np.maximum(s.tokens * p.top_k / local, 1)
        if not np.any(p.n_experts):
            return np.zeros(len(p))
        # Where experts are not split by tensor, its ranks share the tokens out.
        tokens = tokens / p.tensor
        tokens = tokens * np.where(np.isnan(p.places), 1.0, p.places)
        rate = np.where(p.low_experts > 0, self.rate, self.rate_16)
        rate = rate * self._of("experts")
        width = np.maximum(p.expert_d_ff, 1)
        up = self.product(tokens, p.d_model, width * s.gates, rate, local)
        down = self.product(tokens, width, p.d_model, rate, local)
        return np.where(p.n_experts > 0, up + down, 0.0)

    def wide_gradients(self, coded: Column) -> Column:
        """What weights' gradients that stay in 16 bits take beyond 8.

        Args:
          coded: products, all three of each in 8 bits.
        """
        slower = (self.rate / self.rate_16 - 1) / 3
        return np.where(self.p.low_gradients > 0, 0.0, coded * slower)

    def scores(self) -> Column:
        """One block's scores and values, forward; backward is 2.5 times."""
        p, s = self.p, self.s
        heads = p.n_heads / p.tensor
        flops = 4 * s.tokens * s.score_tokens * heads * p.head_dim
        fused = flops * p.attend_times / (self.narrow * self._of("attention"))
        # A score costs an exponential whatever the head's width.
        fused = fused * (1 + _EXPONENTIAL / p.head_dim) / (1 + _EXPONENTIAL / 128)
        if np.all(p.flash > 0):
            return fused
        local = np.where(p.window > 0, np.minimum(2 * p.window, p.seq_len), p.seq_len)
        seen = p.seq_len + p.window_share * (local - p.seq_len)
        passes = _SCORE_PASSES * self._of("scores")
        passed = s.tokens * heads * seen * self.number_bytes * passes
        plain = 2 * flops / self.rate_16 + passed / self.memory
        return np.where(p.flash > 0, fused, plain)

    def elementwise(self) -> Column:
        """Norms, gates, residuals and rotations of one block, forward and backward."""
        p, s = self.p, self.s
        split = np.where(p.sequence_parallel > 0, p.tensor, 1)
        moe = s.moe_layers / p.layers
        # Ours pass over all the rows that there is room for, real or not; other
        # software on XLA (MaxText) does not, by its clocks.
        rows = p.top_k * np.where(p.lockstep > 0, room(p), 1.0)
        width = (1 - moe) * p.d_ff + moe * (rows * p.expert_d_ff + p.shared_d_ff)
        inner = (p.n_heads + 2 * p.kv_heads) * p.head_dim
        numbers = (
            _WIDTH_PASSES * p.d_model / split
            + _GATE_PASSES * s.gates * width / p.tensor
            + _HEAD_PASSES * inner / p.tensor
        ) * self._of("passes")
        routed = moe * rows * p.d_model * _ROUTE_PASSES / p.tensor
        numbers = numbers + routed * self._of("routing")
        coded = width - np.where(p.low_experts > 0, 0.0, moe * rows * p.expert_d_ff)
        cast = (2 * p.d_model + (inner + 1.5 * coded) / p.tensor) * self._of("casts")
        numbers = numbers + cast * _CASTS[p.precision.astype(int)]
        return 3 * self.number_bytes * s.tokens * numbers / self.memory

    def head(self) -> Column:
        """Logits and loss, forward and backward."""
        p, s = self.p, self.s
        shard = p.vocab / p.tensor
        seconds = self.product(s.tokens, p.d_model, shard, self.rate_16)
        return seconds + s.tokens * shard * _LOGIT_BYTES / self.memory

    def update(self, held: Column) -> Column:
        """The optimizer's pass over the parameters that one device updates."""
        return held * _UPDATE_BYTES / self.memory

    def again(self) -> dict[str, Column]:
        """What recomputation adds, as a multiple of forward plus backward."""
        share = self.s.recompute
        selective = is_remat(self.p, "selective")
        follows = np.maximum(self.p.recompute > 0, selective) + alternates(self.p)
        told = self.p.scores_again
        return {
            "products": share / 3,
            "scores": np.where(np.isnan(told), follows, told),
            "elementwise": share / 3,
        }
