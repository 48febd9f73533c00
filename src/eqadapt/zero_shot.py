"""Zero-shot classifiers: an image encoder and one unit vector a class (Radford et al. 2021).

Logits are a scale times the cosines of an image's features with the class vectors. Those come from
text prompts, where the encoder has a text tower (``model: open_clip:RN50``), or they are the mean
features of training images (``weights: prototypes``), with any encoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt import checkpoint
from eqadapt.backbones import (
    Backbone,
    build_network,
    hub_file,
    load_state,
    normalisation,
    read_weights_file,
)
from eqadapt.clip import image_tower, prompt_vectors
from eqadapt.digest import code_id
from eqadapt.errors import UserError
from eqadapt.files import sha256_file
from eqadapt.groups import RotationAction, parse_group
from eqadapt.study_rules import OPEN_CLIP
from eqadapt.tasks.classification import ImagePipeline

SCALE = 100.0
_OPTIONS = ("shots", "scale", "templates", "class_names", "pretrained")


class ZeroShotClassifier(nn.Module):
    """An encoder with a vector a class for its head; in the form of timm's models.

    Args:
        encoder: Maps normalised images (B, C, H, W) to features (B, D).
        class_vectors: (classes, D); brought to length one.
        scale: What cosines are multiplied by; CLIP's is 100.

    Raises:
        UserError: A class vector is zero or not finite.
    """

    class_vectors: Tensor

    def __init__(self, encoder: nn.Module, class_vectors: Tensor, scale: float = SCALE) -> None:
        super().__init__()
        norms = class_vectors.norm(dim=1)
        if not (norms.isfinite() & (norms > 0)).all():
            raise UserError("a class vector is zero or not finite", fix="compute them again")
        self.encoder, self.scale = encoder, float(scale)
        self.register_buffer("class_vectors", class_vectors / norms[:, None])
        self.num_features = class_vectors.shape[1]
        self.pretrained_cfg = getattr(encoder, "pretrained_cfg", {})

    def forward_features(self, x: Tensor) -> Tensor:
        """Features (B, D) of length one."""
        return F.normalize(self.encoder(x), dim=1)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The features themselves, or logits (B, classes)."""
        return x if pre_logits else self.scale * x @ self.class_vectors.T

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))


class PooledEncoder(nn.Module):
    """The features before a classifier's head.

    Args:
        network: A model with timm's ``forward_features`` and ``forward_head``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pretrained_cfg = getattr(network, "pretrained_cfg", None) or {}

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, D) of normalised images (B, C, H, W)."""
        maps = self.network.forward_features(x)  # type: ignore[operator]
        return self.network.forward_head(maps, pre_logits=True)  # type: ignore[operator]


# --- class vectors ------------------------------------------------------------------------------


def prototypes(
    features: Tensor, labels: Tensor, classes: Sequence[str], shots: int | None = None
) -> Tensor:
    """The mean unit features of the first ``shots`` images of each class, of length one.

    Args:
        features: (N, D).
        labels: (N,) int64.
        classes: Names; a label is a position in them.
        shots: Images a class; None takes all.

    Returns:
        (classes, D).

    Raises:
        UserError: A class has no image, or fewer than asked for.
    """
    rows = first_of_each(labels, classes, shots)
    unit = F.normalize(features[rows].double(), dim=1)
    sums = torch.zeros(len(classes), unit.shape[1], dtype=unit.dtype)
    sums.index_add_(0, labels[rows], unit)
    return F.normalize(sums, dim=1).float()


def first_of_each(labels: Tensor, classes: Sequence[str], shots: int | None) -> Tensor:
    """Rows (M,) of the first ``shots`` of each class, in their order.

    Raises:
        UserError: A class has none, or fewer than asked for.
    """
    counts = torch.bincount(labels, minlength=len(classes))
    if len(counts) > len(classes):
        raise UserError(f"labels up to {len(counts) - 1}, but {len(classes)} class names")
    wanted = 1 if shots is None else shots
    short = [f"{name} ({n})" for name, n in zip(classes, counts.tolist()) if n < wanted]
    if short:
        what = "no training image" if shots is None else f"fewer than {shots} training images"
        raise UserError(
            f"{what} of {len(short)} classes: {', '.join(short[:5])}",
            where="options.shots",
            fix="fewer shots, or a larger limit_train",
        )
    if shots is None:
        return torch.arange(len(labels))
    order = labels.argsort(stable=True)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts)[labels[order]]
    return order[place < shots].sort().values


# --- encoders -----------------------------------------------------------------------------------


