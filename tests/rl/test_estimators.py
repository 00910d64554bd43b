"""Baselines, advantages, weights and losses, by hand and by loops over dicts of groups."""

from statistics import mean

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import estimators
from score_jax.rl.dialogue import DialoguePlan, row_ids
from score_jax.rl.estimators import BASELINES, EstimatorConfig
from score_jax.rl.objectives import Objective
from score_jax.types import Batch, Scores, TokenScores
from tests.tiny import grouped, rows_of

RETURNS = np.array([[1.0, 10], [2, 20], [4, 40], [8, 80], [16, 160], [32, 320]])


def objective(**fields):
    return Objective(**({"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0)} | fields))


def groups(ids, present, running=(0.0, 0.0)):
    ids = jax.tree.map(jnp.asarray, ids)
    return estimators.group_rows(ids, jnp.asarray(present), jnp.asarray(running))


def whole(ids):
    """Every row has both turns."""
    return np.ones((len(ids.draw), 2), bool)


def baselines(kind, returns, ids, present=None, **options):
    present = whole(ids) if present is None else present
    found = BASELINES[kind](jnp.asarray(returns, jnp.float32), groups(ids, present, **options))
    return np.asarray(found)


def test_leave_one_out_compares_with_the_problems_other_samples():
    got = baselines("leave_one_out", RETURNS, grouped(6, 3))
    first = [(2 + 4) / 2, (1 + 4) / 2, (1 + 2) / 2, (16 + 32) / 2, (8 + 32) / 2, (8 + 16) / 2]
    np.testing.assert_allclose(got, np.array([first, np.array(first) * 10]).T)


def test_leave_one_out_per_first_attempt_compares_within_the_tree():
    """Turn 1 with the problem's other first attempts, turn 2 with its own siblings."""
    returns = [[1.0, 3], [1, 5], [7, 11], [7, 13], [0.0, 1], [0, 2], [4, 3], [4, 4]]
    got = baselines("leave_one_out_attempt", returns, grouped(8, 4, 2))
    want = [[7, 5], [7, 3], [1, 13], [1, 11], [4, 2], [4, 1], [0, 4], [0, 3]]
    np.testing.assert_allclose(got, want)


def test_leave_one_out_per_first_attempt_with_three_of_three():
    first = np.repeat([1.0, 2.0, 6.0], 3)
    second = np.array([1.0, 2, 4, 10, 20, 40, 3, 3, 9])
    got = baselines("leave_one_out_attempt", np.stack([first, second], 1), grouped(9, 9, 3))
    np.testing.assert_allclose(got[:, 0], np.repeat([4.0, 3.5, 1.5], 3))
    np.testing.assert_allclose(got[:, 1], [3, 2.5, 1.5, 30, 25, 15, 6, 6, 3])


def test_a_leave_one_out_baseline_ignores_the_rows_own_return():
    for kind, second_attempts in (("leave_one_out", 1), ("leave_one_out_attempt", 2)):
        changed = RETURNS[:4].copy()
        changed[0, 1] += 100
        ids = grouped(4, 4, second_attempts)
        before, after = (baselines(kind, returns, ids) for returns in (RETURNS[:4], changed))
        np.testing.assert_array_equal(before[0], after[0])
        assert after[1, 1] > before[1, 1]


def test_simple_baselines():
    ids = grouped(6, 2)
    np.testing.assert_array_equal(baselines("none", RETURNS, ids), np.zeros((6, 2)))
    np.testing.assert_allclose(baselines("batch", RETURNS, ids), [[63 / 6, 630 / 6]] * 6)
    np.testing.assert_array_equal(
        baselines("running", RETURNS, ids, running=(3.0, 4.0)), [[3.0, 4.0]] * 6
    )


def test_the_batchs_mean_is_of_the_rows_that_have_the_turn():
    present = whole(grouped(6, 2))
    present[[1, 4], 1] = False
    got = baselines("batch", RETURNS, grouped(6, 2), present)
    np.testing.assert_allclose(got, [[63 / 6, (10 + 40 + 80 + 320) / 4]] * 6)


def naive_advantages(kind, returns, present, ids, running):
    """Return less baseline of every turn that a row has, group by group."""
    members: dict = {}  # by draw, or by draw and attempt: the rows
    for row, (draw, attempt) in enumerate(
        zip(ids.draw.tolist(), ids.attempt.tolist(), strict=True)
    ):
        members.setdefault(draw, []).append(row)
        members.setdefault((draw, attempt), []).append(row)
    out = np.zeros(returns.shape)
    for row, (draw, attempt) in enumerate(
        zip(ids.draw.tolist(), ids.attempt.tolist(), strict=True)
    ):
        for turn in np.flatnonzero(present[row]).tolist():
            if kind == "leave_one_out":
                peers = set(members[draw]) - {row}
            elif turn == 0:
                peers = set(members[draw]) - set(members[draw, attempt])
            else:
                peers = set(members[draw, attempt]) - {row}
            known = [returns[peer, turn] for peer in peers if present[peer, turn]]
            if kind in ("leave_one_out", "leave_one_out_attempt"):
                baseline = mean(known) if known else returns[row, turn]
            elif kind == "batch":
                baseline = mean(returns[present[:, turn], turn].tolist())
            else:
                baseline = {"none": 0.0, "running": running[turn]}[kind]
            out[row, turn] = returns[row, turn] - baseline
    return out


def mixed(seed=0):
    """Groups of 1, 2, 3 and 5 rows, shuffled, some of whose rows lack turn 2 or pad the batch."""
    draws = np.repeat([70, 3, 41, 12], [1, 2, 3, 5])
    sample = np.concatenate([np.arange(size) for size in (1, 2, 3, 5)])
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(draws))
    draws, sample = draws[order], sample[order]
    ids = row_ids(draws, draws, sample, sample // 2 * 2)
    present = np.stack([rng.random(len(draws)) > 0.1, rng.random(len(draws)) > 0.3], 1)
    present[:, 1] &= present[:, 0]
    rewards = np.where(present, rng.integers(0, 5, present.shape) / 4, 0.0)
    return ids, present, rewards


def advantages(ids, present, rewards, value=None, running=(0.3, 0.6), penalty=0.0, **estimator):
    """Returns and advantages of two answers."""
    value = value or objective(alpha=2.0)
    found = estimators.turn_advantages(
        value,
        EstimatorConfig(**estimator),
        jnp.asarray(rewards, jnp.float32),
        groups(ids, present, running),
        alpha=value.alpha,
        penalty=penalty,
        roles=("answer", "answer"),
    )
    return tuple(map(np.asarray, found))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", BASELINES)
def test_advantages_of_unequal_shuffled_groups_are_those_of_a_dict_of_groups(kind, seed):
    ids, present, rewards = mixed(seed)
    shaped = np.stack([rewards[:, 0], 3 * rewards[:, 1] - 2 * rewards[:, 0]], 1)
    want = naive_advantages(kind, shaped, present, ids, (0.3, 0.6))
    returns, got = advantages(ids, present, rewards, baseline=kind)
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(returns, np.where(present, shaped, 0.0), atol=1e-6)
    assert np.abs(want).max() > 0.5 and not present.all()


@pytest.mark.parametrize("normalise", ["none", "batch"])
@pytest.mark.parametrize("kind", BASELINES)
def test_rows_may_come_in_any_order(kind, normalise):
    ids, present, rewards = mixed()
    order = np.random.default_rng(9).permutation(len(rewards))
    _, base = advantages(ids, present, rewards, baseline=kind, normalise=normalise)
    there = jax.tree.map(lambda x: x[order], ids)
    _, got = advantages(there, present[order], rewards[order], baseline=kind, normalise=normalise)
    np.testing.assert_allclose(got, base[order], atol=1e-6)


def test_dropping_a_row_leaves_the_others_of_its_group_compared_with_each_other():
    """Of the draw's three rows 1, 0, 0.25 the second goes; what remains is 1 against 0.25."""
    ids, rewards = grouped(6, 3), np.array([[1.0, 1], [0, 0], [0.25, 0], [1, 0], [0, 1], [0, 0]])
    plain = objective()
    _, before = advantages(ids, whole(ids), rewards, plain)
    np.testing.assert_allclose(before[[0, 2], 0], [1 - 0.125, 0.25 - 0.5])
    left = np.array([0, 2, 3, 4, 5])
    fewer = jax.tree.map(lambda x: x[left], ids)
    _, after = advantages(fewer, whole(fewer), rewards[left], plain)
    np.testing.assert_allclose(after[:2], [[1 - 0.25, 1], [0.25 - 1, -1]])
    np.testing.assert_array_equal(after[2:], before[3:])


@pytest.mark.parametrize("kind", ["leave_one_out", "leave_one_out_attempt"])
def test_a_row_alone_in_its_group_has_no_advantage(kind):
    draws = np.array([4, 8, 4, 8, 6])
    ids = row_ids(draws, draws, np.array([0, 0, 1, 1, 0]), np.array([0, 0, 1, 1, 0]))
    _, got = advantages(ids, whole(ids), np.array([[1.0, 0], [0, 1], [0, 1], [0, 0], [1, 1]]),
                        baseline=kind)  # fmt: skip
    np.testing.assert_array_equal(got[4], [0.0, 0.0])
    assert np.abs(got[:4, 0]).max() == 1.0


def test_a_row_whose_peers_all_lack_the_turn_is_alone_in_it():
    ids, rewards = grouped(3, 3), np.array([[1.0, 1], [0, 0], [0, 0]])
    present = np.array([[True, True], [True, False], [True, False]])
    _, got = advantages(ids, present, rewards, objective())
    np.testing.assert_allclose(got, [[1, 0], [-0.5, 0], [-0.5, 0]])


def test_what_stands_in_a_turn_that_is_missing_never_matters():
    ids, present, rewards = mixed()
    for kind in BASELINES:
        for normalise in ("none", "batch"):
            options = {"baseline": kind, "normalise": normalise}
            base = advantages(ids, present, rewards, **options)
            noisy = np.where(present, rewards, 50.0)
            # Turn 2's bonus is over turn 1, which no row lacks that has turn 2.
            for a, b in zip(advantages(ids, present, noisy, **options), base, strict=True):
                np.testing.assert_allclose(a, b, atol=1e-6, err_msg=f"{kind} {normalise}")


@pytest.mark.parametrize("kind", BASELINES)
def test_rows_that_pad_a_batch_change_no_advantage_of_the_others(kind):
    """Though they carry a real row's ids, as evaluation's padding does."""
    ids, rewards = grouped(6, 3), np.random.default_rng(2).integers(0, 2, (6, 2)).astype(float)
    options = {"baseline": kind, "normalise": "batch"}
    base = advantages(ids, whole(ids), rewards, **options)
    more = jax.tree.map(lambda x: np.concatenate([x, x[:2]]), ids)
    present = np.concatenate([whole(ids), np.zeros((2, 2), bool)])
    got = advantages(more, present, np.concatenate([rewards, np.ones((2, 2))]), **options)
    for a, b in zip(got, base, strict=True):
        np.testing.assert_allclose(a[:6], b, atol=1e-6)
        np.testing.assert_array_equal(a[6:], 0.0)


def test_alpha_weighs_turn_two_even_when_normalised():
    """Siblings of one first attempt share r1, so the bonus is exactly 1 + alpha."""
    rewards = np.array([[0.0, 1], [0, 0], [1, 1], [1, 0], [0, 1], [0, 1], [1, 0], [1, 0]])
    ids = grouped(8, 4, 2)
    for normalise in ("none", "batch"):
        options = {"baseline": "leave_one_out_attempt", "normalise": normalise}
        _, plain = advantages(ids, whole(ids), rewards, objective(), **options)
        _, shaped = advantages(ids, whole(ids), rewards, objective(alpha=10.0), **options)
        assert np.abs(plain[:, 1]).max() > 0.5
        np.testing.assert_allclose(shaped[:, 1], 11 * plain[:, 1], rtol=1e-6)
        np.testing.assert_array_equal(shaped[:, 0], plain[:, 0])


def test_normalising_divides_by_the_deviation_of_the_plain_reward():
    # Pairs: advantages of turn 1 are +-1, +-1; of turn 2 +-1, 0: deviations 1 and sqrt(1/2).
    rewards = np.array([[1.0, 1], [0, 0], [0, 1], [1, 1]])
    ids, value = grouped(4, 2), objective(reward_weights=(3.0, 5.0))
    _, got = advantages(ids, whole(ids), rewards, value, normalise="batch")
    np.testing.assert_allclose(got[:, 0], [3, -3, -3, 3], rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], np.array([5, -5, 0, 0]) * np.sqrt(2), rtol=1e-6)


def test_the_deviation_is_over_the_rows_that_have_the_turn():
    """As above, with a third pair that has no turn 2: turn 2's deviation stays sqrt(1/2)."""
    rewards = np.array([[1.0, 1], [0, 0], [0, 1], [1, 1], [1, 0], [0, 0]])
    ids, present = grouped(6, 2), whole(grouped(6, 2))
    present[4:, 1] = False
    _, got = advantages(ids, present, rewards, objective(), normalise="batch")
    np.testing.assert_allclose(got[:, 0], [1, -1, -1, 1, 1, -1], rtol=1e-6)
    np.testing.assert_allclose(got[:, 1], np.array([1, -1, 0, 0, 0, 0]) * np.sqrt(2), rtol=1e-6)


def test_equal_rewards_give_no_advantage_rather_than_noise():
    ids = grouped(4, 2)
    _, got = advantages(ids, whole(ids), np.ones((4, 2)), normalise="batch")
    np.testing.assert_array_equal(got, np.zeros((4, 2)))


def test_a_penalty_is_taken_from_the_return_of_its_own_turn():
    """0.5 and 0.25 a nat, for KLs of 1 and 2: neither discounted back nor part of the bonus."""
    ids, rewards = grouped(4, 2), np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
    value = objective(gamma=0.5, alpha=3.0)
    without, _ = advantages(ids, whole(ids), rewards, value)
    penalty = np.array([0.5, 0.25]) * np.array([[1.0, 2.0], [3.0, 0.0]] * 2)
    returns, got = advantages(ids, whole(ids), rewards, value, penalty=penalty)
    np.testing.assert_allclose(returns, without - penalty)
    np.testing.assert_allclose(got, returns - returns[[1, 0, 3, 2]])


TURN = np.array([[0, 1, 1, 1, 0, 2, 0, 0], [0, 1, 0, 2, 2, 2, 2, 0]])
PLAN = DialoguePlan(limits=(5, 8)).complete(2, 9)


def rows(turn=TURN, **fields):
    """Rows with this turn map; their tokens do not matter."""
    made = rows_of([(line.tolist(), line.tolist()) for line in np.asarray(turn)], 2)
    return made.replace(**fields)


@pytest.mark.parametrize(
    ("kind", "first", "second"),
    [
        ("sum", [1, 1], [1, 1]),
        ("constant", [1 / 5, 1 / 5], [1 / 8, 1 / 8]),
        ("sequence", [1 / 3, 1], [1, 1 / 4]),
    ],
)
def test_length_norm_by_hand(kind, first, second):
    got = np.asarray(estimators.token_weights(kind, rows(), PLAN))
    want = np.zeros(TURN.shape)
    for row in range(2):
        want[row][TURN[row] == 1] = first[row] / 2
        want[row][TURN[row] == 2] = second[row] / 2
    np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["sum", "constant", "sequence"])
def test_what_is_not_trained_weighs_nothing_and_rows_that_pad_do_not_count(kind):
    """Turn 1 of row 0 was given; a third row is padding."""
    turn = np.concatenate([TURN, np.zeros((1, 8), int)])
    trained, present = turn > 0, np.array([[True, True], [True, True], [False, False]])
    trained[0, :4] = False
    got = np.asarray(
        estimators.token_weights(kind, rows(turn, trained=trained, present=present), PLAN)
    )
    whole = np.asarray(estimators.token_weights(kind, rows(), PLAN))
    np.testing.assert_allclose(got[:2], np.where(trained[:2], whole, 0.0), rtol=1e-6)
    assert not got[2].any() and not got[0, :4].any() and got[0, 5] > 0


def test_a_row_without_a_second_turn_counts_as_a_dialogue():
    """A batch's loss is a mean over dialogues, however many turns each has."""
    turn = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 2, 2]])
    there = np.array([[True, False], [True, True]])
    got = estimators.token_weights("sum", rows(turn, present=there), PLAN)
    np.testing.assert_allclose(got, (turn > 0) / 2)


