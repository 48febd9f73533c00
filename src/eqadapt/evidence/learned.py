"""A learned energy of views: one small network, the same for every view.

It is lambda-equitune's network (Basu et al. 2023) trained with the prior of Mondal et al. 2023:
among the views of an input, the upright one should score highest. The backbone stays as it is.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import Array, TrainingViews, log_softmax, logsumexp, require
from eqadapt.evidence.fitting import (
    check_training,
    count_parameters,
    score_in_double,
    train_network,
)


def view_inputs(logits: Array, features: Array) -> NDArray[np.float32]:
    """What the network sees of a view: features, log-probabilities, sorted logits, energy.

    Args:
        logits: (..., C).
        features: (..., D).

    Returns:
        (..., D + 2 C + 1) float32.
    """
    parts = [
        np.asarray(features, np.float32),
        np.maximum(log_softmax(logits), -30.0).astype(np.float32),
        np.sort(logits, axis=-1).astype(np.float32),
        logsumexp(logits)[..., None].astype(np.float32),
    ]
    return np.concatenate(parts, axis=-1)


@dataclass
class FeaturesPrior:
    """An MLP on a view's outputs, trained to score the upright view highest.

    Args:
        hidden: Width of the hidden layer.
        layers: Hidden layers.
        epochs: Passes over the training inputs.
        lr: Learning rate of AdamW at the start of its cosine schedule.
        weight_decay: Of AdamW.
        batch_size: Inputs (each with all its views) a step.
        context: Each view also sees the mean and the maximum over all views, which a permutation
            of the views leaves as they are.
        seed: Of initial weights and order.
    """

    hidden: int = 128
    layers: int = 1
    epochs: int = 15
    lr: float = 2e-3
    weight_decay: float = 1e-2
    batch_size: int = 256
    dropout: float = 0.0
    context: bool = False
    seed: int = 0
    network: Any = field(default=None, repr=False)
    centre: Any = field(default=None, repr=False)
    scale: Any = field(default=None, repr=False)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        check_training(self)
        require(self.layers >= 0, f"layers is {self.layers}", "0 or more")
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}", "0 or above and below 1")

    @property
    def per_view(self) -> bool:
        """Whether a view is scored without a look at the others."""
        return not self.context

    @property
    def num_parameters(self) -> int:
        """Trained numbers; 0 before ``fit``."""
        return count_parameters(self.network)

    def _build(self, inputs: int) -> Any:
        from torch import nn

        width = inputs * (3 if self.context else 1)
        modules: list[nn.Module] = []
        for _ in range(self.layers):
            modules += [nn.Linear(width, self.hidden), nn.ReLU(), nn.Dropout(self.dropout)]
            width = self.hidden
        return nn.Sequential(*modules, nn.Linear(width, 1))

    def _see(self, x: Any) -> Any:
        import torch

        if not self.context:
            return x
        # sorted first, so that the mean is the same to the last bit in any order of the views
        mean = x.sort(dim=1).values.mean(dim=1, keepdim=True)
        top = x.amax(dim=1, keepdim=True)
        return torch.cat([x, mean.expand_as(x), top.expand_as(x)], dim=-1)

    def fit(self, training: TrainingViews) -> FeaturesPrior:
        """Train on the views of inputs whose pose is known."""
        import torch
        from torch.nn import functional as F

        started = time.perf_counter()
        inputs = torch.from_numpy(view_inputs(training.logits, training.features))
        target = torch.from_numpy(np.asarray(training.pose, np.int64))
        self.centre = inputs.mean(dim=(0, 1))
        self.scale = inputs.std(dim=(0, 1)).clamp_min(1e-4)
        inputs = self._see((inputs - self.centre) / self.scale)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._build(training.features.shape[-1] + 2 * training.logits.shape[-1] + 1)
            self.network = train_network(
                network,
                lambda rows: F.cross_entropy(network(inputs[rows]).squeeze(-1), target[rows]),
                len(inputs),
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                weight_decay=self.weight_decay,
            )
        self.seconds = time.perf_counter() - started
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of logits (N, K, C) and features (N, K, D).

        Raises:
            UserError: Not fitted yet.
        """
        import torch

        if self.network is None:
            raise UserError("features_prior is not fitted", fix="call fit on training views first")

        def scores(network: Any, rows: slice) -> Any:
            x = torch.from_numpy(view_inputs(logits[rows], features[rows])).double()
            return network(self._see((x - self.centre) / self.scale)).squeeze(-1)

        return score_in_double(self.network, scores, len(logits))