def build_encoder(section: Mapping[str, Any], channels: int) -> nn.Module:
    """The image encoder of a study's backbone section, with its weights.

    Args:
        section: ``model``, ``weights``, ``file``, ``sha256``, ``options``.
        channels: Of the images.

    Raises:
        UserError: The model or its weights cannot be had.
    """
    if section["model"].startswith(OPEN_CLIP):
        return image_tower(section, channels)[0]
    options = {key: value for key, value in section["options"].items() if key not in _OPTIONS}
    if section["file"] is None:
        network = build_network(section["model"], 0, channels, pretrained=True, options=options)
        return PooledEncoder(network).eval()
    state = read_weights_file(section["file"], section["sha256"])
    one = build_network(section["model"], 1, channels, options=options).state_dict()
    heads = {
        len(state[key])
        for key, value in one.items()
        if key in state and value.ndim and len(value) == 1 != len(state[key])
    }
    classes = heads.pop() if len(heads) == 1 else 1
    network = build_network(section["model"], classes, channels, options=options)
    load_state(network, state, where=str(section["file"]))
    return PooledEncoder(network).eval()


# --- as a backbone of a study -------------------------------------------------------------------


def zero_shot_network(
    section: Mapping[str, Any], channels: int, classes: int, vectors: Path | None
) -> ZeroShotClassifier:
    """The classifier of a backbone section, with class vectors computed before.

    Args:
        section: The backbone section.
        channels: Of the images.
        classes: Number of classes of the data.
        vectors: What ``write_class_vectors`` wrote.

    Raises:
        UserError: There are no class vectors, or they are of another number of classes.
    """
    if vectors is None:
        raise UserError("a zero-shot classifier needs class vectors", fix="run it by a study")
    tensors, _ = checkpoint.load(vectors)
    found = tensors["class_vectors"]
    if len(found) != classes:
        raise UserError(
            f"vectors of {len(found)} classes, but the data have {classes}",
            where=str(vectors),
            fix="delete the file and run again",
        )
    return ZeroShotClassifier(build_encoder(section, channels), found, float(tensors["scale"]))


def write_class_vectors(
    path: Path, recipe: Mapping[str, Any], dataset: str, train: Any, device: torch.device
) -> None:
    """Compute the class vectors of a zero-shot backbone, unless the file holds them already.

    Args:
        path: The file: ``class_vectors`` (classes, D) and ``scale``.
        recipe: A run's recipe: sections ``backbone`` and ``image``.
        dataset: Its name in the study.
        train: The training split, an ``eqadapt.datasets.prepared.Prepared``.
        device: Where encoders run.
    """
    section = recipe["backbone"]
    expected: dict[str, Any] = {
        key: section[key] for key in ("model", "weights", "sha256", "options")
    }
    expected |= {"classes": list(train.classes), "code": code_id("eqadapt.zero_shot")}
    hub = hub_file(section["model"])
    if section["file"] is None and hub.is_file():
        expected["hub_sha256"] = sha256_file(hub)
    from_images = section["weights"] == "prototypes"
    if from_images:
        data = {"data_sha256": train.metadata["data_sha256"], "images": len(train.labels)}
        expected |= {"image": recipe["image"], **data}
    if path.is_file():
        try:
            if checkpoint.load(path)[1] == expected:
                return
        except UserError:
            pass  # broken: compute it again
    with torch.inference_mode():
        if from_images:
            vectors, scale = _image_vectors(recipe, train, device)
        else:
            names = (section["options"].get("class_names") or {}).get(dataset)
            channels = train.images.shape[1]
            vectors, scale = prompt_vectors(recipe, channels, train.classes, names, device)
    given = section["options"].get("scale")
    tensors = {"class_vectors": vectors, "scale": torch.tensor(float(given or scale))}
    checkpoint.save(path, tensors, expected)


def _image_vectors(
    recipe: Mapping[str, Any], train: Any, device: torch.device
) -> tuple[Tensor, float]:
    section, image = recipe["backbone"], recipe["image"]
    channels, shots = train.images.shape[1], section["options"].get("shots")
    rows = first_of_each(train.labels, train.classes, shots)
    encoder = build_encoder(section, channels)
    mean, std = normalisation(encoder, channels, image["mean"], image["std"])
    reader = Backbone(encoder, image["backbone_size"] or image["size"], mean, std)
    reader = reader.to(device).eval()
    action = RotationAction(parse_group("C1"), mask=image["mask"])
    pipeline, parts = ImagePipeline.from_recipe(recipe), []
    for batch in rows.split(128):
        x = action.masked(pipeline.to_act_size(train.images[batch].to(device)))
        parts.append(reader(x).float().cpu())
    return prototypes(torch.cat(parts), train.labels[rows], train.classes), SCALE
