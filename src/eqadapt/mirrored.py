"""Adapted models that look at images and at their mirror images: less noise for twice the passes.

The mean over the mirror is equitune's for the group {1, M}, of which the canonicalizer knows the
answer already: where mirror images are as upright as images, both elements are equally right.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eqadapt.scorers.mirrored import Mirrored
from eqadapt.symmetrize import Symmetrized, check_logits, read_side


class MirroredBackbone(nn.Module):
    """The mean of a backbone's outputs on an image and on its mirror image, left to right.

    Both are passed by themselves, so that an image and its mirror image get the same outputs to
    the last bit.

    Args:
        inner: Maps images (B, C, H, H) to logits (B, classes); ``with_features=True``: to features
            (B, D) and logits.
    """

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def size(self) -> int | None:
        """Side of the images that the backbone reads, where it tells."""
        return read_side(self.inner)

    def forward(self, x: Tensor, with_features: bool = False) -> Any:
        """As the backbone's, for twice the work."""
        if not with_features:
            straight, turned = self.inner(x), self.inner(x.flip(-1))
            check_logits(straight)
            return (straight + turned) / 2
        pairs = zip(self.inner(x, with_features=True), self.inner(x.flip(-1), with_features=True))
        return tuple((straight + turned) / 2 for straight, turned in pairs)


def mirrored(model: Symmetrized) -> Symmetrized:
    """The model with its backbone and its scorer averaged over the mirror, for evaluation.

    Args:
        model: A trained one; it shares its weights with what is returned. Its scorer, where it has
            one, must turn with its input.
    """
    found = Symmetrized(
        MirroredBackbone(model.backbone),
        model.action,
        model.selection.name,
        None if model.scorer is None else Mirrored(model.scorer),
        model.view_scorer,
        model.samples,
    )
    return found.train(model.training)
