"""This project's side of the pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import settled
from eqadapt.adaptation import ImageScorer
from eqadapt.backbones import Backbone, build_network, normalisation
from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.law import smooth_images
from eqadapt.scorers import build_scorer
from eqadapt.scorers.base import PoseScorer
from eqadapt.symmetrize import Symmetrized

DEFAULT_SCORER = "paired_cnn"


def default_scorer(
    order: int, side: int, device: torch.device, name: str = DEFAULT_SCORER, **options: Any
) -> PoseScorer:
    """A canonicalizer's network in its default form, or that of the default canonicalizer, its
    statistics settled on images of that side."""
    torch.manual_seed(0)
    scorer = build_scorer(name, CyclicGroup(order), 3, **options)
    return settled(scorer, smooth_images(32, side).to(device))


def as_trained(scorer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Scores of images as they are, by plain layers: what inference runs."""
    return scorer.export()  # type: ignore[operator]


def canonicalizer(scorer: nn.Module, action: RotationAction) -> Callable[[Tensor], Tensor]:
    """Images to canonical images by the best score, as the reference does it."""

    def canonicalize(x: Tensor) -> Tensor:
        return action.undo(x, scorer(x).argmax(dim=1))

    return canonicalize


def adapted(scorer: PoseScorer, backbone: nn.Module, exported: bool = True) -> Symmetrized:
    """The whole adapted model, near-ties settled by the image's bytes as in evaluation."""
    device = next(scorer.parameters()).device
    channel = torch.zeros(1, scorer.in_channels, 1, 1, device=device)
    network = scorer.export() if exported else scorer
    images = ImageScorer(network, channel, channel + 1)
    return Symmetrized(backbone, RotationAction(scorer.group), "argmax", images)


def timm_backbone(name: str, side: int, device: torch.device, classes: int = 1000) -> Backbone:
    """A backbone as studies build it, with random weights, in evaluation mode."""
    torch.manual_seed(0)
    network = build_network(name, classes, 3)
    mean, std = normalisation(network, 3, None, None)
    return Backbone(network, side, mean, std).to(device).eval()


def operations(network: Callable[[Tensor], Any], x: Tensor) -> float:
    """Operations in float32 of ``network`` on the batch ``x``: of convolutions and products.

    A complex product counts as four real ones; Fourier transforms are not counted.
    """
    products = {torch.ops.aten.bmm: _product_operations}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=products) as counter:
        network(x)
    return float(counter.get_total_flops())


def _product_operations(a: Tensor, b: Tensor, *_: Any, **__: Any) -> int:
    """Of a batched product, from the tensors themselves: their shapes do not tell their kind."""
    real = 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2]
    return 4 * real if a.is_complex() else real


# how FlopCounterMode is told that a formula wants tensors, not shapes
_product_operations._get_raw = True  # type: ignore[attr-defined]


def mmac(network: Callable[[Tensor], Any], x: Tensor) -> float:
    """Million multiply-adds an image of ``network`` on ``x``; see ``operations``."""
    return operations(network, x) / 2e6 / len(x)


def near_ties(scores: Tensor, margin: float = 1e-3) -> float:
    """Share of images whose two best scores are closer than the margin that scores them twice."""
    top = scores.topk(2, dim=1).values
    return float(((top[:, 0] - top[:, 1]) < margin).float().mean())
