"""A model of one's own under a study's protocol: its images, poses, resampling and intervals.

So a network that was made equivariant elsewhere, or not at all, stands beside the study's methods,
image by image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt.analysis.comparisons import Comparison, difference, estimate
from eqadapt.analysis.evaluations import Evaluation
from eqadapt.analysis.evaluations import evaluate as through_groups
from eqadapt.analysis.metrics import rates
from eqadapt.analysis.predictions import load_predictions
from eqadapt.backbones import as_logits
from eqadapt.datasets import prepared
from eqadapt.datasets.label_sets import with_labels_of
from eqadapt.errors import UserError
from eqadapt.evaluation import predict_orbit
from eqadapt.groups import RotationAction, parse_group
from eqadapt.image_store import on_device
from eqadapt.methods import get_method
from eqadapt.modes import evaluating
from eqadapt.runs import select_runs, write_predictions
from eqadapt.study import load_study
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import ImagePipeline

NAME = "own"


class _Logits(nn.Module):
    """A model whose outputs are known to be logits of so many classes."""

    def __init__(self, model: Callable[[Tensor], Any], classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor) -> Tensor:
        """(B, classes) logits."""
        logits = as_logits(self.model(x))
        wanted = (len(x), self.classes)
        if tuple(logits.shape) != wanted:
            raise UserError(
                f"the model gives {tuple(logits.shape)} for {len(x)} images of {self.classes} "
                "classes",
                fix=f"logits of shape {wanted}",
            )
        if not logits.isfinite().all():
            raise UserError(
                f"the model's outputs of {len(x)} images are not all finite",
                fix="look at what it gives for these images, turned",
            )
        return logits


@torch.no_grad()
def evaluate(
    model: Callable[[Tensor], Any],
    study: str | Path | dict[str, Any],
    *,
    dataset: str | None = None,
    backbone: str | None = None,
    group: str | None = None,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    data: str | Path = "data/prepared",
    save: str | Path | None = None,
) -> Evaluation:
    """What a model says of a study's test images in every pose of a group.

    Args:
        model: Maps images (B, C, H, H) float32 in [0, 1], H the study's ``image.size``, turned,
            resampled and masked as the study does it, to logits (B, classes) or to something with
            ``logits``. It normalises them itself. A module is evaluated in evaluation mode, on
            ``device``, to which it is moved.
        study: The study, or its file; its data must be prepared (``snakemake data --configfile``).
        dataset: An entry of the study's ``datasets``; None: the first.
        backbone: An entry of its ``backbones``, whose ``image`` settings hold; None: the first.
        group: Whose poses the images are turned to; None: the study's ``evaluate.poses``.
        batch_size: Images a batch; None: the study's ``evaluate.batch_size``.
        device: Where the images go.
        data: Folder of the prepared data.
        save: Where the predictions are kept, as a Parquet file of the form of a study's.

    Returns:
        The evaluation: ``correct`` and ``predicted`` (N, n), column k the inputs turned by
        360 k / n degrees counter-clockwise. ``describe`` puts it into words.

    Raises:
        UserError: The study has no such entry or unprepared data, no batch has that size, or the
            outputs are no logits of its classes, or not finite.
    """
    if batch_size is not None and batch_size < 1:
        raise UserError(f"a batch of {batch_size} images", fix="a batch_size of 1 or more")
    loaded = load_study(study)
    run = select_runs(loaded.runs(), dataset=dataset, backbone=backbone)[0]
    recipe, limit = loaded.recipe(run), loaded.config["datasets"][run.dataset]["limit_test"]
    image, poses = recipe["image"], group or recipe["evaluate"]["poses"]
    folder = Path(data) / loaded.preparation(run.dataset).name
    test = prepared.load(folder, "test", limit=limit)
    test = with_labels_of(test, loaded.labels_of(run.dataset), f"datasets.{run.dataset}")
    action = RotationAction(
        parse_group(poses), image["interpolation"], image["padding"], image["mask"]
    )
    wrapped = Symmetrized(_Logits(model, len(test.classes)), action, "identity").to(device)
    with evaluating(wrapped):
        found = predict_orbit(
            wrapped,
            get_method("vanilla"),
            on_device(test.images, torch.device(device)),
            test.labels.to(device),
            test.index,
            ImagePipeline.from_recipe(recipe),
            action,
            batch_size or recipe["evaluate"]["batch_size"],
        )
    meta = {
        "task": "classification",
        "dataset": run.dataset,
        "backbone": NAME,
        "regime": NAME,
        "method": NAME,
        "group": "C1",
        "seed": 0,
        "poses": poses,
        "classes": list(test.classes),
        "backbone_passes": found.passes,
        "params_added": 0,
    }
    # By way of a file, as a study's predictions, so that all that reads those reads these.
    with tempfile.TemporaryDirectory() as folder_for_now:
        path = Path(save) if save is not None else Path(folder_for_now) / "own.parquet"
        write_predictions(path, found, meta)
        return through_groups(load_predictions(path), [poses])[0]


def describe(evaluation: Evaluation) -> str:
    """A few lines: accuracies in percent with 95% intervals over the test images."""
    own, name, measured = {0: evaluation}, evaluation.group.name, rates(evaluation)
    lines = []
    for label, metric in (("upright", "acc"), (f"{name}-Avg", "cn_avg")):
        found = estimate(own, metric).scaled(100)
        lines.append(f"{label:24}{found.mean:6.1f} [{found.low:.1f}, {found.high:.1f}]")
    for label, rate in (
        ("worst pose", "worst_pose_acc"),
        ("one answer in all poses", "orbit_agreement"),
    ):
        lines.append(f"{label:24}{100 * measured[rate]:6.1f}")
    return "\n".join(lines)


def against(evaluation: Evaluation, predictions: str | Path) -> dict[str, Comparison]:
    """How far a model is ahead of a run of the study, pair by pair.

    Args:
        evaluation: Of ``evaluate``.
        predictions: ``results/<study>/predictions/<run>.parquet``, of a run of the same group or
            of one without a group, or what ``evaluate`` saved.

    Returns:
        Differences as fractions with their intervals over images, and exact p values:
        ``acc`` of the upright images, ``cn_avg`` of the mean over the poses.

    Raises:
        UserError: The file's images are others, or its group.
    """
    other = through_groups(load_predictions(predictions), [evaluation.group.name])[0]
    if other.group.order != evaluation.group.order:
        raise UserError(
            f"the run is one of {other.group.name}, the evaluation one of {evaluation.group.name}",
            where=str(predictions),
            fix=f"evaluate(..., group={other.group.name!r})",
        )
    own, theirs = {0: evaluation}, {0: other}
    return {metric: difference(own, theirs, (metric, metric)) for metric in ("acc", "cn_avg")}
