"""A canonicalizer taught and tested on images at hand, without a study.

Studies train with more to choose from (``eqadapt.training``); this is their loop for the prior
alone, which leaves the network that is adapted as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eqadapt.errors import NotFinite, UserError
from eqadapt.groups import RotationAction
from eqadapt.losses import prior_loss
from eqadapt.training import learning_rate_factor

PRIORS = ("identity", "rotated")


class PosesFound(NamedTuple):
    """Shares of images whose pose a scorer names right.

    Attributes:
        upright: Of the images as they are: the identity rate.
        exact: Mean over the elements that only move pixels, the identity among them.
        rest: Mean over the others, whose images are resampled; NaN where there are none.
    """

    upright: float
    exact: float
    rest: float


def fit_scorer(
    scorer: nn.Module,
    images: Tensor,
    action: RotationAction,
    *,
    prior: str = "identity",
    epochs: int = 10,
    batch_size: int = 64,
    lr: float = 3e-3,
    warmup: float = 0.1,
    seed: int = 0,
    report: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Teach a scorer the pose in which images are upright, by the prior alone.

    AdamW with a cosine schedule, gradients clipped to norm 1. The same seed gives the same order of
    images and the same turns.

    Args:
        scorer: Maps images (B, C, H, H) to pose logits (B, K); left in evaluation mode.
        images: (N, C, H, H) float32, upright, in [0, 1] or as the scorer is given them later. Those
            of a batch are moved to the scorer's device.
        action: The group's action on them.
        prior: ``"identity"`` shows images as they are, whose pose is the identity (Mondal et al.
            2023): for scorers that obey the law of the group. ``"rotated"`` turns each by an
            element of its own, counter-clockwise, which is its pose: for any scorer.
        epochs: How often each image is seen.
        batch_size: Images a step; one left over is not shown, as batch norms need two.
        lr: Highest learning rate.
        warmup: Share of the steps in which the rate rises.
        seed: Of order and turns.
        report: Called with each epoch, from 0, and its mean loss.

    Returns:
        The mean loss of each epoch.

    Raises:
        UserError: Fewer than two images, or an unknown prior.
        NotFinite: The loss is no finite number.
    """
    if prior not in PRIORS:
        raise UserError(f"unknown prior {prior!r}", where="prior", fix=" or ".join(PRIORS))
    if len(images) < 2 or batch_size < 2 or epochs < 1:
        raise UserError(
            f"{len(images)} images, {batch_size} a step, {epochs} epochs",
            fix="two images or more, in each step too, and one epoch or more",
        )
    device = next(scorer.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr)
    batches = -(-len(images) // batch_size)
    losses: list[float] = []
    scorer.train()
    for epoch in range(epochs):
        taken: list[Tensor] = []
        for rows in torch.randperm(len(images), generator=generator).split(batch_size):
            if len(rows) < 2:
                continue
            step = epoch * batches + len(taken)
            factor = learning_rate_factor(step, epochs * batches, "cosine", warmup)
            optimizer.param_groups[0]["lr"] = lr * factor
            x, pose = _posed(images[rows].to(device), prior, action, generator)
            loss = prior_loss(scorer(x), pose)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
            optimizer.step()
            taken.append(loss.detach())
        losses.append(float(torch.stack(taken).mean()))
        if not math.isfinite(losses[-1]):
            raise NotFinite(f"the loss is not finite in epoch {epoch}", fix="a smaller lr")
        if report:
            report(epoch, losses[-1])
    scorer.eval()
    return losses


def _posed(
    x: Tensor, prior: str, action: RotationAction, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Upright images as the prior shows them, and their poses (B,)."""
    if prior == "identity":
        return x, torch.zeros(len(x), dtype=torch.long, device=x.device)
    pose = torch.randint(action.group.order, (len(x),), generator=generator).to(x.device)
    return action.act(x, pose), pose


@torch.no_grad()
def poses_found(
    scorer: nn.Module, images: Tensor, action: RotationAction, batch_size: int = 256
) -> PosesFound:
    """How often a scorer names the pose of upright images that are turned by each element.

    Args:
        scorer: Maps images (B, C, H, H) to pose logits (B, K), in the mode that it is in.
        images: (N, C, H, H) float32, upright; none that it was trained on.
        action: The group's action on them.
        batch_size: Images at once.

    Raises:
        UserError: There are no images.
    """
    if not len(images):
        raise UserError("no images to turn", where="images", fix="one or more")
    device = next(scorer.parameters(), images).device
    group, right = action.group, torch.zeros(action.group.order)
    for part in images.split(batch_size):
        x = part.to(device)
        for pose in range(group.order):
            chosen = scorer(action.posed(x, pose)).argmax(dim=1)
            right[pose] += float((chosen == pose).sum())
    shares = right / len(images)
    exact = list(group.exact_elements)
    rest = [element for element in range(group.order) if element not in exact]
    return PosesFound(
        float(shares[0]),
        float(shares[exact].mean()),
        float(shares[rest].mean()) if rest else math.nan,
    )
