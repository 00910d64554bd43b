"""The expected update of an enumerable policy is the gradient of what SCoRe maximises.

Expectations are sums over all dialogues; gradients are finite differences in float64.
"""

import numpy as np
import pytest

from score_jax.rl.objectives import Objective
from tests.enumerable import World, ascents, expected_ascent, log_softmax, slope

RIGHT = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])  # reward of each outcome of a turn
BETA = (0.7, 0.3)
WORLD = World()
TABLE = WORLD.random_table(0)
REFERENCE = WORLD.random_table(1)
REWARDS = WORLD.rewards(RIGHT)
FIRST = WORLD.turn_of_context == 1
SECOND = ~FIRST


def objective(**fields):
    given = {"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0), "baseline": "none"}
    return Objective(**(given | fields))


def mean_ascent(value, **options):
    return expected_ascent(WORLD, TABLE, REFERENCE, REWARDS, value, **options)


def by_turn(first_objective, second_objective):
    """Each turn's parameters follow their own objective's slope."""
    out = np.zeros_like(TABLE)
    out[FIRST] = slope(first_objective, TABLE)[FIRST]
    out[SECOND] = slope(second_objective, TABLE)[SECOND]
    return out


def expected(values):
    """The mean over dialogues of a value of each row, as a function of the policy."""
    return lambda table: WORLD.odds(table) @ values


def sequence_kl(turn):
    """KL(policy || reference) of a whole turn, in nats."""

    def kl(table):
        ratio = WORLD.turn_logprobs(table) - WORLD.turn_logprobs(REFERENCE)
        return WORLD.odds(table) @ ratio[:, turn - 1]

    return kl


def visited_kl(divergence):
    """The sum of a per-position KL over the contexts that TABLE's policy visits."""
    visits = WORLD.occupancy(TABLE)
    return lambda table: visits @ divergence(log_softmax(table), log_softmax(REFERENCE))


def reverse_kl(policy, reference):
    return (np.exp(policy) * (policy - reference)).sum(-1)


def forward_kl(policy, reference):
    return (np.exp(reference) * (reference - policy)).sum(-1)


def test_the_enumeration_is_complete():
    assert len(WORLD.pairs) == 49 and len(WORLD.prefixes) == 24
    assert WORLD.odds(TABLE).sum() == pytest.approx(1.0)


def test_plain_rewards_give_each_turn_the_slope_of_its_own_expected_reward():
    want = by_turn(expected(REWARDS[:, 0]), expected(REWARDS[:, 1]))
    np.testing.assert_allclose(mean_ascent(objective()), want, atol=2e-6)


def test_stage_two_follows_the_papers_objective():
    alpha = 10.0
    shaped = REWARDS[:, 1] + alpha * (REWARDS[:, 1] - REWARDS[:, 0])
    want = by_turn(
        lambda table: expected(REWARDS[:, 0])(table) - BETA[0] * sequence_kl(1)(table),
        lambda table: expected(shaped)(table) - BETA[1] * sequence_kl(2)(table),
    )
    got = mean_ascent(objective(alpha=alpha, beta=BETA, kl="reward"))
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_stage_one_gives_turn_one_nothing_but_its_kl():
    value = objective(reward_weights=(0.0, 1.0), beta=BETA, kl="reward")
    want = by_turn(
        lambda table: -BETA[0] * sequence_kl(1)(table),
        lambda table: expected(REWARDS[:, 1])(table) - BETA[1] * sequence_kl(2)(table),
    )
    got = mean_ascent(value)
    np.testing.assert_allclose(got, want, atol=2e-6)
    assert np.abs(got[FIRST]).max() > 0.01
    toward_reference = sequence_kl(1)(TABLE + 1e-3 * got * FIRST[:, None])
    assert toward_reference < sequence_kl(1)(TABLE)


def test_single_turn_rewards_leave_turn_two_alone():
    got = mean_ascent(objective(reward_weights=(1.0, 0.0)))
    want = by_turn(expected(REWARDS[:, 0]), lambda table: 0.0)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_discounting_credits_turn_one_with_turn_two():
    got = mean_ascent(objective(gamma=0.5))
    want = by_turn(expected(REWARDS[:, 0] + 0.5 * REWARDS[:, 1]), expected(REWARDS[:, 1]))
    np.testing.assert_allclose(got, want, atol=2e-6)


@pytest.mark.parametrize("kind", ["exact", "k2"])
def test_per_position_kl_has_the_reverse_gradient_with_states_fixed(kind):
    value = objective(reward_weights=(0.0, 0.0), beta=(0.5, 0.5), kl=kind)
    want = -0.5 * slope(visited_kl(reverse_kl), TABLE)
    np.testing.assert_allclose(mean_ascent(value), want, atol=2e-6)
    assert np.abs(want[FIRST]).max() > 0.01


def test_k3_as_a_loss_has_the_forward_gradient():
    value = objective(reward_weights=(0.0, 0.0), beta=(0.5, 0.5), kl="k3")
    want = -0.5 * slope(visited_kl(forward_kl), TABLE)
    np.testing.assert_allclose(mean_ascent(value), want, atol=2e-6)
    reverse = -0.5 * slope(visited_kl(reverse_kl), TABLE)
    assert np.abs(want - reverse).max() > 0.01  # the two can be told apart here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "exact", "k2", "k3"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_turns_beta_moves_that_turn_alone(kind, turn):
    beta = (1.0, 0.0) if turn == 1 else (0.0, 1.0)
    rows = np.arange(len(WORLD.pairs))[:, None]
    value = objective(reward_weights=(0.0, 0.0), beta=beta, kl=kind)
    moves = ascents(WORLD, TABLE, REFERENCE, REWARDS, value, rows)
    own, other = (FIRST, SECOND) if turn == 1 else (SECOND, FIRST)
    assert np.abs(moves[:, own]).max() > 0.01
    assert not moves[:, other].any()


def test_progress_bonus_never_reaches_turn_one():
    """Row by row, bit for bit: not just in expectation."""
    rows = np.arange(len(WORLD.pairs))[:, None]
    plain = objective(beta=BETA, kl="reward", gamma=0.5)
    shaped = objective(beta=BETA, kl="reward", gamma=0.5, alpha=10.0)
    without = ascents(WORLD, TABLE, REFERENCE, REWARDS, plain, rows)
    with_bonus = ascents(WORLD, TABLE, REFERENCE, REWARDS, shaped, rows)
    np.testing.assert_array_equal(with_bonus[:, FIRST], without[:, FIRST])
    assert np.abs(with_bonus[:, SECOND] - without[:, SECOND]).max() > 1


@pytest.mark.parametrize(("baseline", "group_size"), [("none", 1), ("leave_one_out", 2)])
def test_expected_shaped_turn_two_gradient_is_one_plus_alpha_times_the_plain_one(
    baseline, group_size
):
    plain = mean_ascent(objective(baseline=baseline), group_size=group_size)
    shaped = mean_ascent(objective(baseline=baseline, alpha=10.0), group_size=group_size)
    assert np.abs(plain[SECOND]).max() > 0.01
    np.testing.assert_allclose(shaped[SECOND], 11 * plain[SECOND], atol=1e-5)


def test_leave_one_out_leaves_the_expected_gradient_alone():
    alone = mean_ascent(objective(alpha=10.0, beta=BETA, kl="reward"))
    paired = mean_ascent(
        objective(alpha=10.0, beta=BETA, kl="reward", baseline="leave_one_out"), group_size=2
    )
    np.testing.assert_allclose(paired, alone, atol=2e-5)


def test_baseline_per_first_attempt_is_unbiased_and_cancels_the_first_reward():
    world = World(vocabulary=2, limit=1)  # an attempt is "stop" or one letter, then cut
    table, reference = world.random_table(2), world.random_table(3)
    rewards = world.rewards(np.array([1.0, 0.0]))
    value = objective(alpha=10.0, baseline="leave_one_out_attempt")
    plain = expected_ascent(world, table, reference, rewards, objective(alpha=10.0))
    tree = expected_ascent(world, table, reference, rewards, value, group_size=4, second_attempts=2)
    np.testing.assert_allclose(tree, plain, atol=2e-6)

    rows = np.array([[0, 1, 2, 3]])  # first attempts: right twice, then wrong twice
    other = rewards.copy()
    other[:, 0] = 1 - other[:, 0]
    second = world.turn_of_context == 2
    moves = [
        ascents(world, table, reference, given, value, rows, second_attempts=2)[:, second]
        for given in (rewards, other)
    ]
    np.testing.assert_allclose(moves[0], moves[1], atol=1e-6)
    assert np.abs(moves[0]).max() > 0.1


def test_the_decision_to_stop_is_trained():
    """A dialogue that stops at once and is rewarded makes stopping at once likelier."""
    row = np.array([[0]])  # both attempts are the stop token alone
    move = ascents(WORLD, TABLE, REFERENCE, np.ones_like(REWARDS), objective(), row)[0]
    probs = np.exp(log_softmax(TABLE))
    for context in WORLD.context[0][WORLD.context[0] >= 0]:
        score = np.eye(3)[0] - probs[context]  # of the stop token, id 0
        np.testing.assert_allclose(move[context], score, atol=1e-6)


def test_a_forced_stop_is_not_trained():
    cut = next(i for i, t in enumerate(WORLD.tokens) if t[1] and t[2] and t[3] == 0)
    assert WORLD.turn[cut, 3] == 0
    value = objective(reward_weights=(1.0, 0.0))
    move = ascents(WORLD, TABLE, REFERENCE, np.ones_like(REWARDS), value, np.array([[cut]]))[0]
    drawn = WORLD.context[cut][WORLD.turn[cut] == 1]
    assert len(drawn) == 2
    assert set(np.flatnonzero(np.abs(move).sum(1))) == set(drawn)
