"""Accuracy against the number of training images: one line a method, entries of one source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, StrMethodFormatter

from eqadapt.analysis.comparisons import estimate
from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import dataset_label, method_styles
from eqadapt.analysis.results import Results
from eqadapt.analysis.statistics import Estimate

# method -> (number of training images, accuracy in percent), by number
Lines = Mapping[str, Sequence[tuple[int, Estimate]]]


def training_images(results: Results, cell: Cell) -> int | None:
    """How many images the runs of a cell were trained on; None where no record says it."""
    for runs in results.at(cell).values():
        for evaluation in runs.values():
            found = results.records.get(evaluation.predictions.stem, {}).get("n_train")
            if found is not None:
                return int(found)
    options = results.config["datasets"][cell.dataset] or {}
    return options.get("limit_train")


def accuracy_against_training_size(
    results: Results, cells: list[Cell], source: str
) -> Figure | None:
    """Cn-Avg against the number of training images; one panel a backbone.

    Args:
        results: The study.
        cells: Cells of one regime and group, of the entries that take their images from ``source``.
        source: Their data set.
    """
    backbones = list(dict.fromkeys(cell.backbone for cell in cells))
    lines = {b: _lines(results, [c for c in cells if c.backbone == b]) for b in backbones}
    lines = {b: found for b, found in lines.items() if found}
    if not lines:
        return None
    styles = method_styles(dict.fromkeys(m for found in lines.values() for m in found))
    figure, axes = s.panels(len(lines), 5.0 if len(lines) > 1 else 6.4, 4.2)
    for axis, (backbone, found) in zip(axes, lines.items(), strict=True):
        for method, style in styles.items():
            if method in found:
                _draw(axis, found[method], s.line_options(style))
        _decorate(axis, found)
        axis.set_title(f"{dataset_label(source)}, {results.backbone_label(backbone)}")
    for axis in axes[:: min(3, len(axes))]:
        axis.set_ylabel(f"{cells[0].group}-Avg accuracy (%)")
    s.legend_below(figure, styles.values())
    return figure


def _lines(results: Results, cells: Sequence[Cell]) -> Lines:
    lines: dict[str, list[tuple[int, Estimate]]] = {}
    for cell in cells:
        count = training_images(results, cell)
        if count is None:
            continue
        for method, runs in results.at(cell).items():
            value = estimate(runs, "cn_avg").scaled(100)
            lines.setdefault(method, []).append((count, value))
    return {method: sorted(points, key=lambda p: p[0]) for method, points in lines.items()}


def _draw(axis: Axes, points: Sequence[tuple[int, Estimate]], options: dict) -> None:
    counts = [count for count, _ in points]
    values = [value for _, value in points]
    low = [v.mean if math.isnan(v.low) else max(0.0, v.low) for v in values]
    high = [v.mean if math.isnan(v.high) else min(100.0, v.high) for v in values]
    axis.fill_between(counts, low, high, color=options["color"], alpha=0.15, lw=0)
    axis.plot(counts, [v.mean for v in values], **options)


def _decorate(axis: Axes, found: Lines) -> None:
    counts = sorted({count for points in found.values() for count, _ in points})
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(counts))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axis.set_xlabel("Training images")
    floor = s.percent_floor(v.mean for points in found.values() for _, v in points)
    axis.set_ylim(floor, 101)
    s.clean(axis)
