"""Training curves: losses, and what the validation images say, epoch by epoch."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import MethodStyle, dataset_label, method_styles
from eqadapt.analysis.results import Results

# column of history.csv, title, whether it is a rate
_PANELS = (
    ("task_loss", "Task loss", False),
    ("prior_loss", "Prior loss", False),
    ("val_acc", "Validation, upright (%)", True),
    ("val_cn_avg", "Validation, {group}-Avg (%)", True),
    ("val_identity_rate", "Identity rate (%)", True),
)


def training_curves(results: Results, cells: list[Cell]) -> Figure | None:
    """A row of panels a backbone; lines are means over seeds, bands the range."""
    history = results.histories
    group = cells[0].group
    if not len(history):
        return None
    shown = [panel for panel in _PANELS if panel[0] in history and history[panel[0]].notna().any()]
    here = {cell: _of_cell(history, cell) for cell in cells}
    here = {cell: frame for cell, frame in here.items() if len(frame)}
    if not shown or not here:
        return None
    styles = method_styles(m for frame in here.values() for m in frame["method"].unique())
    figure, grid = s.plt.subplots(
        len(here),
        len(shown),
        figsize=(2.9 * len(shown), 0.7 + 2.4 * len(here)),
        squeeze=False,
        layout="constrained",
    )
    for row, (cell, frame) in zip(grid, here.items(), strict=True):
        for axis, (column, title, rate) in zip(row, shown, strict=True):
            _draw(axis, frame, column, 100.0 if rate else 1.0, styles)
            axis.set_title(title.format(group=group), fontsize=9.5, fontweight="normal")
        name = f"{dataset_label(cell.dataset)}\n{results.backbone_label(cell.backbone)}"
        row[0].set_ylabel(name, fontweight="bold")
    for axis in grid[-1]:
        axis.set_xlabel("Epoch")
    s.legend_below(figure, styles.values())
    return figure


def _of_cell(history: pd.DataFrame, cell: Cell) -> pd.DataFrame:
    same = history["group"].isin([cell.group, "C1"])
    for key in ("dataset", "backbone", "regime"):
        same &= history[key] == getattr(cell, key)
    here = history[same].copy()
    if "val_cn_avg" in here:
        # A run without a group is validated over C1 alone: upright again, not the group's average.
        here.loc[here["group"] == "C1", "val_cn_avg"] = float("nan")
    return here


def _draw(
    axis: Axes, frame: pd.DataFrame, column: str, scale: float, styles: dict[str, MethodStyle]
) -> None:
    drawn = False
    for method, style in styles.items():
        values = frame[(frame["method"] == method) & frame[column].notna()]
        if not len(values):
            continue
        by_epoch = values.groupby("epoch")[column].agg(["mean", "min", "max"]) * scale
        axis.fill_between(
            by_epoch.index, by_epoch["min"], by_epoch["max"], color=style.colour, alpha=0.15, lw=0
        )
        options = s.line_options(style) | {"marker": style.marker if len(by_epoch) < 3 else ""}
        axis.plot(by_epoch.index, by_epoch["mean"], **options)
        drawn = True
    if not drawn:
        axis.text(0.5, 0.5, "–", transform=axis.transAxes, ha="center", color=s.QUIET)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    first, last = frame["epoch"].min(), frame["epoch"].max()  # of all panels: some know one epoch
    pad = 0.03 * (last - first) or 0.5
    if first == last:  # no ticks between epochs that there are not
        axis.set_xticks([first])
    axis.set_xlim(first - pad, last + pad)
    s.clean(axis)