@pytest.mark.parametrize("kind", ["sum", "constant", "sequence"])
def test_what_was_cut_weighs_nothing_and_a_row_of_nothing_else_does_not_count(kind):
    """Row 1 loses its only turn, row 2 its first and row 3 its second; row 4 pads the batch."""
    turn = np.array(
        [
            [0, 1, 1, 1, 0, 2, 0, 0],
            [0, 1, 1, 1, 1, 1, 0, 0],
            [0, 1, 1, 1, 1, 0, 2, 2],
            [0, 1, 1, 0, 2, 2, 2, 2],
            [0, 0, 0, 0, 0, 0, 0, 0],
        ]
    )
    present = np.array([[1, 1], [1, 0], [1, 1], [1, 1], [0, 0]], bool)
    cut = np.array([[0, 0], [1, 0], [1, 0], [0, 1], [1, 1]], bool)
    made = rows(turn, present=present, truncated=cut)
    got = estimators.token_weights(kind, made, PLAN, mask_truncated=True)
    want = np.zeros(turn.shape)
    for row, number in ((0, 1), (0, 2), (2, 2), (3, 1)):
        own = turn[row] == number
        each = {"sum": 1, "constant": PLAN.limits[number - 1], "sequence": own.sum()}[kind]
        want[row][own] = 1 / (3 * each)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    whole = estimators.token_weights(kind, made, PLAN)
    assert np.asarray(whole)[1, 1] > 0  # all is learnt from unless one asks


