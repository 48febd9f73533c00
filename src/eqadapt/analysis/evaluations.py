"""One run looked at through one group: the unit every metric and test is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from eqadapt.analysis.predictions import TOLERANCE_DEG, Predictions, angle_gap
from eqadapt.errors import UserError
from eqadapt.groups.cyclic import CyclicGroup, parse_group


class Cell(NamedTuple):
    """What is held fixed when methods are compared."""

    dataset: str
    backbone: str
    regime: str
    group: str


@dataclass(frozen=True)
class Evaluation:
    """A run's predictions on the orbit of a group of order n: N images, n poses each.

    Column k of every array belongs to the input turned by ``360 k / n`` degrees counter-clockwise;
    column 0 is the upright test set.
    """

    predictions: Predictions
    group: CyclicGroup

    @property
    def cell(self) -> Cell:
        """Data set, backbone, regime and the group evaluated (not the one trained for)."""
        meta = self.predictions.meta
        return Cell(meta["dataset"], meta["backbone"], meta["regime"], self.group.name)

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.predictions.meta["method"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.predictions.meta["seed"])

    @property
    def angles(self) -> NDArray[np.float64]:
        """(n,) degrees counter-clockwise."""
        return np.asarray(self.group.angles)

    @cached_property
    def _columns(self) -> NDArray[np.int64]:
        poses = self.predictions.poses
        return np.array([self.group.embed(k, poses) for k in range(self.group.order)])

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """(N, n) whether the prediction is right."""
        return self.predictions.correct[:, self._columns]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(N, n) predicted class."""
        return self.predictions.prediction[:, self._columns]

    @property
    def chosen_angle(self) -> NDArray[np.float64]:
        """(N, n) degrees of the pose the method chose; NaN for none."""
        return self.predictions.chosen_angle[:, self._columns]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """(n,) poses that are multiples of 90 degrees: pixels move without resampling."""
        flags = np.zeros(self.group.order, bool)
        flags[list(self.group.exact_elements)] = True
        return flags

    @property
    def pose_right(self) -> NDArray[np.bool_]:
        """(N, n) whether the chosen pose is the applied one; no choice counts as wrong."""
        return angle_gap(self.chosen_angle, self.angles) <= TOLERANCE_DEG

    @property
    def pose_consistent(self) -> NDArray[np.bool_]:
        """(N, n) whether turning the input turns the choice along: c(g x) = g c(x)."""
        chosen = self.chosen_angle
        return angle_gap(chosen, chosen[:, :1] + self.angles) <= TOLERANCE_DEG


def evaluate(predictions: Predictions, groups: Sequence[str]) -> list[Evaluation]:
    """A run at its own group, or, when it has none (``C1``), at each of ``groups``.

    Raises:
        UserError: The file's poses do not hold the group's orbit.
    """
    trained = str(predictions.meta["group"])
    wanted = [trained] if trained != "C1" else list(groups)
    found = []
    for name in wanted:
        group = parse_group(name)
        if not predictions.poses.contains(group):
            raise UserError(
                f"the orbit of {name} is not among the {predictions.poses.name} poses predicted",
                where=str(predictions.path),
                fix=f"predict on a pose group whose order is a multiple of {group.order}",
            )
        found.append(Evaluation(predictions, group))
    return found


def evaluate_all(runs: Iterable[Predictions], groups: Sequence[str]) -> Iterator[Evaluation]:
    """Every evaluation of every run."""
    for predictions in runs:
        yield from evaluate(predictions, groups)
