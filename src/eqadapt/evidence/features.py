"""Evidence from penultimate features: how far a view lies from upright training images."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import Array, TrainingViews, logsumexp, require

_CHUNK = 4096  # views compared with the bank at once


def _normalised(features: Array) -> Array:
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    return features / np.maximum(norms, 1e-12)


def nearest_distances(
    queries: Array, bank: Array, k: int, metric: str = "cosine"
) -> NDArray[np.float64]:
    """Distances to the k nearest points of a bank, nearest first.

    Args:
        queries: (N, D) float32.
        bank: (M, D) float32.
        k: How many neighbours.
        metric: ``cosine`` (one minus the cosine) or ``euclidean``.

    Returns:
        (N, k).

    Raises:
        UserError: The bank has fewer than ``k`` points, or the metric is unknown.
    """
    import torch

    if k < 1 or k > len(bank):
        raise UserError(
            f"{k} nearest neighbours of a bank of {len(bank)}", fix="a smaller k or a larger bank"
        )
    _check_metric(metric)
    if metric == "cosine":
        queries, bank = _normalised(queries), _normalised(bank)
    points = torch.from_numpy(np.ascontiguousarray(bank, dtype=np.float32))
    squares = (points * points).sum(dim=1)
    found = []
    for start in range(0, len(queries), _CHUNK):
        part = np.ascontiguousarray(queries[start : start + _CHUNK], dtype=np.float32)
        chunk = torch.from_numpy(part)
        products = chunk @ points.T
        if metric == "cosine":
            distances = 1.0 - products
        else:
            squared = (chunk * chunk).sum(dim=1, keepdim=True) + squares - 2.0 * products
            distances = squared.clamp_min(0.0).sqrt()
        found.append(distances.topk(k, dim=1, largest=False).values.numpy())
    return np.concatenate(found).astype(np.float64)


def _check_metric(metric: str) -> None:
    if metric not in ("cosine", "euclidean"):
        raise UserError(f"unknown metric {metric!r}", fix="cosine or euclidean")


@dataclass
class Knn:
    """Minus the distance to the nearest upright training views (Sun et al. 2022).

    Args:
        k: Neighbours.
        reduce: ``kth`` takes the distance to the k-th, ``mean`` the mean of the k.
        metric: ``cosine`` or ``euclidean``.
    """

    k: int = 3
    reduce: str = "kth"
    metric: str = "cosine"
    per_view = True
    bank: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)

    def __post_init__(self) -> None:
        require(self.k >= 1, f"{self.k} nearest neighbours", "k of 1 or more")
        if self.reduce not in ("kth", "mean"):
            raise UserError(f"unknown reduction {self.reduce!r} of neighbours", fix="kth or mean")
        _check_metric(self.metric)

    def fit(self, training: TrainingViews) -> Knn:
        """Keep the upright training features."""
        self.bank = training.upright_features
        return self

    def _reduced(self, queries: Array, bank: Array, k: int) -> NDArray[np.float64]:
        distances = nearest_distances(queries, bank, k, self.metric)
        return -(distances[:, -1] if self.reduce == "kth" else distances.mean(axis=1))

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of features (N, K, D)."""
        flat = features.reshape(-1, features.shape[-1])
        return self._reduced(flat, self.bank, self.k).reshape(features.shape[:-1])


