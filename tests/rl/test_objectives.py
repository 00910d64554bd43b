"""Returns, baselines and weights per turn, by hand and by plain loops."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import objectives
from score_jax.rl.objectives import Objective
from score_jax.types import Episodes

STAGE_ONE = Objective(reward_weights=(0.0, 1.0), beta=(0.11, 0.01))
STAGE_TWO = Objective(reward_weights=(1.0, 1.0), beta=(0.01, 0.01), alpha=10.0)
SINGLE_TURN = Objective(reward_weights=(1.0, 0.0), beta=(0.01, 0.01))
MULTI_TURN = Objective(reward_weights=(0.0, 1.0), beta=(0.01, 0.01), gamma=1.0)
OUTCOMES = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])  # 00 01 11 10
NO_KL = jnp.zeros((4, 2))


def value(**fields):
    return Objective(**({"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0)} | fields))


@pytest.mark.parametrize(
    ("objective", "first", "second"),
    [
        (STAGE_ONE, [0, 0, 0, 0], [0, 1, 1, 0]),
        (STAGE_TWO, [0, 0, 1, 1], [0, 11, 1, -10]),
        (SINGLE_TURN, [0, 0, 1, 1], [0, 0, 0, 0]),
        (MULTI_TURN, [0, 1, 1, 0], [0, 1, 1, 0]),
    ],
    ids=["stage I", "stage II", "single turn", "standard multi-turn"],
)
def test_returns_are_the_papers_table(objective, first, second):
    got = objectives.turn_returns(objective, OUTCOMES, NO_KL)
    np.testing.assert_array_equal(got, np.array([first, second], float).T)


def test_failing_first_is_never_paid():
    """One scalar for both turns would credit turn 1 with 1 - alpha = -9 per reward."""
    returns = objectives.turn_returns(STAGE_TWO, OUTCOMES, NO_KL)
    right_first, wrong_first = returns[2:, 0], returns[:2, 0]
    assert right_first.min() > wrong_first.max()


def test_discounting_passes_rewards_back_but_never_the_bonus():
    rewards = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    objective = value(reward_weights=(1.0, 1.0, 1.0), beta=(0.0,) * 3, gamma=0.5, alpha=4.0)
    got = objectives.turn_returns(objective, rewards, jnp.zeros((2, 3)))
    # plain: [0 + .5(1 + .5), 1 + .5, 1], [1 + .5(0 + .5), .5, 1]; bonus: [0, +4, 0], [0, -4, +4]
    np.testing.assert_allclose(got, [[0.75, 5.5, 1.0], [1.25, -3.5, 5.0]])


def test_weights_scale_each_turns_own_reward():
    got = objectives.discounted(OUTCOMES, (2.0, 3.0), 0.0)
    np.testing.assert_array_equal(got, [[0, 0], [0, 3], [2, 3], [2, 0]])


def test_kl_is_taken_from_the_return_of_its_own_turn():
    kl = jnp.array([[1.0, 2.0]] * 4)
    objective = value(kl="reward", beta=(0.5, 0.25))
    got = objectives.turn_returns(objective, OUTCOMES, kl) - OUTCOMES
    np.testing.assert_allclose(got, [[-0.5, -0.5]] * 4)
    for kind in ("exact", "k2", "k3"):  # these are losses of their own
        same = objectives.turn_returns(value(kl=kind, beta=(0.5, 0.25)), OUTCOMES, kl)
        np.testing.assert_array_equal(same, OUTCOMES)


def test_partial_credit_gives_partial_progress():
    got = objectives.turn_returns(STAGE_TWO, jnp.array([[0.25, 0.75]]), jnp.zeros((1, 2)))
    np.testing.assert_allclose(got, [[0.25, 0.75 + 10 * 0.5]])


def baselines(kind, returns, group_size=2, second_attempts=1, running=(0.0, 0.0)):
    return np.asarray(
        objectives.baselines(
            kind,
            jnp.asarray(returns),
            jnp.asarray(running),
            group_size=group_size,
            second_attempts=second_attempts,
        )
    )


RETURNS = np.array([[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160], [32, 320]])


def test_leave_one_out_compares_with_the_problems_other_samples():
    got = baselines("leave_one_out", RETURNS, group_size=3)
    first = [(2 + 4) / 2, (1 + 4) / 2, (1 + 2) / 2, (16 + 32) / 2, (8 + 32) / 2, (8 + 16) / 2]
    np.testing.assert_allclose(got, np.array([first, np.array(first) * 10]).T)


def test_leave_one_out_per_first_attempt_compares_within_the_tree():
    """Turn 1 with the problem's other first attempts, turn 2 with its own siblings."""
    returns = [[1.0, 3], [1, 5], [7, 11], [7, 13], [0.0, 1], [0, 2], [4, 3], [4, 4]]
    got = baselines("leave_one_out_attempt", returns, group_size=4, second_attempts=2)
    want = [[7, 5], [7, 3], [1, 13], [1, 11], [4, 2], [4, 1], [0, 4], [0, 3]]
    np.testing.assert_allclose(got, want)


