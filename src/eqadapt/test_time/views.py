"""The views of inputs as a method may read them: every view read is a pass, and is counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from eqadapt.errors import UserError
from eqadapt.evidence.base import log_softmax, logsumexp


class Views:
    """K views of each of N inputs, read from what is known already.

    What has not been read is NaN, so that no method can use a view it has not paid for.

    Args:
        logits: (N, K, C) the backbone's logits of each view.
        scores: (N, K) evidence of each view, or None for methods without.
        pose_logits: (N, K) a canonicalizer's scores of the poses, or (N, K, C) a class-wise
            one's of pairs of pose and class, or None; they cost no pass of the backbone.
        per_view: Whether the evidence of a view is known once that view is read; else it takes
            all views of the input.
    """

    def __init__(
        self,
        logits: NDArray[np.floating],
        scores: NDArray[np.floating] | None = None,
        pose_logits: NDArray[np.floating] | None = None,
        *,
        per_view: bool = True,
    ) -> None:
        self._logits = np.asarray(logits, np.float64)
        self._scores = None if scores is None else np.asarray(scores, np.float64)
        self._pose_logits = None if pose_logits is None else np.asarray(pose_logits, np.float64)
        self.per_view = per_view
        self.seen = np.zeros(self._logits.shape[:2], bool)

    @property
    def count(self) -> int:
        """Number of inputs N."""
        return self.seen.shape[0]

    @property
    def order(self) -> int:
        """Number of views K of an input."""
        return self.seen.shape[1]

    @property
    def passes(self) -> NDArray[np.int64]:
        """(N,) views read of each input: passes of the backbone."""
        return self.seen.sum(axis=1)

    @property
    def pose_logits(self) -> NDArray[np.float64]:
        """(N, K) the canonicalizer's scores; of pairs, the log-sum-exp over their classes.

        Raises:
            UserError: There is no canonicalizer.
        """
        if self._pose_logits is None:
            raise UserError(
                "this method needs the pose logits of a canonicalizer",
                fix="train one (`eqadapt train`) and name it in the settings",
            )
        return self._pose_logits if self._pose_logits.ndim == 2 else logsumexp(self._pose_logits)

    @property
    def votes(self) -> NDArray[np.float64]:
        """(N, K, C) log-probabilities of the classes given the pose, by the canonicalizer alone.

        Raises:
            UserError: It tells no classes.
        """
        if self._pose_logits is None or self._pose_logits.ndim == 2:
            raise UserError(
                "this method needs a canonicalizer that tells classes",
                fix="one with the class-wise prior, `prlc_classwise`, in the settings",
            )
        return log_softmax(self._pose_logits)

    def read(self, wanted: NDArray[np.bool_]) -> None:
        """Pass the wanted views (N, K) through the backbone, those not read before."""
        self.seen |= wanted

    @property
    def logits(self) -> NDArray[np.float64]:
        """(N, K, C), NaN where not read."""
        return np.where(self.seen[..., None], self._logits, np.nan)

    @property
    def scores(self) -> NDArray[np.float64]:
        """(N, K) evidence, NaN where not known yet.

        Raises:
            UserError: There is no evidence.
        """
        if self._scores is None:
            raise UserError("this method needs the evidence of the views")
        known = self.seen if self.per_view else self.seen.all(axis=1, keepdims=True)
        return np.where(known, self._scores, np.nan)
