"""Predictions over the orbit: every test image in every pose, one row each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.errors import NotFinite
from eqadapt.groups import RotationAction
from eqadapt.image_store import HostImages
from eqadapt.methods import Method
from eqadapt.modes import evaluating
from eqadapt.pass_once import Memories, passing_once
from eqadapt.symmetrize import Output, Symmetrized
from eqadapt.tasks.classification import ImagePipeline


class PassCounter:
    """Counts the images that go through a backbone, by a hook: passes are measured, not claimed.

    Args:
        backbone: The module whose calls are counted.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.images = 0
        backbone = getattr(backbone, "inner", backbone)  # what a wrapper really passes
        self._handle = backbone.register_forward_pre_hook(self._count)

    def _count(self, _module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.images += len(inputs[0])

    def __enter__(self) -> PassCounter:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


def batches(
    images: Tensor | HostImages, pipeline: ImagePipeline, action: RotationAction, batch_size: int
) -> Iterator[tuple[slice, Tensor]]:
    """Images at the acting size, masked where the action masks, batch by batch."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield rows, action.masked(pipeline.to_act_size(images[rows]))


@torch.no_grad()
def orbit_accuracy(
    model: Symmetrized,
    images: Tensor | HostImages,
    labels: Tensor,
    pipeline: ImagePipeline,
    batch_size: int,
) -> dict[str, float | int | None]:
    """Accuracy upright and over the orbit of the model's own group, and the identity rate.

    Args:
        model: The model; every part is left in training mode or not as it was.
        images: (N, C, h, h) uint8.
        labels: (N,) int64.
        pipeline: Bytes to images.
        batch_size: Images a batch.

    Raises:
        NotFinite: An output is not finite.
    """
    if not len(images):
        return {}
    order = model.action.group.order
    correct = torch.zeros(order, device=images.device)
    identities = torch.zeros((), device=images.device)
    finite = torch.ones((), dtype=torch.bool, device=images.device)
    with evaluating(model), _sharing(model, turns=False) as memories:
        for rows, x in batches(images, pipeline, model.action, batch_size):
            memories.forget()
            for pose in range(order):
                output = model(model.action.posed(x, pose))
                correct[pose] += (output.logits.argmax(dim=1) == labels[rows]).sum()
                finite &= output.logits.isfinite().all()
                if output.pose_logits is not None:  # argmax takes no notice
                    finite &= ~output.pose_logits.isnan().any()
                if pose == 0 and output.chosen is not None:
                    identities += (output.chosen == 0).sum()
    if not finite:
        raise _not_finite()
    accuracy = (correct / len(images)).tolist()
    scored = model.scorer is not None or model.view_scorer is not None
    return {
        "val_acc": accuracy[0],
        "val_cn_avg": sum(accuracy) / order,
        "val_identity_rate": float(identities) / len(images) if scored else None,
    }


def _sharing(model: Symmetrized, turns: bool) -> contextlib.AbstractContextManager[Memories]:
    """Memory of what was passed; none for a network that sees every pose of an image anew.

    Args:
        model: The model.
        turns: Whether images are turned for it, by the true pose.
    """
    scored = model.scorer is not None or model.view_scorer is not None
    one_view = model.selection.name == "identity" or model.action.group.order == 1
    plain = one_view and not scored and not turns
    return contextlib.nullcontext(Memories()) if plain else passing_once(model)


def _not_finite() -> NotFinite:
    return NotFinite(
        "the model's outputs are not finite", fix="a smaller train.lr or train.scorer_lr, and train"
    )


@dataclass
class OrbitPredictions:
    """Columns of the predictions, batch by batch, in it pose by pose; all numpy, length N * P.

    ``chosen`` is an element of ``chosen_group_order``'s group, -1 where a method chooses none.
    """

    index: np.ndarray
    label: np.ndarray
    pose: np.ndarray
    angle: np.ndarray
    prediction: np.ndarray
    score: np.ndarray
    chosen: np.ndarray
    chosen_angle: np.ndarray
    passes: float


def _forward(
    model: Symmetrized,
    method: Method,
    poses: RotationAction,
    x: Tensor,
    pose: int,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Canonical images, as a network of that size reads them, and poses, for a one-hot method."""
    if method.scorer == "true_pose":
        chosen = torch.full((len(x),), pose, device=x.device)
        return poses.undo(x, chosen, size), chosen
    return model.canonicalize(x, size)


@torch.no_grad()
def predict_orbit(
    model: Symmetrized,
    method: Method,
    images: Tensor | HostImages,
    labels: Tensor,
    index: Tensor,
    pipeline: ImagePipeline,
    poses: RotationAction,
    batch_size: int,
) -> OrbitPredictions:
    """Run a model on every image in every pose of ``poses``.

    Args:
        model: The trained model, on the device of ``labels``.
        method: Its registry entry.
        images: (N, C, h, h) uint8 test images.
        labels: (N,) int64.
        index: (N,) int64 row in the source split.
        pipeline: Bytes to images.
        poses: The action of the pose group, whose elements turn the inputs.
        batch_size: Images a batch.

    Raises:
        NotFinite: An output is not finite.

    Returns:
        The columns of the predictions file; ``passes`` is the number of backbone passes an image
        takes, counted on the first image, upright.
    """
    model.eval()
    group = poses.group if method.scorer == "true_pose" else model.action.group
    chooses = method.scorer == "true_pose" or model.canonicalizes
    columns: dict[str, list[np.ndarray]] = {name: [] for name in _COLUMNS}
    passes = _counted_passes(model, method, poses, images[:1], pipeline)
    with _sharing(model, method.scorer == "true_pose") as memories:
        for rows, x in batches(images, pipeline, poses, batch_size):
            memories.forget()
            for pose, angle in enumerate(poses.group.angles):
                turned = poses.posed(x, pose)
                if chooses:
                    canonical, chosen = _forward(model, method, poses, turned, pose, model.reads)
                    logits = model.backbone(canonical)
                else:
                    output = model(turned)
                    logits, chosen = output.logits, output.chosen
                found = _answers(logits, chosen, group.order)
                count = len(x)
                found |= {
                    "index": index[rows].cpu().numpy().astype(np.int32),
                    "label": labels[rows].cpu().numpy().astype(np.int16),
                    "pose": np.full(count, pose, np.int16),
                    "angle": np.full(count, angle, np.float32),
                }
                for name, values in found.items():
                    columns[name].append(values)
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    return OrbitPredictions(**joined, passes=passes)


_COLUMNS = ("index", "label", "pose", "angle", "prediction", "score", "chosen", "chosen_angle")


def _answers(logits: Tensor, chosen: Tensor | None, order: int) -> dict[str, np.ndarray]:
    """The columns that the model decides, of one batch in one pose.

    Raises:
        NotFinite: An output is not finite.
    """
    score, prediction = logits.float().softmax(dim=1).max(dim=1)
    if not score.isfinite().all():
        raise _not_finite()
    picks = np.full(len(logits), -1) if chosen is None else chosen.cpu().numpy()
    angles = np.where(picks < 0, np.nan, picks * (360.0 / order))
    return {
        "prediction": prediction.cpu().numpy().astype(np.int16),
        "score": score.cpu().numpy().astype(np.float32),
        "chosen": picks.astype(np.int16),
        "chosen_angle": angles.astype(np.float32),
    }


def _counted_passes(
    model: Symmetrized,
    method: Method,
    poses: RotationAction,
    images: Tensor,
    pipeline: ImagePipeline,
) -> float:
    """Passes of the backbone that an image takes, counted on some images (N, C, h, h).

    What is drawn for it is drawn on the side: the predictions do not depend on the counting.
    """
    if not len(images):
        return 0.0
    device = images.device
    side = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with side, PassCounter(model.backbone) as counter:
        _plain_forward(model, method, poses, poses.masked(pipeline.to_act_size(images)))
    return counter.images / len(images)


def _plain_forward(
    model: Symmetrized, method: Method, poses: RotationAction, x: Tensor
) -> Output | Tensor:
    if method.scorer == "true_pose":
        upright = torch.zeros(len(x), dtype=torch.long, device=x.device)
        return model.backbone(poses.undo(x, upright, model.reads))
    return model(x)


def _answered(
    model: Symmetrized, method: Method, poses: RotationAction, x: Tensor, pose: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images in the poses chosen for them, those poses, and the method's logits."""
    if method.scorer == "true_pose" or model.canonicalizes:
        canonical, chosen = _forward(model, method, poses, x, pose)
        return canonical, chosen, model.backbone(canonical)
    output = model(x)
    chosen = output.chosen
    if chosen is None:
        chosen = torch.zeros(len(x), dtype=torch.long, device=x.device)
    return model.action.undo(x, chosen), chosen, output.logits


@torch.no_grad()
def gallery(
    model: Symmetrized,
    method: Method,
    images: Tensor,
    labels: Tensor,
    pipeline: ImagePipeline,
    poses: RotationAction,
    shown_poses: list[int],
    largest_side: int = 96,
) -> dict[str, Tensor]:
    """Inputs in the poses that a method chose for them, and its predictions, for looking at.

    A method that chooses no pose leaves its inputs as they are.

    Args:
        model: The trained model.
        method: Its registry entry.
        images: (N, C, h, h) uint8, the few images to show.
        labels: (N,) int64.
        pipeline: Bytes to images.
        poses: The action of the pose group.
        shown_poses: Elements of the pose group to show.
        largest_side: Larger pictures are brought to this side.

    Returns:
        Tensors ``inputs`` and ``canonical`` (N, P, H, H, C) uint8, ``angles`` (P,),
        ``chosen_angles`` (N, P), ``labels`` (N,), ``predictions`` (N, P).
    """
    model.eval()
    x = poses.masked(pipeline.to_act_size(images))
    order = poses.group.order if method.scorer == "true_pose" else model.action.group.order
    inputs, canonicals, angles, predictions = [], [], [], []
    for pose in shown_poses:
        turned = poses.posed(x, pose)
        canonical, chosen, logits = _answered(model, method, poses, turned, pose)
        inputs.append(_to_bytes(turned, largest_side))
        canonicals.append(_to_bytes(canonical, largest_side))
        angles.append(chosen.float() * (360.0 / order))
        predictions.append(logits.argmax(dim=1))
    return {
        "inputs": torch.stack(inputs, 1),
        "canonical": torch.stack(canonicals, 1),
        "angles": torch.tensor([poses.group.angles[pose] for pose in shown_poses]),
        "chosen_angles": torch.stack(angles, 1),
        "labels": labels,
        "predictions": torch.stack(predictions, 1),
    }


def _to_bytes(x: Tensor, largest_side: int) -> Tensor:
    if x.shape[-1] > largest_side:
        size = (largest_side, largest_side)
        x = F.interpolate(x, size, mode="bicubic", antialias=True, align_corners=False)
    return (x.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
