"""Test-time methods side by side: what they add to ``metrics.csv``, and their table."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from eqadapt.analysis import formatting as f
from eqadapt.analysis.comparisons import estimate
from eqadapt.analysis.evaluations import Cell, Evaluation
from eqadapt.analysis.formatting import Column, Grid, Text
from eqadapt.analysis.labels import method_style
from eqadapt.analysis.metrics import COLUMNS, metrics_row, sort_rows
from eqadapt.analysis.results import Results, same_images
from eqadapt.analysis.statistics import Estimate

EXTRA = (
    "harm",
    "help",
    "logit_difference_exact",
    "logit_difference_rest",
    "gated",
    "departures",
    "hyperparameters",
    "trials",
    "latency_ratio",
)


def method_frame(results: Results) -> pd.DataFrame:
    """One row a run and group: the columns of every study's ``metrics.csv``, then ``EXTRA``.

    ``harm`` is the share of upright images that vanilla gets right and the method wrong, ``help``
    the reverse. ``departures`` names where the equation with one weight a view does not hold.
    Logit differences are given where the group has all multiples of 90 degrees, or all other
    angles, that the predictions were made at.
    """
    rows = []
    for cell in results.cells():
        methods = results.at(cell)
        vanilla = next(iter(methods.get("vanilla", {}).values()), None)
        for method, runs in methods.items():
            for evaluation in runs.values():
                record = results.records.get(evaluation.predictions.stem, {})
                row = metrics_row(evaluation, record) | _extra(evaluation, vanilla)
                key = (cell.dataset, cell.backbone, cell.group, method)
                row["latency_ratio"] = results.latencies.get(key, math.nan)
                rows.append(row)
    return sort_rows(pd.DataFrame(rows, columns=[*COLUMNS, *EXTRA]))


def _extra(evaluation: Evaluation, vanilla: Evaluation | None) -> dict[str, Any]:
    meta, right = evaluation.predictions.meta, evaluation.correct[:, 0]
    found: dict[str, Any] = {}
    if vanilla is not None:
        same_images([vanilla, evaluation])
        plain = vanilla.correct[:, 0]
        found["harm"] = float(np.mean(plain & ~right))
        found["help"] = float(np.mean(~plain & right))
    for key in ("gated", "trials"):
        found[key] = meta.get(key)
    # The file's are means over all of its poses, which a finer group's file has more of.
    whole = Evaluation(evaluation.predictions, evaluation.predictions.poses)
    for key, own, all_ in (
        ("logit_difference_exact", evaluation.exact, whole.exact),
        ("logit_difference_rest", ~evaluation.exact, ~whole.exact),
    ):
        found[key] = meta.get(key) if own.sum() == all_.sum() else None
    found["departures"] = " ".join(meta.get("departures", []))
    found["hyperparameters"] = json.dumps(meta.get("hyperparameters", {}), sort_keys=True)
    return found


@dataclass(frozen=True)
class MethodRow:
    """One method of a cell: accuracies in percent with their intervals, means of the rest.

    Attributes:
        method: Its name.
        upright: Accuracy on upright images.
        average: Accuracy over the group's poses.
        means: Means over seeds of the numeric columns of ``metrics.csv``.
        departures: Where the equation does not hold.
        seeds: Number of runs.
    """

    method: str
    upright: Estimate
    average: Estimate
    means: Mapping[str, float]
    departures: str
    seeds: int


def method_rows(results: Results, cell: Cell) -> list[MethodRow]:
    """The methods of a cell, the best average first."""
    metrics = results.metrics
    keys = ["dataset", "backbone", "regime", "group"]
    here = metrics[(metrics[keys] == list(cell)).all(axis=1)]
    rows = []
    for method, runs in results.at(cell).items():
        part = here[here["method"] == method]
        departures = part["departures"].iloc[0]
        rows.append(
            MethodRow(
                method,
                estimate(runs, "acc").scaled(100),
                estimate(runs, "cn_avg").scaled(100),
                {str(k): float(v) for k, v in part.select_dtypes("number").mean().items()},
                departures if isinstance(departures, str) else "",
                len(runs),
            )
        )
    return sorted(rows, key=lambda row: -row.average.mean)


def _ratio(value: float) -> str:
    return f.points(value, 2)


def _difference(value: float) -> str:
    return f.points(value, 3)


# column of metrics.csv, heading, how a mean over seeds is written
_COLUMNS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("worst_pose_acc", "Worst pose", f.share),
    ("harm", "Harm", f.share),
    ("pose_acc_exact", "Pose acc. 90°", f.share),
    ("pose_acc_rest", "Pose acc. rest", f.share),
    ("orbit_agreement", "One prediction", f.share),
    ("logit_difference_exact", "Logit diff. 90°", _difference),
    ("logit_difference_rest", "Logit diff. rest", _difference),
    ("backbone_passes", "Passes", _ratio),
    ("params_added", "Added parameters", f.count),
    ("latency_ratio", "Time", _ratio),
    ("train_seconds", "Training", f.duration),
)


def method_table(results: Results, regime: str, group: str) -> tuple[pd.DataFrame, list[Grid]]:
    """Tidy rows of all cells, and one grid a cell."""
    rows, grids = [], []
    for cell in results.cells(regime, group):
        found = method_rows(results, cell)
        rows += [_tidy(cell, row) for row in found]
        grids.append(_grid(cell, results.cell_label(cell.dataset, cell.backbone), found))
    return pd.DataFrame(rows), grids


def _tidy(cell: Cell, row: MethodRow) -> dict[str, Any]:
    return {
        **cell._asdict(),
        "method": row.method,
        "n_seeds": row.seeds,
        "acc_percent": row.upright.mean,
        "acc_low": row.upright.low,
        "acc_high": row.upright.high,
        "cn_avg_percent": row.average.mean,
        "cn_avg_low": row.average.low,
        "cn_avg_high": row.average.high,
        "interval": row.average.kind,
        **{key: row.means.get(key, math.nan) for key, _, _ in _COLUMNS},
        "departures": row.departures,
    }


def _grid(cell: Cell, label: str, rows: Sequence[MethodRow]) -> Grid:
    columns = [Column("Method", left=True), Column("Acc"), Column(f"{cell.group}-Avg")]
    columns += [Column(heading) for _, heading, _ in _COLUMNS]
    columns += [Column("Departs in", left=True)]
    rivals = [row for row in rows if not method_style(row.method).reference]
    best = max((row.average.mean for row in rivals), default=math.nan)
    lines = []
    for row in rows:
        line = [Text(method_style(row.method).label), Text(_with_interval(row.upright))]
        top = not method_style(row.method).reference and row.average.mean == best
        line.append(Text(_with_interval(row.average), bold=top))
        for key, _, write in _COLUMNS:
            text = write(row.means.get(key, math.nan))
            line.append(Text(text, quiet=text == f.DASH))
        line.append(Text(row.departures.replace("_", " ") or f.DASH, quiet=not row.departures))
        lines.append(line)
    caption = (
        f"{label}, {cell.regime}. Percent; mean ± 95% interval "
        "over seeds where something is trained, else a 95% interval over test images in square "
        "brackets. Harm: upright images that the plain network gets right and the method wrong. "
        "Pose accuracy: the chosen pose is the applied one. One prediction: images with the same "
        f"class in all {cell.group} poses. Logit difference: |f(gx) − f(x)| / |f(x)| of "
        "log-probabilities. 90°: multiples of 90°; rest: the group's other poses. Passes of the "
        "network for one prediction, counted. Time: of a batch, over the plain network's. Departs "
        "in: where one weight a view, moving with the input, does not describe the method. Bold: "
        "best average, oracles aside."
    )
    return Grid(columns, lines, caption)


def _with_interval(value: Estimate) -> str:
    return f.with_interval(value.mean, value.low, value.high, value.kind)
