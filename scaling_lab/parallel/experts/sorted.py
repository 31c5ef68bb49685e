"""Rows sorted by expert, then one grouped product: nothing dropped, nothing padded.

The way of MegaBlocks (Gale et al. 2022) where a device holds every expert.
"""

from __future__ import annotations

from scaling_lab.parallel.experts import rows
from scaling_lab.parallel.experts.work import Result, Work


def by_order(work: Work) -> Result:
    """Each device's own rows through all experts."""
    h_TD = work.tokens_TD
    most = work.most(h_TD.shape[0], work.experts)
    order = rows.ordered(work.choice.expert_TC, work.experts, most)
    sent_CD = work.kept(rows.spread(h_TD, order), "sent")
    out_CD = work.through(sent_CD, order.size_E, h_TD.shape[0])
    return Result(rows.gathered(out_CD, work.choice, order))