def test_leave_one_out_per_first_attempt_with_three_of_three():
    first = np.repeat([1.0, 2.0, 6.0], 3)
    second = np.array([1.0, 2, 4, 10, 20, 40, 3, 3, 9])
    got = baselines(
        "leave_one_out_attempt", np.stack([first, second], 1), group_size=9, second_attempts=3
    )
    np.testing.assert_allclose(got[:, 0], np.repeat([4.0, 3.5, 1.5], 3))
    np.testing.assert_allclose(got[:, 1], [3, 2.5, 1.5, 30, 25, 15, 6, 6, 3])


def test_a_leave_one_out_baseline_ignores_the_rows_own_return():
    for kind, second_attempts in (("leave_one_out", 1), ("leave_one_out_attempt", 2)):
        changed = RETURNS[:4].copy()
        changed[0, 1] += 100
        before = baselines(kind, RETURNS[:4], group_size=4, second_attempts=second_attempts)
        after = baselines(kind, changed, group_size=4, second_attempts=second_attempts)
        np.testing.assert_array_equal(before[0], after[0])
        assert after[1, 1] > before[1, 1]


def test_simple_baselines():
    np.testing.assert_array_equal(baselines("none", RETURNS), np.zeros((6, 2)))
    np.testing.assert_allclose(baselines("batch", RETURNS), [[63 / 6, 630 / 6]] * 6)
    np.testing.assert_array_equal(
        baselines("running", RETURNS, running=(3.0, 4.0)), [[3.0, 4.0]] * 6
    )


def advantages(objective, rewards, group_size=2, second_attempts=1):
    zeros = jnp.zeros(rewards.shape)
    return np.asarray(
        objectives.turn_advantages(
            objective,
            rewards,
            zeros,
            jnp.zeros(2),
            group_size=group_size,
            second_attempts=second_attempts,
        )
    )


@pytest.mark.parametrize("normalise", [False, True])
def test_alpha_weighs_turn_two_even_when_normalised(normalise):
    """Siblings of one first attempt share r1, so the bonus is exactly 1 + alpha."""
    rewards = jnp.array([[0.0, 1], [0, 0], [1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]])
    given = {"baseline": "leave_one_out_attempt", "normalise": normalise}
    plain = advantages(value(**given), rewards, group_size=4, second_attempts=2)
    shaped = advantages(value(alpha=10.0, **given), rewards, group_size=4, second_attempts=2)
    assert np.abs(plain[:, 1]).max() > 0.5
    np.testing.assert_allclose(shaped[:, 1], 11 * plain[:, 1], rtol=1e-6)
    np.testing.assert_array_equal(shaped[:, 0], plain[:, 0])


def test_normalising_divides_by_the_deviation_of_the_plain_reward():
    # Pairs: advantages of turn 1 are +-1, +-1; of turn 2 +-1, 0: deviations 1 and sqrt(1/2).
    rewards = jnp.array([[1.0, 1], [0, 0], [0, 1], [1, 1]])
    got = advantages(value(normalise=True, reward_weights=(3.0, 5.0)), rewards)
    np.testing.assert_allclose(got[:, 0], [3, -3, -3, 3], rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], np.array([5, -5, 0, 0]) * np.sqrt(2), rtol=1e-6)


def test_equal_rewards_give_no_advantage_rather_than_noise():
    got = advantages(value(normalise=True), jnp.ones((4, 2)))
    np.testing.assert_array_equal(got, np.zeros((4, 2)))


