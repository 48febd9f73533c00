"""Losses beside the task's."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def prior_loss(pose_logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the pose logits against the pose the input has, or probably has.

    With ``target`` all zero (the identity) this is the discrete prior of Mondal et al. 2023
    (KL of a delta at the identity against the predicted distribution); with the element that was
    applied to the input it is the rotated prior; with a distribution it is the distilled one.

    Args:
        pose_logits: (B, K) scores of the poses.
        target: (B,) int64 elements, or (B, K) probabilities.
    """
    return F.cross_entropy(pose_logits.float(), target)
