"""Scores of an image and of its mirror image, averaged."""

from __future__ import annotations

from torch import Tensor, nn


class Mirrored(nn.Module):
    """The mean of a scorer's logits on an image and on its mirror image.

    With M the mirror image left to right, M g_k = g_-k M: an image in the pose k is seen in the
    mirror in the pose -k. So a'_k(x) = (a_k(x) + a_-k(M x)) / 2 is a score of the pose k as well,
    and turns with the input as ``a`` does. For images of which mirror images are as upright.

    Args:
        scorer: Maps images (B, C, H, H) to pose logits (B, K), or to those of pairs of pose and
            class (B, K, classes): an image and its mirror image are of one class.
    """

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer

    def forward(self, x: Tensor) -> Tensor:
        """Logits like the scorer's, for twice the work."""
        mirror = self.scorer(x.flip(-1))
        return (self.scorer(x) + mirror.flip(1).roll(1, 1)) / 2
