"""Synthetic studies with known accuracies, in the form the pipeline writes them.

``write_run`` turns arrays into one prediction file; ``make_study`` writes a whole results folder
whose methods have the accuracies asked for, so that every table and figure can be tested without
training anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

POSES = 24


@dataclass(frozen=True)
class Behaviour:
    """How a synthetic method does.

    Attributes:
        upright: Accuracy at angle 0.
        exact: Accuracy at the other multiples of 90 degrees.
        rest: Accuracy at all other angles.
        identity: Share of upright images whose chosen pose is the identity; None: chooses nothing.
        consistent_exact: Share of images whose choice follows multiples of 90 degrees.
        consistent_rest: The same for the group's other elements.
        has_group: Whether its runs carry the study's groups.
        passes: Passes of the backbone.
        added: Parameters added.
    """

    upright: float
    exact: float
    rest: float
    identity: float | None = None
    consistent_exact: float = 1.0
    consistent_rest: float = 1.0
    has_group: bool = True
    passes: int = 1
    added: int = 0


BEHAVIOURS: dict[str, Behaviour] = {
    "vanilla": Behaviour(0.97, 0.55, 0.48, has_group=False),
    "rotation_augmentation": Behaviour(0.94, 0.915, 0.905),
    "lc": Behaviour(0.92, 0.92, 0.912, 0.22, 1.0, 0.9, added=181_504),
    "prlc": Behaviour(0.965, 0.965, 0.955, 0.97, 1.0, 0.3, added=181_504),
    "prlc_rotated": Behaviour(0.966, 0.966, 0.96, 0.95, 1.0, 0.93, added=181_504),
    "oracle": Behaviour(0.97, 0.97, 0.955, 1.0, has_group=False),
}


def run_stem(dataset: str, backbone: str, regime: str, method: str, group: str, seed: int) -> str:
    return f"{dataset}-{backbone}-{regime}-{method}-{group}-seed{seed}"


def write_run(
    folder: Path,
    *,
    label: Sequence[int] | np.ndarray,
    prediction: np.ndarray,
    chosen: np.ndarray | None = None,
    dataset: str = "digits",
    backbone: str = "resnet10t",
    regime: str = "joint",
    method: str = "vanilla",
    group: str = "C1",
    seed: int = 0,
    classes: int = 10,
    index: Sequence[int] | None = None,
    shuffle: bool = False,
    meta: Mapping[str, Any] | None = None,
) -> Path:
    """Write one prediction file.

    Args:
        folder: The study's results folder.
        label: (N,) true classes.
        prediction: (N, P) predicted classes, P poses of C_P.
        chosen: (N, P) elements of the method's group (of C_P for a group-free run); None: none.
        shuffle: Write the rows in random order.
        meta: Fields that replace those of the file's metadata.
    """
    label, prediction = np.asarray(label), np.asarray(prediction)
    images, poses = prediction.shape
    order = int(group[1:]) if group != "C1" else poses
    pose = np.tile(np.arange(poses), images)
    if chosen is None:
        chosen_flat = np.full(images * poses, -1)
        chosen_angle = np.full(images * poses, np.nan)
    else:
        chosen_flat = np.asarray(chosen).reshape(-1)
        chosen_angle = chosen_flat * 360.0 / order
    index = np.arange(images) if index is None else np.asarray(index)
    columns = {
        "index": np.repeat(index, poses).astype(np.int32),
        "label": np.repeat(label, poses).astype(np.int16),
        "pose": pose.astype(np.int16),
        "angle": (pose * 360.0 / poses).astype(np.float32),
        "prediction": prediction.reshape(-1).astype(np.int16),
        "score": np.full(images * poses, 0.9, np.float32),
        "chosen": chosen_flat.astype(np.int16),
        "chosen_angle": chosen_angle.astype(np.float32),
    }
    if shuffle:
        rows = np.random.default_rng(0).permutation(images * poses)
        columns = {name: values[rows] for name, values in columns.items()}
    about = {
        "task": "classification",
        "dataset": dataset,
        "backbone": backbone,
        "regime": regime,
        "method": method,
        "group": group,
        "seed": seed,
        "poses": f"C{poses}",
        "classes": [str(k) for k in range(classes)],
        "backbone_passes": 1,
        "params_added": 0,
        "params_backbone": 1_000_000,
        "config_hash": "c0ffee",
        "data_sha256": "d" * 64,
        "mask": "none",
        "reduced": False,
        **(meta or {}),
    }
    table = pa.table(columns).replace_schema_metadata({b"eqadapt": json.dumps(about).encode()})
    stem = run_stem(dataset, backbone, regime, method, group, seed)
    path = folder / "predictions" / f"{stem}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd")
    return path


@dataclass(frozen=True)
class StudySpec:
    """What ``make_study`` writes."""

    name: str = "digits"
    title: str = ""
    datasets: Sequence[str] = ("digits",)
    dataset_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    backbones: Sequence[str] = ("resnet10t", "vit_tiny")
    groups: Sequence[str] = ("C4", "C8")
    seeds: Sequence[int] = (0, 1, 2)
    regimes: Sequence[str] = ("joint",)
    behaviours: Mapping[str, Behaviour] = field(default_factory=lambda: BEHAVIOURS)
    images: int = 200
    poses: int = POSES
    jitter: float = 0.004
    galleries: bool = False
    reduced: bool = False


def make_study(folder: Path, spec: StudySpec = StudySpec()) -> Path:
    """Write a whole results folder (no metrics yet) and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "study": spec.name,
        "title": spec.title,
        "reduced": spec.reduced,
        "datasets": {name: dict(spec.dataset_options.get(name, {})) for name in spec.datasets},
        "backbones": {name: {"model": name} for name in spec.backbones},
        "regimes": list(spec.regimes),
        "methods": {name: {} for name in spec.behaviours},
        "groups": {name: {} for name in spec.groups},
        "seeds": list(spec.seeds),
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    label = np.random.default_rng(7).integers(0, 10, spec.images)
    for dataset in spec.datasets:
        for number, backbone in enumerate(spec.backbones):
            for regime in spec.regimes:
                for method, behaviour in spec.behaviours.items():
                    for group in spec.groups if behaviour.has_group else ("C1",):
                        for seed in spec.seeds:
                            run = (dataset, backbone, regime, method, group, seed)
                            _write_synthetic(folder, spec, run, behaviour, label, number)
    return folder


