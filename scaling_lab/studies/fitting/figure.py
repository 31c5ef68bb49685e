"""A fit in pictures: the points and the law, what is left, budgets, how firm it is."""

from __future__ import annotations

import numpy as np

from scaling_lab.studies import laws
from scaling_lab.studies.fitting.groups import budgets, distinct
from scaling_lab.studies.fitting.panel import (
    BLUE,
    GREY,
    INK,
    RED,
    Dots,
    Line,
    Panel,
    colour_at,
    sheet,
)
from scaling_lab.studies.fitting.result import Fit
from scaling_lab.studies.law import ROLES, Array
from scaling_lab.studies.markup import Markup

#: Dots of a cloud, and parameters whose profiles are drawn.
CLOUD, PROFILES = 1500, 3


def figure(fit: Fit) -> Markup:
    """The sheet of a fit, as SVG."""
    law = laws.law(fit.law)
    notes = [law.formula, _constants(fit)]
    if fit.parabolas:
        panels = [_parabolas(fit), _path(fit), _frontier(fit)]
    elif fit.curve is None:
        panels = [_path(fit)]
    else:
        panels = [_against(fit), _residuals(fit), *_slices(fit)]
        panels += [_path(fit)] if fit.path and len(fit.optima) > 1 else []
        panels += _profiles(fit)
    panels += _cloud(fit)
    return sheet(panels, f"{law.title}: {len(fit.points)} points", notes)


def _constants(fit: Fit) -> str:
    shown = [f"{name} = {value:.4g}" for name, value in fit.parameters.items()]
    if fit.path is not None and fit.curve is not None:
        pair = fit.exponent("a")
        between = f" ({pair[0]:.3f} to {pair[1]:.3f})" if pair else ""
        shown.append(f"N* ∝ C^{fit.path.a:.3f}{between}")
    return ", ".join(shown)


def _along(fit: Fit) -> tuple[Array, str]:
    """What the points are laid out by, and its name."""
    for role in ("c", "x", "d", "n"):
        if role in fit.points.columns:
            return fit.points.columns[role], ROLES[role]
    role, values = next(iter(fit.points.columns.items()))
    return values, ROLES.get(role, role)


def _names(fit: Fit, mask: Array | slice = slice(None)) -> list[str]:
    return [
        f"row {row}: {y:.4g}"
        for row, y in zip(fit.points.rows[mask], fit.points.y[mask], strict=True)
    ]


def _response(fit: Fit) -> str:
    return ROLES[laws.law(fit.law).response]


def _against(fit: Fit) -> Panel:
    """The points, and the law at the same places."""
    x, name = _along(fit)
    assert fit.curve is not None
    order = np.argsort(x)
    marks: list[Dots | Line] = [Dots(x, fit.points.y, BLUE, names=_names(fit))]
    if set(laws.law(fit.law).needs) == {"x"}:
        grid = np.geomspace(x.min(), x.max(), 120)
        marks.append(Line(grid, fit.predict(x=grid), INK))
    else:
        marks.append(Dots(x[order], fit.curve.predicted[order], RED, 1.3))
    if fit.path is not None and fit.optima and "c" in fit.points.columns:
        path = fit.path
        grid = np.geomspace(x.min(), x.max(), 120)
        best = fit.predict(n=path.n_scale * grid**path.a, d=path.d_scale * grid**path.b)
        marks.append(Line(grid, best, INK, "4 3"))
        title = "Fit: points blue, law red, its frontier dashed"
    else:
        title = "Fit: points blue, law " + ("black" if "x" in name else "red")
    return Panel(title, name, _response(fit), marks, True, True)


def _residuals(fit: Fit) -> Panel:
    x, name = _along(fit)
    assert fit.curve is not None
    far = 100 * np.log(fit.points.y / fit.curve.predicted)
    marks = [
        Line([x.min(), x.max()], [0, 0], GREY),
        Dots(x, far, BLUE, names=_names(fit)),
    ]
    return Panel("Residuals", name, "observed over law, % (log)", marks, True)


def _slices(fit: Fit) -> list[Panel]:
    """Loss by size at every budget, with the law's own curves."""
    if fit.path is None or "c" not in fit.points.columns:
        return []
    n, c = fit.points.columns["n"], fit.points.columns["c"]
    every = budgets(c)
    clear = zip(every, distinct(c, every), strict=True)
    groups = [g for g, one in clear if one and len(np.unique(n[g])) >= 3]
    groups = [g for g in groups if np.ptp(np.log(c[g])) < 0.4]
    if len(groups) < 2 or sum(map(len, groups)) < len(c) / 2:
        return []
    marks: list[Dots | Line] = []
    for place, group in enumerate(groups):
        colour = colour_at(place / (len(groups) - 1))
        flops = float(np.median(c[group]))
        grid = np.geomspace(n[group].min(), n[group].max(), 60)
        law = fit.predict(n=grid, d=flops / (6 * grid))
        marks += [
            Line(grid, law, colour),
            Dots(n[group], fit.points.y[group], colour, names=_names(fit, group)),
        ]
    return [Panel("At the same FLOPs", ROLES["n"], _response(fit), marks, True)]


