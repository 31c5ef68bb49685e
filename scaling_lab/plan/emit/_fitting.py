"""Bytes of a device under a trainer's flags, where they run something else."""

from __future__ import annotations

import dataclasses

import numpy as np

from scaling_lab.cost import activations
from scaling_lab.cost.memory import memory
from scaling_lab.cost.points import REMATS, SCHEDULES
from scaling_lab.plan.answer import Choice
from scaling_lab.plan.candidates import Candidates
from scaling_lab.plan.emit._flags import Flags
from scaling_lab.plan.rank import Ranked, as_points, state_on_host


def needed(ranked: Ranked, choice: Choice, flags: Flags) -> float:
    """Bytes of one device if the flags run: the choice's own, or counted again."""
    if not flags.runs:
        return choice.peak_bytes
    runs = dict(flags.runs)
    optimizer = runs.pop("optimizer", ranked.question.optimizer)
    question = dataclasses.replace(ranked.question, optimizer=optimizer)
    remat = runs.pop("remat", choice.remat if choice.refined else None)
    if "schedule" in runs:
        runs["schedule"] = SCHEDULES.index(runs["schedule"])
    table = ranked.candidates.take(np.array([choice.index])).table
    table = table | {name: np.array([value]) for name, value in runs.items()}
    run = as_points(question, Candidates(table, {}))
    run = run.replace(gathers=ranked.points.gathers[[choice.index]])
    if remat is not None:
        kept = activations.kept_bytes(run, remat) / activations.whole_bytes(run)
        away = 0.0 if remat == "none" else activations.offloaded_share(run, remat)
        word = remat if remat in REMATS else "selective"
        run = run.replace(kept=kept, offload=away, remat=[REMATS.index(word)])
    held = memory(run)
    held = state_on_host(held, run) if choice.host else held
    return float(held.hbm_bytes[0])
