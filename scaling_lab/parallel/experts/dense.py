"""Every token through every expert, weighted by its gates: exact, wasteful, the oracle.

Written without rows, orders and collectives, so that it can be read and believed.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaling_lab.parallel.experts.products import named, precision
from scaling_lab.parallel.experts.work import Result, Work

Array = jax.Array


def dense(work: Work) -> Result:
    """Every token through every expert."""
    h_TD = work.tokens_TD
    hit_TCE = work.choice.expert_TC[..., None] == jnp.arange(work.experts)[None, None]
    gate_TE = jnp.sum(jnp.where(hit_TCE, work.choice.weight_TC[..., None], 0.0), 1)

    def product(x: Array, key: str) -> Array:
        equation = "TD,EDF->ETF" if x.ndim == 2 else "ETD,EDF->ETF"
        weight_EDF = work.weights[key]
        result = jnp.einsum(equation, x, weight_EDF, precision=precision(x))
        return named(result, key, work.name)

    out_ETD = work.expert(product, h_TD)
    exact = jax.lax.Precision.HIGHEST
    out_TD = jnp.einsum("TE,ETD->TD", gate_TE, out_ETD, precision=exact)
    return Result(out_TD.astype(h_TD.dtype))
