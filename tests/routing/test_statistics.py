"""Intervals and p-values against published values and against scipy."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from doorstep.routing.statistics import bootstrap_interval, mcnemar_p, sign_flip_p, wilson_interval

counts = st.integers(0, 200)


@given(counts, counts)
def test_mcnemar_is_the_exact_binomial(wins, losses):
    expected = binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue if wins + losses else 1.0
    assert mcnemar_p(wins, losses) == pytest.approx(expected, rel=1e-9, abs=1e-300)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_agrees_with_scipy(case):
    successes, n = case
    expected = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_holds_the_share_at_the_ends():
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == 1.0
    with pytest.raises(ValueError, match="at least one"):
        wilson_interval(0, 0)


def test_sign_flips_agree_with_mcnemar_on_binary_differences():
    differences = [1.0] * 14 + [-1.0] * 5 + [0.0] * 30
    assert sign_flip_p(differences, 4000, seed=1) == pytest.approx(mcnemar_p(14, 5), abs=0.01)


def test_a_p_value_is_never_zero_and_no_difference_is_no_evidence():
    assert sign_flip_p([1.0] * 100, 999, seed=0) == 1 / 1000
    assert sign_flip_p([0.0] * 100, 999, seed=0) == 1.0
    assert mcnemar_p(0, 0) == 1.0


def test_the_bootstrap_covers_the_truth_about_as_often_as_it_says():
    rng, covered = random.Random(5), 0
    for seed in range(200):
        clusters = [(float(rng.random() < 0.3), 1) for _ in range(80)]
        low, high = bootstrap_interval(clusters, 200, seed)
        covered += low <= 0.3 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_duplicates_do_not_narrow_the_bootstrap():
    rng = random.Random(3)
    values = [rng.random() for _ in range(40)]
    single = bootstrap_interval([(value, 1) for value in values], 400, seed=0)
    assert bootstrap_interval([(value * 5, 5) for value in values], 400, seed=0) == pytest.approx(single)
