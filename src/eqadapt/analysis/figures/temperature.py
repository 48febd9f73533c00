"""Accuracy of the Boltzmann average against its temperature, from the best view to equitune."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eqadapt.analysis.evaluations import Cell
from eqadapt.analysis.figures.style import GRID, panels
from eqadapt.analysis.predictions import METADATA_KEY
from eqadapt.analysis.results import Results
from eqadapt.analysis.statistics import Estimate, bootstrap_interval
from eqadapt.errors import UserError

_SPACES = {"probabilities": ("#0072b2", "-"), "logits": ("#d55e00", "--")}


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
    """Read ``temperatures/*.parquet`` of a results folder; intervals are bootstrapped over images.

    Raises:
        UserError: A file without its metadata.
    """
    found = []
    paths = sorted((folder / "temperatures").glob("*.parquet"))
    for path in (p for p in paths if not p.name.startswith(".")):  # half-written ones
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


def accuracy_against_temperature(results: Results, cells: list[Cell]) -> Figure | None:
    """Accuracy of the Boltzmann average, a panel a cell.

    Cold it takes the view of lowest energy (equizero with the energy as its proxy), hot the mean
    over all views (equitune).
    """
    curves = [curve for curve in load_temperatures(results.folder) if curve.cell in cells]
    if not curves:
        return None
    figure, axes = panels(len(curves), 4.6, 3.4, most=2)
    for axis, curve in zip(axes, curves):
        for space, (colour, dash) in _SPACES.items():
            part = curve.frame[curve.frame["space"] == space].sort_values("temperature")
            _temperature_curve(axis, part, colour, dash, f"mean of {space}")
        axis.set_title(f"{results.backbone_label(curve.cell.backbone)}, {curve.cell.group}")
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
        (part[part["temperature"] == 0], inner["temperature"].min() / 3, "lowest energy"),
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
                    ha="left" if name == "lowest energy" else "right",
                )
