"""Rows in any order, of unequal groups, without a second turn, given or as padding.

What an update makes of them is written out by loops over single rows.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import coefficients
from score_jax.rl.coefficients import CoefficientsConfig
from score_jax.rl.dialogue import DialoguePlan, row_ids
from score_jax.rl.estimators import EstimatorConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.objectives import Objective
from tests.rl.test_estimators import naive_advantages
from tests.rl.test_learner import (
    DECODER,
    LIMIT,
    STAGE_TWO,
    assert_close,
    assert_same_metrics,
    gradient,
    program,
    programs,
    run,
)
from tests.tiny import MODEL, naive_logprobs, random_params, row_logits, rows_of

LINES = [  # tokens, turn; rows 1 and 4 have no second turn
    ([3, 4, 5, 2, 1, 0, 7, 8, 6, 0], [0, 0, 0, 1, 1, 1, 0, 0, 2, 2]),
    ([3, 4, 5, 1, 0], [0, 0, 0, 1, 1]),
    ([1, 2, 3, 4, 5, 6, 6, 0, 7, 8, 0], [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 2]),
    ([1, 2, 0, 7, 8, 4, 4, 0], [0, 0, 1, 0, 0, 2, 2, 2]),
    ([1, 2, 6, 6, 6, 6, 6], [0, 0, 1, 1, 1, 1, 1]),
    ([5, 2, 0, 7, 8, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 2, 2, 2, 2, 2]),
]
# Groups of two, of three and of one: rows 2, 3 and 5 of draw 11 have turn 2, row 5 is alone.
DRAWS = np.array([4, 4, 11, 11, 11, 6])
SAMPLES = np.array([0, 1, 0, 1, 2, 0])
REWARDS = np.array([[0.0, 1], [1, 0], [0, 0], [0, 1], [0, 0], [1, 0]])
PRESENT = np.array([[1, 1], [1, 0], [1, 1], [1, 1], [1, 0], [1, 1]], bool)
TRUNCATED = np.array([[0, 0], [0, 0], [1, 0], [0, 0], [1, 0], [0, 1]], bool)


def batch(**fields):
    """The six rows as a sampler would return them."""
    rows = rows_of(LINES, 2, rewards=REWARDS, ids=row_ids(DRAWS, DRAWS, SAMPLES))
    rows = rows.replace(present=jnp.asarray(PRESENT), truncated=jnp.asarray(TRUNCATED))
    old = np.where(rows.sampled, naive_logprobs(MODEL, random_params(MODEL), rows.tokens), 0)
    return rows.replace(logprobs=jnp.asarray(old, jnp.float32), **fields)


def pick(rows, order):
    return jax.tree.map(lambda x: x[np.asarray(order)], rows)


@lru_cache
def weighed():
    """(params, base, tokens, gain, pull) -> the sum of -gain log pi + pull KL, and its slope."""

    @jax.jit
    @jax.value_and_grad
    def loss(params, base, tokens, gain, pull):
        reference = jax.nn.log_softmax(row_logits(MODEL)(base, tokens))
        policy = jax.nn.log_softmax(row_logits(MODEL)(params, tokens))[:, :-1]
        chosen = jnp.take_along_axis(policy, tokens[:, 1:, None], -1)[..., 0]
        kl = (jnp.exp(policy) * (policy - reference[:, :-1])).sum(-1)
        return jnp.sum(pull[:, 1:] * kl - gain[:, 1:] * chosen)

    return loss


def shaped(rewards, alpha):
    return np.stack([rewards[:, 0], (1 + alpha) * rewards[:, 1] - alpha * rewards[:, 0]], 1)


def by_hand(rows, alpha=2.0, beta=(0.2, 0.1), returns=None, kept=slice(None), cut=True):
    """Loss, gradient, and each row's advantages, token by token.

    Args:
      kept: the rows that count.
      cut: learn from turns that were cut; False: a row without others does not count.
    """
    rows = jax.tree.map(np.asarray, rows)
    known = pick(rows, np.arange(len(rows.tokens))[kept])
    returns = shaped(known.rewards, alpha) if returns is None else returns
    advantages = naive_advantages("leave_one_out", returns, known.present, known.ids, None)
    gain, pull = np.zeros((2, *rows.tokens.shape), np.float32)
    learnt = [
        [
            place
            for place in np.flatnonzero(known.trained[row])
            if cut or not known.truncated[row, known.turn[row, place] - 1]
        ]
        for row in range(len(known.tokens))
    ]
    count = len(known.tokens) if cut else sum(map(bool, learnt))
    for row, number in enumerate(np.arange(len(rows.tokens))[kept]):
        for place in learnt[row]:
            turn = known.turn[row, place] - 1
            gain[number, place] = advantages[row, turn] / count
            pull[number, place] = beta[turn] / count
    models = random_params(MODEL), random_params(MODEL, seed=1)
    loss, slope = weighed()(*models, rows.tokens, gain, pull)
    return float(loss), slope, advantages


def tables(rows):
    """Log-probabilities of policy and reference, index t predicting token t."""
    found = []
    for seed in (0, 1):
        logits = row_logits(MODEL)(random_params(MODEL, seed=seed), rows.tokens)
        found.append(np.pad(jax.nn.log_softmax(logits), ((0, 0), (1, 0), (0, 0)))[:, :-1])
    return found


def metrics_by_hand(rows, advantages, alpha=2.0):
    """What is told of a batch, row by row."""
    rows = jax.tree.map(np.asarray, rows)
    policy, reference = tables(rows)
    kl, entropy = (
        (np.exp(policy) * (policy - reference)).sum(-1),
        -(np.exp(policy) * policy).sum(-1),
    )
    returns, told, count = shaped(rows.rewards, alpha), {}, len(rows.tokens)
    draws = rows.ids.draw.tolist()
    for index, turn in enumerate(("turn1", "turn2")):
        there = [row for row in range(count) if rows.present[row, index]]
        own = [np.flatnonzero(rows.sampled[row] & (rows.turn[row] == index + 1)) for row in there]
        tokens = sum(map(len, own))
        groups = {draw: [] for draw in (draws[row] for row in there)}
        for row in there:
            groups[draws[row]].append(float(rows.rewards[row, index]))
        told |= {
            f"accuracy/{turn}": np.mean([rows.rewards[row, index] >= 1 for row in there]),
            f"reward/{turn}": np.mean([rows.rewards[row, index] for row in there]),
            f"return/{turn}": np.mean([returns[row, index] for row in there]),
            f"truncated/{turn}": np.mean([rows.truncated[row, index] for row in there]),
            f"length/{turn}": tokens / len(there),
            f"no_signal/{turn}": np.mean([len(set(group)) == 1 for group in groups.values()]),
            f"all_right/{turn}": np.mean([min(group) >= 1 for group in groups.values()]),
            f"advantage_std/{turn}": np.std([advantages[row, index] for row in there]),
            f"kl/{turn}": sum(kl[row, at].sum() for row, at in zip(there, own, strict=True))
            / len(there),
            f"entropy/{turn}": sum(
                entropy[row, at].sum() for row, at in zip(there, own, strict=True)
            )
            / max(tokens, 1),
        }
    right = [
        [rows.rewards[row, t] >= 1 and rows.present[row, t] for t in (0, 1)] for row in range(count)
    ]
    # A dialogue's last answer is that of the last turn that it has.
    ends = [(one, two if rows.present[row, 1] else one) for row, (one, two) in enumerate(right)]
    return told | {
        "delta": np.mean([float(b) - a for a, b in ends]),
        "delta_i_to_c": np.mean([b and not a for a, b in ends]),
        "delta_c_to_i": np.mean([a and not b for a, b in ends]),
        "alone": np.mean([draws.count(draw) == 1 for draw in draws]),
    }


def assert_told(metrics, want):
    for name, value in want.items():
        assert metrics[name] == pytest.approx(float(value), rel=1e-4, abs=1e-6), name


@pytest.fixture(scope="module")
def base():
    return run(rows=batch())


def test_an_update_of_unequal_groups_is_that_of_loops_over_single_rows(base):
    """Rows without turn 2 count in none of its means; the row that is alone has no advantage."""
    loss, slope, advantages = by_hand(batch())
    state, metrics = base
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)
    assert_told(metrics, metrics_by_hand(batch(), advantages))
    assert not advantages[5].any() and metrics["alone"] == pytest.approx(1 / 6)
    # Turn 1: draw 11 has three equal rewards, draw 6 one; turn 2: draws 4 and 6 have one row.
    # Those of one row are right in draw 6 at turn 1, and in draw 4 at turn 2.
    for turn in (1, 2):
        assert metrics[f"no_signal/turn{turn}"] == pytest.approx(2 / 3)
        assert metrics[f"all_right/turn{turn}"] == pytest.approx(1 / 3)
    want = [shaped(REWARDS, 2.0)[PRESENT[:, t], t].mean() for t in (0, 1)]
    np.testing.assert_allclose(state.baseline, 0.9 * np.array([0.5, 0.25]) + 0.1 * np.array(want))


@pytest.mark.parametrize("microbatches", [1, 3])
def test_rows_may_come_in_any_order_and_lie_in_any_part(base, microbatches):
    """Groups are torn apart over microbatches; equal but for the order of float32 sums."""
    shuffled = pick(batch(), [4, 0, 5, 2, 1, 3])
    state, metrics = run(rows=shuffled, microbatches=microbatches)
    assert_close(state, base[0])
    assert_same_metrics(metrics, base[1])


@pytest.mark.parametrize("microbatches", [1, 3])
@pytest.mark.parametrize("pack", [True, False])
def test_an_update_without_what_was_cut_is_that_of_loops_over_the_other_tokens(
    base, microbatches, pack
):
    """Row 4 has nothing else; its reward stays in its draw's baselines, and in the metrics."""
    loss, slope, advantages = by_hand(batch(), cut=False)
    estimator = EstimatorConfig(mask_truncated=True)
    options = {"estimator": estimator, "microbatches": microbatches, "pack": pack}
    state, metrics = run(rows=batch(), **options)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert abs(loss - base[1]["loss"]) > 0.01
    assert_close(gradient(state), slope)
    assert_told(metrics, metrics_by_hand(batch(), advantages))


