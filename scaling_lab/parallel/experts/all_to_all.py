"""Rows exchanged: each goes to the device that holds its expert, and comes back.

Nothing is dropped. A device has room for as many rows as could ever come, since what is
compiled has one size; how many do come is data.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from scaling_lab.parallel.experts import exchange, rows
from scaling_lab.parallel.experts.work import Result, Work


def all_to_all(work: Work) -> Result:
    """Own rows to their experts, others' rows through own experts."""
    h_TD = work.tokens_TD
    tokens = h_TD.shape[0]
    most = work.most(tokens, work.experts)
    order = rows.ordered(work.choice.expert_TC, work.experts, most)
    link = exchange.Link(work.axis, work.parts, work.most(tokens, work.held), most)
    route = exchange.route(order.size_E, link)
    move = exchange.ragged if work.ragged else exchange.padded
    go: Any = exchange.go
    sent_CD: Any = rows.spread(h_TD, order)
    came_CD = work.kept(go(move, link, False, sent_CD, route), "sent")
    size_E = jnp.sum(route.own_ZE, 0)
    made_CD = work.through(came_CD, size_E, tokens * work.parts)
    out_CD = work.kept(go(move, link, True, made_CD, route), "returned")
    return Result(rows.gathered(out_CD, work.choice, order))
