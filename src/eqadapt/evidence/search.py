"""Inverse transformation search (Schmidt and Stober 2024): sharp peaks of the energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import Array, TrainingViews, logsumexp, require


def gaussian_kernel(sigma: float, radius: int) -> NDArray[np.float64]:
    """Weights (2 radius + 1,) of a truncated Gaussian, summing to one."""
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / weights.sum()


def _smooth(energies: NDArray[np.float64], kernel: NDArray[np.float64], mode: str) -> Array:
    radius = len(kernel) // 2
    padded = np.pad(energies, ((0, 0), (radius, radius)), mode=mode)  # type: ignore[call-overload]
    width = energies.shape[1]
    return sum(weight * padded[:, k : k + width] for k, weight in enumerate(kernel))  # type: ignore[return-value]


@dataclass(frozen=True)
class ItsPaper:
    """The search as published, one level: samples from -180 to 180 degrees, both ends included.

    Both ends are the same rotation, the ends are padded by themselves and differences there are
    one-sided, so scores do not turn with the input. Dropout passes are not averaged: the score is
    that of a network without dropout. With one level and one answer, the paper's hypotheses
    reduce to the best score.

    Args:
        sigma: Standard deviation of the smoothing, in samples.
        radius: Its half width, in samples.
    """

    may_be_sharp: ClassVar[bool] = False
    sigma: float = 2.0
    radius: int = 3
    per_view = False

    def __post_init__(self) -> None:
        smooths = self.sigma > 0 or (self.sigma == 0 and self.may_be_sharp)
        least = "0 (no smoothing) or above" if self.may_be_sharp else "above 0"
        require(smooths, f"sigma is {self.sigma}", least)
        require(self.radius >= 0, f"radius is {self.radius}", "0 or more")

    def fit(self, training: TrainingViews) -> ItsPaper:
        """Nothing to fit."""
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of logits (N, K, C).

        Raises:
            UserError: The group has no half turn, or too few elements for a second difference.
        """
        order = logits.shape[1]
        if order % 2:
            raise UserError(
                f"its_paper samples both ends of [-180, 180] degrees, C{order} has no half turn",
                fix="a group of even order, or its_circular",
            )
        half = order // 2
        samples = np.arange(-half, half + 1) % order
        energies = _smooth(logsumexp(logits)[:, samples], self._kernel, "edge")
        curvature = np.gradient(np.gradient(energies, axis=1), axis=1)
        scores = np.full((len(logits), order), -np.inf)
        for place, element in enumerate(samples):  # the half turn is there twice: its better one
            scores[:, element] = np.maximum(scores[:, element], -curvature[:, place])
        return scores

    @property
    def _kernel(self) -> NDArray[np.float64]:
        return gaussian_kernel(self.sigma, self.radius)


@dataclass(frozen=True)
class ItsCircular(ItsPaper):
    """The same search on the circle: every rotation once, neighbours across the end.

    The curvature is the second difference of neighbours; two gradients in a row, as published, skip
    one. Scores turn with the input. ``sigma`` of 0 does not smooth.
    """

    may_be_sharp: ClassVar[bool] = True
    sigma: float = 1.0

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of logits (N, K, C)."""
        order = logits.shape[1]
        energies = logsumexp(logits)
        if self.sigma > 0:
            kernel = gaussian_kernel(self.sigma, self.radius)
            turns = range(-self.radius, self.radius + 1)
            rolled = [np.roll(energies, turn, axis=1) * w for turn, w in zip(turns, kernel)]
            energies = np.sort(rolled, axis=0).sum(axis=0)
        if order < 2:
            return energies
        neighbours = np.roll(energies, 1, axis=1) + np.roll(energies, -1, axis=1)
        return 2.0 * energies - neighbours