def test_rows_that_pad_a_batch_change_nothing_where_cut_turns_are_left_out():
    """Row 2, behind whose cut first turn a second stands, is among the four."""
    rows = padded()
    loss, slope, _ = by_hand(rows, kept=slice(0, 4), cut=False)
    state, metrics = run(rows=rows, estimator=EstimatorConfig(mask_truncated=True))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)


def padded(**fields):
    """Four rows of two draws and two that pad the batch, under the ids of a real row."""
    rows = pick(batch(), [0, 1, 2, 3, 0, 2])
    pads = np.arange(6) >= 4
    marks = {"sampled": False, "trained": False, "present": False, "truncated": False}
    marks |= {"logprobs": 0.0, "turn": 0, "rewards": 0.0} | fields
    columns = {
        name: jnp.where(
            pads.reshape(-1, *[1] * (getattr(rows, name).ndim - 1)), value, getattr(rows, name)
        )
        for name, value in marks.items()
    }
    return rows.replace(**columns)


def test_rows_that_pad_a_batch_change_nothing_of_the_others():
    """Neither loss, gradient nor a metric: as if the batch had four rows."""
    rows = padded()
    loss, slope, advantages = by_hand(rows, kept=slice(0, 4))
    state, metrics = run(rows=rows)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)
    assert_told(metrics, metrics_by_hand(pick(rows, range(4)), advantages))


