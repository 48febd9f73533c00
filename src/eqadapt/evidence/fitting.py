"""Training a small network on cached views, and reading it off in double precision."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eqadapt.evidence.base import require

_ROWS = 2048  # inputs scored at once


class Trained(Protocol):
    """Evidence with a network: what ``train_network`` is told of it."""

    hidden: int
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float


def check_training(evidence: Trained) -> None:
    """Stop at numbers that no network could be trained with.

    Raises:
        UserError: One is out of its range.
    """
    for name, least in (("hidden", 1), ("epochs", 0), ("batch_size", 1)):
        value = getattr(evidence, name)
        require(value >= least, f"{name} is {value}", f"{least} or more")
    for name in ("lr", "weight_decay"):
        value = getattr(evidence, name)
        require(value >= 0, f"{name} is {value}", "0 or above")


def train_network(
    network: Any,
    loss: Callable[[Any], Any],
    count: int,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
) -> Any:
    """AdamW with a cosine schedule over random batches of rows.

    Args:
        network: The module trained.
        loss: From row numbers (B,) to a scalar.
        count: How many rows there are.
        epochs: Passes over them.
        batch_size: Rows a step; what is left over of an epoch waits for the next.
        lr: Learning rate at the start.
        weight_decay: Of AdamW.

    Returns:
        The network, in evaluation mode.
    """
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=weight_decay)
    batch = min(batch_size, count)
    steps = epochs * (count // batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    for _ in range(epochs):
        order = torch.randperm(count)
        for rows in order[: len(order) // batch * batch].view(-1, batch):
            value = loss(rows)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def score_in_double(
    network: Any, scores: Callable[[Any, slice], Any], count: int
) -> NDArray[np.float64]:
    """Scores (N, K) of all inputs from a network in float64.

    The place of a view in a batch then moves its score by nothing that counts.

    Args:
        network: The trained module.
        scores: From the module in float64 and a slice of the inputs to scores (B, K).
        count: N.
    """
    import torch

    double = copy.deepcopy(network).double()
    with torch.inference_mode():
        parts = [scores(double, slice(start, start + _ROWS)) for start in range(0, count, _ROWS)]
    return torch.cat(parts).numpy()


def count_parameters(network: Any) -> int:
    """Trained numbers; 0 before there is a network."""
    return 0 if network is None else sum(value.numel() for value in network.parameters())
