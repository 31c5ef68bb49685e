"""`fit`: a table and a law to constants, intervals and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting import check, uncertainty
from scaling_lab.studies.fitting.groups import APART, budgets
from scaling_lab.studies.fitting.objective import Objective
from scaling_lab.studies.fitting.options import Options
from scaling_lab.studies.fitting.profiles import profile
from scaling_lab.studies.fitting.result import Curve, Fit, Heldout, Moved, Optimum
from scaling_lab.studies.fitting.solve import Solved, held, solve
from scaling_lab.studies.fitting.table import Points, points_of
from scaling_lab.studies.law import ROLES, Law, Path

#: Share of the points, those of most compute, that an extrapolation is judged by.
HELD_OUT = 0.2
#: Standard error, in e-folds, beyond which a direction is not just flat.
LOST = 3.0
#: Points beyond the parameters, below which intervals are doubtful.
SPARE = 5
#: An exponent that no published law comes near.
STEEP = 5.0


def fit(data: Any, law: str = "chinchilla", **words: Any) -> Fit:
    """Fits a scaling law to a table.

    Args:
      data: a DataFrame; a .csv, .tsv, .json, .jsonl or .parquet file; a folder of
        records.
      law: its name; `scaling_lab.studies.laws.names()` lists them.
      **words: the fields of `Options`: columns, units, what is minimised, bootstrap.

    Raises:
      ValueError: a column is missing, a unit cannot be, there are too few points, or
        they cannot tell the parameters apart.
    """
    options = Options.of(words)
    found = laws.law(law)
    points = points_of(data, found, options)
    if options.drop_highest:
        points = _without_highest(points, options.drop_highest)
    if found.prepare is not None:
        points = found.prepare(points)
    if found.procedure is not None:
        _refuse_for_procedure(options)
        return found.procedure(points, options)
    return fit_curve(law, found, points, options)


def _without_highest(points: Points, count: int) -> Points:
    if count >= len(points):
        raise ValueError(f"drop_highest {count}: there are {len(points)} rows")
    order = np.argsort(-points.y, kind="stable")[:count]
    mask = np.ones(len(points), bool)
    mask[order] = False
    gone = ", ".join(f"{points.y[place]:.4g}" for place in order[:5])
    return points.keep(mask, f"the {count} rows of highest loss left out ({gone})")


def _refuse_for_procedure(options: Options) -> None:
    for name in ("fix", "huber", "loss", "solver"):
        if getattr(options, name):
            raise ValueError(
                f"this law is no curve that is minimised: {name} says nothing"
            )


def fit_curve(name: str, law: Law, points: Points, options: Options) -> Fit:
    """A law that is a curve, fitted and examined."""
    fixed = held(law, options)
    free = tuple(each for each in law.names if each not in fixed)
    warnings = check.refuse(points, law, free)
    solved = solve(law, points, options)
    warnings += _doubts(solved)
    flat = uncertainty.flat(solved, law) if solved.problem.free else []
    many = options.bootstrap if solved.problem.free else 0
    refits = uncertainty.bootstrap(solved, options) if many else None
    log_N = solved.problem.model.log_values(solved.at[None])[0][0]
    best = law.values(solved.at)
    lost = lost_terms(law, best, points)
    moving = [law.names[place] for place in solved.problem.free]
    curve = Curve(
        law=law,
        values=best,
        fixed=fixed,
        predicted=np.exp(log_N),
        objective=solved.problem.objective,
        condition=uncertainty.condition(solved) if moving else 1.0,
        flat=flat,
        profiles={
            each: profile(solved, law, each, options.interval) for each in moving
        },
        refits=refits,
        moved=_leverage(solved, law, points) if moving else [],
        starts=(solved.agreeing, solved.starts),
        references=_references(law, solved),
    )
    warnings += [
        f"{'not identified' if each.error > LOST else 'flat direction'}: {each.words}"
        for each in flat
    ]
    warnings += [*lost, *_few(points, len(moving))]
    path = None if lost else law.best_path(best)
    return Fit(
        law=name,
        parameters=best,
        path=path,
        interval=options.interval,
        optima=_optima(law, best, points, path),
        points=points,
        objective=solved.value,
        held_out=_extrapolate(law, points, options),
        warnings=warnings,
        options=options,
        curve=curve,
    )


def _doubts(solved: Solved) -> list[str]:
    """What the minimum itself says against it."""
    found = []
    if not solved.rested:
        found.append("the descent was stopped before it came to rest")
    if solved.starts and solved.agreeing < 2:
        found.append(f"only one of {solved.starts} starts found this minimum")
    return found


def _few(points: Points, moving: int) -> list[str]:
    """Whether the points that are left to tell the noise are enough for intervals."""
    rows = np.column_stack([*points.columns.values(), points.y])
    different = len(np.unique(rows, axis=0))
    if not moving or different - moving >= SPARE:
        return []
    return [
        f"{different} different points for {moving} parameters leave "
        f"{different - moving} to tell the noise: intervals are rough, those of the "
        "bootstrap too narrow"
    ]


def lost_terms(law: Law, values: Mapping[str, float], points: Points) -> list[str]:
    """Terms of a sum of powers that these points do not have, in words."""
    found, middle = [], float(np.median(points.y))
    for term in law.terms:
        size, steepest = values[term.coefficient], 0.0
        for column, sign, exponent in term.powers:
            logs = np.log(points.columns[column])
            size = size * np.exp(np.clip(sign * values[exponent] * logs, -700, 700))
            steepest = max(steepest, abs(values[exponent]))
        most, least = float(np.max(size)), float(np.min(size))
        said = f"not identified: the term of {term.coefficient}"
        if most < 1e-6 * middle:
            found.append(f"{said} is zero at every point")
        elif term.powers and law.response != "y" and np.log(most / least) < 1e-3:
            found.append(f"{said} is the same at every point, as a constant is")
        elif steepest > STEEP:
            found.append(f"{said} has an exponent of {steepest:.3g}: a step, no power")
    return found


def _references(law: Law, solved: Solved) -> dict[str, float]:
    """The objective that published constants have on these points."""
    found = {}
    for name, reference in law.references.items():
        at = law.coordinates(reference.values)
        log_BN = solved.problem.model.log_values(at[None])[0]
        problem = solved.problem
        found[name] = float(
            problem.objective.parts(log_BN, problem.log_y, problem.weight)[0][0]
        )
    return found


def _leverage(solved: Solved, law: Law, points: Points) -> list[Moved]:
    """Points without which the constants move most, in standard errors."""
    alone = uncertainty.leave_one_out(solved)
    error = np.sqrt(np.diag(uncertainty.errors(solved)))
    places = list(solved.problem.free)
    shift = (alone - solved.at)[:, places] / np.maximum(error, 1e-12)
    shift[:, error > LOST] = 0.0  # what no point tells, none tells more
    worst = np.abs(shift).max(1)
    found = []
    for place in np.argsort(-worst)[:5]:
        which = int(np.argmax(np.abs(shift[place])))
        name, without = law.names[places[which]], law.values(alone[place])
        path = law.best_path(without)
        found.append(
            Moved(
                row=int(points.rows[place]),
                parameter=name,
                value=without[name],
                errors=float(shift[place, which]),
                path_a=path.a if path else None,
            )
        )
    return found


def _extrapolate(law: Law, points: Points, options: Options) -> Heldout | None:
    """The error on the points of most compute, fitted without them."""
    by = points.columns.get("c", points.columns.get("x"))
    role = "c" if "c" in points.columns else "x"
    if by is None:
        by, role = (
            np.exp(sum(np.log(x) for x in points.columns.values())),
            "all columns",
        )
    count = max(1, round(HELD_OUT * len(points)))
    limit = np.sort(by)[-count]
    out = by >= limit * (1 - 1e-9)
    rest = points.keep(~out)
    fixed = held(law, options)
    free = tuple(each for each in law.names if each not in fixed)
    try:
        check.refuse(rest, law, free)
        solved = solve(law, rest, options)
    except ValueError:
        return None
    columns = {name: x[out] for name, x in points.columns.items()}
    error = law.predict(law.values(solved.at), columns) / points.y[out] - 1
    return Heldout(
        points=int(out.sum()),
        by=ROLES.get(role, role),
        above=float(limit),
        mean=float(np.abs(error).mean()),
        worst=float(np.abs(error).max()),
        bias=float(error.mean()),
    )


def _optima(
    law: Law, values: Mapping[str, float], points: Points, path: Path | None
) -> list[Optimum]:
    """Where the law has compute best spent, at the table's budgets or by decades."""
    c = points.columns.get("c")
    if path is None or c is None:
        return []
    groups = budgets(c)
    tight = all(np.ptp(np.log(c[group])) < 2 * APART for group in groups)
    if tight and len(groups) <= 12 and len(c) >= 3 * len(groups):
        at = [float(np.median(c[group])) for group in groups]
    else:
        low, high = np.floor(np.log10(c.min())), np.ceil(np.log10(c.max()))
        at = [10.0**power for power in np.arange(low, high + 1)]
    found = []
    for flops in at:
        n, d = path.n_scale * flops**path.a, path.d_scale * flops**path.b
        columns = {"n": n, "d": d, "c": 6 * n * d, "ratio": d / n}
        loss = law.predict(values, {k: np.array([v]) for k, v in columns.items()})
        found.append(Optimum(flops, n, d, float(loss[0])))
    return found


__all__ = ["Objective", "fit", "fit_curve"]