def test_what_stands_in_rows_that_pad_is_never_read():
    """Bit for bit, whatever the tokens, the ids, the turns' owners and the rewards are."""
    state, metrics = run(rows=padded())
    noisy = padded(tokens=6, rewards=1.0, truncated=True, turn=1)
    noisy = noisy.replace(ids=jax.tree.map(lambda x: x.at[4:].set(jnp.array([4, 99])), noisy.ids))
    again, others = run(rows=noisy)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert others == metrics


GIVEN = DialoguePlan(sources=("given", "sampled")).complete(2, LIMIT)
REVISE = Objective(reward_weights=(0.0, 1.0), beta=(0.0, 0.1), alpha=2.0)


def given(rows):
    """The rows as if their first attempts had come with the problems."""
    own = rows.turn == 2
    logprobs = jnp.where(own, rows.logprobs, 0.0)
    return rows.replace(
        sampled=own,
        trained=own,
        logprobs=logprobs,
        ids=rows.ids.replace(attempt=0 * rows.ids.attempt),
    )


def revised(rows, **options):
    return run(REVISE, rows, plan=GIVEN, **options)


def paired():
    """Both turns everywhere: rows 0, 2, 3 and 5 and two of them again, in draws of three."""
    ids = row_ids(*[np.array([1, 1, 1, 2, 2, 2])] * 2, np.array([0, 1, 2] * 2))
    return pick(batch(), [0, 2, 3, 5, 0, 3]).replace(ids=jax.tree.map(jnp.asarray, ids))


def test_a_given_turn_carries_no_loss_and_no_kl():
    """The bonus is over it all the same: an attempt's reward counts whoever wrote it."""
    rows = given(paired())
    returns = shaped(np.asarray(rows.rewards), 2.0) * [0.0, 1.0]
    loss, slope, advantages = by_hand(rows, beta=(0.0, 0.1), returns=returns)
    state, metrics = revised(rows)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)
    want = metrics_by_hand(rows, advantages)
    want["return/turn1"] = 0.0
    assert_told(metrics, want)
    nothing = ("kl", "entropy", "length", "mismatch/max", "mismatch/mean", "mismatch/kl")
    assert [metrics[f"{name}/turn1"] for name in nothing] == [0.0] * len(nothing)
    assert metrics["accuracy/turn1"] == pytest.approx(1 / 6) and metrics["kl/turn2"] > 0.01


