"""Intervals: against published values, coverage by simulation, and a naive bootstrap."""

import numpy as np
import pytest

from score_jax.report.intervals import (
    Rate,
    bound,
    mcnemar,
    mean_over_runs,
    paired_difference,
    wilson,
)


def rate(part, whole=None, **kwargs) -> Rate:
    part = np.asarray(part, float)
    return Rate(part, np.ones_like(part) if whole is None else np.asarray(whole, float), **kwargs)


def test_wilson_solves_its_defining_equation():
    # The bounds are the p at which the observed share is exactly z standard errors away.
    for successes, trials in [(3, 10), (50, 100), (1, 1000)]:
        interval = wilson(successes, trials)
        for p in (interval.low, interval.high):
            z = (successes / trials - p) / np.sqrt(p * (1 - p) / trials)
            assert abs(z) == pytest.approx(1.959964, abs=1e-5)
        assert interval.low < interval.value < interval.high


def test_wilson_of_zero_and_all_stays_within_0_and_1():
    z2 = 1.959963984540054**2
    none, every = wilson(0, 10), wilson(10, 10)
    assert (none.value, none.low, none.high) == (0, 0, pytest.approx(z2 / (10 + z2)))
    assert (every.value, every.high, every.low) == (1, 1, pytest.approx(10 / (10 + z2)))


def test_single_trials_of_a_proportion_get_wilson():
    (interval,) = bound({"x": rate([1, 0, 0, 1, 0], proportion=True)}, seed=0).values()
    assert interval == wilson(2, 5)


def test_rates_over_nothing_are_left_out():
    assert bound({"x": rate([0, 0], [0, 0]), "y": rate([1, 0])}, seed=0).keys() == {"y"}


def test_bootstrap_draws_problems_not_samples():
    # 40 problems whose 25 samples agree are 40 observations, not 1,000.
    random = np.random.default_rng(0)
    right = random.permutation(np.repeat([0.0, 1.0], 20))
    clustered = bound({"x": rate(25 * right, np.full(40, 25.0), proportion=True)}, seed=0)["x"]
    single = bound({"x": rate(right)}, seed=0)["x"]
    assert clustered == single
    assert clustered.high - clustered.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(40), rel=0.1)


def test_bootstrap_agrees_with_a_loop_over_drawn_problems():
    random = np.random.default_rng(1)
    part, whole = random.integers(0, 3, 60), random.integers(3, 6, 60)
    got = bound({"x": rate(part, whole)}, seed=3, resamples=4000)["x"]
    means = []
    for _ in range(4000):
        drawn = random.choice(60, 60)
        means.append(sum(part[i] for i in drawn) / sum(whole[i] for i in drawn))
    assert got.value == part.sum() / whole.sum()
    assert (got.low, got.high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.01)


def test_bootstrap_covers_the_truth_19_times_in_20():
    # Problems differ in difficulty; 4 samples each; the true accuracy is 0.5.
    random, hits = np.random.default_rng(2), 0
    for trial in range(200):
        difficulty = random.beta(0.7, 0.7, 80)
        part = random.binomial(4, difficulty)
        interval = bound({"x": rate(part, np.full(80, 4.0))}, seed=trial, resamples=400)["x"]
        hits += interval.low <= 0.5 <= interval.high
    assert 180 <= hits <= 198


def test_same_seed_gives_the_same_interval():
    values = {"x": rate(np.random.default_rng(0).normal(size=50))}
    assert bound(values, seed=5) == bound(values, seed=5)
    assert bound(values, seed=5) != bound(values, seed=6)


def test_agreement_of_all_problems_is_not_certainty():
    unseen = wilson(0, 100).high
    delta = bound({"x": rate(np.zeros(100), bounds=(-1, 1))}, seed=0)["x"]
    assert (delta.low, delta.value, delta.high) == (-unseen, 0, unseen)
    # A problem's 3 samples are one vote of agreement; 0.0..1.0 stays 0.0..1.0.
    every = bound({"x": rate(np.full(100, 3.0), np.full(100, 3.0), bounds=(0, 1))}, seed=0)["x"]
    assert (every.low, every.value, every.high) == (1 - unseen, 1, 1)


def test_value_lies_within_its_interval_when_few_problems_count():
    interval = bound({"x": rate([1, 0, 0, 0], [1, 0, 0, 0])}, seed=0)["x"]
    assert interval.low <= interval.value <= interval.high