def test_where_nothing_was_cut_masking_changes_nothing():
    """Also not for a row that has no trained turn: it counts, cut or not, as it did."""
    turn = np.array([[0, 1, 1, 0, 0], [0, 1, 0, 2, 2]])
    made = rows(turn, trained=turn == 2, present=np.array([[1, 0], [1, 1]], bool))
    made = made.replace(truncated=np.array([[1, 0], [0, 0]], bool))
    got, want = (
        estimators.token_weights("sum", made, PLAN, mask_truncated=mask) for mask in (True, False)
    )
    np.testing.assert_array_equal(got, want)
    np.testing.assert_allclose(got, (turn == 2) / 2)


def test_where_all_was_cut_nothing_is_learnt():
    got = estimators.token_weights(
        "sequence", rows(truncated=np.ones((2, 2), bool)), PLAN, mask_truncated=True
    )
    np.testing.assert_array_equal(got, np.zeros(TURN.shape))


def test_a_turn_without_tokens_has_finite_weights():
    got = estimators.token_weights("sequence", rows(np.zeros((1, 4), int)), PLAN)
    np.testing.assert_array_equal(got, np.zeros((1, 4)))


def slope_of_loss(estimator, ratio, advantage, size=1e-3):
    """d loss / d log-probability of one token, by central differences."""

    def loss(logprob):
        arrays = [jnp.full((1, 1), x, jnp.float32) for x in (logprob, -1.0, advantage)]
        return float(estimators.policy_loss(estimator.clip_range, *arrays)[0, 0])

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
    found = slope_of_loss(EstimatorConfig(clip=0.2), ratio, advantage)
    assert found == pytest.approx(slope, abs=5e-3)


