"""``metrics.csv``: one row a run and evaluation group, every rate computed from predictions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from eqadapt.analysis.evaluations import Evaluation
from eqadapt.analysis.labels import method_order
from eqadapt.files import atomic_path

KEYS = ("task", "dataset", "backbone", "regime", "method", "group", "seed")
RATES = (
    "acc",
    "cn_avg",
    "worst_pose_acc",
    "identity_rate",
    "pose_acc_exact",
    "pose_acc_rest",
    "consistency_exact",
    "consistency_rest",
)
COSTS = ("backbone_passes", "params_added", "train_seconds")
PROVENANCE = ("device", "commit", "config_hash", "data_sha256")
EXTRA = (
    "orbit_agreement",
    "all_pose_acc",
    "n_test",
    "n_poses",
    "trained_group",
    "params_backbone",
    "epochs",
    "best_epoch",
    "torch",
    "lock_sha256",
    "test_sha256",
    "mask",
    "reduced",
)
COLUMNS = KEYS + RATES + COSTS + PROVENANCE + EXTRA


def rates(evaluation: Evaluation) -> dict[str, float]:
    """The rates of one run at one group, as fractions; NaN where one does not apply.

    Returns:
        acc: accuracy on upright images. cn_avg: plain mean of the accuracy over the group's poses,
        the upright one included. worst_pose_acc: the smallest of them. orbit_agreement: share of
        images with the same prediction in all poses. identity_rate: share of upright images whose
        chosen pose is the identity. pose_acc_exact, pose_acc_rest: share of inputs whose chosen
        pose is the applied one, over multiples of 90 degrees (0 included) and over the group's
        other poses. consistency_exact, consistency_rest: share with c(g x) = g c(x), over the
        multiples of 90 degrees without 0 and over the other poses. all_pose_acc: mean accuracy
        over every pose predicted, the group's or not.
    """
    by_pose = evaluation.correct.mean(axis=0)
    predicted = evaluation.predicted
    found = {
        "acc": float(by_pose[0]),
        "cn_avg": float(evaluation.correct.mean()),
        "worst_pose_acc": float(by_pose.min()),
        "orbit_agreement": float((predicted == predicted[:, :1]).all(axis=1).mean()),
        "all_pose_acc": float(evaluation.predictions.correct.mean()),
    }
    return found | _pose_rates(evaluation)


def _pose_rates(evaluation: Evaluation) -> dict[str, float]:
    if not evaluation.predictions.chooses:
        return dict.fromkeys(RATES[3:], math.nan)
    right, consistent, exact = evaluation.pose_right, evaluation.pose_consistent, evaluation.exact
    turned = exact & (np.arange(len(exact)) > 0)
    return {
        "identity_rate": float(right[:, 0].mean()),
        "pose_acc_exact": _share(right[:, exact]),
        "pose_acc_rest": _share(right[:, ~exact]),
        "consistency_exact": _share(consistent[:, turned]),
        "consistency_rest": _share(consistent[:, ~exact]),
    }


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if flags.size else math.nan


def metrics_row(evaluation: Evaluation, record: Mapping[str, Any]) -> dict[str, Any]:
    """One row of ``metrics.csv``; ``record`` is the run's ``run.json`` (or empty)."""
    meta = evaluation.predictions.meta
    row: dict[str, Any] = {column: record.get(column, meta.get(column)) for column in COLUMNS}
    # What the prediction file says of itself wins: an oracle's record is that of the run it reuses.
    row |= {key: meta[key] for key in COLUMNS if key in meta}
    row |= rates(evaluation)
    row["group"] = evaluation.group.name
    row["trained_group"] = meta["group"]
    row["n_test"], row["n_poses"] = evaluation.predictions.correct.shape
    return row


def metrics_frame(
    evaluations: Iterable[Evaluation], records: Mapping[str, Mapping[str, Any]]
) -> pd.DataFrame:
    """All rows, in a fixed order; ``records`` maps a run's stem to its ``run.json``."""
    rows = [metrics_row(e, records.get(e.predictions.stem, {})) for e in evaluations]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return sort_rows(frame)


def sort_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """By data set, backbone, regime, group order, method's display order and seed."""
    order = pd.DataFrame(
        {
            "dataset": frame["dataset"],
            "backbone": frame["backbone"],
            "regime": frame["regime"],
            "order": frame["group"].str.removeprefix("C").astype(int),
            "method": frame["method"].map(method_order),
            "seed": frame["seed"],
        }
    )
    return frame.loc[order.sort_values(list(order.columns)).index].reset_index(drop=True)


def accuracy_by_pose(evaluations: Iterable[Evaluation]) -> pd.DataFrame:
    """Tidy accuracy of every run at every predicted pose.

    Returns:
        Columns dataset, backbone, regime, method, group, seed, angle (degrees counter-clockwise),
        accuracy (fraction), n_test.
    """
    parts = []
    for evaluation in evaluations:
        predictions = evaluation.predictions
        parts.append(
            pd.DataFrame(
                {
                    **evaluation.cell._asdict(),
                    "method": evaluation.method,
                    "seed": evaluation.seed,
                    "angle": predictions.angles,
                    "accuracy": predictions.correct.mean(axis=0),
                    "n_test": len(predictions.label),
                }
            )
        )
    frame = pd.concat(parts, ignore_index=True)
    columns = ["dataset", "backbone", "regime", "group", "method", "seed", "angle", "accuracy"]
    return frame[[*columns, "n_test"]]


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Twelve significant digits: every rate of a whole number of images is exact to the last."""
    with atomic_path(path) as temporary:
        frame.to_csv(temporary, index=False, float_format="%.12g", lineterminator="\n")
