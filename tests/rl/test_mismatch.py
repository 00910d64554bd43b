"""How far sampler and learner differ, by numpy; and the weights that make up for it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import mismatch
from score_jax.rl.metrics import merge

ROWS, LENGTH = 40, 60
NAMES = ("mean", "trimmed", "p99.9", "max", "kl")


def drawn(seed=0, scale=0.01):
    """A turn map and log-probabilities of both, with the long tail that bfloat16 has."""
    rng = np.random.default_rng(seed)
    turn = np.repeat([[0] * 5 + [1] * 30 + [0] * 5 + [2] * 15 + [0] * 5], ROWS, axis=0)
    sampler = -rng.exponential(size=turn.shape)
    learner = sampler + scale * rng.standard_t(2, size=turn.shape)
    return turn.astype(np.int32), sampler.astype(np.float32), learner.astype(np.float32)


def parts_of(turn, sampler, learner):
    return mismatch.mismatch_parts(jnp.asarray(sampler), jnp.asarray(learner), jnp.asarray(turn), 2)


def measured(turn, sampler, learner):
    tokens = jnp.asarray([(turn == 1).sum(), (turn == 2).sum()], jnp.float32)
    rows = jnp.asarray([(turn == number).any(1).sum() for number in (1, 2)], jnp.float32)
    found = mismatch.mismatch_metrics(parts_of(turn, sampler, learner), tokens, rows)
    return {name.removeprefix("mismatch/"): metric.value() for name, metric in found.items()}


@pytest.mark.parametrize("scale", [1e-5, 0.01, 0.2])
def test_gaps_of_each_turn_are_those_that_numpy_finds(scale):
    turn, sampler, learner = drawn(scale=scale)
    found = measured(turn, sampler, learner)
    assert set(found) == set(NAMES)
    for number in (1, 2):
        own = turn == number
        ratio = learner[own].astype(np.float64) - sampler[own]
        mismatch = np.sort(np.abs(ratio))
        at = number - 1
        np.testing.assert_allclose(found["mean"][at], mismatch.mean(), rtol=1e-4)
        np.testing.assert_allclose(found["trimmed"][at], mismatch[:-1].mean(), rtol=1e-4)
        np.testing.assert_allclose(found["max"][at], mismatch[-1], rtol=1e-4)
        np.testing.assert_allclose(
            found["kl"][at], (np.exp(ratio) - 1 - ratio).sum() / ROWS, rtol=1e-2
        )
        tail = np.quantile(mismatch, 0.999, method="higher")
        assert tail / 1.11 < found["p99.9"][at] < tail * 1.11


def test_tokens_of_no_turn_do_not_count():
    turn, sampler, learner = drawn()
    noisy = np.where(turn == 0, np.nan, learner)
    for name, value in measured(turn, sampler, noisy).items():
        np.testing.assert_array_equal(value, measured(turn, sampler, learner)[name])


def test_parts_of_a_batch_add_up():
    turn, sampler, learner = drawn()
    parts = [
        parts_of(*(x[rows] for x in (turn, sampler, learner)))
        for rows in np.split(np.arange(40), 4)
    ]
    whole = parts_of(turn, sampler, learner)
    for name, metric in merge(parts).items():
        np.testing.assert_allclose(metric.value(), whole[name].value(), rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("off", [0.5, 5.0, 500.0])
def test_one_finite_token_is_seen_but_moves_the_trimmed_mean_by_nothing(off):
    turn, sampler, _ = drawn()
    learner = sampler.copy()
    learner[3, 10] -= off  # turn 1
    found = measured(turn, sampler, learner)
    np.testing.assert_allclose(found["max"], [off, 0.0], rtol=1e-5)
    np.testing.assert_allclose(found["mean"], [off / (40 * 30), 0.0], rtol=1e-5)
    np.testing.assert_allclose(found["trimmed"], 0.0, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_token_that_is_not_finite_is_never_below_a_limit(value):
    turn, sampler, learner = drawn()
    learner[3, 38 + 5] = value  # turn 2
    first, second = measured(turn, sampler, learner)["trimmed"]
    assert first < 0.1 and not second < np.inf


def test_the_kl_of_a_turn_is_over_the_rows_that_have_it():
    """Half of the rows lack turn 2: what is left counts by itself, in tokens and in rows."""
    turn, sampler, learner = drawn()
    turn[::2][turn[::2] == 2] = 0
    found = measured(turn, sampler, learner)
    alone = measured(turn[1::2], sampler[1::2], learner[1::2])
    for name in NAMES:
        np.testing.assert_allclose(found[name][1], alone[name][1], rtol=1e-5, err_msg=name)


def test_a_turn_without_tokens_has_no_gap():
    turn, sampler, learner = drawn()
    found = measured(np.where(turn == 2, 0, turn), sampler, learner)
    assert all(value[1] == 0 for value in found.values())


def test_weights_are_the_learners_odds_over_the_samplers_up_to_the_cap():
    ratios = np.array([[0.01, 0.5, 1.0, 1.99, 2.01, 30.0]])
    sampler = np.full(ratios.shape, -3.0)
    weights, capped = mismatch.importance_weights(
        jnp.asarray(sampler + np.log(ratios)), jnp.asarray(sampler), 2.0
    )
    np.testing.assert_allclose(weights, [[0.01, 0.5, 1.0, 1.99, 2.0, 2.0]], rtol=1e-5)
    np.testing.assert_array_equal(capped, [[0, 0, 0, 0, 1, 1]])


def test_without_a_cap_all_weights_are_one():
    _, sampler, learner = drawn(scale=1.0)
    weights, capped = mismatch.importance_weights(jnp.asarray(learner), jnp.asarray(sampler), None)
    assert (np.asarray(weights) == 1).all() and not np.asarray(capped).any()


def test_no_gradient_goes_through_the_weights():
    slope = jax.grad(lambda x: mismatch.importance_weights(x, jnp.zeros((1, 3)), 2.0)[0].sum())
    np.testing.assert_array_equal(slope(jnp.array([[-0.5, 0.0, 3.0]])), 0.0)
