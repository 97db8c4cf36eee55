"""A series over time: what was seen, the states or levels behind it, and the steps that come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inference._new_rows.ahead import by_step
from inference._pictures._views.scene import Scene
from inference._pictures._views.style import INK, OKABE_ITO, QUIET, Look, component_colors, new_figure, plain, styled
from zoo._errors import UsageError

Columns = dict[str, np.ndarray]
MOST_COLUMNS = 4
MOST_LATENTS = 4
DOTTED = 200  # steps, up to which each has a dot
BAND = 1.96  # standard deviations of 95 %


@dataclass(frozen=True)
class Steps:
    """The first series of a run: its steps, and those that come next."""

    seen: Columns
    ahead: Columns
    at: np.ndarray  # where the steps stand [T]
    next: np.ndarray  # [steps ahead]
    names: list[str]  # of the columns
    states: list[str]  # P(z=0), …
    levels: list[str]  # z[0], …


def subject(run: Scene) -> Steps | None:
    if run.run is None or not run.is_series:
        return None
    T = run.x.shape[1]
    try:
        seen = by_step(run.run, None, True, None, {})[0].columns
        ahead = by_step(run.run, max(1, min(24, T // 6)), False, None, {})[0].columns
    except UsageError:
        return None
    return _first(seen, ahead)


def _first(seen: Columns, ahead: Columns) -> Steps:
    one, other = ({k: v[of["series"] == of["series"][0]] for k, v in of.items()} for of in (seen, ahead))
    steps = [one["step"], other["step"]]
    numbers = all(s.dtype.kind in "iu" for s in steps)
    at, after = steps if numbers else (np.arange(len(steps[0])), len(steps[0]) + np.arange(len(steps[1])))
    names = [k for k in one if f"{k}_mean" in other or (f"P({k}=0)" in other and f"{k}_probability" not in one)]
    states = [k for k in one if k.startswith("P(")]  # of one latent or more: the first is drawn
    states = [k for k in states if k.split("=")[0] == states[0].split("=")[0]]
    levels = [k.removesuffix("_mean") for k in one if k.endswith("_mean")]
    return Steps(one, other, at, after, names[:MOST_COLUMNS], states, levels[:MOST_LATENTS])


def draw(run: Scene, found: Steps) -> Figure:
    n = len(run.x)
    more = "dots: seen; line: expected given the whole series; bands: 50 % and 95 % of the steps that come"
    figure = new_figure(
        9.0,
        1.4 + 1.9 * (len(found.names) + bool(found.states) + len(found.levels)),
        run.title(more + f"; the first of {n} series" * (n > 1)),
    )
    count = len(found.names) + bool(found.states) + len(found.levels)
    panels = [styled(axes) for axes in figure.subplots(count, 1, sharex=True, squeeze=False).ravel()]
    for axes, name in zip(panels, found.names, strict=False):
        _data(axes, found, name)
    rest = panels[len(found.names) :]
    if found.states:
        _states(rest.pop(0), found)
    for axes, name in zip(rest, found.levels, strict=True):
        _level(axes, found, name)
    panels[-1].set_xlabel(plain(run.json["options"]["data"].get("rows_by", "step")))
    panels[-1].set_xlim(found.at[0], found.next[-1])
    return figure


def _data(axes: Axes, found: Steps, name: str) -> None:
    """What was seen, in the colour of its most probable state if there are any, the fit, and the forecast."""
    values, color = found.seen[name], OKABE_ITO[0]
    axes.plot(found.at, values, color=QUIET, linewidth=0.6)
    if len(values) <= DOTTED:
        dots = component_colors(len(found.states))[_best(found.seen, found.states)] if found.states else QUIET
        axes.scatter(found.at, values, s=12, c=dots, zorder=3)
    if f"{name}_fitted" in found.seen:
        axes.plot(found.at, found.seen[f"{name}_fitted"], color=color if found.levels else INK, linewidth=1.5)
    if f"{name}_mean" in found.ahead:
        _bands(axes, found, name, color)
    axes.set_title(plain(name), loc="left", fontsize=9, color=INK)


def _best(columns: Columns, states: list[str]) -> np.ndarray:
    return np.argmax([columns[s] for s in states], 0)


def _bands(axes: Axes, found: Steps, name: str, color: str) -> None:
    for low, high, alpha in (("2.5", "97.5", 0.15), ("25", "75", 0.3)):
        ends = [found.ahead.get(f"{name}_q{q}") for q in (low, high)]
        if ends[0] is not None and ends[1] is not None:
            axes.fill_between(found.next, ends[0], ends[1], color=color, alpha=alpha, linewidth=0)
    axes.plot(found.next, found.ahead[f"{name}_mean"], color=color, linewidth=1.5, linestyle=(0, (4, 2)))


def _states(axes: Axes, found: Steps) -> None:
    """The probability of each state, one upon the other."""
    shares = [np.concatenate([found.seen[s], found.ahead[s]]) for s in found.states]
    at = np.concatenate([found.at, found.next])
    axes.stackplot(at, shares, colors=component_colors(len(shares)), linewidth=0, labels=found.states)
    axes.axvline(found.at[-1], color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
    axes.set_ylim(0, 1)
    axes.set_title("probability of each state given the whole series", loc="left", fontsize=9, color=INK)
    look: Look = {"frameon": False, "fontsize": 8, "labelcolor": INK}
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **look)


def _level(axes: Axes, found: Steps, name: str) -> None:
    """A continuous latent with its band of 95 %, also of the steps that come."""
    color = OKABE_ITO[2]
    for columns, at, style in ((found.seen, found.at, "-"), (found.ahead, found.next, (0, (4, 2)))):
        mean, sd = columns[f"{name}_mean"], columns.get(f"{name}_sd")
        axes.plot(at, mean, color=color, linewidth=1.5, linestyle=style)
        if sd is not None:
            axes.fill_between(at, mean - BAND * sd, mean + BAND * sd, color=color, alpha=0.2, linewidth=0)
    axes.set_title(f"{plain(name)}, mean and band of 95 %", loc="left", fontsize=9, color=INK)