@dataclass
class PerClassKnn(Knn):
    """As ``Knn``, among the training views of the class that the view's own logits predict.

    Of a class with fewer than ``k`` views, all are neighbours.
    """

    label: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64), repr=False)

    def fit(self, training: TrainingViews) -> PerClassKnn:
        """Keep the upright training features and their classes."""
        super().fit(training)
        self.label = training.label
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K); a class without training views is infinitely far."""
        flat = features.reshape(-1, features.shape[-1])
        predicted = logits.reshape(len(flat), -1).argmax(axis=1)
        scores = np.full(len(flat), -np.inf)
        for label in np.unique(self.label):
            rows = predicted == label
            if rows.any():
                bank = self.bank[self.label == label]
                scores[rows] = self._reduced(flat[rows], bank, min(self.k, len(bank)))
        return scores.reshape(features.shape[:-1])


@dataclass
class Mahalanobis:
    """Minus the squared Mahalanobis distance to the nearest class mean (Lee et al. 2018).

    Args:
        shrinkage: Share of the tied covariance replaced by its mean variance times the identity.
        normalise: Bring features to length one first.
    """

    shrinkage: float = 0.0
    normalise: bool = False
    per_view = True
    means: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    whitening: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)

    def __post_init__(self) -> None:
        require(0 <= self.shrinkage <= 1, f"shrinkage is {self.shrinkage}", "0 to 1")

    def _prepared(self, features: Array) -> NDArray[np.float64]:
        features = np.asarray(features, np.float64)
        return _normalised(features) if self.normalise else features  # type: ignore[return-value]

    def fit(self, training: TrainingViews) -> Mahalanobis:
        """Class means and the tied covariance of the upright training features."""
        features, label = self._prepared(training.upright_features), training.label
        classes = np.unique(label)
        self.means = np.stack([features[label == c].mean(axis=0) for c in classes])
        centred = features - self.means[np.searchsorted(classes, label)]
        covariance = centred.T @ centred / len(centred)
        size = len(covariance)
        flat = np.trace(covariance) / size * np.eye(size)
        covariance = (1 - self.shrinkage) * covariance + self.shrinkage * flat
        values, vectors = np.linalg.eigh(covariance)
        kept = values > 1e-10 * values.max()  # a dead feature says nothing
        self.whitening = vectors[:, kept] / np.sqrt(values[kept])
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of features (N, K, D)."""
        white = self._prepared(features) @ self.whitening
        means = self.means @ self.whitening
        squared = [((white - mean) ** 2).sum(axis=-1) for mean in means]
        return -np.min(squared, axis=0)


@dataclass
class Vim:
    """Virtual-logit matching (Wang et al. 2022): energy minus a scaled residual.

    The residual is the part of a feature outside the principal space of the training features,
    about the point where the head's logits vanish. The head is read off the training outputs:
    logits are affine in the penultimate features.

    Args:
        share: Dimension of the principal space as a share of the features'.
    """

    share: float = 0.5
    per_view = True
    origin: Array = field(default_factory=lambda: np.empty(0), repr=False)
    residual: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False)
    alpha: float = 0.0

    def __post_init__(self) -> None:
        share = f"share of the principal space is {self.share}"
        require(0 < self.share < 1, share, "above 0 and below 1")

    def fit(self, training: TrainingViews) -> Vim:
        """The head, the principal space and the scale of the virtual logit.

        Raises:
            UserError: The logits are not affine in the features.
        """
        features = np.asarray(training.upright_features, np.float64)
        logits = np.asarray(training.upright_logits, np.float64)
        weight, bias = affine_head(training)
        self.origin = -np.linalg.pinv(weight) @ bias
        centred = features - self.origin
        values, vectors = np.linalg.eigh(centred.T @ centred / len(centred))
        dims = round(self.share * len(values))
        if not 0 < dims < len(values):
            raise UserError(
                f"a principal space of {dims} of {len(values)} features leaves nothing",
                fix="share between 0 and 1",
            )
        self.residual = vectors[:, np.argsort(values)[: len(values) - dims]]
        norms = np.linalg.norm(centred @ self.residual, axis=-1)
        self.alpha = float(logits.max(axis=-1).mean() / norms.mean())
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of logits (N, K, C) and features (N, K, D)."""
        centred = np.asarray(features, np.float64) - self.origin
        return logsumexp(logits) - self.alpha * np.linalg.norm(centred @ self.residual, axis=-1)


def affine_head(training: TrainingViews) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight (C, D) and bias (C,) of the head, from features and logits by least squares.

    Raises:
        UserError: The logits are not affine in the features.
    """
    features = np.asarray(training.features, np.float64).reshape(-1, training.features.shape[-1])
    logits = np.asarray(training.logits, np.float64).reshape(len(features), -1)
    inputs = np.hstack([features, np.ones((len(features), 1))])
    solution, *_ = np.linalg.lstsq(inputs, logits, rcond=None)
    misfit = np.abs(inputs @ solution - logits).mean() / np.abs(logits).mean()
    if misfit > 0.01:
        raise UserError(
            f"the logits are not affine in the cached features (misfit {misfit:.2g})",
            fix="leave out ViM for this backbone: its head is not linear",
        )
    return solution[:-1].T, solution[-1]
