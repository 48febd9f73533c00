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
_TICKS = (0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 88, 90, 92, 94, 95, 96, 97, 98, 99, 99.5)
_FONT = 7.5
_LINE = 9.5  # points of length from one label to the next
_ALIGNED = ("right", "left")  # ends of a label above its point
_Box = tuple[float, float, float, float]
_BESIDE_REACH = 60.0  # and how far right of a point its label may start
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

    A point of higher cost counts only if it is better by more than ``worth``.
    """
    front: list[str] = []
    best = -math.inf
    for name in sorted(points, key=lambda name: (points[name][0], -points[name][1])):
        if points[name][1] > best + (worth if front else 0.0):
            front.append(name)
            best = points[name][1]
    return front


def _passes(row: MethodRow) -> float:
    return float(row.means["backbone_passes"])


def _cost_panel(axis: Axes, rows: Sequence[MethodRow]) -> tuple[Mapping[str, float], Sequence[str]]:
    """Draws everything but labels; returns where points stand, and the front."""
    kinds = {row.method: family(row.method) for row in rows}
    places = _side_by_side(rows)
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
        )
    rivals = {
        row.method: (_passes(row), row.average.mean)
        for row in rows
        if not method_style(row.method).reference and kinds[row.method] not in _UNJOINED
    }
    means = [float(row.average.mean) for row in rows]  # an interval may reach beyond the axis
    _scale_of_errors(axis, max(min(means) - 5.0, 0.0), max(means))
    front = pareto_front(rivals, _WORTH)
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
    """Labels, each in the first of its places where it covers no point and no other label.

    The front's first label stands below its point, further ones above theirs if they can; other
    methods' right of the points.
    """
    spots = {row.method: _spot(axis, places[row.method], row.average.mean) for row in rows}
    taken: list[_Box] = []
    for row in rows:  # the best first
        name = row.method
        if name not in front and name not in _NAMED:
            continue
        label = method_style(name).label
        if name == front[0]:
            wanted = [(3.0, -5.0 - _LINE / 2, "left")]
        elif name in front:
            above = [(0.0, 6.0 + _LINE * (k + 0.5), ha) for k in range(5) for ha in _ALIGNED]
            below = [(3.0, -6.0 - _LINE * (k + 0.5), "left") for k in range(3)]
            wanted = [*above[:2], *below, *above[2:]]
        else:
            wanted = [_beside(spots, name, -k * _LINE) for k in range(5)]
        boxes = [_box(spots[name], place, label) for place in wanted]
        free = [n for n, box in enumerate(boxes) if not _covers(box, taken, spots.values())]
        across, up, ha = wanted[free[0] if free else 0]
        taken.append(boxes[free[0] if free else 0])
        axis.annotate(
            label,
            (places[name], row.average.mean),
            xytext=(across, up),
            textcoords="offset points",
            fontsize=_FONT,
            ha=ha,
            va="center",
            color=INK,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # lines may pass below
        )


def _beside(
    spots: Mapping[str, tuple[float, float]], name: str, lower: float
) -> tuple[float, float, str]:
    """Where a label stands right of the points that are at its height."""
    across, up = spots[name]
    near = [a for a, u in spots.values() if abs(u - up - lower) < _LINE / 2]
    right = max((a for a in near if abs(a - across) < _BESIDE_REACH), default=across)
    return max(right, across) - across + 7.0, lower, "left"


def _box(spot: tuple[float, float], place: tuple[float, float, str], label: str) -> _Box:
    """Left, right, lower and upper end of a label, in points of length."""
    width = 0.52 * _FONT * len(label)  # about
    left = spot[0] + place[0] - (width if place[2] == "right" else 0.0)
    return left, left + width, spot[1] + place[1] - _LINE / 2, spot[1] + place[1] + _LINE / 2


def _covers(box: _Box, taken: Sequence[_Box], spots: Iterable[tuple[float, float]]) -> bool:
    """Whether a label covers another one or a point."""
    left, right, low, high = box
    points = any(left < a < right and low - 1.0 < u < high + 1.0 for a, u in spots)
    return points or any(
        left < other[1] and other[0] < right and low < other[3] and other[2] < high
        for other in taken
    )


def _spot(axis: Axes, place: float, value: float) -> tuple[float, float]:
    """Where a point stands in the figure, in points of length."""
    across, up = axis.transData.transform((place, value)) * 72.0 / axis.figure.dpi
    return float(across), float(up)


def _scale_of_errors(axis: Axes, low: float, high: float) -> None:
    """The error on a logarithmic scale, so that good methods are told apart; ticks say accuracy."""
    highest = 100.0 - 0.7 * (100.0 - min(high, 99.5))

    def up(value: Any) -> Any:
        return -np.log10(np.maximum(100.0 - np.asarray(value, float), 0.05))

    def down(height: Any) -> Any:
        return 100.0 - 10.0 ** -np.asarray(height, float)

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
