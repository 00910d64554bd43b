"""The expected update of an enumerable policy is the gradient of what SCoRe maximises.

Expectations are sums over all dialogues; gradients are finite differences in float64.
"""

import numpy as np
import pytest

from score_jax.rl.estimators import EstimatorConfig
from score_jax.rl.objectives import Objective
from tests.enumerable import REINFORCE, World, ascents, expected_ascent, log_softmax, slope

RIGHT = np.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0])  # reward of each outcome of a turn
BETA = (0.7, 0.3)
WORLD = World()
TABLE = WORLD.random_table(0)
REFERENCE = WORLD.random_table(1)
REWARDS = WORLD.rewards(RIGHT)
FIRST = WORLD.turn_of_context == 1
SECOND = ~FIRST


def objective(**fields):
    return Objective(**({"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0)} | fields))


def estimator(**fields):
    return EstimatorConfig(**({"baseline": "none"} | fields))


KL_IN_RETURN = estimator(kl="reward")


def mean_ascent(value, estimator=REINFORCE, **options):
    return expected_ascent(WORLD, TABLE, REFERENCE, REWARDS, value, estimator=estimator, **options)


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
    got = mean_ascent(objective(alpha=alpha, beta=BETA), KL_IN_RETURN)
    np.testing.assert_allclose(got, want, atol=2e-5)


def test_stage_one_gives_turn_one_nothing_but_its_kl():
    value = objective(reward_weights=(0.0, 1.0), beta=BETA)
    want = by_turn(
        lambda table: -BETA[0] * sequence_kl(1)(table),
        lambda table: expected(REWARDS[:, 1])(table) - BETA[1] * sequence_kl(2)(table),
    )
    got = mean_ascent(value, KL_IN_RETURN)
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
    value = objective(reward_weights=(0.0, 0.0), beta=(0.5, 0.5))
    want = -0.5 * slope(visited_kl(reverse_kl), TABLE)
    np.testing.assert_allclose(mean_ascent(value, estimator(kl=kind)), want, atol=2e-6)
    assert np.abs(want[FIRST]).max() > 0.01


def test_k3_as_a_loss_has_the_forward_gradient():
    value = objective(reward_weights=(0.0, 0.0), beta=(0.5, 0.5))
    want = -0.5 * slope(visited_kl(forward_kl), TABLE)
    np.testing.assert_allclose(mean_ascent(value, estimator(kl="k3")), want, atol=2e-6)
    reverse = -0.5 * slope(visited_kl(reverse_kl), TABLE)
    assert np.abs(want - reverse).max() > 0.01  # the two can be told apart here


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "exact", "k2", "k3"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_turns_beta_moves_that_turn_alone(kind, turn):
    beta = (1.0, 0.0) if turn == 1 else (0.0, 1.0)
    rows = np.arange(len(WORLD.pairs))[:, None]
    value = objective(reward_weights=(0.0, 0.0), beta=beta)
    moves = ascents(WORLD, TABLE, REFERENCE, REWARDS, value, rows, estimator=estimator(kl=kind))
    own, other = (FIRST, SECOND) if turn == 1 else (SECOND, FIRST)
    assert np.abs(moves[:, own]).max() > 0.01
    assert not moves[:, other].any()


def test_progress_bonus_never_reaches_turn_one():
    """Row by row, bit for bit: not just in expectation."""
    rows = np.arange(len(WORLD.pairs))[:, None]
    without, with_bonus = (
        ascents(
            WORLD,
            TABLE,
            REFERENCE,
            REWARDS,
            objective(beta=BETA, gamma=0.5, alpha=alpha),
            rows,
            estimator=KL_IN_RETURN,
        )
        for alpha in (0.0, 10.0)
    )
    np.testing.assert_array_equal(with_bonus[:, FIRST], without[:, FIRST])
    assert np.abs(with_bonus[:, SECOND] - without[:, SECOND]).max() > 1


@pytest.mark.parametrize(("baseline", "group_size"), [("none", 1), ("leave_one_out", 2)])
def test_expected_shaped_turn_two_gradient_is_one_plus_alpha_times_the_plain_one(
    baseline, group_size
):
    plain, shaped = (
        mean_ascent(objective(alpha=alpha), estimator(baseline=baseline), group_size=group_size)
        for alpha in (0.0, 10.0)
    )
    assert np.abs(plain[SECOND]).max() > 0.01
    np.testing.assert_allclose(shaped[SECOND], 11 * plain[SECOND], atol=1e-5)


def test_leave_one_out_leaves_the_expected_gradient_alone():
    value = objective(alpha=10.0, beta=BETA)
    alone = mean_ascent(value, KL_IN_RETURN)
    leave_one_out = estimator(kl="reward", baseline="leave_one_out")
    paired = mean_ascent(value, leave_one_out, group_size=2)
    np.testing.assert_allclose(paired, alone, atol=2e-5)


def test_baseline_per_first_attempt_is_unbiased_and_cancels_the_first_reward():
    world = World(vocabulary=2, limit=1)  # an attempt is "stop" or one letter, then cut
    table, reference = world.random_table(2), world.random_table(3)
    rewards = world.rewards(np.array([1.0, 0.0]))
    value, branches = (
        objective(alpha=10.0),
        {"estimator": estimator(baseline="leave_one_out_attempt")},
    )
    branches["second_attempts"] = 2
    plain = expected_ascent(world, table, reference, rewards, value)
    tree = expected_ascent(world, table, reference, rewards, value, group_size=4, **branches)
    np.testing.assert_allclose(tree, plain, atol=2e-6)

    rows = np.array([[0, 1, 2, 3]])  # first attempts: right twice, then wrong twice
    other = rewards.copy()
    other[:, 0] = 1 - other[:, 0]
    second = world.turn_of_context == 2
    moves = [
        ascents(world, table, reference, given, value, rows, **branches)[:, second]
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


GIVEN = WORLD.plan(sources=("given", "sampled"))


@pytest.mark.parametrize("first", [1, 5])
@pytest.mark.parametrize("kind", ["reward", "exact"])
def test_a_given_first_attempt_leaves_the_slope_of_what_follows_it_alone(kind, first):
    """The mean over second attempts to it; the same number for every policy of turn 1."""
    rows = np.array([n for n, (attempt, _) in enumerate(WORLD.pairs) if attempt == first])
    value = objective(reward_weights=(0.0, 1.0), beta=(0.0, 0.3), alpha=2.0)
    moves = ascents(
        WORLD,
        TABLE,
        REFERENCE,
        REWARDS,
        value,
        rows[:, None],
        estimator=estimator(kl=kind),
        plan=GIVEN,
    )
    odds = np.exp(WORLD.turn_logprobs(TABLE)[rows, 1])
    assert odds.sum() == pytest.approx(1.0)
    got = np.einsum("m,mcv->cv", odds, moves)
    shaped = REWARDS[rows, 1] + 2.0 * (REWARDS[rows, 1] - REWARDS[rows, 0])
    visits = np.zeros(len(WORLD.prefixes))
    for row, chance in zip(rows, odds, strict=True):
        np.add.at(visits, WORLD.context[row][WORLD.turn[row] == 2], chance)

    def worth(table):
        """Of the second attempt, given the first; states fixed where the KL is a loss."""
        chances = np.exp(WORLD.turn_logprobs(table)[rows, 1])
        ratio = WORLD.turn_logprobs(table) - WORLD.turn_logprobs(REFERENCE)
        kl = chances @ ratio[rows, 1]
        if kind == "exact":
            kl = visits @ reverse_kl(log_softmax(table), log_softmax(REFERENCE))
        return chances @ shaped - 0.3 * kl

    np.testing.assert_allclose(got, slope(worth, TABLE), atol=5e-6)
    assert not moves[:, FIRST].any() and np.abs(got[SECOND]).max() > 0.01


def test_other_policies_of_a_given_turn_make_the_same_update():
    """Row by row, bit for bit: what the policy would have said there is never asked."""
    rows = np.arange(len(WORLD.pairs))[:, None]
    value = objective(reward_weights=(0.0, 1.0), beta=(0.0, 0.3), alpha=2.0)
    other = np.where(FIRST[:, None], WORLD.random_table(7), TABLE)
    for kind in ("reward", "exact"):
        one, two = (
            ascents(
                WORLD,
                table,
                REFERENCE,
                REWARDS,
                value,
                rows,
                estimator=estimator(kl=kind, importance_cap=2.0),
                plan=GIVEN,
            )
            for table in (TABLE, other)
        )
        np.testing.assert_array_equal(one, two)
        assert np.abs(one).max() > 0.1
