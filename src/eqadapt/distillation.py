"""The distilled prior: the pose on which the frozen backbone errs least, as a target for a scorer.

Instead of telling a canonicalizer that training images are upright (the identity prior), it is told
what the backbone likes:

    q(g | x, y)  ~  exp(-CE(p(g^-1 . x), y) / T),        loss = CE(q, scorer(x))

computed once, from the backbone as it starts. The identity prior is the case q = delta_e. The idea
is Schmidt's (error-oracle distillation, a thesis under review); the formula is this project's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eqadapt.groups import CyclicGroup, RotationAction
from eqadapt.image_store import HostImages
from eqadapt.modes import evaluating
from eqadapt.symmetrize import read_side


@torch.no_grad()
def pose_targets(
    backbone: nn.Module,
    action: RotationAction,
    images: Tensor | HostImages,
    labels: Tensor,
    to_act_size: Callable[[Tensor], Tensor],
    temperature: float,
    batch_size: int,
) -> Tensor:
    """Distributions over the poses of upright training images.

    Args:
        backbone: Maps images to logits; used in evaluation mode, left as it was.
        action: The group action.
        images: (N, C, h, h) as stored.
        labels: (N,) int64.
        to_act_size: Stored images to images at the size the group acts on, without chance.
        temperature: T, above 0; towards 0 all weight goes to the best pose.
        batch_size: Views a batch.

    Returns:
        (N, K) float32, rows summing to 1, on the device of ``images``.
    """
    order, targets = action.group.order, []
    parts = torch.arange(len(images), device=images.device).split(max(1, batch_size // order))
    with evaluating(backbone):
        for rows in parts:
            views = action.orbit(action.masked(to_act_size(images[rows])), read_side(backbone))
            logits = backbone(views.flatten(0, 1)).float()
            classes = labels[rows].repeat_interleave(order)
            losses = F.cross_entropy(logits, classes, reduction="none")
            targets.append((-losses.view(-1, order) / temperature).softmax(dim=1))
    return torch.cat(targets)


def moved_targets(targets: Tensor, mirrored: Tensor, pose: Tensor, group: CyclicGroup) -> Tensor:
    """The targets of training images that were mirrored and then turned.

    A mirror image turns the other way (``F R = R^-1 F``), so its target has the inverse elements;
    turning by ``h`` shifts a target by ``h``, as it does the scores.

    Args:
        targets: (B, K) of the images as they are.
        mirrored: (B,) bool, which were mirrored left to right.
        pose: (B,) int64, the element each was then turned by.
        group: The group.

    Returns:
        (B, K).
    """
    elements = torch.arange(group.order, device=targets.device) - pose[:, None]
    elements = torch.where(mirrored[:, None], -elements, elements) % group.order
    return targets.gather(1, elements)
