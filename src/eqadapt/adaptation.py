"""From a run's recipe to its model: backbone, scorer and selection put together."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eqadapt import checkpoint
from eqadapt.backbones import (
    Backbone,
    build_network,
    classifier_name,
    load_state,
    load_weights_file,
    normalisation,
)
from eqadapt.errors import UserError
from eqadapt.feature_scorers import RotationHead
from eqadapt.groups import CyclicGroup, RotationAction, parse_group
from eqadapt.methods import Method, get_method
from eqadapt.scorers import build_scorer
from eqadapt.scorers.base import PoseScorer
from eqadapt.scorers.classifier import Classifier
from eqadapt.study_rules import AS_BACKBONE, is_zero_shot
from eqadapt.symmetrize import Symmetrized
from eqadapt.tasks.classification import check_sizes
from eqadapt.view_scorers import build_view_scorer
from eqadapt.zero_shot import zero_shot_network


@dataclass(frozen=True)
class ImageKind:
    """What a model must know of its data.

    Attributes:
        channels: 1 or 3.
        classes: Number of classes.
    """

    channels: int
    classes: int


class ImageScorer(nn.Module):
    """A pose scorer that takes images in [0, 1]: it normalises them first.

    Args:
        network: Maps normalised images (B, C, H, H) to pose logits (B, K), or, of an exported
            class-wise one, to those of the pairs of pose and class (B, K, classes).
        mean: Per-channel mean.
        std: Per-channel standard deviation.
        learns: Whether it is trained; else it stays as it is, in evaluation mode.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor, learns: bool = True) -> None:
        super().__init__()
        self.network, self.learns = network, learns
        if not learns:
            self.requires_grad_(False)
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)

    def train(self, mode: bool = True) -> ImageScorer:
        """Training mode, unless it does not learn."""
        super().train(mode and self.learns)
        if isinstance(self.network, PoseScorer):
            self.network.serves_training = mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Pose logits (B, K)."""
        return self._of(self.network, x)

    def _of(self, outputs: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``outputs`` of the normalised images.

        One that stays as it is keeps nothing for a backward pass, so that it may pass parts.
        """
        needless = not self.learns and not x.requires_grad
        with torch.no_grad() if needless else contextlib.nullcontext():
            return outputs((x - self.mean) / self.std)

    def pairs(self, x: Tensor) -> Tensor:
        """Logits (B, K, classes) of the pairs of pose and class, of a class-wise network."""
        return self._of(self.network.pairs, x)  # type: ignore[arg-type]

    def embed(self, x: Tensor) -> Tensor:
        """Vectors (B, K, dim) of the views, of a network that scores by them (OptC)."""
        return self._of(self.network.embed, x)  # type: ignore[arg-type]

    def embed_returned(self, x: Tensor) -> Tensor:
        """The same of the views turned by random elements and back."""
        return self._of(self.network.embed_returned, x)  # type: ignore[arg-type]

    def logits(self, vectors: Tensor) -> Tensor:
        """Pose logits (B, K) of what ``embed`` returns."""
        logits: Tensor = self.network.logits(vectors)  # type: ignore[operator]
        return logits

    def export(self) -> ImageScorer:
        """The same scores from plain convolutions, for inference."""
        export = getattr(self.network, "export", None)
        network = export() if export is not None else self.network
        return ImageScorer(network, self.mean, self.std).eval()

    def export_pairs(self) -> ImageScorer:
        """The scores of ``pairs`` from plain convolutions, for inference."""
        network = self.network.export_pairs()  # type: ignore[operator]
        return ImageScorer(network, self.mean, self.std).eval()


def normalised_by(part: Backbone | ImageScorer) -> list[list[float]]:
    """Mean and standard deviation of each channel that a network's images are normalised with."""
    return [[round(float(v), 6) for v in values.flatten()] for values in (part.mean, part.std)]