def test_other_given_tokens_change_nothing_in_the_terms_of_turn_one():
    """Turn 2 is another turn after them, so its terms may move; turn 1 has none."""
    rows = given(paired())
    there = np.asarray(rows.turn) == 1
    tokens = np.where(there, (np.asarray(rows.tokens) + 3) % MODEL.vocab_size, rows.tokens)
    other = rows.replace(tokens=jnp.asarray(tokens, jnp.int32))
    (_, before), (state, after) = revised(rows), revised(other)
    for name in before:
        if name.endswith("/turn1"):
            assert before[name] == after[name], name
    assert abs(before["kl/turn2"] - after["kl/turn2"]) > 1e-4
    # With turn 2's tokens out of the loss as well nothing is left to move the parameters.
    still = other.replace(trained=jnp.zeros_like(other.trained))
    state, metrics = revised(still)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient(state)))
    assert metrics["loss"] == 0.0


def test_what_is_drawn_but_not_trained_has_its_kl_told_and_no_loss():
    """Turn 1 sampled, turn 2 trained: the KL metric sees turn 1, the gradient does not."""
    plan = DialoguePlan(trained=(False, True)).complete(2, LIMIT)
    rows = paired()
    rows = rows.replace(trained=rows.turn == 2)
    returns = shaped(np.asarray(rows.rewards), 2.0) * [0.0, 1.0]
    loss, slope, advantages = by_hand(rows, beta=(0.0, 0.1), returns=returns)
    state, metrics = run(REVISE, rows, plan=plan)
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)
    want = metrics_by_hand(rows, advantages)
    want["return/turn1"] = 0.0
    assert_told(metrics, want)
    assert metrics["kl/turn1"] > 0.01


def test_shaping_moves_the_returns_of_its_own_turn_and_no_reward():
    """Half a reward off turn 2 of two rows, beside what alpha makes of the rewards."""
    shaping = np.zeros((6, 2), np.float32)
    shaping[[0, 3], 1] = -0.5
    returns = shaped(REWARDS, 2.0) + shaping
    loss, slope, advantages = by_hand(batch(), returns=returns)
    state, metrics = run(rows=batch(shaping=jnp.asarray(shaping)))
    assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
    assert_close(gradient(state), slope)
    want = metrics_by_hand(batch(), advantages)
    want["return/turn2"] = returns[PRESENT[:, 1], 1].mean()
    assert_told(metrics, want)


def test_one_program_serves_all_values_of_alpha_and_beta(base):
    """They are data of the state: a schedule that moves them compiles nothing."""
    jitted = programs(STAGE_TWO, LearnerConfig(), 1.0, DECODER)
    run(rows=batch())
    compiled = jitted._cache_size()
    for alpha, beta in ((0.0, (0.2, 0.1)), (5.0, (0.7, 0.0)), (2.0, (0.2, 0.1))):
        now = coefficients.initial(STAGE_TWO)
        now = now.replace(alpha=jnp.float32(alpha), beta=jnp.asarray(beta, jnp.float32))
        state, metrics = run(rows=batch(), now=now)
        loss, slope, _ = by_hand(batch(), alpha, beta)
        assert metrics["loss"] == pytest.approx(loss, abs=1e-5)
        assert_close(gradient(state), slope)
        assert metrics["alpha"] == alpha
        assert [metrics["beta/turn1"], metrics["beta/turn2"]] == pytest.approx(beta)
    assert jitted._cache_size() == compiled


def test_an_update_hands_on_the_coefficients_of_the_next():
    """After the eighth of thirty rollouts, by the KL and return that this one has told."""
    schedule = CoefficientsConfig(alpha="linear", alpha_end=0.5, beta="target", target_kl=0.3)
    learn = program(STAGE_TWO, LearnerConfig(), 1.0, DECODER, schedule=schedule)
    state, metrics = learn(random_params(MODEL), random_params(MODEL, seed=1), batch())
    after = jax.device_get(state.coefficients)
    assert metrics["alpha"] == 2.0 and metrics["beta/turn1"] == pytest.approx(0.2)
    assert after.alpha == pytest.approx(2.0 - 1.5 * 8 / 29)
    error = np.clip(metrics["kl/turn1"] / 0.3 - 1, -0.2, 0.2)
    assert after.beta[0] == pytest.approx(0.2 * (1 + 0.1 * error), rel=1e-5)
    assert after.beta[1] == np.float32(0.1)
    told = [metrics[f"kl/turn{turn}"] for turn in (1, 2)]
    np.testing.assert_allclose(after.kl, 0.1 * np.array(told), rtol=1e-5)
    assert after.gain == pytest.approx(0.1 * abs(metrics["return/turn2"]), rel=1e-5)
