"""The weights of lambda-equitune (Basu et al. 2023) on a frozen backbone, learned by the task."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import Array, TrainingViews
from eqadapt.evidence.fitting import (
    check_training,
    count_parameters,
    score_in_double,
    train_network,
)


@dataclass
class LambdaWeights:
    """Logs of positive weights that a small network reads off a view's features.

    The class probabilities of the mean of the views' logits, weighted by a softmax over the views,
    are trained by cross-entropy; who the upright view is is never told. It starts with equal
    weights, which is equitune.

    Args:
        hidden: Width of the two hidden layers.
        epochs: Passes over the training inputs; with 0 it stays equitune.
        lr: Learning rate of AdamW at the start of its cosine schedule.
        weight_decay: Of AdamW.
        batch_size: Inputs (each with all its views) a step.
        seed: Of initial weights and order.
    """

    hidden: int = 100
    epochs: int = 15
    lr: float = 1e-3
    weight_decay: float = 1e-2
    batch_size: int = 256
    seed: int = 0
    network: Any = field(default=None, repr=False)
    seconds: float = 0.0
    per_view = True

    def __post_init__(self) -> None:
        check_training(self)

    @property
    def num_parameters(self) -> int:
        """Trained numbers; 0 before ``fit``."""
        return count_parameters(self.network)

    def fit(self, training: TrainingViews) -> LambdaWeights:
        """Train on the views of inputs whose class is known."""
        import torch
        from torch.nn import functional as F

        from eqadapt.view_scorers import LambdaNetwork

        started = time.perf_counter()
        features = torch.from_numpy(np.asarray(training.features, np.float32))
        logits = torch.from_numpy(np.asarray(training.logits, np.float32))
        label = torch.from_numpy(np.asarray(training.label, np.int64))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = LambdaNetwork(features.shape[-1], self.hidden)

            def loss(rows: Any) -> Any:
                weights = network(features[rows], logits[rows]).softmax(dim=1)
                mean = torch.einsum("bk,bkc->bc", weights, logits[rows])
                return F.cross_entropy(mean, label[rows])

            self.network = train_network(
                network,
                loss,
                len(label),
                epochs=self.epochs,
                batch_size=self.batch_size,
                lr=self.lr,
                weight_decay=self.weight_decay,
            )
        self.seconds = time.perf_counter() - started
        return self

    def score(self, logits: Array, features: Array) -> NDArray[np.float64]:
        """Scores (N, K) of features (N, K, D).

        Raises:
            UserError: Not fitted yet.
        """
        import torch

        if self.network is None:
            raise UserError("lambda is not fitted", fix="call fit on training views first")
        seen = torch.from_numpy(np.ascontiguousarray(features, np.float32))

        def scores(network: Any, rows: slice) -> Any:
            return network.layers(network.norm(seen[rows].double())).squeeze(-1)

        return score_in_double(self.network, scores, len(seen))
