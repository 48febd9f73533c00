"""Intervals and tests, against scipy, closed forms and brute force."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from analysis_fixtures import write_run
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eqadapt.analysis.comparisons import difference, estimate
from eqadapt.analysis.evaluations import evaluate
from eqadapt.analysis.predictions import load_predictions
from eqadapt.analysis.statistics import (
    bootstrap_interval,
    holm,
    mcnemar_exact,
    merge_dependent,
    sign_flip_test,
    t_interval,
    wilson_interval,
)
from eqadapt.errors import UserError


def test_t_interval_is_scipys():
    sample = [0.91, 0.93, 0.94, 0.925]
    found = t_interval(sample)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(sample), scale=stats.sem(sample))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(sample), low, high))
    assert (found.n, found.kind) == (4, "seeds")
    # Three seeds: 4.303 standard errors on each side.
    three = t_interval([1.0, 2.0, 3.0])
    assert three.half_width == pytest.approx(4.302652729911275 / math.sqrt(3))


def test_t_interval_of_equal_values_is_a_point_and_of_one_value_unknown():
    same = t_interval([0.5, 0.5, 0.5])
    assert (same.low, same.high) == (0.5, 0.5)
    assert math.isnan(t_interval([0.5]).low) and t_interval([0.5]).kind == "none"
    assert t_interval([]).n == 0
    assert t_interval([0.5, math.nan, 0.7]).n == 2


@pytest.mark.parametrize(("successes", "total"), [(0, 10), (9, 10), (10, 10), (450, 500)])
def test_wilson_interval_is_the_closed_form(successes, total):
    z, p = stats.norm.ppf(0.975), successes / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2)) / (1 + z**2 / total)
    found = wilson_interval(successes, total)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half), abs=1e-9)


def test_bootstrap_interval_is_near_scipys_and_repeats():
    values = np.random.default_rng(3).integers(0, 9, 400) / 8
    found = bootstrap_interval(values)
    theirs = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=4_000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.005)
    assert found == bootstrap_interval(values)


def test_bootstrap_keeps_an_images_poses_together():
    """Eight equal copies of an image are one image: the interval must not shrink."""
    upright = (np.arange(100) < 80).astype(float)
    alike = np.repeat(upright[:, None], 8, axis=1).mean(axis=1)
    assert bootstrap_interval(alike) == bootstrap_interval(upright)


def test_mcnemar_is_the_binomial_test():
    assert mcnemar_exact(0, 0) == 1.0
    # Two-sided: 2 (1 + 10) / 2^10 for nine to one.
    assert mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1)
    assert mcnemar_exact(5, 5) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 6))
def test_sign_flip_with_equal_steps_is_mcnemar(first, second, size):
    steps = np.r_[np.full(first, size), np.full(second, -size), np.zeros(7, int)]
    assert sign_flip_test(steps) == pytest.approx(mcnemar_exact(first, second), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-6, 6), min_size=1, max_size=10))
def test_sign_flip_is_brute_force(steps):
    observed = abs(sum(steps))
    sums = [abs(np.dot(signs, steps)) for signs in product((-1, 1), repeat=len(steps))]
    expected = np.mean(np.array(sums) >= observed)
    assert sign_flip_test(np.array(steps)) == pytest.approx(expected, abs=1e-9)


def test_sign_flip_agrees_with_scipys_permutation_test():
    rng = np.random.default_rng(5)
    steps = rng.integers(-8, 9, 300) + (rng.random(300) < 0.12)
    theirs = stats.permutation_test(
        (steps,),
        np.sum,
        permutation_type="samples",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    )
    assert sign_flip_test(steps) == pytest.approx(theirs.pvalue, abs=0.012)


def test_sign_flip_on_many_images_is_quick_and_normal():
    rng = np.random.default_rng(8)
    steps = rng.integers(-24, 25, 10_000)
    z = abs(steps.sum()) / math.sqrt((steps**2).sum())
    assert sign_flip_test(steps) == pytest.approx(2 * stats.norm.sf(z), abs=2e-3)
    assert sign_flip_test(np.ones(5_000, int)) == 1e-12


def test_sign_flip_wants_counts():
    with pytest.raises(TypeError, match="integer"):
        sign_flip_test([0.5, 0.5])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    with_gap = holm([0.02, math.nan, 0.03])
    assert with_gap[0] == pytest.approx(0.04) and math.isnan(with_gap[1])
    assert holm([]) == []


def test_merging_dependent_p_values():
    assert merge_dependent([0.03]) == 0.03
    # Three seeds: the second smallest, times 3/2.
    assert merge_dependent([0.5, 0.02, 0.01]) == pytest.approx(0.03)
    assert merge_dependent([0.02, 0.01]) == pytest.approx(0.02)
    assert merge_dependent([0.9, 0.9, 0.9]) == 1.0


# --- on runs ------------------------------------------------------------------------------------


def run(tmp_path, right: np.ndarray, method: str, seed: int = 0, **options):
    label = np.zeros(len(right), int)
    path = write_run(
        tmp_path, label=label, prediction=1 - right, method=method, seed=seed, classes=2, **options
    )
    return evaluate(load_predictions(path), ["C4"])[0]


def test_estimates_use_seeds_where_there_are_and_images_else(tmp_path):
    rng = np.random.default_rng(0)
    seeds = {s: run(tmp_path, rng.integers(0, 2, (50, 4)), "vanilla", s) for s in range(3)}
    many = estimate(seeds, "cn_avg")
    expected = t_interval([e.correct.mean() for e in seeds.values()])
    assert (many.mean, many.low, many.kind) == (
        pytest.approx(expected.mean),
        pytest.approx(expected.low),
        "seeds",
    )
    one = {0: seeds[0]}
    assert estimate(one, "acc") == wilson_interval(int(seeds[0].correct[:, 0].sum()), 50)
    assert estimate(one, "cn_avg").kind == "images"


def test_upright_difference_is_mcnemar_image_by_image(tmp_path):
    first, second = np.ones((40, 4), int), np.ones((40, 4), int)
    first[:3, 0] = 0
    second[3:15, 0] = 0
    found = difference(
        {0: run(tmp_path, first, "a")}, {0: run(tmp_path, second, "b")}, ("acc", "acc")
    )
    assert found.estimate.mean == pytest.approx(9 / 40)
    assert found.images_ahead == (12, 3)
    expected = stats.binomtest(12, 15).pvalue
    assert found.p == pytest.approx(expected, abs=1e-9)
    assert found.p_mcnemar == pytest.approx(expected)


def test_the_poses_of_an_image_are_one_observation(tmp_path):
    """Ten images, all of whose four poses flip: ten coin tosses and not forty."""
    first, second = np.ones((30, 4), int), np.ones((30, 4), int)
    second[:10] = 0
    found = difference(
        {0: run(tmp_path, first, "a")}, {0: run(tmp_path, second, "b")}, ("cn_avg", "cn_avg")
    )
    assert found.p == pytest.approx(2 / 2**10)
    assert math.isnan(found.p_mcnemar)


def test_only_common_seeds_are_paired(tmp_path):
    ones = np.ones((20, 4), int)
    first = {s: run(tmp_path, ones, "a", s) for s in (0, 1)}
    second = {s: run(tmp_path, ones, "b", s) for s in (1, 2)}
    assert difference(first, second, ("acc", "acc")).estimate.mean == 0
    assert len(difference(first, second, ("acc", "acc")).mcnemar) == 1
    none = difference({0: first[0]}, {2: second[2]}, ("acc", "acc"))
    assert none.estimate.n == 0 and math.isnan(none.p)


def test_runs_on_different_images_are_not_compared(tmp_path):
    ones = np.ones((20, 4), int)
    first = {0: run(tmp_path, ones, "a")}
    second = {0: run(tmp_path, ones, "b", index=np.arange(1, 21))}
    with pytest.raises(UserError, match="different test images"):
        difference(first, second, ("acc", "acc"))
