"""What test-time methods leave on disk: predictions over the orbit, and the temperature curve."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eqadapt.evaluation import OrbitPredictions
from eqadapt.files import atomic_path
from eqadapt.groups.cyclic import CyclicGroup
from eqadapt.orbit_cache import Orbits
from eqadapt.test_time.bench import Bench
from eqadapt.test_time.methods import METHODS
from eqadapt.test_time.rules import Decision

_LOWEST = -30.0  # log-probabilities below this are the same nothing


def predictions(
    group: CyclicGroup, decisions: Sequence[Decision], orbits: Orbits
) -> OrbitPredictions:
    """The columns of a predictions file: every image in every pose of the group."""
    count, order = len(orbits), group.order
    angles = np.asarray(group.angles, np.float32)
    chosen = np.concatenate([d.chosen for d in decisions])
    chosen_angles = np.where(chosen < 0, np.nan, chosen * (360.0 / order))
    return OrbitPredictions(
        index=np.tile(orbits.index.astype(np.int32), order),
        label=np.tile(orbits.label.astype(np.int16), order),
        pose=np.repeat(np.arange(order, dtype=np.int16), count),
        angle=np.repeat(angles, count),
        prediction=np.concatenate([d.prediction for d in decisions]).astype(np.int16),
        score=np.concatenate([d.score for d in decisions]).astype(np.float32),
        chosen=chosen.astype(np.int16),
        chosen_angle=chosen_angles.astype(np.float32),
        passes=float(np.mean([d.passes.mean() for d in decisions])),
    )


def logit_differences(group: CyclicGroup, decisions: Sequence[Decision]) -> dict[str, float | None]:
    """How far outputs move when the input is turned: mean of ``|f(gx) - f(x)| / |f(x)|``.

    Outputs are log-probabilities, so that means of logits and of probabilities compare.

    Returns:
        ``logit_difference_exact`` over multiples of 90 degrees, ``logit_difference_rest`` over the
        other poses; None where there are none.
    """
    outputs = [np.maximum(d.log_probabilities, _LOWEST) for d in decisions]
    norm = np.maximum(np.linalg.norm(outputs[0], axis=1), 1e-12)
    exact = set(group.exact_elements)
    found: dict[str, list[float]] = {"exact": [], "rest": []}
    for pose in range(1, group.order):
        gap = np.linalg.norm(outputs[pose] - outputs[0], axis=1) / norm
        found["exact" if pose in exact else "rest"].append(float(gap.mean()))
    return {
        f"logit_difference_{key}": float(np.mean(values)) if values else None
        for key, values in found.items()
    }


def write_temperatures(
    path: Path, bench: Bench, temperatures: Sequence[float], cell: Mapping[str, Any]
) -> None:
    """How many inputs of each test image are right at each temperature of ``boltzmann``.

    Written as Parquet, one row an image, temperature and output space: ``index`` int64,
    ``temperature`` float32 (0: equizero with the same energy, infinity: equitune), ``space`` and
    ``hits`` int16 of the ``inputs`` (one a coset of the quarter turns; the others change nothing)
    named in the metadata.

    Args:
        path: The file.
        bench: The cell.
        temperatures: Positive ones; the two ends are added.
        cell: Data set, backbone, regime and group, for the metadata.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    test = bench.orbits["test"]
    columns: dict[str, list[Any]] = {key: [] for key in ("index", "temperature", "space", "hits")}
    for space in ("probabilities", "logits"):
        for temperature in [0.0, *temperatures, np.inf]:
            method, options = METHODS["boltzmann"], {"space": space, "temperature": temperature}
            if np.isinf(temperature):
                method, options = METHODS["equitune"], {"space": space}
            found = bench.decide(method, options, "test", poses=test.cosets)
            hits = np.sum([d.prediction == test.label for d in found], axis=0)
            columns["index"].append(test.index)
            columns["temperature"].append(np.full(len(test), temperature, np.float32))
            columns["space"].append(np.full(len(test), space, object))
            columns["hits"].append(hits.astype(np.int16))
    table = pa.table({key: np.concatenate(parts) for key, parts in columns.items()})
    meta = json.dumps({**cell, "inputs": len(test.cosets)}, sort_keys=True)
    with atomic_path(path) as temporary:
        pq.write_table(
            table.replace_schema_metadata({b"eqadapt": meta.encode()}),
            temporary,
            compression="zstd",
        )
