"""Tokens gathered by every holder of experts before they are copied for them.

Each device gathers the tokens of its ring, takes the rows its own experts are sent, and
the results are summed back to where the tokens came from. It sends every token once to
each device, where an exchange sends k rows: less where k is large beside the ring.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from scaling_lab.parallel.experts import rows
from scaling_lab.parallel.experts.routing import Choice
from scaling_lab.parallel.experts.work import Result, Work


def ring(work: Work) -> Result:
    """All tokens of the ring through this device's experts."""

    def gathered(array_TX: jax.Array) -> jax.Array:
        return jax.lax.all_gather(array_TX, work.axis, axis=0, tiled=True)

    h_TD = work.kept(gathered(work.tokens_TD), "sent")
    expert_TC, weight_TC = (gathered(array) for array in work.choice)
    mine_TC = expert_TC - work.rank() * work.held
    own_TC = jnp.where((mine_TC >= 0) & (mine_TC < work.held), mine_TC, work.held)
    order = rows.ordered(own_TC, work.held, work.most(h_TD.shape[0], work.held))
    sent_CD = rows.spread(h_TD, order)
    out_CD = work.through(sent_CD, order.size_E, h_TD.shape[0])
    out_TD = rows.gathered(out_CD, Choice(own_TC, weight_TC), order)
    return Result(
        jax.lax.psum_scatter(out_TD, work.axis, scatter_dimension=0, tiled=True)
    )