def _write_synthetic(
    folder: Path,
    spec: StudySpec,
    run: tuple[str, str, str, str, str, int],
    behaviour: Behaviour,
    label: np.ndarray,
    number: int,
) -> None:
    dataset, backbone, regime, method, group, seed = run
    # zlib.crc32 and not hash(): the same bytes in every process.
    import zlib

    rng = np.random.default_rng(zlib.crc32(run_stem(*run).encode()))
    shift = spec.jitter * (seed - 1) - 0.01 * number
    prediction = synthetic_predictions(label, behaviour, spec.poses, shift, group, rng)
    chosen = synthetic_choices(behaviour, group, spec.images, spec.poses, rng)
    write_run(
        folder,
        label=label,
        prediction=prediction,
        chosen=chosen,
        dataset=dataset,
        backbone=backbone,
        regime=regime,
        method=method,
        group=group,
        seed=seed,
        meta={
            "backbone_passes": behaviour.passes,
            "params_added": behaviour.added,
            "reduced": spec.reduced,
        },
    )
    if method != "oracle":
        _write_record(folder, run, behaviour, rng)
    if spec.galleries and seed == spec.seeds[0]:
        _write_gallery(folder, run, behaviour, rng)


def synthetic_predictions(
    label: np.ndarray,
    behaviour: Behaviour,
    poses: int,
    shift: float,
    group: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """(N, P) predictions with the asked accuracy at every pose, up to rounding to whole images.

    The same images are the hard ones in every pose. A method that follows quarter turns exactly
    predicts the same for poses that differ by one.
    """
    images = len(label)
    # Half of an image's difficulty is common to all methods, as it is with real networks.
    hardness = np.random.default_rng(11).random(images) + 0.5 * rng.random(images)
    rank = np.argsort(np.argsort(hardness))
    wrong = (label + 1 + rng.integers(0, 9, images)) % 10
    prediction = np.empty((images, poses), int)
    for k in range(poses):
        angle = 360.0 * k / poses
        accuracy = _accuracy_at(behaviour, angle, group) + shift
        right = rank < round(np.clip(accuracy, 0, 1) * images)
        prediction[:, k] = np.where(right, label, wrong)
    return prediction


def _accuracy_at(behaviour: Behaviour, angle: float, group: str) -> float:
    if angle % 90 == 0:
        return behaviour.upright if angle == 0 else behaviour.exact
    if group == "C1" and behaviour.identity is None:
        # Falls smoothly with the turn, like a real network's.
        turned = min(angle, 360 - angle) / 180
        return behaviour.rest + (behaviour.upright - behaviour.rest) * max(0.0, 1 - 3 * turned) ** 2
    step = 360 / int(group[1:]) if group != "C1" else 90
    off = min(angle % step, step - angle % step) / step
    return behaviour.rest - 0.35 * off**1.5


def synthetic_choices(
    behaviour: Behaviour, group: str, images: int, poses: int, rng: np.random.Generator
) -> np.ndarray | None:
    """(N, P) chosen elements with the asked identity rate and consistencies, or None."""
    if behaviour.identity is None:
        return None
    if group == "C1":
        return np.tile(np.arange(poses), (images, 1))
    order = int(group[1:])
    upright = np.zeros(images, int)
    others = rng.permutation(images)[: round((1 - behaviour.identity) * images)]
    upright[others] = rng.integers(1, order, len(others))
    chosen = np.empty((images, poses), int)
    for k in range(poses):
        angle = 360.0 * k / poses
        element = round(angle / (360 / order)) % order
        kept = behaviour.consistent_exact if angle % 90 == 0 else behaviour.consistent_rest
        chosen[:, k] = (upright + element) % order
        strays = rng.permutation(images)[: round((1 - kept) * images)] if k else []
        chosen[strays, k] = (chosen[strays, k] + rng.integers(1, order, len(strays))) % order
    return chosen


def _write_record(
    folder: Path, run: tuple[str, str, str, str, str, int], behaviour: Behaviour, rng: Any
) -> None:
    dataset, backbone, regime, method, group, seed = run
    target = folder / "runs" / run_stem(*run)
    target.mkdir(parents=True, exist_ok=True)
    record = {
        "task": "classification",
        "dataset": dataset,
        "backbone": backbone,
        "regime": regime,
        "method": method,
        "group": group,
        "seed": seed,
        "train_seconds": round(float(rng.uniform(4, 9)), 3),
        "device": "cpu (synthetic)",
        "torch": "2.11.0",
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "config_hash": "c0ffee",
        "lock_sha256": "a" * 64,
        "data_sha256": "d" * 64,
        "params_backbone": 1_000_000,
        "params_added": behaviour.added,
        "epochs": 12,
        "best_epoch": 11,
    }
    (target / "run.json").write_text(json.dumps(record), encoding="utf-8")
    lines = [
        "epoch,train_loss,task_loss,prior_loss,train_acc,val_acc,val_cn_avg,val_identity_rate,"
        "lr,seconds"
    ]
    for epoch in range(1, 13):
        rise = 1 - np.exp(-epoch / 3) + 0.01 * rng.standard_normal()
        loss = 2.3 * np.exp(-epoch / 3) + 0.02 * rng.random()
        prior = f"{1.5 * np.exp(-epoch / 2):.5f}" if method.startswith("prlc") else ""
        identity = f"{behaviour.identity * rise:.5f}" if behaviour.identity is not None else ""
        lines.append(
            f"{epoch},{loss * 1.2:.5f},{loss:.5f},{prior},{rise:.5f},"
            f"{behaviour.upright * rise:.5f},{behaviour.rest * rise:.5f},{identity},0.001,0.5"
        )
    (target / "history.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_gallery(
    folder: Path, run: tuple[str, str, str, str, str, int], behaviour: Behaviour, rng: Any
) -> None:
    from safetensors.numpy import save_file
    from scipy.ndimage import rotate, zoom
    from sklearn.datasets import load_digits

    group, count = run[4], 6
    order = int(group[1:]) if group != "C1" else 8
    digits = load_digits()
    images = zoom(digits.images[:count] / 16.0, (1, 4, 4), order=1)
    angles = np.arange(order) * 360.0 / order

    def turned(image: np.ndarray, angle: float) -> np.ndarray:
        return np.clip(rotate(image, angle, reshape=False, order=1, mode="nearest"), 0, 1)

    inputs = np.stack([[turned(image, angle) for angle in angles] for image in images])
    chosen = np.full((count, order), np.nan, np.float32)
    canonical = inputs.copy()
    if behaviour.identity is not None:
        element = np.tile(np.arange(order), (count, 1))
        stray = rng.random(element.shape) > behaviour.consistent_rest
        element = (element + stray * rng.integers(1, order, element.shape)) % order
        chosen = (element * 360.0 / order).astype(np.float32)
        canonical = np.stack(
            [[turned(inputs[i, k], -chosen[i, k]) for k in range(order)] for i in range(count)]
        )
    labels = digits.target[:count].astype(np.int64)
    wrong = rng.random((count, order)) > behaviour.rest
    predictions = np.where(wrong, (labels[:, None] + 3) % 10, labels[:, None]).astype(np.int64)
    target = folder / "galleries" / f"{run_stem(*run)}.safetensors"
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "inputs": (255 * inputs[..., None]).astype(np.uint8),
            "canonical": (255 * canonical[..., None]).astype(np.uint8),
            "angles": angles.astype(np.float32),
            "chosen_angles": chosen,
            "labels": labels,
            "predictions": predictions,
        },
        str(target),
    )
