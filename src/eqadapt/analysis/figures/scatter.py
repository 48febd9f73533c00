"""Upright accuracy against Cn-Avg: what turning the input costs, and what the cure costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqadapt.analysis.comparisons import estimate
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import MethodStyle, method_styles
from eqadapt.analysis.results import Results
from eqadapt.analysis.statistics import Estimate

MANY = 9  # methods beyond which an inset looks at the better two thirds

# method -> upright accuracy, Cn-Avg; in percent
Points = Mapping[str, tuple[Estimate, Estimate]]


def upright_vs_cn_avg(results: Results, cells: list[Cell]) -> Figure:
    """One panel a backbone; a point a method, crossed by its intervals; the diagonal dashed.

    Where most methods crowd far above the others, an inset magnifies them; of many, the better two
    thirds, without room for their intervals.
    """
    figure, axes = s.panels(len(cells), 4.6 if len(cells) > 1 else 5.8, 4.2)
    styles = method_styles(m for cell in cells for m in results.at(cell))
    for axis, cell in zip(axes, cells, strict=True):
        found = {
            method: (estimate(runs, "acc").scaled(100), estimate(runs, "cn_avg").scaled(100))
            for method, runs in results.at(cell).items()
        }
        _draw(axis, found, styles, 8.0)
        axis.set_title(results.cell_label(cell.dataset, cell.backbone))
        axis.set_xlabel("Upright accuracy (%)")
        s.clean(axis)
        _magnify(axis, found, styles)
    for axis in axes[:: min(3, len(cells))]:
        axis.set_ylabel(f"{cells[0].group}-Avg accuracy (%)")
    s.legend_below(figure, styles.values(), marker_only=True)
    return figure


def _draw(axis: Axes, found: Points, styles: Mapping[str, MethodStyle], size: float) -> None:
    for method, (upright, average) in found.items():
        options = s.line_options(styles[method]) | {"linestyle": ""}
        axis.errorbar(
            upright.mean,
            average.mean,
            xerr=_errors(upright),
            yerr=_errors(average),
            ecolor=styles[method].colour,
            elinewidth=size / 7,
            **(options | {"markersize": size * options["markersize"] / s.MARKER}),
        )
    axis.axline((0, 0), slope=1, color=s.QUIET, lw=1.0, ls=(0, (4, 3)), zorder=0)
    axis.set_xlim(*_limits([pair[0] for pair in found.values()]))
    axis.set_ylim(*_limits([pair[1] for pair in found.values()]))


def _errors(value: Estimate) -> list[list[float]] | None:
    if value.kind == "none":
        return None
    return [[value.mean - value.low], [value.high - value.mean]]


def _limits(values: Sequence[Estimate]) -> tuple[float, float]:
    """Room for all means and intervals, within what an accuracy can be."""
    ends = [end for v in values for end in (v.mean, v.low, v.high) if not math.isnan(end)]
    low, high = max(0.0, min(ends)), min(100.0, max(ends))
    air = max(0.07 * (high - low), 0.4)
    return max(0.0, low - air), min(101.0, high + air)


def _magnify(axis: Axes, found: Points, styles: Mapping[str, MethodStyle]) -> None:
    by_average = sorted(found, key=lambda method: found[method][1].mean)
    heights = [found[method][1].mean for method in by_average]
    gaps = [after - before for before, after in pairwise(heights)]
    if len(found) < 5 or max(gaps) < 0.5 * (heights[-1] - heights[0]):
        return
    cut = gaps.index(max(gaps)) + 1
    crowd, rest = by_average[cut:], by_average[:cut]
    place = _free_place(axis, [found[m] for m in crowd], [found[m] for m in rest])
    if place is None:
        return
    inset = axis.inset_axes(place)
    _draw(inset, {method: found[method] for method in crowd}, styles, 5.5)
    if len(crowd) > MANY:
        better = [found[method] for method in crowd[len(crowd) // 3 :]]
        inset.set_xlim(*_limits([_bare(upright) for upright, _ in better]))
        inset.set_ylim(*_limits([_bare(average) for _, average in better]))
    inset.tick_params(labelsize=7, length=0, pad=2)
    inset.grid(linewidth=0.5)
    for spine in inset.spines.values():
        spine.set_edgecolor(s.QUIET)
        spine.set_linewidth(0.7)
    axis.indicate_inset_zoom(inset, edgecolor=s.QUIET, linewidth=0.7, alpha=0.6)


def _bare(value: Estimate) -> Estimate:
    """The mean alone: wide intervals of a few would keep the others from being told apart."""
    return replace(value, low=value.mean, high=value.mean)


def _free_place(
    axis: Axes,
    crowd: Sequence[tuple[Estimate, Estimate]],
    rest: Sequence[tuple[Estimate, Estimate]],
) -> tuple[float, float, float, float] | None:
    """Left, bottom, width and height in the axes' unit of a spot that covers no point."""
    to_axes = axis.transData + axis.transAxes.inverted()
    ceiling = to_axes.transform([(0, min(_ends(average)[0] for _, average in crowd))])[0][1]
    corners = [(_ends(upright)[0], _ends(average)[1]) for upright, average in rest]
    for left, bottom, width, height in ((0.1, 0.1, 0.54, 0.5), (0.1, 0.22, 0.58, 0.42)):
        beside = all(
            x > left + width + 0.03 or y < bottom - 0.08 for x, y in to_axes.transform(corners)
        )
        if len(crowd) >= 4 and beside and ceiling > bottom + height:
            return left, bottom, width, height
    return None


def _ends(value: Estimate) -> tuple[float, float]:
    return (value.mean, value.mean) if value.kind == "none" else (value.low, value.high)
