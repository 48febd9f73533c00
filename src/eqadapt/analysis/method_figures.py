"""Figures of the comparison of methods: accuracy against cost, accuracy against temperature."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures.style import GRID, INK, QUIET, panels, save, themed
from eqadapt.analysis.labels import backbone_label, method_style
from eqadapt.analysis.method_table import MethodResults, families, summary_rows
from eqadapt.analysis.predictions import METADATA_KEY
from eqadapt.analysis.statistics import Estimate, bootstrap_interval
from eqadapt.errors import UserError

# Okabe and Ito's colours, with a marker each, so that no family is told by colour alone.
_FAMILIES = {
    "reference": ("#3d3d3d", "o"),
    "average or maximum": ("#e69f00", "s"),
    "search": ("#56b4e9", "^"),
    "search behind a gate": ("#999999", "v"),
    "learned canonicalizer": ("#009e73", "D"),
    "learned energy": ("#cc79a7", "P"),
    "posterior over poses": ("#d55e00", "*"),
}
_SPACES = {"probabilities": ("#0072b2", "-"), "logits": ("#d55e00", "--")}
_WORTH = 0.5  # points of accuracy: less is no reason to name a method of higher cost


def accuracy_against_cost(results: MethodResults, cells: list[Cell]) -> Figure:
    """Accuracy over the group's poses against passes of the backbone an image, one point a method.

    Vertical lines are 95% intervals (over seeds, else over images). Methods without a gate that no
    other beats at the same cost or less are named and joined; methods of equal cost stand side by
    side.
    """
    figure, axes = panels(len(cells), 6.8, 4.8, most=2)
    for axis, cell in zip(axes, cells):
        rows = summary_rows(results.cells[cell], cell, results)
        _cost_panel(axis, rows)
        axis.set_title(f"{backbone_label(cell.backbone)}, {cell.group}")
        axis.set_ylabel(f"accuracy over {cell.group} (%)")
    handles: dict[str, Any] = {}
    for axis in axes:
        found, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, found))
    order = [name for name in _FAMILIES if name in handles]
    figure.legend(
        [handles[name] for name in order],
        order,
        loc="outside lower center",
        ncols=3,
    )
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


def _cost_panel(axis: Axes, rows: list[dict]) -> None:
    kinds = families([row["method"] for row in rows])
    places = _side_by_side(rows)
    for row in rows:
        colour, marker = _FAMILIES[kinds[row["method"]]]
        low, high = row["average"] - row["low"], row["high"] - row["average"]
        spread = None if math.isnan(low) else [[low], [high]]
        axis.errorbar(
            places[row["method"]],
            row["average"],
            yerr=spread,
            color=colour,
            marker=marker,
            markersize=8 if marker == "*" else 5,
            markeredgecolor="white",
            markeredgewidth=0.5,
            elinewidth=1.0,
            linestyle="none",
            label=kinds[row["method"]],
        )
    rivals = {
        row["method"]: (row["passes"], row["average"])
        for row in rows
        if row["method"] != "oracle" and kinds[row["method"]] != "search behind a gate"
    }
    front = pareto_front(rivals, _WORTH)
    axis.step(
        [rivals[name][0] for name in front],
        [rivals[name][1] for name in front],
        where="post",
        color=QUIET,
        linewidth=1.0,
        zorder=0,
    )
    _name_points(axis, rows, places, [*front, "oracle", "equitune", "equizero", "ood_energy"])
    ticks = sorted({int(row["passes"]) for row in rows if float(row["passes"]).is_integer()})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.minorticks_off()
    axis.set_xlim(0.8, max(ticks) * 2.6)
    axis.set_xlabel("passes of the backbone an image")
    axis.grid(color=GRID)


def _name_points(
    axis: Axes, rows: list[dict], places: Mapping[str, float], wanted: list[str]
) -> None:
    """Labels beside the points, the lower of two that would overlap moved down."""
    low, high = axis.get_ylim()
    gap = (high - low) / 22
    above: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: -row["average"]):
        if row["method"] not in wanted:
            continue
        place, height = places[row["method"]], float(row["average"])
        for other_place, other_height in above:
            if 0.5 < place / other_place < 2.0:
                height = min(height, other_height - gap)
        above.append((place, height))
        axis.annotate(
            method_style(row["method"]).label,
            (place, row["average"]),
            xytext=(place * 1.06, height),
            fontsize=7.5,
            va="center",
            color=INK,
        )


def _side_by_side(rows: list[dict]) -> dict[str, float]:
    """Where a method stands on the axis: its passes, moved a little among those of equal cost."""
    places: dict[str, float] = {}
    by_cost: dict[float, list[str]] = {}
    for row in rows:
        by_cost.setdefault(float(row["passes"]), []).append(row["method"])
    for cost, names in by_cost.items():
        reach = 0.01 * (len(names) - 1)
        for name, shift in zip(names, np.linspace(-reach, reach, len(names))):
            places[name] = cost * 2.0**shift
    return places


@dataclass(frozen=True)
class Temperatures:
    """Accuracy of ``boltzmann`` at each temperature in one cell.

    Attributes:
        cell: The cell.
        frame: Columns temperature, space, mean, low, high; percent.
    """

    cell: Cell
    frame: pd.DataFrame


def load_temperatures(folder: Path) -> list[Temperatures]:
    """Read ``temperatures/*.parquet``; intervals are bootstrapped over images.

    Raises:
        UserError: A file without its metadata.
    """
    found = []
    for path in sorted((folder / "temperatures").glob("*.parquet")):
        table = pq.read_table(path)
        header = (table.schema.metadata or {}).get(METADATA_KEY)
        if header is None:
            raise UserError("not a file of temperatures", where=str(path), fix="delete it")
        meta, frame = json.loads(header), table.to_pandas()
        rows = []
        for (space, temperature), part in frame.groupby(["space", "temperature"]):
            value: Estimate = bootstrap_interval(part["hits"] / meta["inputs"]).scaled(100)
            rows.append((space, temperature, value.mean, value.low, value.high))
        columns = ["space", "temperature", "mean", "low", "high"]
        cell = Cell(meta["dataset"], meta["backbone"], meta["regime"], meta["group"])
        found.append(Temperatures(cell, pd.DataFrame(rows, columns=columns)))
    return found


def accuracy_against_temperature(curves: list[Temperatures]) -> Figure:
    """Accuracy of the Boltzmann average from equizero (cold) to equitune (hot), a panel a cell."""
    figure, axes = panels(len(curves), 4.6, 3.4, most=2)
    for axis, curve in zip(axes, curves):
        for space, (colour, dash) in _SPACES.items():
            part = curve.frame[curve.frame["space"] == space].sort_values("temperature")
            _temperature_curve(axis, part, colour, dash, f"mean of {space}")
        axis.set_title(f"{backbone_label(curve.cell.backbone)}, {curve.cell.group}")
        axis.set_xscale("log")
        axis.set_xlabel("temperature")
        axis.set_ylabel(f"accuracy over {curve.cell.group} (%)")
        axis.grid(color=GRID)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _temperature_curve(axis: Axes, part: pd.DataFrame, colour: str, dash: str, label: str) -> None:
    inner = part[(part["temperature"] > 0) & np.isfinite(part["temperature"])]
    axis.plot(inner["temperature"], inner["mean"], color=colour, linestyle=dash, label=label)
    axis.fill_between(inner["temperature"], inner["low"], inner["high"], color=colour, alpha=0.2)
    ends = (
        (part[part["temperature"] == 0], inner["temperature"].min() / 3, "equizero"),
        (part[np.isinf(part["temperature"])], inner["temperature"].max() * 3, "equitune"),
    )
    for end, place, name in ends:
        if len(end):
            value = float(end["mean"].iloc[0])
            axis.plot([place], [value], marker="o", color=colour, markersize=5)
            if dash == "-":
                axis.annotate(
                    name,
                    (place, value),
                    xytext=(0, 7),
                    textcoords="offset points",
                    fontsize=8,
                    ha="left" if name == "equizero" else "right",
                )


def write_method_figures(results: MethodResults) -> list[Path]:
    """Write ``figures/accuracy_against_cost-*`` and ``figures/accuracy_against_temperature-*``."""
    written: list[Path] = []
    folder = results.folder / "figures"
    with themed():
        for dataset, group in sorted({(c.dataset, c.group) for c in results.cells}):
            cells = [c for c in results.cells if (c.dataset, c.group) == (dataset, group)]
            figure = accuracy_against_cost(results, cells)
            written += save(figure, folder / f"accuracy_against_cost-{dataset}-{group}")
        curves = load_temperatures(results.folder)
        for dataset in sorted({curve.cell.dataset for curve in curves}):
            part = [curve for curve in curves if curve.cell.dataset == dataset]
            figure = accuracy_against_temperature(part)
            written += save(figure, folder / f"accuracy_against_temperature-{dataset}")
    return written
