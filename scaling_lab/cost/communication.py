"""Seconds of one device's collectives, before any overlap, by mesh axis."""

from __future__ import annotations

import numpy as np

from scaling_lab.cost.efficiencies import Calibration
from scaling_lab.cost.points import Points
from scaling_lab.cost.shapes import Column, Shapes


class Wires:
    """Prices collectives: where an axis falls says which links it has.

    Axes are laid from the fastest links outwards: tensor, context, then fsdp, data and
    stage; expert shares the place of context and fsdp.
    """

    def __init__(self, points: Points, shapes: Shapes, eff: Calibration) -> None:
        self.p, self.s = points, shapes
        self.link = points.link_bytes_per_second * eff.of("link", points)
        self.network = points.network_bytes_per_second * eff.of("network", points)
        p = points
        self.stride = {
            "tensor": np.ones(len(p)),
            "context": p.tensor,
            "expert": p.tensor,
            "fsdp": p.tensor * p.context,
            "data": p.tensor * p.context * p.fsdp,
            "stage": p.tensor * p.context * p.fsdp * p.data,
        }

    def rate(self, axis: str, size: Column) -> Column:
        """Bytes per second of one device in a ring along an axis of that size."""
        stride = self.stride[axis]
        dims = np.maximum(self.p.torus_dims, 1)
        total = np.maximum(np.minimum(self.p.devices, self.p.scale_up), 2)
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
        return self.ring("tensor", p.tensor, payload) * 2 * (1 + dense)

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
            self.ring("context", p.context, payload),
        )

    def experts(self) -> Column:
        """One block's dispatch and combine, forward."""
        p = self.p
        payload = self.s.tokens * p.top_k * p.d_model * 2 / p.tensor
        size, stride = p.expert, self.stride["expert"]
        members = np.clip(np.floor(p.scale_up / stride), 1, size)
        nodes = size / members
        # A token goes to another node once, however many of its experts live there.
        k = np.maximum(p.top_k, 1)
        reached = nodes * (1 - (1 - 1 / np.maximum(nodes, 1)) ** k) / k
        far = payload * np.minimum(reached, 1) * (1 - 1 / nodes) / self.network
        near = payload * (members - 1) / members / self.link
        return np.where(size > 1, 2 * np.maximum(near, far), 0.0)

    def fsdp(self, held: Column) -> Column:
        """Gathering so many parameters' 16 bits once."""
        return self.ring("fsdp", self.p.fsdp, held * 2)

    def gradients(self, held: Column) -> Column:
        """Reducing gradients over data replicas and handing parameters back."""
        p = self.p
        payload = held * (p.grad_bytes + 2)
        return self.ring("data", p.data, payload)

    def stages(self) -> Column:
        """One microbatch handed on, forward, between two stages."""
        p = self.p
        payload = self.s.tokens * p.d_model * 2
        split = np.where(p.sequence_parallel > 0, p.tensor, 1)
        return np.where(p.stage > 1, payload / split / self.rate("stage", p.stage), 0.0)
