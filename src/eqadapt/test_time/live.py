"""The same methods on a running backbone: views are made and passed through only when read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from eqadapt.backbones import Backbone
from eqadapt.evidence import Evidence
from eqadapt.groups import RotationAction
from eqadapt.test_time.views import Views


class Outputs(nn.Module):
    """A backbone whose forward pass gives features and logits, so that hooks can count it.

    Args:
        backbone: The frozen backbone.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, D) and logits (B, C)."""
        return self.backbone.features_and_logits(x)


class LiveViews(Views):
    """Views of images that are passed through a backbone when a method reads them.

    Args:
        outputs: The backbone.
        action: The group's action.
        x: (N, C, H, H) inputs at the acting size, masked where the action masks.
        evidence: The method's fitted evidence, or None.
        scorer: A canonicalizer's scorer (images to pose logits (N, K), or to those of pairs of
            pose and class (N, K, C)), or None.
        size: Side of the images that the backbone reads; only those pixels are made.
    """

    def __init__(
        self,
        outputs: Outputs,
        action: RotationAction,
        x: Tensor,
        evidence: Evidence | None = None,
        scorer: nn.Module | None = None,
        size: int | None = None,
    ) -> None:
        self.outputs, self.action, self.x, self.evidence = outputs.eval(), action, x, evidence
        self.size = size
        poses: NDArray[Any] | None = None
        if scorer is not None:
            with torch.inference_mode():
                poses = scorer(x).cpu().numpy()
        empty = np.full((len(x), action.group.order, 1), np.nan)
        per_view = evidence is None or evidence.per_view
        super().__init__(empty, None, poses, per_view=per_view)
        self._features: NDArray[np.float32] | None = None

    def read(self, wanted: NDArray[np.bool_]) -> None:
        """Make the wanted views (N, K), pass them through the backbone and score them."""
        rows, views = np.nonzero(wanted & ~self.seen)
        super().read(wanted)
        if not len(rows):
            return
        with torch.inference_mode():
            turned = self.action.undo(
                self.x[torch.from_numpy(rows)],
                torch.from_numpy(views).to(self.x.device),
                **({} if self.size is None else {"size": self.size}),
            )
            features, logits = (value.float().cpu().numpy() for value in self.outputs(turned))
        if self._features is None:
            self._logits = np.full((*self.seen.shape, logits.shape[1]), np.nan)
            self._features = np.full((*self.seen.shape, features.shape[1]), np.nan, np.float32)
        self._logits[rows, views] = logits
        self._features[rows, views] = features
        self._score(rows, views, logits, features)

    def _score(
        self, rows: NDArray[Any], views: NDArray[Any], logits: NDArray[Any], features: NDArray[Any]
    ) -> None:
        if self.evidence is None or self._features is None:
            return
        if self._scores is None:
            self._scores = np.full(self.seen.shape, np.nan)
        if self.per_view:
            found = self.evidence.score(logits[:, None], features[:, None])
            self._scores[rows, views] = found[:, 0]
            return
        whole = self.seen.all(axis=1)
        if not whole.any():
            return
        self._scores[whole] = self.evidence.score(
            self._logits[whole].astype(np.float32), self._features[whole]
        )
