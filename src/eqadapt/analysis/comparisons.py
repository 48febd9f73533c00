"""Means with intervals over seeds, and paired tests between methods on the same images."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from eqadapt.analysis.evaluations import Cell, Evaluation
from eqadapt.analysis.results import Results, same_images
from eqadapt.analysis.statistics import (
    Estimate,
    bootstrap_interval,
    holm,
    mcnemar_exact,
    merge_dependent,
    sign_flip_test,
    t_interval,
    wilson_interval,
    written_p,
)

Seeds = Mapping[int, Evaluation]


def hits(evaluation: Evaluation, metric: str) -> NDArray[np.int64]:
    """(N,) how many of an image's poses are right, scaled to n poses: the numerator of a rate.

    ``acc`` counts the upright pose n times, so that both metrics share the denominator N n.
    """
    correct = evaluation.correct
    if metric == "acc":
        return correct[:, 0].astype(np.int64) * correct.shape[1]
    if metric == "cn_avg":
        return correct.sum(axis=1, dtype=np.int64)
    raise ValueError(f"no per-image counts for {metric!r}")


def estimate(runs: Seeds, metric: str) -> Estimate:
    """Accuracy (``acc``) or Cn-Avg (``cn_avg``) of one method in one cell, as a fraction.

    Interval: Student t over seeds; with one seed, or seeds that are all the same (of a network that
    was not trained), Wilson over images for ``acc`` and a bootstrap over images, poses kept
    together, for ``cn_avg``.
    """
    per_image = [hits(e, metric) / e.correct.shape[1] for e in runs.values()]
    if not all_same(per_image):
        return t_interval([float(values.mean()) for values in per_image])
    if metric == "acc":
        return wilson_interval(int(per_image[0].sum()), len(per_image[0]))
    return bootstrap_interval(per_image[0])


def all_same(seeds: Sequence[NDArray]) -> bool:
    """Whether seeds have the same values image by image, as one has with itself."""
    return all(np.array_equal(values, seeds[0]) for values in seeds[1:])


@dataclass(frozen=True)
class Comparison:
    """A paired difference, as fractions.

    Attributes:
        estimate: Mean and interval over seeds (over images with one seed, or seeds that are all
            the same).
        over_images: Mean and bootstrap interval over images, for these trained networks.
        p: Exact sign-flip permutation p, images as units, poses and seeds of an image summed.
        mcnemar: Exact McNemar p of each seed, upright comparisons only.
        seeds_ahead: Number of seeds in which the first is ahead.
        images_ahead: Numbers of images on which the first, and the second, is ahead.
        trained_once: Whether it is of one seed, with which one of the two was trained: how another
            training would come out is not known then.
    """

    estimate: Estimate
    over_images: Estimate
    p: float
    mcnemar: tuple[float, ...] = ()
    seeds_ahead: int = 0
    images_ahead: tuple[int, int] = (0, 0)
    trained_once: bool = False

    @property
    def p_mcnemar(self) -> float:
        """One McNemar p for all seeds, merged at the median; NaN when it does not apply."""
        return merge_dependent(self.mcnemar) if self.mcnemar else math.nan


def difference(first: Seeds, second: Seeds, metrics: tuple[str, str]) -> Comparison:
    """First method's ``metrics[0]`` minus second's ``metrics[1]``, paired by seed and image."""
    seeds = sorted(set(first) & set(second))
    if not seeds:
        nothing = t_interval([])
        return Comparison(nothing, nothing, math.nan)
    same_images([runs[s] for s in seeds for runs in (first, second)])
    orders = [runs[seeds[0]].correct.shape[1] for runs in (first, second)]
    poses = math.lcm(*orders)  # groups may differ; whole numbers keep the permutation test exact
    left, right = (poses // order for order in orders)
    firsts = [left * hits(first[s], metrics[0]) for s in seeds]
    seconds = [right * hits(second[s], metrics[1]) for s in seeds]
    per_seed = [a - b for a, b in zip(firsts, seconds)]
    means = [float(d.mean()) / poses for d in per_seed]
    one = all_same(firsts) and all_same(seconds)
    total = np.sum(per_seed, axis=0)
    over_images = bootstrap_interval(total / (poses * len(seeds)))
    mcnemar: tuple[float, ...] = ()
    if metrics == ("acc", "acc"):
        mcnemar = tuple(mcnemar_exact(int((d > 0).sum()), int((d < 0).sum())) for d in per_seed)
    return Comparison(
        estimate=replace(over_images, n=len(seeds)) if one else t_interval(means),
        over_images=over_images,
        p=sign_flip_test(total),
        mcnemar=mcnemar,
        seeds_ahead=sum(mean > 0 for mean in means),
        images_ahead=(int((total > 0).sum()), int((total < 0).sum())),
        trained_once=len(seeds) == 1 and any(map(_trained, (first[seeds[0]], second[seeds[0]]))),
    )


def _trained(evaluation: Evaluation) -> bool:
    """Whether a run's outcome is one of a training: of its network's, or of what stands before.

    That a frozen network was trained before its runs, predictions do not tell; see
    ``Results.trained_before``.
    """
    joint = evaluation.cell.regime == "joint"
    return joint or bool(evaluation.predictions.meta["params_added"])


def summary_frame(results: Results, cells: Sequence[Cell]) -> pd.DataFrame:
    """Tidy means and intervals, in percent.

    Returns:
        Columns dataset, backbone, regime, group, method, metric, mean, low, high, interval,
        n_seeds, n_test.
    """
    rows: list[dict[str, Any]] = []
    for cell in cells:
        for method, runs in results.at(cell).items():
            for metric in ("acc", "cn_avg"):
                found = estimate(runs, metric).scaled(100)
                rows.append(
                    {
                        **cell._asdict(),
                        "method": method,
                        "metric": metric,
                        "mean": found.mean,
                        "low": found.low,
                        "high": found.high,
                        "interval": found.kind,
                        "n_seeds": len(runs),
                        "n_test": len(next(iter(runs.values())).predictions.label),
                    }
                )
    return pd.DataFrame(rows)


PAIRED_COLUMNS = (
    "dataset",
    "backbone",
    "regime",
    "group",
    "metric",
    "first",
    "second",
    "difference",
    "low",
    "high",
    "interval",
    "low_images",
    "high_images",
    "n_seeds",
    "seeds_first_ahead",
    "images_first_ahead",
    "images_second_ahead",
    "p_sign_flip",
    "p_holm",
    "p_mcnemar",
    "p_mcnemar_by_seed",
)


def paired_frame(results: Results, cells: Sequence[Cell]) -> pd.DataFrame:
    """All pairs of methods in each cell, upright and over the orbit; differences in points.

    ``p_holm`` is adjusted within a cell and metric.
    """
    rows: list[dict[str, Any]] = []
    for cell in cells:
        methods = results.at(cell)
        for metric in ("acc", "cn_avg"):
            family = [
                _pair_row(cell, metric, first, second, methods)
                for first, second in combinations(methods, 2)
            ]
            adjusted = holm([row["p_sign_flip"] for row in family])
            rows += [row | {"p_holm": p} for row, p in zip(family, adjusted, strict=True)]
    for row in rows:  # after Holm's correction, which takes them as they are
        row |= {name: written_p(row[name]) for name in ("p_sign_flip", "p_holm", "p_mcnemar")}
    return pd.DataFrame(rows, columns=list(PAIRED_COLUMNS))


def _pair_row(
    cell: Cell, metric: str, first: str, second: str, methods: Mapping[str, Seeds]
) -> dict[str, Any]:
    found = difference(methods[first], methods[second], (metric, metric))
    points, images = found.estimate.scaled(100), found.over_images.scaled(100)
    return {
        **cell._asdict(),
        "metric": metric,
        "first": first,
        "second": second,
        "difference": points.mean,
        "low": points.low,
        "high": points.high,
        "interval": points.kind,
        "low_images": images.low,
        "high_images": images.high,
        "n_seeds": points.n,
        "seeds_first_ahead": found.seeds_ahead,
        "images_first_ahead": found.images_ahead[0],
        "images_second_ahead": found.images_ahead[1],
        "p_sign_flip": found.p,
        "p_mcnemar": found.p_mcnemar,
        "p_mcnemar_by_seed": " ".join(f"{p:.3g}" for p in found.mcnemar),
    }