@pytest.mark.parametrize(
    ("ratio", "advantage", "slope"),
    [
        (1.25, 2.0, -2.5),  # above 1 + clip: still pulled up, to the higher bound
        (1.31, 2.0, 0.0),
        (1.31, -2.0, 2.62),  # raised although it was bad: pushed down from anywhere
        (0.81, -2.0, 1.62),  # the lower bound is that of clip alone
        (0.79, -2.0, 0.0),
    ],
)
def test_a_higher_bound_above_leaves_good_tokens_more_room(ratio, advantage, slope):
    found = slope_of_loss(EstimatorConfig(clip=0.2, clip_high=0.3), ratio, advantage)
    assert found == pytest.approx(slope, abs=5e-3)


def test_without_clip_the_old_logprobs_do_not_matter():
    assert slope_of_loss(EstimatorConfig(), 1.5, 2.0) == pytest.approx(-2.0, abs=5e-3)


@pytest.mark.parametrize(
    ("kind", "loss", "told"),
    [  # log-ratio of the two: log 2; log 1
        ("reward", [0.0, 0.0], [0.5 - 1 + np.log(2), 0.0]),
        ("k2", [np.log(2) ** 2 / 2, 0.0], [0.5 - 1 + np.log(2), 0.0]),
        ("k3", [0.5 - 1 + np.log(2), 0.0], [0.5 - 1 + np.log(2), 0.0]),
        ("exact", [0.125, 0.25], [0.125, 0.25]),
    ],
)
def test_each_kl_has_its_loss_and_its_estimate(kind, loss, told):
    policy = TokenScores(
        logprobs=jnp.log(jnp.array([[0.5, 0.25]])),
        entropy=jnp.zeros((1, 2)),
        kl=jnp.array([[0.125, 0.25]]),
    )
    reference = Scores(logprobs=jnp.log(jnp.array([[0.25, 0.25]])), hidden=None)
    zeros = jnp.zeros((1, 2))
    part = Batch(episodes=rows(), advantages=zeros, weights=zeros, beta=zeros, scores=reference)
    for got, want in zip(estimators.kl_terms(kind, policy, part), (loss, told), strict=True):
        np.testing.assert_allclose(got[0], want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"clip": 0.0}, r"estimator.clip is 0.0; set a value in \(0, 1\) or None"),
        ({"clip": 1.0}, r"estimator.clip is 1.0; set a value in \(0, 1\) or None"),
        (
            {"clip_high": 0.28},
            r"estimator.clip_high is 0.28 without estimator.clip; set both, or None",
        ),
        ({"clip": 0.2, "clip_high": 0.0}, r"estimator.clip_high is 0.0; set a value > 0"),
        (
            {"importance_cap": 0.5},
            r"estimator.importance_cap is 0.5; set a finite value >= 1, None",
        ),
        ({"importance_cap": float("nan")}, r"estimator.importance_cap is nan"),
        ({"importance_cap": float("inf")}, r"estimator.importance_cap is inf"),
        ({"importance_cap": "2"}, r"estimator.importance_cap is '2'; .* or 'auto'"),
        ({"importance_cap": True}, r"estimator.importance_cap is True"),
        ({"kl": "k1"}, r"estimator.kl is 'k1'; choose one of reward, exact, k2, k3"),
        ({"baseline": "mean"}, r"estimator.baseline is 'mean'; choose one of none, running"),
        ({"normalise": True}, r"estimator.normalise is True; set a text"),
        ({"normalise": "group"}, r"estimator.normalise is 'group'; choose one of none, batch"),
        ({"length_norm": "token"}, r"estimator.length_norm is 'token'; choose one of sum"),
    ],
)
def test_impossible_values_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        EstimatorConfig(**fields)


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
    assert EstimatorConfig(importance_cap=given).resolved(dtype).importance_cap == cap
