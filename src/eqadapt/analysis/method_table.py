"""Test-time methods side by side: the columns of ``metrics.csv`` and what such methods add to them.

Read from a study's prediction files, so that trained and test-time methods share one table.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqadapt.analysis.comparisons import estimate
from eqadapt.analysis.evaluations import Cell, Evaluation, evaluate_all
from eqadapt.analysis.labels import method_order, method_style
from eqadapt.analysis.metrics import COLUMNS, metrics_row, sort_rows, write_csv
from eqadapt.analysis.predictions import iterate_predictions
from eqadapt.analysis.results import same_images
from eqadapt.errors import UserError
from eqadapt.files import write_text

EXTRA = (
    "upright_realign",
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
Seeds = dict[int, Evaluation]


@dataclass(frozen=True)
class MethodResults:
    """The prediction files of a results folder, by cell and method.

    Attributes:
        folder: ``results/<study>``.
    """

    folder: Path

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """Every run at its group; runs without one at every group of the others."""
        found = list(iterate_predictions(self.folder / "predictions"))
        groups = sorted(
            {str(p.meta["group"]) for p in found} - {"C1"}, key=lambda name: int(name[1:])
        )
        if not groups:
            raise UserError(
                "no run with a group among the prediction files",
                where=str(self.folder / "predictions"),
                fix="run `eqadapt methods` first",
            )
        return list(evaluate_all(found, groups))

    @cached_property
    def cells(self) -> dict[Cell, dict[str, Seeds]]:
        """Evaluations by cell, method (in display order) and seed."""
        found: dict[Cell, dict[str, Seeds]] = {}
        for e in sorted(self.evaluations, key=lambda e: method_order(e.method)):
            found.setdefault(e.cell, {}).setdefault(e.method, {})[e.seed] = e
        return dict(sorted(found.items(), key=lambda item: (*item[0][:3], int(item[0].group[1:]))))

    @cached_property
    def latencies(self) -> dict[tuple[str, str, str, str], float]:
        """Measured time an image over vanilla's, by data set, backbone, group and method."""
        path = self.folder / "latency.csv"
        if not path.is_file():
            return {}
        frame = pd.read_csv(path)
        keys = zip(frame["dataset"], frame["backbone"], frame["group"], frame["method"])
        return {key: float(value) for key, value in zip(keys, frame["ratio"])}

    @cached_property
    def frame(self) -> pd.DataFrame:
        """``method_frame`` of these results."""
        return method_frame(self)

    def record(self, evaluation: Evaluation) -> dict[str, Any]:
        """``run.json`` of a run, or nothing."""
        path = self.folder / "runs" / evaluation.predictions.stem / "run.json"
        if not path.is_file():
            return {}
        return dict(json.loads(path.read_text(encoding="utf-8")))


def method_frame(results: MethodResults) -> pd.DataFrame:
    """One row a run and group: the columns of ``metrics.csv``, then ``EXTRA``.

    ``harm`` is the share of upright images that vanilla gets right and the method wrong, ``help``
    the reverse; ``upright_realign`` is the accuracy on images that were upright and were aligned
    all the same. ``departures`` names where the equation with one weight a view does not hold.
    """
    rows = []
    for cell, methods in results.cells.items():
        vanilla = next(iter(methods.get("vanilla", {}).values()), None)
        for method, runs in methods.items():
            for evaluation in runs.values():
                row = metrics_row(evaluation, results.record(evaluation))
                row |= _extra(evaluation, vanilla)
                row["latency_ratio"] = results.latencies.get(
                    (cell.dataset, cell.backbone, cell.group, method), math.nan
                )
                rows.append(row)
    return sort_rows(pd.DataFrame(rows, columns=[*COLUMNS, *EXTRA]))


def _extra(evaluation: Evaluation, vanilla: Evaluation | None) -> dict[str, Any]:
    meta, right = evaluation.predictions.meta, evaluation.correct[:, 0]
    found: dict[str, Any] = {"upright_realign": float(right.mean())}
    if vanilla is not None:
        same_images([vanilla, evaluation])
        plain = vanilla.correct[:, 0]
        found["harm"] = float(np.mean(plain & ~right))
        found["help"] = float(np.mean(~plain & right))
    for key in ("logit_difference_exact", "logit_difference_rest", "gated", "trials"):
        found[key] = meta.get(key)
    if evaluation.exact.all():  # a file of a finer group's poses knows of more
        found["logit_difference_rest"] = None
    found["departures"] = " ".join(meta.get("departures", []))
    found["hyperparameters"] = json.dumps(meta.get("hyperparameters", {}), sort_keys=True)
    return found


