"""Intervals and paired tests. Images are the units; poses of an image are never independent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, stats

LEVEL = 0.95
RESAMPLES = 9_999
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean with its interval, in the unit of the data.

    Attributes:
        mean: The estimate.
        low: Lower end of the 95% interval.
        high: Upper end.
        n: Number of seeds behind it.
        kind: Where the interval comes from: ``"seeds"`` (Student t over seeds), ``"images"`` (one
            seed: Wilson, or bootstrap over images) or ``"none"``.
    """

    mean: float
    low: float
    high: float
    n: int
    kind: str

    def scaled(self, factor: float) -> Estimate:
        """The same in another unit, e.g. ``scaled(100)`` from fractions to points."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Estimate(self.mean * factor, low, high, self.n, self.kind)

    @property
    def half_width(self) -> float:
        """Half the length of the interval."""
        return (self.high - self.low) / 2


def t_interval(values: ArrayLike, level: float = LEVEL) -> Estimate:
    """Mean and Student t interval over seeds; one value alone has no interval (NaN ends)."""
    sample = np.asarray(values, float)
    sample = sample[~np.isnan(sample)]
    if sample.size == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, "none")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, math.nan, math.nan, 1, "none")
    error = float(stats.sem(sample))
    # No spread at all: scipy's interval would be NaN where it is a point.
    half = float(stats.t.ppf((1 + level) / 2, sample.size - 1)) * error
    return Estimate(mean, mean - half, mean + half, sample.size, "seeds")


def wilson_interval(successes: int, total: int, level: float = LEVEL) -> Estimate:
    """Wilson's score interval of a proportion over independent images, one seed."""
    interval = stats.binomtest(successes, total).proportion_ci(level, method="wilson")
    return Estimate(successes / total, float(interval.low), float(interval.high), 1, "images")


def bootstrap_interval(per_image: ArrayLike, level: float = LEVEL, seed: int = 0) -> Estimate:
    """Percentile bootstrap over images of the mean of one value an image.

    All poses of an image go together, because the value is already their mean. Images with equal
    values are drawn together, as one multinomial, which is the same bootstrap at a fraction of its
    cost.
    """
    values, counts = np.unique(np.asarray(per_image, float), return_counts=True)
    total = int(counts.sum())
    mean = float((values * counts).sum() / total)
    if total < 2:
        return Estimate(mean, math.nan, math.nan, 1, "none")
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=RESAMPLES)
    tail = (1 - level) / 2
    low, high = np.quantile(draws @ values / total, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high), 1, "images")


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided exact McNemar p from the counts of images that one method alone gets right."""
    discordant = only_first + only_second
    if discordant == 0:
        return 1.0
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue)


def sign_flip_test(differences: ArrayLike) -> float:
    """Exact two-sided sign-flip permutation p for paired integer differences, one an image.

    Under the null hypothesis an image's difference is as likely as its negative. The null
    distribution of the sum is computed exactly, by inverting its characteristic function on the
    integers; with differences in {-1, 0, 1} this is McNemar's exact test.

    Args:
        differences: (N,) integers: how many more of an image's poses (and seeds) the first method
            gets right than the second. Summing over an image's poses keeps their dependence.

    Returns:
        p in [1e-12, 1]; the lower end is what floating point can tell from zero.
    """
    steps = np.asarray(differences)
    if not np.issubdtype(steps.dtype, np.integer):
        raise TypeError("sign_flip_test needs integer differences")
    observed = abs(int(steps.sum()))
    sizes, counts = np.unique(np.abs(steps[steps != 0]), return_counts=True)
    if sizes.size == 0:
        return 1.0
    divisor = int(np.gcd.reduce(sizes))
    sizes, observed = sizes // divisor, observed // divisor
    total = int((sizes * counts).sum())
    mass = _sign_sum_mass(sizes, counts, total)
    # mass[m] is the probability of the sum 2m - total: both tails at least as far out as observed.
    sums = 2 * np.arange(total + 1) - total
    p = float(mass[np.abs(sums) >= observed].sum())
    return min(1.0, max(SMALLEST_P, p))


def _sign_sum_mass(sizes: NDArray, counts: NDArray, total: int) -> NDArray[np.float64]:
    length = total + 1
    half = np.arange(length // 2 + 1)
    spectrum = np.ones(half.size)
    for size, count in zip(sizes, counts, strict=True):
        spectrum *= np.cos(np.pi * ((half * int(size)) % (2 * length)) / length) ** int(count)
    # exp(-i pi k total / length) with k total reduced, so that large products stay accurate.
    phase = np.pi * ((half * total) % (2 * length)) / length
    mass = fft.irfft(spectrum * np.exp(-1j * phase), n=length)
    return np.clip(mass, 0.0, 1.0)


def written_p(p: float) -> float:
    """A p value as files have it: six significant digits; NaN as it is.

    The Fourier transform behind ``sign_flip_test`` differs between processors in later ones.
    """
    return float(f"{p:.6g}")


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of a family of p values, in the order given; NaN stays NaN."""
    p = np.asarray(p_values, float)
    adjusted = np.full(p.shape, math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors))
    return [float(value) for value in adjusted]


def merge_dependent(p_values: Sequence[float]) -> float:
    """One p from several by Rüger's rule at the median: valid whatever their dependence.

    The tests of several seeds share their images, so that methods for independent tests (Fisher)
    would overstate the evidence.
    """
    ordered = sorted(p_values)
    if len(ordered) == 1:
        return float(ordered[0])
    # The r-th smallest of k, times k / r, is valid for any r: r = ceil(k / 2) is the median.
    rank = math.ceil(len(ordered) / 2)
    return min(1.0, float(ordered[rank - 1]) * len(ordered) / rank)