def start_scorer(
    scorer: nn.Module | None, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], where: str
) -> None:
    """Give a scorer the trained weights that it begins with.

    Args:
        scorer: That of the model to be trained.
        tensors: A run's checkpoint: its scorer is taken, or, for the scorer ``classifier`` and
            where it has none, the network of its backbone.
        meta: What the checkpoint says of itself; of older ones, not how images were normalised.
        where: The checkpoint's path, for messages.

    Raises:
        UserError: The checkpoint has no such weights, those of another architecture, or of a
            network that was given images normalised otherwise.
    """
    assert isinstance(scorer, ImageScorer)
    own = checkpoint.without_prefix("scorer", tensors, ".")
    part = "scorer" if own else "backbone"
    given = meta.get("model", {}).get("normalisation", {}).get(part)
    if given is not None and given != normalised_by(scorer):
        raise UserError(
            f"train.scorer_start: that network was trained on images with mean and standard "
            f"deviation {given}, and would be given them with {normalised_by(scorer)}",
            where=where,
            fix="the first as image.mean and image.std of the study",
        )
    if own:
        load_state(scorer, own, where)
    elif isinstance(scorer.network, Classifier):
        network = checkpoint.without_prefix("backbone.network", tensors, ".")
        load_state(scorer.network.network, network, where)
    else:
        raise UserError(
            "train.scorer_start names a run that has no canonicalizer",
            where=where,
            fix="a run of a method with one, or scorer: {name: classifier}, which begins as its "
            "backbone",
        )


_AS_BACKBONE = f"train.scorer_start: {AS_BACKBONE}"


def check_scorer_start(recipe: Mapping[str, Any]) -> None:
    """Stop where the scorer of a recipe should begin as the backbone and is another network.

    Raises:
        UserError: So it is.
    """
    if recipe["train"].get("scorer_start") != AS_BACKBONE:
        return
    scorer, backbone = recipe["scorer"], recipe["backbone"]
    if scorer["name"] != "classifier" or scorer.get("model") != backbone["model"]:
        raise UserError(
            f"the scorer {scorer['name']} cannot begin as the backbone {backbone['model']}",
            where=_AS_BACKBONE,
            fix=f"scorer: {{name: classifier, model: {backbone['model']}}}",
        )


def start_scorer_as_backbone(model: Symmetrized) -> None:
    """Give the scorer ``classifier`` the weights with which the backbone begins.

    Where it has other outputs than the backbone's classes (one, a view's score), its last layer
    stays as it is.

    Args:
        model: Before training.

    Raises:
        UserError: The networks differ.
    """
    assert isinstance(model.scorer, ImageScorer)
    assert isinstance(model.scorer.network, Classifier)
    network = model.scorer.network.network
    state, own = model.backbone.network.state_dict(), network.state_dict()  # type: ignore[union-attr,operator]
    head = classifier_name(network) + "."
    if any(own[key].shape != state[key].shape for key in own.keys() & state.keys()):
        state |= {key: own[key] for key in own if key.startswith(head)}
    load_state(network, state, _AS_BACKBONE)


def build_action(recipe: Mapping[str, Any], group: str) -> RotationAction:
    """The action of ``group`` with the recipe's interpolation, padding and mask."""
    image = recipe["image"]
    return RotationAction(
        parse_group(group), image["interpolation"], image["padding"], image["mask"]
    )


def build_backbone(
    recipe: Mapping[str, Any], kind: ImageKind, weights: Path | None = None
) -> Backbone:
    """The backbone of a recipe, with its weights.

    Args:
        recipe: A run's recipe: sections ``backbone`` and ``image``.
        kind: Channels and classes of the data.
        weights: Checkpoint of the pretraining rule, for ``weights: pretrain``; class vectors, for
            zero-shot classifiers.

    Raises:
        UserError: The network, its options, its weights or the sizes do not fit.
    """
    section, image = recipe["backbone"], recipe["image"]
    source, zero_shot = section["weights"], is_zero_shot(section)
    network: nn.Module
    if zero_shot:
        network = zero_shot_network(section, kind.channels, kind.classes, weights)
    else:
        network = build_network(
            section["model"],
            kind.classes,
            kind.channels,
            pretrained=source == "pretrained",
            options=section["options"],
        )
    size = image["backbone_size"] or image["size"]
    check_sizes(image["size"], size)
    mean, std = normalisation(network, kind.channels, image["mean"], image["std"])
    backbone = Backbone(network, size, mean, std)
    check_pass(backbone, section["model"])
    if zero_shot:
        return backbone
    if source == "file":
        new_head = section.get("new_head", False)
        load_weights_file(network, section["file"], section["sha256"], new_head)
    elif weights is not None:
        tensors, _ = checkpoint.load(weights)
        load_state(backbone, checkpoint.without_prefix("backbone", tensors), str(weights))
    return backbone


