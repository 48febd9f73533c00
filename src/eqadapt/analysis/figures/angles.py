"""Accuracy against the angle the input was turned by, plain and around the circle."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eqadapt.analysis.comparisons import Seeds, all_same
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import method_styles
from eqadapt.analysis.results import Results
from eqadapt.analysis.statistics import t_interval, wilson_interval
from eqadapt.groups.cyclic import parse_group


def curve(runs: Seeds) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Angles in degrees (P,), and mean, low and high accuracy in percent (P,) over seeds."""
    everything = [run.predictions for run in runs.values()]
    per_seed = np.array([p.correct.mean(axis=0) for p in everything])
    if all_same([p.correct for p in everything]):
        correct = everything[0].correct
        bands = [wilson_interval(int(c.sum()), len(c)) for c in correct.T]
    else:
        bands = [t_interval(column) for column in per_seed.T]
    mean, low, high = (np.array([getattr(b, k) for b in bands]) for k in ("mean", "low", "high"))
    return everything[0].angles, 100 * mean, 100 * np.clip(low, 0, 1), 100 * np.clip(high, 0, 1)


def accuracy_by_angle(results: Results, cells: list[Cell]) -> Figure:
    """One panel a backbone, one line a method, a band for its interval; the circle unrolled."""
    styles = method_styles(m for cell in cells for m in results.at(cell))
    crowded = len(styles) > 8
    wide = 5.2 if len(cells) > 1 else 7.5
    figure, axes = s.panels(len(cells), wide, 4.6 if crowded else 3.7)
    floor = 100.0
    for axis, cell in zip(axes, cells, strict=True):
        for method, runs in results.at(cell).items():
            angles, mean, low, high = (_closed(v) for v in curve(runs))
            angles[-1] = 360.0
            axis.fill_between(angles, low, high, color=styles[method].colour, alpha=0.15, lw=0)
            every = max(1, (len(angles) - 1) // 8) if crowded else 1
            axis.plot(angles, mean, markevery=every, **s.line_options(styles[method]))
            floor = min(floor, s.percent_floor(mean))
        _unrolled(axis, cell, results.cell_label(cell.dataset, cell.backbone))
    for axis in axes:
        axis.set_ylim(floor, 101)
    for axis in axes[:: min(3, len(cells))]:
        axis.set_ylabel("Test accuracy (%)")
    s.legend_below(figure, styles.values())
    return figure


def _closed(values: NDArray) -> NDArray:
    return np.append(values, values[0])


def _unrolled(axis: Axes, cell: Cell, title: str) -> None:
    axis.set_title(title)
    axis.set_xlim(0, 360)
    axis.set_xticks(range(0, 361, 45), [f"{a}°" for a in range(0, 361, 45)])
    axis.grid(False, axis="x")
    for angle in parse_group(cell.group).angles[1:]:
        axis.axvline(angle, color=s.GRID, lw=1.0, zorder=0)
    axis.set_xlabel(f"Input turned by (counter-clockwise; lines: {cell.group})")
    s.clean(axis)


def accuracy_by_angle_polar(results: Results, cells: list[Cell]) -> Figure:
    """The same around the circle; the radius starts below the worst accuracy shown."""
    figure, axes = s.panels(len(cells), 4.3, 4.4, polar=True)
    styles = method_styles(m for cell in cells for m in results.at(cell))
    floor = 100.0
    for axis, cell in zip(axes, cells, strict=True):
        for method, runs in results.at(cell).items():
            angles, mean, low, high = (_closed(v) for v in curve(runs))
            turn = np.radians(angles)
            turn[-1] = 2 * np.pi
            axis.fill_between(turn, low, high, color=styles[method].colour, alpha=0.15, lw=0)
            # Markers every 45 degrees tell the lines apart without crowding the circle.
            every = max(1, (len(turn) - 1) // 8)
            axis.plot(turn, mean, markevery=every, **s.line_options(styles[method]))
            floor = min(floor, s.percent_floor(mean))
        axis.set_title(results.cell_label(cell.dataset, cell.backbone), pad=14)
    for axis in axes:
        _round(axis, floor)
    s.legend_below(figure, styles.values())
    return figure


def _round(axis: Axes, floor: float) -> None:
    axis.set_theta_zero_location("N")  # type: ignore[attr-defined]
    axis.set_theta_direction(1)  # type: ignore[attr-defined]
    axis.set_xticks(np.radians(range(0, 360, 45)), [f"{a}°" for a in range(0, 360, 45)])
    axis.set_ylim(floor, 100)
    step = 20 if 100 - floor > 40 else 10 if 100 - floor > 20 else 5
    rings = [r for r in range(0, 100, step) if r > floor]
    axis.set_yticks(rings, [f"{r}%" for r in rings])
    axis.set_rlabel_position(22.5)  # type: ignore[attr-defined]
    axis.tick_params(axis="y", labelsize=7.5, labelcolor=s.QUIET)
    for label in axis.get_yticklabels():
        label.set_bbox({"facecolor": "white", "alpha": 0.75, "pad": 0.6, "linewidth": 0})
    axis.spines["polar"].set_color(s.GRID)
