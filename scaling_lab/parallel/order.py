"""An order for what waits for nothing of each other, where there must be one."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array


def after(done: Array, x: Array) -> Array:
    """``x``; on simulated devices not before ``done``, of the same shape and placement.

    JAX gives all collectives of a kind one channel. XLA:CPU begins those of two loops
    together where no value orders the loops, counts more participants than devices, and
    ends the process; barriers it takes out before it comes to that.
    """
    return jax.lax.platform_dependent(done, x, cpu=_waiting, default=lambda _, x: x)


def _waiting(done: Array, x: Array) -> Array:
    never = jnp.isnan(done) & (done > 0)  # which no compiler sees
    return jnp.where(never, done, x)