def check_pass(backbone: Backbone, model: str) -> None:
    """Pass one black image, so that a side the network cannot take is told before training.

    Only the pass is exact: networks do not say which sides they take. It leaves no trace, neither
    in the random state nor in the statistics of batch norm.

    Args:
        backbone: On the CPU.
        model: Its name in the study.

    Raises:
        UserError: The network fails on an image of this side.
    """
    side = backbone.size
    x = backbone.mean.new_zeros(1, backbone.mean.shape[1], side, side)
    # The flag itself is set and put back: ``eval`` and ``train`` may do more in a network.
    modes = [(module, module.training) for module in backbone.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            backbone(x)
    except (AssertionError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{model} fails on an image of {side} x {side} pixels: {reason}",
            where="image.backbone_size (image.size where that is null)",
            fix="set image.backbone_size to a side that this backbone takes",
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode


def build_model(
    recipe: Mapping[str, Any], method: str | Method, group: str, kind: ImageKind, backbone: Backbone
) -> Symmetrized:
    """The adapted model of a method around a backbone.

    Args:
        recipe: A run's recipe: sections ``image``, ``scorer`` and ``evaluate``.
        method: Its name or registry entry.
        group: Name of the group, e.g. ``"C8"``.
        kind: Channels and classes of the data.
        backbone: The network to adapt.
    """
    method = get_method(method) if isinstance(method, str) else method
    action = build_action(recipe, group)
    if method.scorer in (None, "true_pose"):
        selection = "identity" if method.scorer else method.selection
        return Symmetrized(backbone, action, selection)
    if method.scorer == "features":
        head = RotationHead(backbone, action.group.order)
        return Symmetrized(backbone, action, method.selection, head)
    if method.scorer != "image":
        view_scorer = build_view_scorer(str(method.scorer), backbone.feature_count)
        return Symmetrized(backbone, action, method.selection, view_scorer=view_scorer)
    network = build_image_scorer(recipe, method, action.group, kind)
    learns = method.learns and recipe.get("train", {}).get("scorer_lr") != 0
    mean, std = _scorer_normalisation(network, recipe, backbone)
    scorer = ImageScorer(network, mean, std, learns)
    samples = recipe.get("evaluate", {}).get("samples") or method.samples
    return Symmetrized(backbone, action, method.selection, scorer, samples=samples)


def _scorer_normalisation(
    scorer: PoseScorer, recipe: Mapping[str, Any], backbone: Backbone
) -> tuple[Tensor, Tensor]:
    """What a scorer's images are normalised with: a pretrained network of timm's as it was
    pretrained, if the recipe does not say otherwise; else as the backbone's images."""
    network = getattr(scorer, "network", None)
    if not recipe["scorer"].get("pretrained") or not isinstance(network, nn.Module):
        return backbone.mean, backbone.std
    like, image = backbone.mean, recipe["image"]
    mean, std = normalisation(network, like.numel(), image["mean"], image["std"])
    return like.new_tensor(mean).view_as(like), like.new_tensor(std).view_as(like)


def restore_normalisation(model: Symmetrized, meta: Mapping[str, Any]) -> None:
    """Give a model's scorer images as a checkpoint says that its scorer was given them.

    Args:
        model: Changed in place.
        meta: What the checkpoint says of itself; older ones say nothing, as all scorers then had
            the backbone's images.
    """
    given = meta.get("model", {}).get("normalisation", {}).get("scorer")
    if given is not None and isinstance(model.scorer, ImageScorer):
        for values, buffer in zip(given, (model.scorer.mean, model.scorer.std), strict=True):
            buffer.copy_(buffer.new_tensor(values).view_as(buffer))


def build_image_scorer(
    recipe: Mapping[str, Any], method: Method, group: CyclicGroup, kind: ImageKind
) -> PoseScorer:
    """The network of a method that scores poses from images.

    Args:
        recipe: A run's recipe: section ``scorer``.
        method: One with ``scorer="image"``.
        group: Whose elements are scored.
        kind: Channels and classes of the data.

    Raises:
        UserError: The options of the scorer do not fit together, or not the group.
    """
    options = dict(recipe["scorer"])
    name = options.pop("name")
    if method.network and name != method.network:
        name, options = method.network, {}
    if method.prior == "classwise":
        options["classes"] = kind.classes
    return build_scorer(name, group, kind.channels, **options)


def choose_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` to a device.

    On a GPU convolutions in float32 are no longer computed in TF32, as they are by default: its ten
    bits of mantissa would let the scores of an image and of its quarter turns differ by more than
    the margin within which ``choose`` makes them the same.

    Raises:
        UserError: A GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise UserError(
            "no GPU here that torch can use",
            where="device",
            fix="a driver as new as torch's CUDA (nvidia-smi tells), or device: auto or cpu",
        )
    if name == "auto":
        name = "cuda" if there else "cpu"
    if name == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False  # on by a variable of some containers
    return torch.device(name)
