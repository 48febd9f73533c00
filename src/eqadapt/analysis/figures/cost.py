"""Accuracy over the orbit against inference cost, one point a method."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures.style import GRID, INK, QUIET, panels
from eqadapt.analysis.labels import method_style
from eqadapt.analysis.method_table import MethodRow, method_rows
from eqadapt.analysis.results import Results

# Okabe and Ito's colours, with a marker each, so that no family is told by colour alone.
_FAMILIES = {
    "reference": ("#3d3d3d", "o"),
    "average or maximum": ("#e69f00", "s"),
    "search": ("#56b4e9", "^"),
    "search behind a gate": ("#999999", "v"),
    "learned canonicalizer": ("#009e73", "D"),
    "canonicalizer without training": ("#8c6d31", "p"),
    "learned energy": ("#cc79a7", "P"),
    "posterior over poses": ("#d55e00", "*"),
    "posterior over poses and classes": ("#882255", "X"),
}
_UNJOINED = ("search behind a gate", "posterior over poses and classes")
_NAMED: tuple[str, ...] = ("vanilla", "oracle", "oracle_classes", "posterior_classes")
_NAMED += ("equitune", "equizero", "ood_energy")
_TICKS = (
    *range(0, 80, 10), 75, 80, 85, 88, 90, 92, *range(94, 100), 99.5, 99.8, 100,
)  # fmt: skip
_FONT = 7.5
_LINE = 9.5  # points of length from one label to the next
_ALIGNED = ("right", "left")  # ends of a label above its point
_JOIN = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.7, "shrinkA": 0.0, "shrinkB": 2.0}
_SMALLEST = 0.05  # percent added to an error, whose logarithm is drawn
_Point = tuple[float, float]
_Place = tuple[float, float, str]  # across, up, and the label's end there
_Box = tuple[float, float, float, float]
_WORTH = 0.5  # points of accuracy: less is no reason to name a method of higher cost


def family(name: str) -> str:
    """The kind of a method, for its colour."""
    if name == "vanilla" or method_style(name).reference:
        return "reference"
    if name.endswith("_gated"):
        return "search behind a gate"
    if name.startswith("posterior_classes"):
        return "posterior over poses and classes"
    if name.startswith("posterior"):
        return "posterior over poses"
    if name.startswith(("features_prior", "lambda_equitune")):
        return "learned energy"
    if name.startswith(("equitune", "boltzmann", "ac_max")):
        return "average or maximum"
    if name.startswith(("lc", "prlc", "optc", "top_", "distil", "rotation_head")):
        return "learned canonicalizer"
    if name in ("frozen_canonicalizer", "fixed_energy", "moment_frame", "pca_frame"):
        return "canonicalizer without training"
    return "search"


def accuracy_against_cost(results: Results, cells: list[Cell]) -> Figure:
    """Accuracy over the group's poses against passes of the backbone an image, one point a method.

    The error is on a logarithmic scale. Vertical lines are 95% intervals (over seeds, else over
    images). Methods without a gate and without a second classifier that are ahead of all that cost
    less, by more than ``_WORTH``, are named and joined; methods of equal cost stand side by side.
    """
    figure, axes = panels(len(cells), 6.8, 4.8, most=2)
    named = []
    for axis, cell in zip(axes, cells):
        rows = method_rows(results, cell)
        named.append((axis, rows, *_cost_panel(axis, rows)))
        axis.set_title(f"{results.backbone_label(cell.backbone)}, {cell.group}")
        axis.set_ylabel(f"accuracy over {cell.group} (%)")
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found))
    order = [name for name in _FAMILIES if name in handles]
    longest = 0.6 + 0.085 * max(map(len, order), default=0)  # inches of a column
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=min(3, max(1, int(figure.get_figwidth() // longest))),
    )
    figure.draw_without_rendering()  # labels are placed where points will stand
    for panel in named:
        _name_points(*panel)
    return figure


def pareto_front(points: Mapping[str, tuple[float, float]], worth: float = 0.0) -> list[str]:
    """Names of points (cost, value) that none beats at the same cost or less, cheapest first.

    A point of higher cost counts only if it is better than all cheaper ones, on the front or not,
    by more than ``worth``.
    """
    front: list[str] = []
    best = -math.inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best + worth:
            front.append(name)
        best = max(best, points[name][1])
    return front


def _passes(row: MethodRow) -> float:
    return float(row.means["backbone_passes"])


def _cost_panel(axis: Axes, rows: Sequence[MethodRow]) -> tuple[Mapping[str, float], Sequence[str]]:
    """Draws everything but labels; returns where points stand, and the front."""
    kinds = {row.method: family(row.method) for row in rows}
    places = _side_by_side(rows)
    rivals = {
        row.method: (_passes(row), row.average.mean)
        for row in rows
        if not method_style(row.method).reference and kinds[row.method] not in _UNJOINED
    }
    front = pareto_front(rivals, _WORTH)
    named = {*front, *_NAMED}
    for row in rows:
        colour, marker = _FAMILIES[kinds[row.method]]
        value = row.average
        low, high = value.mean - value.low, value.high - value.mean
        spread = None if math.isnan(low) else [[low], [high]]
        axis.errorbar(
            places[row.method],
            value.mean,
            yerr=spread,
            color=colour,
            marker=marker,
            markersize={"*": 8, "X": 6.5}.get(marker, 5),
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=1.0,
            linestyle="none",
            label=kinds[row.method],
            zorder=3 if row.method in named else 2,
        )
    means = [float(row.average.mean) for row in rows]  # an interval may reach beyond the axis
    _scale_of_errors(axis, max(min(means) - 5.0, 0.0), max(means))
    axis.step(
        [rivals[name][0] for name in front],
        [rivals[name][1] for name in front],
        where="post",
        color=QUIET,
        linewidth=1.0,
        zorder=0,
    )
    ticks = sorted({int(_passes(row)) for row in rows if _passes(row).is_integer()})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.8, max(ticks) * 2.6)
    axis.set_xlabel("passes of the backbone an image")
    axis.grid(color=GRID)
    return places, front


def _name_points(
    axis: Axes,
    rows: Sequence[MethodRow],
    places: Mapping[str, float],
    front: Sequence[str],
) -> None:
    """Labels, each in the first of its places that can be told to be its point's own.

    The front's first label stands below its point, further ones above theirs if they can; other
    methods' around the points. A line joins a label that is nearer to another point.
    """
    spots = {row.method: _spot(axis, places[row.method], row.average.mean) for row in rows}
    (left, low), (right, high) = axis.get_window_extent().get_points() * 72.0 / axis.figure.dpi
    taken: list[_Box] = []
    for row in rows:  # the best first
        name = row.method
        if name not in front and name not in _NAMED:
            continue
        spot, label = spots[name], method_style(name).label
        others = [other for method, other in spots.items() if method != name]
        boxes = {place: _box(spot, place, label) for place in _wanted(name, front)}
        free = [
            place
            for place, box in boxes.items()
            if left < box[0] and box[1] < right and low < box[2] and box[3] < high
            if not _covers(box, taken, spots.values())
        ]
        clear = (p for p in free if _near(boxes[p], spot, others) or _joins(spot, p, others))
        place = next(clear, next(iter(free or boxes)))
        joined = not _near(boxes[place], spot, others)
        taken.append(boxes[place])
        if joined:  # no later label may cover the line
            taken += [_around(point, 1.0) for point in _line(spot, place)]
        axis.annotate(
            label,
            (places[name], row.average.mean),
            xytext=place[:2],
            textcoords="offset points",
            fontsize=_FONT,
            ha=place[2],
            va="center",
            color=INK,
            arrowprops=_JOIN | {"relpos": (float(place[2] == "right"), 0.5)} if joined else None,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # lines may pass below
        )


def _wanted(name: str, front: Sequence[str]) -> list[_Place]:
    """Where a label may stand, as offsets from its point in points of length; the best first."""
    near: list[_Place] = []
    if front and name == front[0]:
        near = [(3.0, -5.0 - _LINE / 2, "left")]
    elif name in front:
        above: list[_Place] = [
            (0.0, 6.0 + _LINE * (k + 0.5), ha) for k in range(5) for ha in _ALIGNED
        ]
        below: list[_Place] = [(3.0, -6.0 - _LINE * (k + 0.5), "left") for k in range(3)]
        near = [*above[:2], *below, *above[2:]]
    further: list[_Place] = [
        (side * across, _LINE * step / 2, ha)
        for across in (7.0, 14.0, 21.0, 35.0, 50.0, 70.0, 90.0)
        for step in range(-12, 13)
        for side, ha in ((1, "left"), (-1, "right"))
    ]
    return near + sorted(further, key=lambda place: math.hypot(place[0], place[1]))


def _box(spot: _Point, place: _Place, label: str) -> _Box:
    """Left, right, lower and upper end of a label, in points of length."""
    width = 0.52 * _FONT * len(label)  # about
    left = spot[0] + place[0] - (width if place[2] == "right" else 0.0)
    return left, left + width, spot[1] + place[1] - _LINE / 2, spot[1] + place[1] + _LINE / 2


def _around(point: _Point, reach: float) -> _Box:
    return point[0] - reach, point[0] + reach, point[1] - reach, point[1] + reach


def _covers(box: _Box, taken: Sequence[_Box], spots: Iterable[_Point]) -> bool:
    """Whether a label covers another one, a line or a point."""
    left, right, low, high = box
    return any(
        left < other[1] and other[0] < right and low < other[3] and other[2] < high
        for other in [*taken, *(_around(spot, 2.0) for spot in spots)]
    )


def _near(box: _Box, spot: _Point, others: Iterable[_Point]) -> bool:
    """Whether a label stands at its point, and no other one is as near."""
    own = _distance(box, spot)
    return own < _LINE and all(_distance(box, other) > own + 2.0 for other in others)


def _distance(box: _Box, point: _Point) -> float:
    across = max(box[0] - point[0], point[0] - box[1], 0.0)
    return math.hypot(across, max(box[2] - point[1], point[1] - box[3], 0.0))


def _joins(spot: _Point, place: _Place, others: Sequence[_Point]) -> bool:
    """Whether a line from a label to its point passes no other one on its way."""
    passed = [p for p in _line(spot, place) if math.dist(p, spot) > 4.0]
    return all(math.dist(point, other) > 4.0 for point in passed for other in others)


def _line(spot: _Point, place: _Place) -> list[_Point]:
    """Points along the line from a point to the end of its label, one a point of length."""
    steps = max(2, round(math.hypot(place[0], place[1])))
    parts = [step / steps for step in range(steps)]
    return [(spot[0] + part * place[0], spot[1] + part * place[1]) for part in parts]


def _spot(axis: Axes, place: float, value: float) -> _Point:
    """Where a point stands in the figure, in points of length."""
    across, up = axis.transData.transform((place, value)) * 72.0 / axis.figure.dpi
    return float(across), float(up)


def _scale_of_errors(axis: Axes, low: float, high: float) -> None:
    """The error on a logarithmic scale, so that good methods are told apart; ticks say accuracy.

    Args:
        axis: The panel.
        low: Where it begins, in percent.
        high: The highest accuracy, which stands below its end.
    """
    end = 100.0 + _SMALLEST
    highest = end - 0.7 * (end - high)

    def up(value: Any) -> Any:
        return -np.log10(np.maximum(end - np.asarray(value, float), _SMALLEST / 10))

    def down(height: Any) -> Any:
        return end - 10.0 ** -np.asarray(height, float)

    axis.set_yscale("function", functions=(up, down))
    axis.set_ylim(low, highest)
    ticks = [tick for tick in _TICKS if low <= tick <= highest]
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def _side_by_side(rows: Sequence[MethodRow]) -> dict[str, float]:
    """Where a method stands on the axis: its passes, moved a little among those of equal cost."""
    places: dict[str, float] = {}
    by_cost: dict[float, list[str]] = {}
    for row in rows:
        by_cost.setdefault(_passes(row), []).append(row.method)
    for cost, names in by_cost.items():
        reach = 0.01 * (len(names) - 1)
        for name, shift in zip(names, np.linspace(-reach, reach, len(names))):
            places[name] = cost * 2.0**shift
    return places