TURN = jnp.array([[0, 1, 1, 1, 0, 2, 0, 0], [0, 1, 0, 2, 2, 2, 2, 0]])


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("sum", [1, 1], [1, 1]),
        ("constant", [1 / 5, 1 / 5], [1 / 5, 1 / 5]),
        ("sequence", [1 / 3, 1], [1, 1 / 4]),
    ],
)
def test_length_norm_by_hand(kind, first, second):
    got = np.asarray(objectives.token_weights(value(length_norm=kind), TURN, limit=5))
    want = np.zeros(TURN.shape)
    for row in range(2):
        want[row][np.asarray(TURN[row]) == 1] = first[row] / 2
        want[row][np.asarray(TURN[row]) == 2] = second[row] / 2
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_turn_without_tokens_has_finite_weights():
    got = objectives.token_weights(value(length_norm="sequence"), jnp.zeros((1, 4), int), limit=5)
    np.testing.assert_array_equal(got, np.zeros((1, 4)))


def slope_of_loss(objective, ratio, advantage, size=1e-3):
    """d loss / d log-probability of one token, by central differences."""

    def loss(logprob):
        arrays = [jnp.full((1, 1), x, jnp.float32) for x in (logprob, -1.0, advantage)]
        return float(objectives.policy_loss(objective, *arrays)[0, 0])

    at = -1.0 + np.log(ratio)
    return (loss(at + size) - loss(at - size)) / (2 * size)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.0, 2.0, -2.0),  # on-policy: as REINFORCE
        (1.1, 2.0, -2.2),  # within the range: ratio times advantage
        (1.5, 2.0, 0.0),  # already raised enough
        (0.5, 2.0, -1.0),  # lowered although it was good: still pulled up
        (0.5, -2.0, 0.0),  # already lowered enough
        (1.5, -2.0, 3.0),  # raised although it was bad: still pushed down
    ],
)
def test_clip_stops_a_token_that_has_moved_far_enough(ratio, advantage, slope):
    got = slope_of_loss(value(clip=0.2), ratio, advantage)
    assert got == pytest.approx(slope, abs=5e-3)


def test_without_clip_the_old_logprobs_do_not_matter():
    assert slope_of_loss(value(), 1.5, 2.0) == pytest.approx(-2.0, abs=5e-3)


def test_turn_log_ratio_sums_the_policys_tokens_only():
    turn = np.array([[0, 1, 1, 0, 2]])
    episodes = Episodes(
        tokens=None, length=None, turn=jnp.asarray(turn), truncated=None, draw=None,
        rewards=None, logprobs=jnp.array([[0.0, -1.0, -2.0, 0.0, -4.0]]),
    )  # fmt: skip
    reference = jnp.array([[0.0, -1.5, -3.0, 0.0, -3.0]])
    got = objectives.turn_log_ratio(episodes, reference, 2)
    np.testing.assert_allclose(got, [[1.5, -1.0]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1.0}, r"objective.alpha is -1.0; set a finite value >= 0"),
        ({"alpha": float("nan")}, r"objective.alpha is nan"),
        ({"gamma": 1.5}, r"objective.gamma is 1.5; set a value in 0..1"),
        ({"beta": (0.1,)}, r"objective.beta is \(0.1,\); give one value per turn"),
        (
            {"beta": (0.1, -0.1)},
            r"objective.beta is \(0.1, -0.1\); set a finite value >= 0 for",
        ),
        ({"reward_weights": (1.0, float("inf"))}, r"objective.reward_weights is \(1.0, inf\)"),
        ({"clip": 0.0}, r"objective.clip is 0.0; set a value in \(0, 1\) or None"),
        (
            {"importance_cap": 0.5},
            r"objective.importance_cap is 0.5; set a finite value >= 1, None",
        ),
        ({"importance_cap": float("nan")}, r"objective.importance_cap is nan"),
        ({"importance_cap": float("inf")}, r"objective.importance_cap is inf"),
        ({"importance_cap": "2"}, r"objective.importance_cap is '2'; .* or 'auto'"),
        ({"importance_cap": True}, r"objective.importance_cap is True"),
        ({"kl": "k1"}, r"objective.kl is 'k1'; choose one of reward, exact, k2, k3"),
        ({"baseline": "mean"}, r"objective.baseline is 'mean'; choose one of none, running"),
        ({"length_norm": "token"}, r"objective.length_norm is 'token'; choose one of sum"),
    ],
)
def test_impossible_values_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        value(**fields)


@pytest.mark.parametrize(
    ("given", "dtype", "cap"),
    [
        ("auto", "float32", None),
        ("auto", "bfloat16", 2.0),
        (None, "bfloat16", None),
        (3, "float32", 3),
        (1.0, "bfloat16", 1.0),
    ],
)
def test_the_importance_cap_is_what_was_set_or_else_the_dtypes(given, dtype, cap):
    assert value(importance_cap=given).resolved(dtype).importance_cap == cap