def _parabolas(fit: Fit) -> Panel:
    n, marks = fit.points.columns["n"], []
    for place, each in enumerate(fit.parabolas):
        colour = colour_at(place / max(len(fit.parabolas) - 1, 1))
        mine = n[each.places]
        marks.append(
            Dots(
                mine, fit.points.y[each.places], colour, names=_names(fit, each.places)
            )
        )
        if not each.why:
            grid = np.geomspace(mine.min(), mine.max(), 60)
            curve = each.low + each.bend * np.log(grid / each.n_best) ** 2
            marks.append(Line(grid, curve, colour, fit=False))
            best = Dots([each.n_best], [each.low], INK, 4, [f"{each.flops:.3g}"], True)
            marks.append(best)
    title = "IsoFLOP: a colour a budget, optima ringed"
    return Panel(title, ROLES["n"], "loss", marks, True)


def _path(fit: Fit) -> Panel:
    assert fit.path is not None
    c = np.array([each.flops for each in fit.optima])
    n = np.array([each.params for each in fit.optima])
    d = np.array([each.tokens for each in fit.optima])
    inside = np.array([each.inside for each in fit.optima])
    grid = np.geomspace(c.min(), c.max(), 50)
    marks: list[Dots | Line] = [
        Line(grid, fit.path.n_scale * grid**fit.path.a, BLUE),
        Line(grid, fit.path.d_scale * grid**fit.path.b, RED),
    ]
    for values, colour in ((n, BLUE), (d, RED)):
        marks.append(Dots(c[inside], values[inside], colour, 3.2))
        marks.append(Dots(c[~inside], values[~inside], colour, 3.2, hollow=True))
    title = f"Optima: N (blue) ∝ C^{fit.path.a:.3f}, D (red) ∝ C^{fit.path.b:.3f}"
    return Panel(title, ROLES["c"], "", marks, True, True)


def _frontier(fit: Fit) -> Panel:
    """The lowest losses by compute."""
    good = [each for each in fit.optima if each.inside and each.loss]
    c = np.array([each.flops for each in good])
    marks: list[Dots | Line] = [Dots(c, [each.loss or 0.0 for each in good], BLUE, 3.2)]
    constants = fit.parameters
    if "frontier_E" in constants:
        grid = np.geomspace(c.min(), c.max(), 60)
        power = constants["frontier_k"] * grid ** -constants["frontier_a"]
        marks.append(Line(grid, constants["frontier_E"] + power, INK))
    return Panel("Lowest loss by compute", ROLES["c"], "loss", marks, True)


def _profiles(fit: Fit) -> list[Panel]:
    """The objective with a parameter held, over its least."""
    assert fit.curve is not None
    chosen = list(fit.curve.profiles)[-PROFILES:]
    panels = []
    for name in chosen:
        each = fit.curve.profiles[name]
        over = 100 * (each.objective / fit.objective - 1) if fit.objective > 0 else None
        if over is None:
            continue
        positive = each.values.min() > 0 and each.values.max() > 20 * each.values.min()
        marks: list[Dots | Line] = [Line(each.values, over, INK)]
        ends = [end for end in (each.low, each.high) if end is not None]
        marks.append(Dots(ends, [0.0] * len(ends), RED, 3.2))
        marks.append(Dots([fit.parameters[name]], [0.0], BLUE, 3.2))
        title = f"Profile of {name}: best blue, {100 * fit.interval:g} % red"
        panels.append(
            Panel(title, name, "objective above its least, %", marks, positive)
        )
    return panels


def _cloud(fit: Fit) -> list[Panel]:
    """Refits as dots with the ellipses of 68 and 95 % of a normal cloud."""
    if fit.curve is not None and fit.curve.refits is not None:
        law = fit.curve.law
        moving = [p for p, name in enumerate(law.names) if name not in fit.curve.fixed]
        powers = [p for p in moving if not law.parameters[p].positive] or moving
        pair = powers[:2] if len(powers) >= 2 else moving[:2]
        if len(pair) < 2:
            return []
        x, y = fit.curve.refits[:, pair].T
        at = law.coordinates(fit.parameters)[pair]
        names = [
            ("log " if law.parameters[p].positive else "") + law.names[p] for p in pair
        ]
    elif fit.path_refits is not None and len(fit.path_refits) > 2 and fit.path:
        x, y = fit.path_refits.T
        at, names = np.array([fit.path.a, fit.path.b]), ["a", "b"]
        if np.ptp(x + y) < 1e-3:  # C = 6 N D: b is 1 - a, and no cloud
            return [_spread(np.sort(x), fit.path.a)]
    else:
        return []
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep][:CLOUD], y[keep][:CLOUD]
    marks: list[Dots | Line] = [Dots(x, y, BLUE, 1.3, opacity=0.35)]
    marks += [Line(*ellipse(x, y, size), RED) for size in (2.279, 5.991)]
    marks.append(Dots([at[0]], [at[1]], INK, 3.4))
    return [Panel("Bootstrap, with 68 and 95 % ellipses", names[0], names[1], marks)]


def _spread(a: Array, best: float) -> Panel:
    share = np.arange(1, len(a) + 1) / len(a)
    marks = [Line(a, share, BLUE), Dots([best], [0.5], INK, 3.4)]
    return Panel("Bootstrap of a", "a", "share of refits below", marks)


def ellipse(x: Array, y: Array, chi_square: float) -> tuple[Array, Array]:
    """Where a normal cloud of these points has a chi square (two degrees) of that."""
    values, vectors = np.linalg.eigh(np.cov(x, y))
    turn = np.linspace(0, 2 * np.pi, 90)
    round_ = np.stack([np.cos(turn), np.sin(turn)])
    at = vectors @ (np.sqrt(np.maximum(values, 0) * chi_square)[:, None] * round_)
    return x.mean() + at[0], y.mean() + at[1]
