"""Hyper-parameters from the validation split: the same number of trials for every method."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eqadapt.errors import UserError
from eqadapt.test_time.bench import Bench
from eqadapt.test_time.methods import TestTimeMethod, evidence_parameters

_DRAW_SEED = 0


@dataclass(frozen=True)
class Selection:
    """The outcome of a search.

    Attributes:
        parameters: The best ones, with the defaults.
        trials: Everything tried: hyper-parameters and the mean accuracy over poses.
        split: Where it was measured.
        inherited: Trials of the method whose hyper-parameters were taken over.
    """

    parameters: dict[str, Any]
    trials: list[dict[str, Any]] = field(default_factory=list)
    split: str = "validation"
    inherited: int = 0

    @property
    def count(self) -> int:
        """Trials that the parameters rest on."""
        return len(self.trials) + self.inherited


def grid_points(grid: Mapping[str, Sequence[Any]], trials: int) -> list[dict[str, Any]]:
    """The points of a grid that are tried.

    Args:
        grid: Values by hyper-parameter.
        trials: How many may be tried; of a larger grid so many are drawn, always the same ones.

    Raises:
        UserError: A hyper-parameter without values, or no trial at all.
    """
    if trials < 1:
        raise UserError(f"{trials} trials", where="trials", fix="1 or more")
    empty = [key for key, values in grid.items() if not values]
    if empty:
        raise UserError(f"no values for {', '.join(empty)}", where="grid")
    keys = list(grid)
    points = [dict(zip(keys, values)) for values in itertools.product(*grid.values())]
    if len(points) <= trials:
        return points
    drawn = np.random.default_rng(_DRAW_SEED).permutation(len(points))[:trials]
    return [points[row] for row in sorted(drawn)]


def tune(
    bench: Bench,
    method: TestTimeMethod,
    grid: Mapping[str, Sequence[Any]],
    trials: int,
    inherited: Selection | None = None,
    seeds: Sequence[int] = (0,),
) -> Selection:
    """The hyper-parameters of a method with the best mean accuracy over poses.

    Args:
        bench: The cell.
        method: The method.
        grid: What may be searched; empty for a method without hyper-parameters.
        trials: How many points of it.
        inherited: What was selected for the method it inherits from; the hyper-parameters of the
            evidence are taken over.
        seeds: Of what is trained for it; accuracies are means over them.

    Returns:
        The first of the best points in the grid's order.
    """
    taken = evidence_parameters(inherited.parameters) if inherited else {}
    base = {f"evidence.{key}": value for key, value in taken.items()}
    record: list[dict[str, Any]] = []
    for point in grid_points(grid, trials) if grid else [{}]:
        parameters = method.parameters({**base, **point})
        accuracy = None
        if grid:
            split = method.tuned_on
            found = [bench.accuracy(method, parameters, split, seed) for seed in seeds]
            accuracy = float(np.mean(found))
        record.append({"parameters": point, "accuracy": accuracy})
    best = max(range(len(record)), key=lambda row: (record[row]["accuracy"] or 0.0, -row))
    chosen = method.parameters({**base, **record[best]["parameters"]})
    before = inherited.count if inherited else 0
    return Selection(chosen, record if grid else [], method.tuned_on, before)
