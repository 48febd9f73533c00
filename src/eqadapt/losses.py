"""Losses beside the task's."""

from __future__ import annotations

import torch
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


def classwise_prior_loss(pairs: Tensor, pose: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the logits of all pairs of pose and class against the true pair.

    With a(g) the log-sum-exp over the classes of a(g, y), this is the prior and the cross-entropy
    of the class in the true pose: -log p(g, y | x) = -log p(g | x) - log p(y | g, x).

    Args:
        pairs: (B, K, C) logits.
        pose: (B,) int64 elements.
        labels: (B,) int64 classes, or (B, C) probabilities of them.
    """
    logits = pairs.flatten(1).float()
    if labels.ndim == 1:
        return F.cross_entropy(logits, pose * pairs.shape[2] + labels)
    target = torch.zeros_like(pairs, dtype=logits.dtype)
    target[torch.arange(len(pose), device=pose.device), pose] = labels.to(logits.dtype)
    return F.cross_entropy(logits, target.flatten(1))