def summary_rows(methods: Mapping[str, Seeds], cell: Cell, results: MethodResults) -> list[dict]:
    """One row a method of a cell: means over seeds in percent, with 95% intervals."""
    frame = results.frame
    rows = []
    for method, runs in methods.items():
        found = {metric: estimate(runs, metric).scaled(100) for metric in ("acc", "cn_avg")}
        part = frame[
            (frame["dataset"] == cell.dataset)
            & (frame["backbone"] == cell.backbone)
            & (frame["regime"] == cell.regime)
            & (frame["group"] == cell.group)
            & (frame["method"] == method)
        ]
        mean = part.select_dtypes("number").mean()
        rows.append(
            {
                "method": method,
                "upright": found["acc"].mean,
                "average": found["cn_avg"].mean,
                "low": found["cn_avg"].low,
                "high": found["cn_avg"].high,
                "worst": 100 * mean["worst_pose_acc"],
                "harm": 100 * mean["harm"],
                "pose_exact": 100 * mean["pose_acc_exact"],
                "pose_rest": 100 * mean["pose_acc_rest"],
                "agreement": 100 * mean["orbit_agreement"],
                "difference_exact": mean["logit_difference_exact"],
                "difference_rest": mean["logit_difference_rest"],
                "passes": mean["backbone_passes"],
                "parameters": mean["params_added"],
                "seconds": mean["train_seconds"],
                "latency": mean["latency_ratio"],
                "departures": str(part["departures"].iloc[0]),
                "seeds": len(runs),
            }
        )
    return sorted(rows, key=lambda row: -row["average"])


_HEADINGS = (
    ("method", "method"),
    ("upright", "upright"),
    ("average", "average over poses"),
    ("interval", "95% interval"),
    ("worst", "worst pose"),
    ("harm", "harm"),
    ("pose_exact", "pose, multiples of 90"),
    ("pose_rest", "pose, rest"),
    ("agreement", "one prediction"),
    ("difference_exact", "logit difference, 90s"),
    ("difference_rest", "rest"),
    ("passes", "passes"),
    ("parameters", "parameters"),
    ("seconds", "training, s"),
    ("latency", "latency ratio"),
    ("departures", "departs in"),
)


def _shown(key: str, row: Mapping[str, Any]) -> str:
    if key == "method":
        return method_style(row["method"]).label + f" (`{row['method']}`)"
    if key == "interval":
        return "" if math.isnan(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}"
    value = row[key]
    if isinstance(value, str):
        return value.replace("_", " ")
    if value is None or math.isnan(value):
        return ""
    if key in ("parameters", "seconds"):
        return f"{value:,.0f}"
    return f"{value:.3f}" if key.startswith("difference") else f"{value:.2f}"


def markdown(results: MethodResults) -> str:
    """A table a cell, the best average first."""
    parts = ["# Test-time and learned adaptation of frozen backbones", ""]
    for cell, methods in results.cells.items():
        parts += [f"## {cell.dataset}, {cell.backbone}, {cell.group}", ""]
        parts.append("| " + " | ".join(heading for _, heading in _HEADINGS) + " |")
        parts.append("| --- " + "| ---: " * (len(_HEADINGS) - 2) + "| --- |")
        for row in summary_rows(methods, cell, results):
            parts.append("| " + " | ".join(_shown(key, row) for key, _ in _HEADINGS) + " |")
        parts.append("")
    return "\n".join(parts)


def write_tables(results: MethodResults) -> list[Path]:
    """Write ``methods.csv`` and ``tables/methods.md``."""
    csv, text = results.folder / "methods.csv", results.folder / "tables" / "methods.md"
    write_csv(results.frame, csv)
    write_text(text, markdown(results))
    return [csv, text]


def families(names: Sequence[str]) -> dict[str, str]:
    """The kind of each method, for colours."""
    return {name: _family(name) for name in names}


def _family(name: str) -> str:
    if name in ("vanilla", "oracle"):
        return "reference"
    if name.endswith("_gated"):
        return "search behind a gate"
    if name.startswith("posterior"):
        return "posterior over poses"
    if name.startswith("features_prior"):
        return "learned energy"
    if name.startswith(("equitune", "boltzmann", "ac_max")):
        return "average or maximum"
    if name.startswith(("lc", "prlc", "optc", "top_", "distil")):
        return "learned canonicalizer"
    return "search"
