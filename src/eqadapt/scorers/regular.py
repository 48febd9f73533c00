"""What the networks on regular fields share: sizes, scoring, export."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from eqadapt.errors import UserError
from eqadapt.scorers.base import MAX_LOGIT_SCALE, scaled
from eqadapt.scorers.classwise import ClasswiseScorer
from eqadapt.scorers.layers import ClasswisePooledConv, PooledConv, plain_layers

STRIDE_FROM = 41  # inputs at least this large are halved by the first layer
LARGEST_FULL_KERNEL = 15  # the basis grows with the fourth power: 42 MB for C8 at 15


def first_stride(settings: dict[str, Any]) -> int:
    """The stride of the first layer: as set, else 2 for large inputs."""
    return settings["stride"] or (2 if settings["input_size"] >= STRIDE_FROM else 1)


def map_side(
    name: str, input_size: int, stem: int, stride: int, kernels: list[int], head: int
) -> int:
    """Side of the map that the last layer sees, after a strided stem and valid convolutions.

    Args:
        name: Of the scorer, for messages.
        input_size: Side of the input.
        stem: Side of the first layer's filters.
        stride: Of the first layer.
        kernels: Filters of the layers between the first and the last.
        head: Filters of the last layer.

    Raises:
        UserError: The stride does not divide what it must, or nothing is left; the message
            names sizes that work.
    """
    shrink = sum(kernel - 1 for kernel in kernels)
    smallest = stem + stride * (shrink + head - 1)
    if input_size < smallest or (input_size - stem) % stride:
        sizes = ", ".join(str(smallest + stride * step) for step in range(3))
        raise UserError(
            f"scorer {name!r}: input_size {input_size} does not fit kernels "
            f"{[stem, *kernels, head]} with a first stride of {stride}",
            fix=f"input_size {sizes}, ... (every {stride}), smaller kernels or fewer layers",
        )
    return (input_size - stem) // stride + 1 - shrink


def head_kernel(settings: dict[str, Any], side: int) -> int:
    """The last layer's kernel: as set, or with ``"full"`` as large as the map allows."""
    if settings["head_kernel_size"] == "full":
        return min(side - 1 + side % 2, LARGEST_FULL_KERNEL)
    return settings["head_kernel_size"] or settings["kernel_size"]


class RegularScorer(ClasswiseScorer):
    """Prepared images, a body of layers on regular fields, a pooled last layer."""

    body: nn.Sequential
    head: PooledConv
    logit_scale: nn.Parameter | None

    def score_pairs(self, views: Tensor) -> Tensor:
        """What the head says of prepared images (B, C, size, size)."""
        return scaled(self.head(self.body(views)), self.logit_scale)

    @property
    def classwise(self) -> bool:
        """Whether each pair of pose and class has a score of its own."""
        return isinstance(self.head, ClasswisePooledConv)

    def plain_network(self) -> nn.Sequential:
        """Prepared images to what ``score_pairs`` gives, in plain layers for evaluation."""
        scale = 1.0
        if self.logit_scale is not None:
            scale = float(self.logit_scale.detach().clamp(0.0, MAX_LOGIT_SCALE))
        return nn.Sequential(plain_layers(self.body), self.head.plain(scale))

    def in_plain_layers(self) -> list[nn.Module]:
        """Resize, plain convolutions, one linear layer."""
        return [self.prepare, self.plain_network()]
