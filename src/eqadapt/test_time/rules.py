"""From scores of views to an output: weights, means and choices that do not mind the views' order.

Sums over views are taken in the order of their values and ties are broken by the views' contents,
so that permuting the views changes no bit of a prediction. Only between poses to which a
canonicalizer gives equal scores, before any view is read, is the first taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import log_softmax

SPACES = ("logits", "probabilities", "log_probabilities")
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """What a method says of N inputs.

    Attributes:
        log_probabilities: (N, C) of its outputs; the classwise maximum is normalised for this.
        chosen: (N,) int64 element taken as the pose, -1 where none is.
        passes: (N,) int64 views it read.
    """

    log_probabilities: Floats
    chosen: NDArray[np.int64]
    passes: NDArray[np.int64]

    @property
    def prediction(self) -> NDArray[np.int64]:
        """(N,) class."""
        return self.log_probabilities.argmax(axis=1)

    @property
    def score(self) -> Floats:
        """(N,) largest probability."""
        return np.exp(self.log_probabilities.max(axis=1))


def sum_over_views(values: Floats) -> Floats:
    """Sum over axis 1, the same to the last bit in any order of the views and memory."""
    return np.sort(np.ascontiguousarray(values), axis=1).sum(axis=1)


def log_normalised(log_weights: Floats) -> Floats:
    """Log-weights (N, K) whose exponentials sum to one; -inf is no weight."""
    top = log_weights.max(axis=1, keepdims=True)
    total = sum_over_views(np.exp(log_weights - top))
    return log_weights - top - np.log(total)[:, None]


def best_view(log_weights: Floats, logits: Floats) -> NDArray[np.int64]:
    """The view with the largest weight; of equal ones, the one whose logits come last in order.

    Args:
        log_weights: (N, K), -inf for views that are not candidates.
        logits: (N, K, C).

    Returns:
        (N,). Tied views with the same logits are interchangeable, as for a symmetric image.
    """
    best = log_weights.argmax(axis=1)
    tied = log_weights == log_weights.max(axis=1, keepdims=True)
    for row in np.flatnonzero(tied.sum(axis=1) > 1):
        candidates = np.flatnonzero(tied[row])
        best[row] = max(candidates, key=lambda view: tuple(logits[row, view]))
    return best


def top_views(pose_logits: Floats, count: int) -> NDArray[np.bool_]:
    """The ``count`` poses (N, K) that a canonicalizer likes best.

    Raises:
        UserError: More than the group has.
    """
    order = pose_logits.shape[1]
    if not 1 <= count <= order:
        raise UserError(f"top-{count} of a group with {order} elements", fix=f"1 to {order}")
    ranked = np.argsort(-pose_logits, axis=1, kind="stable")[:, :count]
    mask = np.zeros(pose_logits.shape, bool)
    np.put_along_axis(mask, ranked, True, axis=1)
    return mask


def one_view(logits: Floats, chosen: NDArray[np.int64]) -> Floats:
    """Log-probabilities (N, C) of the chosen view of each input."""
    return log_softmax(logits[np.arange(len(logits)), chosen])


def mean_of_views(log_weights: Floats, logits: Floats, space: str) -> Floats:
    """Log-probabilities (N, C) of the weighted mean of the views' outputs.

    The mean of logits and the mean of log-probabilities differ by a constant over the classes,
    so with weights that are one number a view they are the same output after normalisation.

    Args:
        log_weights: (N, K); -inf views are left out, read or not.
        logits: (N, K, C).
        space: What is averaged: ``logits``, ``probabilities`` or ``log_probabilities``.

    Raises:
        UserError: Unknown space.
    """
    if space not in SPACES:
        raise UserError(f"unknown output space {space!r}", fix=f"one of: {', '.join(SPACES)}")
    weights = np.exp(log_normalised(log_weights))[..., None]
    used = weights > 0
    if space == "logits":
        outputs = logits
    else:
        outputs = log_softmax(logits)
        if space == "probabilities":
            outputs = np.exp(outputs)
    total = sum_over_views(np.where(used, weights * np.where(used, outputs, 0.0), 0.0))
    if space == "probabilities":
        return np.log(np.maximum(total, np.finfo(np.float64).tiny))
    return log_softmax(total)


def mean_of_products(log_weights: Floats, logits: Floats, votes: Floats) -> Floats:
    """Log-probabilities (N, C) of the weighted mean of the views' probabilities times their votes.

    Products are not normalised view by view: a view of which both sides say the same class counts
    for more.

    Args:
        log_weights: (N, K); -inf views are left out, read or not.
        logits: (N, K, C).
        votes: (N, K, C) logs of what each view's class probabilities are multiplied by.
    """
    weights = np.exp(log_normalised(log_weights))[..., None]
    used = weights > 0
    products = np.exp(log_softmax(np.where(used, logits, 0.0)) + votes)
    total = sum_over_views(np.where(used, weights * products, 0.0))
    return log_softmax(np.log(np.maximum(total, np.finfo(np.float64).tiny)))


def classwise_maximum(logits: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Each class takes its largest logit over the views: log-probabilities (N, C) and poses (N,).

    The pose is that of the predicted class; another class may have taken another one.
    """
    top = logits.max(axis=1)
    chosen = np.take_along_axis(logits.argmax(axis=1), top.argmax(axis=1)[:, None], axis=1)[:, 0]
    return log_softmax(top), chosen
