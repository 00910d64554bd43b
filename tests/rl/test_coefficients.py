"""Schedules of alpha and beta: end points by hand, movement against loops of numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import coefficients
from score_jax.rl.coefficients import CoefficientsConfig
from score_jax.rl.objectives import Objective

OBJECTIVE = Objective(reward_weights=(0.0, 1.0), beta=(0.4, 0.05), alpha=6.0)
STEPS = 30


def signals(seed=0):
    """KLs and mean returns of each rollout, far from steady."""
    rng = np.random.default_rng(seed)
    kl = np.abs(rng.normal(0.2, 0.3, (STEPS, 2)))
    return kl.astype(np.float32), rng.normal(0.3, 1.0, (STEPS, 2)).astype(np.float32)


def moves(config, kl=None, returns=None, objective=OBJECTIVE):
    """Coefficients that each of the rollouts is learnt with, and those after the last."""
    known = signals()
    kl, returns = known[0] if kl is None else kl, known[1] if returns is None else returns

    @jax.jit
    def advance(now, step, kl, returns):
        return coefficients.advance(
            config, objective, now, step=step, steps=len(known[0]), kl=kl, returns=returns
        )

    found = [coefficients.initial(objective)]
    for step, (distance, gained) in enumerate(zip(kl, returns, strict=True), 1):
        found.append(advance(found[-1], jnp.int32(step), distance, gained))
    return jax.device_get(found)


def column(found, name):
    return np.array([getattr(now, name) for now in found])


def test_they_begin_with_the_objectives_values():
    start = coefficients.initial(OBJECTIVE)
    assert (
        start.alpha == np.float32(6.0) and start.beta.tolist() == np.float32([0.4, 0.05]).tolist()
    )
    assert not start.kl.any() and not start.gain.any()


def test_constant_stays_bit_for_bit():
    found = moves(coefficients.CONSTANT)
    for now in found:
        assert now.alpha.tobytes() == found[0].alpha.tobytes()
        assert now.beta.tobytes() == found[0].beta.tobytes()


def test_linear_begins_with_the_objectives_and_ends_with_the_last_rollout():
    config = CoefficientsConfig(
        alpha="linear", alpha_end=1.0, beta="linear", beta_end=0.0, beta_turns=(1, 2)
    )
    found = moves(config)
    alpha, beta = column(found, "alpha"), column(found, "beta")
    assert alpha[0] == 6.0 and alpha[STEPS - 1] == 1.0 and alpha[STEPS] == 1.0
    np.testing.assert_allclose(beta[0], [0.4, 0.05], rtol=1e-6)
    np.testing.assert_allclose(beta[STEPS - 1 :], 0.0, atol=1e-7)
    for done in range(STEPS):  # evenly
        share = done / (STEPS - 1)
        assert alpha[done] == pytest.approx(6.0 - 5.0 * share, rel=1e-5)
        np.testing.assert_allclose(beta[done], [0.4 - 0.4 * share, 0.05 - 0.05 * share], atol=1e-6)


def test_only_the_turns_that_are_named_move():
    for turn, other in ((1, 2), (2, 1)):
        for kind in ("linear", "balance", "target"):
            config = CoefficientsConfig(beta=kind, beta_turns=(turn,), beta_end=1.0)
            beta = column(moves(config), "beta")
            assert (beta[:, other - 1] == np.float32(OBJECTIVE.beta[other - 1])).all()
            assert np.ptp(beta[:, turn - 1]) > 0.01


def test_a_schedule_of_one_rollout_has_begun_and_ended():
    config = CoefficientsConfig(alpha="linear", alpha_end=1.0)
    now = coefficients.initial(OBJECTIVE)
    after = coefficients.advance(
        config, OBJECTIVE, now, step=jnp.int32(1), steps=1, kl=jnp.zeros(2), returns=jnp.zeros(2)
    )
    assert now.alpha == 6.0 and after.alpha == 1.0


def naive_target(config, kl):
    """beta *= 1 + rate * (relative error, at most a fifth either way)."""
    beta, out = OBJECTIVE.beta[0], [OBJECTIVE.beta[0]]
    for value in kl[:, 0].tolist():
        error = (value - config.target_kl) / config.target_kl
        error = 0.2 if error > 0.2 else -0.2 if error < -0.2 else error
        beta = beta * (1 + config.rate * error)
        beta = min(max(beta, config.beta_range[0]), config.beta_range[1])
        out.append(beta)
    return out


@pytest.mark.parametrize(
    "fields",
    [{}, {"rate": 0.9}, {"target_kl": 0.25}, {"rate": 0.9, "beta_range": (0.38, 0.43)}],
    ids=str,
)
def test_target_is_a_proportional_controller_in_log_space(fields):
    config = CoefficientsConfig(beta="target", **fields)
    want = naive_target(config, signals()[0])
    np.testing.assert_allclose(column(moves(config), "beta")[:, 0], want, rtol=1e-5)
    assert max(want) > OBJECTIVE.beta[0] > min(want) or "target_kl" in fields or not fields
    if "beta_range" in fields:
        assert {0.38, 0.43} <= set(want)


def test_a_kl_on_target_leaves_beta_where_it_is():
    kl = np.full((STEPS, 2), 0.1, np.float32)
    beta = column(moves(CoefficientsConfig(beta="target"), kl), "beta")
    np.testing.assert_allclose(beta[:, 0], 0.4, rtol=1e-5)


def test_target_pushes_against_a_kl_that_is_too_large_and_yields_to_one_too_small():
    """Each rollout by a fiftieth at most: a tenth of a fifth."""
    for value, factor in ((9.0, 1.02), (0.0, 0.98)):
        kl = np.full((STEPS, 2), value, np.float32)
        beta = column(moves(CoefficientsConfig(beta="target"), kl), "beta")[:, 0]
        np.testing.assert_allclose(beta[1:] / beta[:-1], factor, rtol=1e-5)


def naive_balance(config, kl, returns):
    """beta = balance * (mean size of the last turn's return) / (mean KL of turn 1), clipped.

    The means are weighted by decay ** age; their weights are the same, so they cancel.
    """
    out = [OBJECTIVE.beta[0]]
    for done in range(1, STEPS + 1):
        weights = [config.decay ** (done - 1 - place) for place in range(done)]
        size = np.average(np.abs(returns[:done, -1]).astype(float), weights=weights)
        distance = np.average(kl[:done, 0].astype(float), weights=weights)
        out.append(float(np.clip(config.balance * size / distance, *config.beta_range)))
    return out


@pytest.mark.parametrize(
    "fields", [{}, {"decay": 0.5, "balance": 0.3}, {"beta_range": (2.0, 3.0)}], ids=str
)
def test_balance_makes_both_terms_of_stage_one_pull_equally_hard(fields):
    config = CoefficientsConfig(beta="balance", **fields)
    kl, returns = signals()
    want = naive_balance(config, kl, returns)
    np.testing.assert_allclose(column(moves(config), "beta")[:, 0], want, rtol=1e-4)
    assert np.ptp(want[1:]) > 0.1
    if "beta_range" in fields:
        assert {2.0, 3.0} <= set(want)


def test_balance_at_a_kl_of_zero_is_the_largest_beta_and_finite():
    """So it is in the first rollout, whose policy is the reference."""
    kl = np.zeros((STEPS, 2), np.float32)
    beta = column(moves(CoefficientsConfig(beta="balance"), kl), "beta")[:, 0]
    np.testing.assert_allclose(beta[1:], 10.0)


def test_the_averages_are_kept_whatever_moves():
    """So that a resumed run, or another schedule, finds them."""
    kl, returns = signals()
    found = moves(coefficients.CONSTANT)
    mean_kl, gain = np.zeros(2), 0.0
    for now, distance, gained in zip(found[1:], kl, returns, strict=True):
        mean_kl = 0.9 * mean_kl + 0.1 * distance
        gain = 0.9 * gain + 0.1 * abs(gained[1])
        np.testing.assert_allclose(now.kl, mean_kl, rtol=1e-5)
        assert now.gain == pytest.approx(gain, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": "balance"}, r"coefficients.alpha is 'balance'; choose one of constant, linear"),
        (
            {"beta": "fixed"},
            r"coefficients.beta is 'fixed'; choose one of constant, linear, balance, target",
        ),
        ({"alpha_end": -1.0}, r"coefficients.alpha_end is -1.0; set a finite value >= 0"),
        ({"target_kl": 0.0}, r"coefficients.target_kl is 0.0; set a value > 0 and finite"),
        ({"decay": 1.0}, r"coefficients.decay is 1.0; set a value in 0..1, below 1"),
        ({"beta_turns": (0,)}, r"coefficients.beta_turns is \(0,\); set at least 1 for each"),
        (
            {"beta_range": (1.0, 0.1)},
            r"coefficients.beta_range is \(1.0, 0.1\); set two values, the lower first",
        ),
        (
            {"beta_range": (1.0,)},
            r"coefficients.beta_range is \(1.0,\); set two values, the lower first",
        ),
    ],
)
def test_impossible_values_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        CoefficientsConfig(**fields)


@pytest.mark.parametrize("kind", ["linear", "balance", "target"])
def test_a_turn_that_cannot_move_is_named_with_its_remedy(kind):
    config = CoefficientsConfig(beta=kind, beta_turns=(1, 3))
    message = r"coefficients.beta_turns is \(1, 3\); there are 2 turns: leave 3 out"
    with pytest.raises(ValueError, match=message):
        config.check(OBJECTIVE)
    without = Objective(reward_weights=(1.0, 1.0), beta=(0.1, 0.0))
    message = (
        rf"coefficients.beta is '{kind}' for turn 2, but objective.beta is \(0.1, 0.0\); set a "
        "first value above 0"
    )
    with pytest.raises(ValueError, match=message):
        CoefficientsConfig(beta=kind, beta_turns=(2,)).check(without)
    CoefficientsConfig(beta=kind, beta_turns=(1,)).check(without)
    CoefficientsConfig(beta_turns=(2, 9)).check(without)  # constant: nothing has to move
