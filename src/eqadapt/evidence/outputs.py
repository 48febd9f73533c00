"""Evidence read off a view's logits alone; nothing is fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import Array, TrainingViews, log_softmax, logsumexp


@dataclass(frozen=True)
class _Logits(ABC):
    """Evidence from logits divided by a temperature.

    Args:
        temperature: Positive number the logits are divided by.
    """

    temperature: float = 1.0
    per_view = True

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise UserError(f"temperature of evidence is {self.temperature}", fix="above 0")

    def fit(self, training: TrainingViews) -> _Logits:
        """Nothing to fit."""
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of logits (N, K, C)."""
        return self.of_logits(np.asarray(logits, np.float64) / self.temperature)

    @abstractmethod
    def of_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores (..., C) to (...) of logits divided by the temperature."""


class Confidence(_Logits):
    """Log of the largest probability (the proxy of equizero, Basu et al. 2023).

    The logarithm orders views as the probability does but does not saturate at one.
    """

    def of_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., C) to (...)."""
        return log_softmax(logits).max(axis=-1)


class Entropy(_Logits):
    """Minus the entropy of the class probabilities (equizero's other proxy)."""

    def of_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., C) to (...)."""
        logp = np.sort(log_softmax(logits), axis=-1)
        return (np.exp(logp) * logp).sum(axis=-1)


class Energy(_Logits):
    """Minus the free energy, ``T log sum exp(z / T)`` (Liu et al. 2020)."""

    def of_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., C) to (...)."""
        return self.temperature * logsumexp(logits)


class FocalSelf(_Logits):
    """FoCal's energy (Singhal et al. 2025) on the backbone's own logits.

    Minus ``mean(z) - 0.5 max(z)``; the paper takes CLIP's similarities for z.
    """

    def of_logits(self, logits: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., C) to (...)."""
        return 0.5 * logits.max(axis=-1) - np.sort(logits, axis=-1).mean(axis=-1)
