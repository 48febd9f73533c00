"""Prediction files: one Parquet a run, one row a test image and pose, checked on reading."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup, parse_group

METADATA_KEY = b"eqadapt"
IDENTITY = ("dataset", "backbone", "regime", "method", "group", "seed")
_METADATA = ("task", *IDENTITY, "poses", "classes", "backbone_passes", "params_added")
_INTEGERS = ("index", "label", "pose", "prediction", "chosen")
_FLOATS = ("angle", "score", "chosen_angle")
_REMAKE = "delete it and run `eqadapt predict` for this run again"
TOLERANCE_DEG = 0.01


@dataclass(frozen=True)
class Predictions:
    """What one run predicts for N test images in P poses.

    Attributes:
        meta: The file's own description (task, dataset, backbone, regime, method, group, seed,
            poses, classes, backbone_passes, params_added, ...).
        index: (N,) row of each image in its source split, ascending.
        label: (N,) true class.
        prediction: (N, P) predicted class.
        score: (N, P) largest softmax probability.
        chosen: (N, P) element of the method's group chosen as the input's pose, -1 for none.
        chosen_angle: (N, P) its angle in degrees counter-clockwise, NaN for none.
        path: Where it was read from.

    Column k belongs to the input turned by ``360 k / P`` degrees counter-clockwise.
    """

    meta: Mapping[str, Any]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]
    score: NDArray[np.float64]
    chosen: NDArray[np.int64]
    chosen_angle: NDArray[np.float64]
    path: Path

    @property
    def poses(self) -> CyclicGroup:
        """The group whose elements turned the test images."""
        return parse_group(self.meta["poses"])

    @property
    def angles(self) -> NDArray[np.float64]:
        """(P,) degrees counter-clockwise each column's inputs were turned."""
        return np.asarray(self.poses.angles)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N, P) whether the prediction is the label."""
        return self.prediction == self.label[:, None]

    @property
    def stem(self) -> str:
        """The run's file stem."""
        return run_stem(self.meta)

    @property
    def chooses(self) -> bool:
        """Whether the method names a pose at all."""
        return not bool(np.isnan(self.chosen_angle).all())


def run_stem(run: Mapping[str, Any]) -> str:
    """``<dataset>-<backbone>-<regime>-<method>-<group>-seed<seed>``."""
    parts = [str(run[key]) for key in IDENTITY[:-1]]
    return "-".join(parts) + f"-seed{run['seed']}"


def load_predictions(path: str | Path) -> Predictions:
    """Read and check one prediction file.

    Raises:
        UserError: The file cannot be read or is not a prediction file of the form above; the
            message says which rule it breaks.
    """
    path = Path(path)
    table = _read(path)
    meta = _metadata(table, path)
    columns = _columns(table, path)
    poses = parse_group(meta["poses"]).order
    order = np.lexsort((columns["pose"], columns["index"]))
    grid = {name: values[order] for name, values in columns.items()}
    _check_grid(grid, poses, path)
    shaped = {name: values.reshape(-1, poses) for name, values in grid.items()}
    _check_values(shaped, meta, path)
    return Predictions(
        meta=meta,
        index=shaped["index"][:, 0],
        label=shaped["label"][:, 0],
        prediction=shaped["prediction"],
        score=shaped["score"],
        chosen=shaped["chosen"],
        chosen_angle=shaped["chosen_angle"],
        path=path,
    )


def iterate_predictions(folder: str | Path) -> Iterator[Predictions]:
    """All prediction files of a folder, by name.

    Raises:
        UserError: There is none, or one of them is of the wrong form or misnamed.
    """
    folder = Path(folder)
    paths = sorted(p for p in folder.glob("*.parquet") if not p.name.startswith("."))
    if not paths:
        raise UserError(
            "no prediction files", where=str(folder), fix="run `eqadapt predict` for a run first"
        )
    for path in paths:
        predictions = load_predictions(path)
        if predictions.stem != path.stem:
            raise UserError(
                f"the file describes itself as run {predictions.stem!r}, its name says otherwise",
                where=str(path),
                fix=f"rename it to {predictions.stem}.parquet, or {_REMAKE}",
            )
        yield predictions


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, partitioning=None)
    except FileNotFoundError as error:
        raise UserError("no such prediction file", where=str(path)) from error
    except (pa.ArrowException, OSError) as error:
        first_line = str(error).strip().splitlines()[0] if str(error).strip() else "unknown fault"
        raise UserError(
            f"not a readable Parquet file: {first_line}", where=str(path), fix=_REMAKE
        ) from error


