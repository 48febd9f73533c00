"""What scorers share that can be built to score pairs of pose and class."""

from __future__ import annotations

import copy
from abc import abstractmethod

import torch
from torch import Tensor, nn

from eqadapt.parts import SequentialInParts
from eqadapt.scorers.base import PoseScorer, check_images, no_classes
from eqadapt.scorers.layers import OverClasses


class ClasswiseScorer(PoseScorer):
    """A scorer that scores pairs of pose and class where it is built with ``classes``."""

    @property
    @abstractmethod
    def classwise(self) -> bool:
        """Whether it was built so; else it scores poses alone."""

    @abstractmethod
    def score_pairs(self, views: Tensor) -> Tensor:
        """Logits of prepared images: (B, K, classes) where it is class-wise, else (B, K)."""

    @abstractmethod
    def in_plain_layers(self) -> list[nn.Module]:
        """From the image to what ``score_pairs`` gives, without escnn, for evaluation."""

    def score(self, views: Tensor) -> Tensor:
        """Pose logits (B, K) of prepared images."""
        scores = self.score_pairs(views)
        return OverClasses()(scores) if self.classwise else scores

    def pairs(self, x: Tensor) -> Tensor:
        """Logits (B, K, classes) of the pairs of pose and class; ``forward`` is their log-sum-exp.

        Raises:
            UserError: It scores poses alone.
        """
        self._check_classwise()
        return self.computed(x, self.score_pairs).float()

    def export(self) -> nn.Sequential:
        """Plain layers with the same outputs as this network in evaluation mode."""
        last = [OverClasses()] if self.classwise else []
        return _for_inference(self.in_channels, *self.in_plain_layers(), *last)

    def export_pairs(self) -> nn.Sequential:
        """Plain layers with the outputs of ``pairs`` in evaluation mode.

        Raises:
            UserError: It scores poses alone.
        """
        self._check_classwise()
        return _for_inference(self.in_channels, *self.in_plain_layers())

    def _check_classwise(self) -> None:
        if not self.classwise:
            raise no_classes()


class ExportedScorer(SequentialInParts):
    """Plain layers that compute in float32 whatever the context, as the scorer does: in a lower
    precision scores of turned copies would differ by more than ``choose`` allows for.

    Args:
        in_channels: Of the images.
        layers: From the image to the scores.
    """

    def __init__(self, in_channels: int, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.in_channels = in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Scores, float32, of images (B, C, H, H).

        Raises:
            UserError: The images are not square or have another number of channels.
        """
        check_images(x, self.in_channels)
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def _for_inference(in_channels: int, *layers: nn.Module) -> nn.Sequential:
    """A copy of layers in a row."""
    exported = ExportedScorer(in_channels, *copy.deepcopy(layers))
    return exported.eval().requires_grad_(False)
