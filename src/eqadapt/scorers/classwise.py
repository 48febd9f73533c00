"""What scorers share that can be built to score pairs of pose and class."""

from __future__ import annotations

import copy
from abc import abstractmethod

from torch import Tensor, nn

from eqadapt.parts import SequentialInParts
from eqadapt.scorers.base import PoseScorer, no_classes
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
        return _for_inference(*self.in_plain_layers(), *last)

    def export_pairs(self) -> nn.Sequential:
        """Plain layers with the outputs of ``pairs`` in evaluation mode.

        Raises:
            UserError: It scores poses alone.
        """
        self._check_classwise()
        return _for_inference(*self.in_plain_layers())

    def _check_classwise(self) -> None:
        if not self.classwise:
            raise no_classes()


def _for_inference(*layers: nn.Module) -> nn.Sequential:
    """A copy of layers in a row."""
    return copy.deepcopy(SequentialInParts(*layers)).eval().requires_grad_(False)
