"""Which poses the methods choose, relative to the pose the input is really in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from eqadapt.analysis.comparisons import Seeds
from eqadapt.analysis.evaluations import Cell, Evaluation
from eqadapt.analysis.figures import style as s
from eqadapt.analysis.labels import method_styles
from eqadapt.analysis.results import Results
from eqadapt.groups.cyclic import parse_group

_MOST_COLUMNS = 12


def offset_shares(evaluation: Evaluation, columns: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(n,) percent of inputs whose chosen pose is off by each element's angle.

    Args:
        evaluation: A run whose method chooses poses.
        columns: (n,) the poses of the group to count.

    Returns:
        Shares by offset, counted in elements of the group from 0; an offset between two elements
        (continuous groups) counts for the nearer one.
    """
    order = evaluation.group.order
    offsets = (evaluation.chosen_angle - evaluation.angles)[:, columns].ravel()
    offsets = offsets[~np.isnan(offsets)]
    element = np.rint(offsets * order / 360.0).astype(int) % order
    return 100 * np.bincount(element, minlength=order) / max(1, offsets.size)


def chosen_poses(results: Results, cells: list[Cell]) -> Figure | None:
    """A heat map a backbone and kind of input: rows are methods, columns offsets in degrees."""
    choosing = {cell: _choosing(results.at(cell)) for cell in cells}
    cells = [cell for cell in cells if choosing[cell]]
    if not cells:
        return None
    group = parse_group(cells[0].group)
    kinds = _kinds(group.order, cells[0].group)
    most = max(len(methods) for methods in choosing.values())
    # Columns of finer groups have no numbers in them, and need less room.
    wide = 1.2 + 0.46 * (group.order if group.order <= _MOST_COLUMNS else _MOST_COLUMNS / 2)
    figure, grid = s.plt.subplots(
        len(cells),
        len(kinds),
        figsize=(1.9 + wide * len(kinds), 0.9 + len(cells) * (0.75 + 0.36 * most)),
        squeeze=False,
        layout="constrained",
    )
    for row, cell in zip(grid, cells, strict=True):
        for column, (axis, (title, columns)) in enumerate(zip(row, kinds.items(), strict=True)):
            _heatmap(axis, choosing[cell], columns, group.order, labelled=column == 0)
            name = results.cell_label(cell.dataset, cell.backbone)
            axis.set_title(f"{name}\n{title}" if column == 0 else title, loc="left", fontsize=9.5)
    for axis in grid[-1]:
        axis.set_xlabel("Chosen minus applied angle")
    return figure


def _choosing(methods: Mapping[str, Seeds]) -> dict[str, Seeds]:
    return {m: r for m, r in methods.items() if next(iter(r.values())).predictions.chooses}


def _kinds(order: int, group: str) -> dict[str, NDArray[np.bool_]]:
    element = np.arange(order)
    exact = (4 * element) % order == 0
    kinds = {"Upright": element == 0, "Multiples of 90°": exact & (element > 0)}
    kinds[f"Other angles of {group}"] = ~exact
    return {title: columns for title, columns in kinds.items() if columns.any()}


def _heatmap(
    axis: Axes,
    methods: Mapping[str, Seeds],
    columns: NDArray[np.bool_],
    order: int,
    labelled: bool,
) -> None:
    styles = method_styles(methods)
    shares = np.array(
        [np.mean([offset_shares(e, columns) for e in methods[m].values()], axis=0) for m in styles]
    )
    # Centred on no offset: -180 < offset <= 180.
    shift = (order - 1) // 2
    shares = np.roll(shares, shift, axis=1)
    degrees = (np.arange(order) - shift) * 360.0 / order
    fine = order > _MOST_COLUMNS
    # Drawn here rather than by seaborn, which redraws the whole figure for each heat map.
    colours = sns.light_palette("#0072b2", as_cmap=True)
    edge = "none" if fine else "white"
    axis.pcolormesh(shares, cmap=colours, vmin=0, vmax=100, edgecolor=edge, linewidth=1.2)
    if not fine:
        for (row, column), value in np.ndenumerate(shares):
            axis.text(column + 0.5, row + 0.5, _share_text(value), **_share_look(value))
    every = max(1, order // 8) if fine else 1
    ticks = [k for k in range(order) if (k - shift) % every == 0]
    labels = [f"{degrees[k]:g}°".replace("-", "−") for k in ticks]
    axis.set_xticks([k + 0.5 for k in ticks], labels)
    names = [style.label for style in styles.values()] if labelled else [""] * len(styles)
    axis.set_yticks(np.arange(len(styles)) + 0.5, names)
    axis.invert_yaxis()
    axis.grid(False)
    axis.tick_params(axis="y", length=0, labelsize=8.5)
    axis.tick_params(axis="x", length=0, labelsize=8)
    for spine in axis.spines.values():
        spine.set_visible(False)


def _share_text(value: float) -> str:
    return "" if value < 0.05 else "<1" if value < 0.5 else f"{value:.0f}"


def _share_look(value: float) -> dict[str, Any]:
    colour = "white" if value > 55 else s.INK
    return {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