def test_the_interval_of_a_mean_covers_other_runs_on_other_problems():
    """Its half-width against the standard error of a balanced two-way layout."""
    random = np.random.default_rng(5)
    runs, problems = 30, 400
    of_run, of_problem = random.normal(0, 0.2, (runs, 1)), random.normal(0, 0.5, (1, problems))
    values = of_run + of_problem + random.normal(0, 0.1, (runs, problems))
    got = mean_over_runs(values)
    error = np.sqrt(values.mean(1).var(ddof=1) / runs + values.mean(0).var(ddof=1) / problems)
    assert got.value == pytest.approx(values.mean())
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * error, rel=0.1)


def test_the_interval_of_one_run_is_over_problems_alone():
    values = np.random.default_rng(6).normal(0, 0.5, (1, 400))
    got = mean_over_runs(values)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / 20, rel=0.1)


def test_a_paired_difference_has_the_standard_error_of_the_differences():
    """Problems that are hard for both cancel: far narrower than two intervals by themselves."""
    random = np.random.default_rng(7)
    hardness = random.normal(0, 1, 500)
    a, b = (hardness + shift + random.normal(0, 0.1, (1, 500)) for shift in (0.2, 0.0))
    got = paired_difference(a, b)
    assert got.value == pytest.approx(np.mean(a - b))
    error = np.std(a - b, ddof=1) / np.sqrt(500)
    assert (got.high - got.low) / 2 == pytest.approx(1.96 * error, rel=0.1)
    assert error < np.std(a, ddof=1) / np.sqrt(500) / 5


def test_a_paired_difference_agrees_with_a_loop_over_drawn_runs_and_problems():
    random = np.random.default_rng(8)
    of_run = [random.normal(0, 0.3, (runs, 1)) for runs in (4, 3)]
    a, b = (runs + random.normal(0, 0.5, (len(runs), 50)) for runs in of_run)
    got = paired_difference(a, b, resamples=4000)
    differences = []
    for _ in range(4000):
        problems = random.choice(50, 50)
        means = [x[random.choice(len(x), len(x))][:, problems].mean() for x in (a, b)]
        differences.append(means[0] - means[1])
    assert got.value == pytest.approx(a.mean() - b.mean())
    assert (got.low, got.high) == pytest.approx(np.quantile(differences, [0.025, 0.975]), abs=0.03)


def test_a_method_does_not_differ_from_itself():
    one = np.random.default_rng(9).random((1, 60)) < 0.4
    got = paired_difference(one, one)
    assert (got.low, got.value, got.high) == (0, 0, 0)
    several = np.random.default_rng(9).random((5, 60))
    assert paired_difference(several, several).value == 0
    assert mcnemar(one[0], one[0]) == 1


def test_agreement_of_all_runs_is_not_certainty_within_bounds():
    """Of 10 problems none differs; Wilson's bound for 0 of 10 is z^2 / (10 + z^2) = 0.2775."""
    same = np.ones((3, 10))
    got = mean_over_runs(same, bounds=(0, 1))
    assert (got.value, got.high) == (1, 1) and got.low == pytest.approx(1 - 0.2775, abs=1e-4)
    got = paired_difference(same, same[:2], bounds=(-1, 1))
    assert got.value == 0 and [got.low, got.high] == pytest.approx([-0.2775, 0.2775], abs=1e-4)
    one = same.copy()
    one[1, 4] = 0  # a run that differs at one problem: the bootstrap has a width of its own
    assert mean_over_runs(one, bounds=(0, 1)) == mean_over_runs(one)


def test_methods_on_other_problems_are_no_pairs():
    with pytest.raises(ValueError, match="a has 4 problems and b 5; give both"):
        paired_difference(np.ones((1, 4)), np.ones((1, 5)))


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 5, 2 / 32), (5, 0, 2 / 32), (1, 5, 14 / 64), (3, 3, 1.0), (0, 0, 1.0)],
)
def test_mcnemar_counts_tosses_of_a_fair_coin(only_a, only_b, p):
    """1 of 6 or fewer: (1 + 6) / 64, and as many on the other side."""
    both = [True] * 4 + [False] * 3  # told alike: they say nothing
    a = np.array(both + [True] * only_a + [False] * only_b)
    b = np.array(both + [False] * only_a + [True] * only_b)
    assert mcnemar(a, b) == pytest.approx(p)