def _metadata(table: pa.Table, path: Path) -> dict[str, Any]:
    raw = (table.schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise UserError(
            f"the Parquet schema has no {METADATA_KEY.decode()!r} metadata: not a prediction file",
            where=str(path),
            fix=_REMAKE,
        )
    try:
        meta = json.loads(raw)
    except ValueError as error:
        raise UserError(
            f"the metadata is not JSON: {error}", where=str(path), fix=_REMAKE
        ) from error
    missing = [key for key in _METADATA if not isinstance(meta, dict) or key not in meta]
    if missing:
        raise UserError(f"the metadata lacks {', '.join(missing)}", where=str(path), fix=_REMAKE)
    return dict(meta)


def _columns(table: pa.Table, path: Path) -> dict[str, NDArray[Any]]:
    missing = [n for n in (*_INTEGERS, *_FLOATS) if n not in table.column_names]
    if missing:
        raise UserError(
            f"missing column {', '.join(missing)} (found: {', '.join(table.column_names)})",
            where=str(path),
            fix=_REMAKE,
        )
    if table.num_rows == 0:
        raise UserError("the file has no rows", where=str(path), fix=_REMAKE)
    columns: dict[str, NDArray[Any]] = {}
    for name in (*_INTEGERS, *_FLOATS):
        column = table[name]
        whole = name in _INTEGERS
        fits = pa.types.is_integer(column.type) if whole else pa.types.is_floating(column.type)
        if not fits or (whole and column.null_count):
            kind = "integers without gaps" if whole else "floating-point numbers"
            raise UserError(
                f"column {name!r} holds {column.type}, not {kind}", where=str(path), fix=_REMAKE
            )
        columns[name] = column.to_numpy().astype(np.int64 if whole else np.float64, copy=False)
    return columns


def _check_grid(grid: Mapping[str, NDArray[Any]], poses: int, path: Path) -> None:
    rows = len(grid["index"])
    whole = rows % poses == 0
    if whole:
        shape = (-1, poses)
        index, pose = grid["index"].reshape(shape), grid["pose"].reshape(shape)
        whole = bool((pose == np.arange(poses)).all() and (index == index[:, :1]).all())
        whole = whole and bool((np.diff(index[:, 0]) > 0).all())
    if not whole:
        raise UserError(
            f"not every test image has each of the {poses} poses exactly once ({rows} rows)",
            where=str(path),
            fix=_REMAKE,
        )


def _check_values(columns: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], path: Path) -> None:
    label, prediction, score = columns["label"], columns["prediction"], columns["score"]
    classes, poses = len(meta["classes"]), columns["pose"].shape[1]
    chosen, chosen_angle = columns["chosen"], columns["chosen_angle"]
    applied = np.arange(poses) * (360.0 / poses)
    faults = {
        "an image has two labels": (label != label[:, :1]).any(),
        f"labels outside 0..{classes - 1}": ((label < 0) | (label >= classes)).any(),
        f"predictions outside 0..{classes - 1}": ((prediction < 0) | (prediction >= classes)).any(),
        "scores outside [0, 1]": not ((score >= -1e-6) & (score <= 1 + 1e-6)).all(),
        "angles that are not those of the poses": angle_gap(columns["angle"], applied).max()
        > TOLERANCE_DEG,
        "chosen elements without an angle": ((chosen >= 0) & np.isnan(chosen_angle)).any(),
    }
    try:
        order = parse_group(str(meta["group"])).order
    except UserError:
        order = 1
    if order > 1:
        named = chosen >= 0
        gap = angle_gap(chosen_angle[named], chosen[named] * (360.0 / order))
        faults["chosen angles that are not those of the chosen elements"] = (
            gap > TOLERANCE_DEG
        ).any()
    found = [fault for fault, present in faults.items() if present]
    if found:
        raise UserError("; ".join(found), where=str(path), fix=_REMAKE)


def angle_gap(left: Any, right: Any) -> NDArray[np.float64]:
    """Absolute difference of angles in degrees on the circle, in [0, 180]; NaN stays NaN."""
    return np.abs((np.asarray(left, float) - np.asarray(right, float) + 180.0) % 360.0 - 180.0)
