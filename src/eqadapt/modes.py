"""Networks in evaluation mode for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; after it every part is in the mode it was in.

    ``train(mode)`` alone would put frozen parts, which a training keeps in evaluation mode, into
    training mode with the rest, and their running statistics would drift.
    """
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        network.train(modes[0][1])  # what a network does in `train` beside setting the flag
        for part, mode in modes:
            part.training = mode
