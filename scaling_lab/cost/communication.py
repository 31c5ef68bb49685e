"""Seconds of one device's collectives, before any overlap, by mesh axis."""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.activations import is_stack
from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.points import Points
from scaling_lab.cost.shapes import Column, Shapes, gathers, says_sums

#: Seconds to start a ring, and of each of its hops within the scale-up network and
#: out of it: NCCL's tuning model (src/graph/tuning.cc, rings, protocol Simple), and on
#: a torus a hop of jax-ml/scaling-book (sharding.md).
_START, _NEAR_HOP, _FAR_HOP, _TORUS_HOP = 8.4e-6, 3.4e-6, 14e-6, 1e-6


class Wires:
    """Prices collectives: where an axis falls says which links it has.

    Axes are laid from the fastest links outwards: tensor, context, then fsdp, data and
    stage; expert shares the place of context and fsdp. An expert's weights are shared
    by context and by what is left of fsdp then, which begins beyond it.
    """

    def __init__(self, points: Points, shapes: Shapes, eff: Calibration) -> None:
        self.p, self.s = points, shapes
        self.link = points.link_bytes_per_second * eff.of("link", points)
        self.network = points.network_bytes_per_second * eff.of("network", points)
        p = points
        self.stride = {
            "tensor": np.ones(len(p)),
            "context": p.tensor,
            # Ours stand beyond context; others' share its place.
            "expert": p.tensor * np.where(is_stack(p, "xla"), p.context, 1.0),
            "fsdp": p.tensor * p.context,
            "experts' fsdp": self._reach() / self._together(),
            "data": p.tensor * p.context * p.fsdp,
            "stage": p.tensor * p.context * p.fsdp * p.data,
        }

    def _reach(self) -> Column:
        """Devices of ours in one scale-up network, whose own bound may be none."""
        return np.minimum(self.p.scale_up, self.p.devices)

    def _together(self) -> Column:
        """Devices of one scale-up network that share an expert's weights."""
        p, reach = self.p, self._reach()
        context = np.clip(np.floor(reach / p.tensor), 1, p.context)
        beyond = np.floor(reach / (p.tensor * p.context * p.expert))
        return context * np.maximum(beyond, 1.0)

    def rate(self, axis: str, size: Column) -> Column:
        """Bytes per second of one device in a ring along an axis of that size."""
        stride = self.stride[axis]
        dims = np.maximum(self.p.torus_dims, 1)
        total = np.maximum(self._reach(), 2)
        used = np.ceil(dims * np.log(np.maximum(size, 2)) / np.log(total) - 1e-9)
        link = self.link * np.clip(used / dims, 1 / dims, 1)
        members = np.clip(np.floor(self.p.scale_up / stride), 1, size)
        outside = np.minimum(link, self.network * members)
        return np.where(stride * size <= self.p.scale_up, link, outside)

    def ring(self, axis: str, size: Column, payload: Column) -> Column:
        """All-gather or reduce-scatter of so many bytes, the gathered size."""
        return np.where(
            size > 1, payload * (size - 1) / size / self.rate(axis, size), 0.0
        )

    def collective(self, axis: str, size: Column, payload: Column) -> Column:
        """The same with the hops that it takes however little it carries."""
        hops = np.where(size > 1, self.hops(axis, size), 0.0)
        return self.ring(axis, size, payload) + hops

    def hops(self, axis: str, size: Column) -> Column:
        """Seconds that a ring takes however little it carries."""
        members = np.clip(np.floor(self.p.scale_up / self.stride[axis]), 1, size)
        nodes = size / members
        switched = _START + (size - nodes) * _NEAR_HOP + (nodes - 1) * _FAR_HOP
        # A torus goes round both ways, along each of its axes in turn.
        dims = np.maximum(self.p.torus_dims, 1)
        torus = _TORUS_HOP * (1 + dims * size ** (1 / dims) / 2)
        return np.where(self.p.torus_dims > 0, torus, switched)

    def exchange(self, axis: str, size: Column, payload: Column) -> Column:
        """All-to-all of so many bytes of one device."""
        p = self.p
        # Round a ring a quarter of what it takes to bring everybody everything.
        round_ring = self.ring(axis, size, payload * size) / 4
        members = np.clip(np.floor(p.scale_up / self.stride[axis]), 1, size)
        near = payload * (size - 1) / size / self.link
        far = payload * (1 - members / size) / self.network
        switched = np.where(size > 1, np.maximum(near, far), 0.0)
        return np.where(p.torus_dims > 0, round_ring, switched)

    def tensor(self) -> Column:
        """One block's gathers and scatters of activations, forward."""
        p = self.p
        payload = self.s.tokens * p.d_model * 2
        dense = 1 - self.s.moe_layers / p.layers
        return self.collective("tensor", p.tensor, payload) * 2 * (1 + dense)

    def context(self) -> Column:
        """One block's keys and values passed round, or all exchanged, forward."""
        p = self.p
        one = 2 * p.head_dim * self.s.tokens
        payload = 2 * p.kv_heads / p.tensor * one * p.context
        keys = np.maximum(p.kv_heads / p.tensor, p.context)
        sent = 2 * (p.n_heads / p.tensor + keys) * one
        return np.where(
            p.ulysses > 0,
            self.exchange("context", p.context, sent),
            self.collective("context", p.context, payload),
        )

    def experts(self) -> Column:
        """One block's dispatch and combine, forward."""
        p = self.p
        size, token = p.expert, self.s.tokens * p.d_model * 2 / p.tensor
        # Every token to all that hold experts, and their sums back.
        round_ring = 2 * self.ring("expert", size, token * size)
        exchanged = np.where(size > 1, self._exchanged(), 0.0)
        return np.where(p.ring_of_experts > 0, round_ring, exchanged)

    def _exchanged(self) -> Column:
        """Rows to their experts and back; of places the empty ones too."""
        p = self.p
        payload = self.s.tokens * p.top_k * p.d_model * 2 / p.tensor
        placed = ~np.isnan(p.places)
        payload = payload * np.where(placed, p.places, 1.0)
        size, stride = p.expert, self.stride["expert"]
        members = np.clip(np.floor(p.scale_up / stride), 1, size)
        nodes = size / members
        # A token goes to another node once, however many of its experts live there.
        k = np.maximum(p.top_k, 1)
        reached = nodes * (1 - (1 - 1 / np.maximum(nodes, 1)) ** k) / k
        reached = np.where(placed, 1.0, reached)  # but with every place it has
        far = payload * np.minimum(reached, 1) * (1 - 1 / nodes) / self.network
        near = payload * (members - 1) / members / self.link
        return 2 * np.maximum(near, far)

    def fsdp(self, held: Column, experts: Column) -> Column:
        """One block's weights gathered and their gradients reduced, ZeRO-3.

        Args:
          held: parameters before fsdp divides them. experts: of experts that are apart.
        """
        left = np.maximum(self.p.fsdp * self.p.context / self.p.expert, 1.0)
        apart = self._gathered("experts' fsdp", left, experts)
        return self._gathered("fsdp", self.p.fsdp, held) + np.where(
            experts > 0, apart, 0.0
        )

    def _gathered(self, axis: str, size: Column, held: Column) -> Column:
        """So many parameters, over an axis of that size.

        ZeRO++ (Wang et al. 2023, section 3) gathers 8-bit weights, gathers them again
        from a copy inside the node, and reduces 4-bit gradients.
        """
        p = self.p
        once = self.collective(axis, size, held * p.gathered_bytes)
        members = np.clip(np.floor(p.scale_up / self.stride[axis]), 1, size)
        near = held * 2 * (members - 1) / members / self.link
        again = np.where(p.near_again > 0, near, once)
        wide = np.where(np.isnan(p.reduced_bytes), p.grad_bytes, p.reduced_bytes)
        times = gathers(p)
        traffic = (
            np.minimum(times, 1) * once
            + np.maximum(times - 1, 0) * again
            + self.collective(axis, size, held * wide)
        )
        return np.where(p.zero_stage >= 3, traffic, 0.0)

    def gradients(self, held: Column) -> Column:
        """Reducing gradients over data replicas and handing parameters back."""
        p = self.p
        summed = np.where(p.zero_stage == 2, 1, 2) * p.reduced_bytes
        back = np.where((p.zero_stage == 1) | (p.zero_stage == 2), 2.0, 0.0)
        payload = np.where(says_sums(p), summed + back, p.grad_bytes + 2)
        return self.collective("data", p.data, held * payload)

    def stages(self) -> Column:
        """One microbatch handed on, forward, between two stages."""
        p = self.p
        payload = self.s.tokens * p.d_model * 2
        split = np.where(p.sequence_parallel > 0, p.tensor, 1)
        return np.where(p.stage > 1, payload / split / self.rate("stage", p.stage), 0.0)
