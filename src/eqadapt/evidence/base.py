"""What every kind of evidence has in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError

Array = NDArray[np.floating]


@dataclass(frozen=True)
class TrainingViews:
    """A frozen backbone's outputs on the views of training inputs whose pose is known.

    Attributes:
        logits: (M, K, C) of view ``g_k^-1 . input``.
        features: (M, K, D) penultimate features.
        label: (M,) int64 class.
        pose: (M,) int64 element that turned the input: view ``pose`` is upright.
    """

    logits: Array
    features: Array
    label: NDArray[np.int64]
    pose: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    @property
    def upright_logits(self) -> Array:
        """(M, C) logits of the upright view of each input."""
        return self.logits[np.arange(len(self)), self.pose]

    @property
    def upright_features(self) -> Array:
        """(M, D) features of the upright view of each input."""
        return self.features[np.arange(len(self)), self.pose]


class Evidence(Protocol):
    """Scores views by what the frozen backbone says of them."""

    @property
    def per_view(self) -> bool:
        """Whether a view's score depends on that view alone, so that it can be read alone."""
        ...

    def fit(self, training: TrainingViews) -> Evidence:
        """Learn what there is to learn; returns itself."""
        ...

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K), larger = more likely upright, of logits (N, K, C), features (N, K, D)."""
        ...


def require(holds: bool, what: str, allowed: str) -> None:
    """Stop at a hyper-parameter out of its range.

    Raises:
        UserError: ``holds`` is false; ``what`` names the parameter and its value.
    """
    if not holds:
        raise UserError(what, fix=allowed)


def log_softmax(logits: Array) -> NDArray[np.float64]:
    """Log-probabilities over the last axis, exact near probability one as well.

    The log-probability of the largest class is taken as ``-log1p(sum of the others)``, so that
    views of which a network is nearly certain are still told apart.
    """
    z = np.ascontiguousarray(logits, np.float64)  # sums depend on the memory's layout
    shifted = z - z.max(axis=-1, keepdims=True)
    others = np.exp(np.sort(shifted, axis=-1)[..., :-1]).sum(axis=-1, keepdims=True)
    return shifted - np.log1p(others)


def logsumexp(logits: Array) -> NDArray[np.float64]:
    """``log sum exp`` over the last axis."""
    z = np.ascontiguousarray(logits, np.float64)
    top = z.max(axis=-1)
    others = np.exp(np.sort(z - top[..., None], axis=-1)[..., :-1]).sum(axis=-1)
    return top + np.log1p(others)
