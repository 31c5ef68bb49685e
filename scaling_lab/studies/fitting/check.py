"""What cannot be fitted, said before a number is."""

from __future__ import annotations

import numpy as np

from scaling_lab.studies.fitting.table import Points
from scaling_lab.studies.law import ROLES, Law

#: Tokens per parameter beyond which a unit must be wrong: of the middle row, of any.
LEAST_RATIO, MOST_RATIO = 0.1, 1e7
LEAST_OF_A_ROW = 1e-3
#: The same of FLOPs over 6 N D, and of a loss in nats, bits or bits per byte.
MOST_FLOPS, MOST_LOSS = 30.0, 100.0
#: Columns whose logarithms go together this closely are one column.
ALIKE = 0.9995


def refuse(points: Points, law: Law, free: tuple[str, ...]) -> list[str]:
    """Warnings about what can be fitted but is odd.

    Raises:
      ValueError: units that cannot be, too few points, or columns that no fit can tell
        apart.
    """
    warnings = refuse_units(points, law)
    _enough(points, law, free)
    _apart(points, law, free)
    return warnings


def refuse_units(points: Points, law: Law) -> list[str]:
    """Warnings about units; raises on those that cannot be."""
    _signs(points, law)
    return _units(points, law)


def _signs(points: Points, law: Law) -> None:
    for role, values in {**points.columns, "y": points.y}.items():
        bad = values <= 0
        if bad.any():
            what = ROLES[law.response if role == "y" else role]
            why = "; is it a log-likelihood?" if what == "loss" else ""
            raise ValueError(
                f"{bad.sum()} of {len(points)} rows have a {what} that is not positive "
                f"(row {points.rows[bad][0]}: {values[bad][0]:g}; "
                f"{_source(points, role)}){why}"
            )


def _source(points: Points, role: str) -> str:
    return points.convention.get(role, role)


def _units(points: Points, law: Law) -> list[str]:
    """Tokens and FLOPs beside parameters; raises where a unit must be wrong."""
    warnings, columns = [], points.columns
    if "n" in columns and np.median(columns["n"]) < 1e3:
        raise ValueError(
            f"parameters are about {np.median(columns['n']):.3g} "
            f"({_source(points, 'n')}): in millions or billions? say --scale n=1e6 or "
            "n=1e9"
        )
    if {"n", "d"} <= set(columns):
        warnings += _tokens(points)
    if {"n", "d", "c"} <= set(columns):
        times = float(np.median(columns["c"] / (6 * columns["n"] * columns["d"])))
        if not 1 / MOST_FLOPS < times < MOST_FLOPS:
            raise ValueError(
                f"FLOPs are {times:.2g} times 6 N D ({_source(points, 'c')}): another "
                "unit? say --scale c=1e18, for example"
            )
        if not 0.5 < times < 2:
            warnings.append(
                f"FLOPs are {times:.2g} times 6 N D: parameters or FLOPs are counted "
                "another way (embeddings, active experts, attention)"
            )
    if law.response == "loss":
        warnings += _losses(points)
    return warnings


def _tokens(points: Points) -> list[str]:
    """Tokens for each parameter, of the middle row and of those far from it."""
    n, d = points.columns["n"], points.columns["d"]
    ratios = d / n
    ratio = float(np.median(ratios))
    medians = (
        f"medians {np.median(d):.3g} of {_source(points, 'd')} and "
        f"{np.median(n):.3g} of {_source(points, 'n')}"
    )
    if not LEAST_RATIO < ratio < MOST_RATIO:
        few = ratio <= LEAST_RATIO
        swapped = ", or have the two columns changed places" if few else ""
        raise ValueError(
            f"tokens are {ratio:.2g} times the parameters ({medians}): is one of them "
            f"in another unit{swapped}? say --scale {'d' if few else 'n'}=1e9, or 1e6"
        )
    odd = (ratios < LEAST_OF_A_ROW) | (ratios > MOST_RATIO)
    if odd.any():
        rows = ", ".join(
            f"{row} ({tokens:.3g} for {size:.3g})"
            for row, tokens, size in zip(
                points.rows[odd][:4], d[odd], n[odd], strict=False
            )
        )
        raise ValueError(
            f"tokens are {ratio:.2g} times the parameters in the middle row, and in "
            f"{odd.sum()} of {len(points)} rows look as if in another unit: rows "
            f"{rows}{' …' if odd.sum() > 4 else ''}; mend them, or leave them out "
            "with --where"
        )
    few = f"fewer tokens than parameters in the middle row ({medians}): is that so?"
    return [few] if ratio < 1 else []


def _losses(points: Points) -> list[str]:
    middle = float(np.median(points.y))
    if middle > MOST_LOSS:
        raise ValueError(
            f"losses are about {middle:.3g} ({_source(points, 'y')}): no loss of a "
            "token is; take logarithms of perplexities, or say --scale loss=1e-3, for "
            "example"
        )
    if np.ptp(np.log(points.y)) < 1e-9:
        raise ValueError(
            f"every row has the same loss ({points.y[0]:g}, {_source(points, 'y')}): "
            "it tells nothing of any column"
        )
    odd = f"losses of about {middle:.3g}: perplexities, perhaps?"
    return [odd] if middle > 20 else []


def _enough(points: Points, law: Law, free: tuple[str, ...]) -> None:
    # Runs again of one point tell its noise, and no more of the curve.
    used = [points.columns[role] for role in law.needs if role in points.columns]
    distinct = len(np.unique(np.column_stack(used), axis=0))
    if distinct < len(free) + 1:
        raise ValueError(
            f"{distinct} different points for {len(free)} parameters "
            f"({', '.join(free)}): at least {len(free) + 1}; hold some with --fix "
            "NAME=VALUE"
        )


def _apart(points: Points, law: Law, free: tuple[str, ...]) -> None:
    """Every column must vary, and no two may vary as one."""
    used = [role for role in law.needs if role in points.columns]
    moving = [role for role in used if _moves(role, law, free)]
    logs = {role: np.log(points.columns[role]) for role in moving}
    for role, values in logs.items():
        if np.ptp(values) < 1e-6:
            raise ValueError(
                f"every row has the same {ROLES[role]} ({points.columns[role][0]:g}, "
                f"{_source(points, role)}): nothing tells its exponent"
            )
    roles = [role for role in moving if role not in ("ratio", "c")] or moving
    for place, one in enumerate(roles):
        for other in roles[place + 1 :]:
            alike = float(np.corrcoef(logs[one], logs[other])[0, 1])
            if abs(alike) > ALIKE:
                raise ValueError(
                    f"{ROLES[one]} and {ROLES[other]} move as one (correlation of "
                    f"logarithms {alike:.5f}): no fit can tell their terms apart; add "
                    "rows at another ratio of the two, or hold one term's parameters "
                    "with --fix NAME=VALUE"
                )


def _moves(role: str, law: Law, free: tuple[str, ...]) -> bool:
    if not law.terms:
        return role not in ("unique",)
    powers = [power for term in law.terms for power in term.powers]
    return any(column == role and exponent in free for column, _, exponent in powers)
