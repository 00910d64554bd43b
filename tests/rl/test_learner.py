"""One update: its parts add up to the whole, and only what it may change changes."""

import dataclasses
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.model.decoder import Decoder
from score_jax.rl import coefficients, learner, packing
from score_jax.rl.coefficients import CONSTANT
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.estimators import EstimatorConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.metrics import flat
from score_jax.rl.objectives import Objective
from tests.guarded import guarded
from tests.tiny import MODEL, grouped, naive_logprobs, random_params, row_logits, rows_of

LIMIT = 5
SAMPLES = 2
LINES = [  # tokens, turn
    ([3, 4, 5, 2, 1, 0, 7, 8, 6, 0], [0, 0, 0, 1, 1, 1, 0, 0, 2, 2]),
    ([3, 4, 5, 0, 7, 8, 1, 2, 3, 4, 5], [0, 0, 0, 1, 0, 0, 2, 2, 2, 2, 2]),
    ([1, 2, 3, 4, 5, 6, 6, 0, 7, 8, 0], [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 2]),
    ([1, 2, 0, 7, 8, 4, 4, 0], [0, 0, 1, 0, 0, 2, 2, 2]),
]
REWARDS = np.array([[0.0, 1], [1, 0], [0, 0], [1, 1]])
STAGE_TWO = Objective(reward_weights=(1.0, 1.0), beta=(0.2, 0.1), alpha=2.0)
ESTIMATOR = EstimatorConfig()  # leave one out, the exact KL
PLAN = DialoguePlan().complete(2, LIMIT)
DECODER = Decoder(MODEL)


def episodes(**options):
    rows = rows_of(LINES, 2, **options)
    old = np.where(rows.sampled, naive_logprobs(MODEL, random_params(MODEL), rows.tokens), 0)
    ids = grouped(len(LINES), SAMPLES)
    return rows_of(LINES, 2, rewards=REWARDS, logprobs=old, ids=ids, **options)


@lru_cache
def programs(
    objective,
    config,
    rate,
    decoder,
    compose=learner.all_trained,
    *,
    estimator=ESTIMATOR,
    plan=PLAN,
    schedule=CONSTANT,
):
    """One update with the reference's scores, jitted; its state begins as `state_of` says."""
    options = learner.Learner(
        decoder=decoder,
        optimizer=optax.sgd(rate),
        max_tokens=plan.drawn_tokens,
        config=config,
        estimator=estimator,
        compose=compose,
    )

    @jax.jit
    def go(params, reference, rows, now):
        keep = estimator.kl == "exact"
        scores = learner.score_episodes(options, reference, rows, keep_hidden=keep)
        state = learner.begin(options, params, objective).replace(
            step=jnp.array(7), baseline=jnp.array([0.5, 0.25]), coefficients=now
        )
        options_of_stage = {"plan": plan, "objective": objective, "schedule": schedule}
        return learner.update(options, state, reference, rows, scores, **options_of_stage, steps=30)

    return go


def program(objective, *rest, now=None, **options):
    """A function (params, reference, rows) -> state, flat metrics; under the transfer guard.

    Args:
      now: coefficients; None: those that the objective begins with.
    """
    go = guarded(programs(objective, *rest, **options))

    def call(params, reference, rows):
        state, found = go(params, reference, rows, now or coefficients.initial(objective))
        return state, flat(jax.device_get(found))

    return call


def run(objective=STAGE_TWO, rows=None, rate=1.0, decoder=DECODER, *, now=None, **fields):
    """The state and metrics after one update from random parameters.

    Args:
      fields: of the learner, or the program's estimator, plan and schedule.
    """
    options = {k: fields.pop(k) for k in ("estimator", "plan", "schedule") if k in fields}
    go = program(objective, LearnerConfig(**fields), rate, decoder, now=now, **options)
    rows = episodes() if rows is None else rows
    return go(random_params(MODEL), random_params(MODEL, seed=1), rows)


def naive_loss(params, rows, objective):
    """The loss of Stage II with all of [B T V] and the exact KL, written once more."""
    reference = jax.nn.log_softmax(row_logits(MODEL)(random_params(MODEL, seed=1), rows.tokens))
    policy = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens))
    alpha = objective.alpha
    total = 0.0
    for row in range(len(LINES)):
        other = row ^ 1  # the problem's other sample
        gain = [
            [r[0], r[1] + alpha * (r[1] - r[0])] for r in (REWARDS[row], REWARDS[other])
        ]  # fmt: skip
        for place in range(1, len(LINES[row][0])):
            turn = LINES[row][1][place]
            if turn == 0:
                continue
            advantage = gain[0][turn - 1] - gain[1][turn - 1]
            here, there = policy[row, place - 1], reference[row, place - 1]
            kl = jnp.sum(jnp.exp(here) * (here - there))
            total += -advantage * here[LINES[row][0][place]] + objective.beta[turn - 1] * kl
    return total / len(LINES)


@pytest.fixture(scope="module")
def whole():
    return run(logits_chunk=100)


@pytest.fixture(scope="module")
def naive():
    return jax.jit(jax.value_and_grad(naive_loss), static_argnums=2)(
        random_params(MODEL), episodes(), STAGE_TWO
    )


def assert_close(a, b, atol=1e-5):
    """Equal but for rounding: the same float32 sums in another order, of entries up to 40.

    Which order a CPU takes depends on its vector units, so their size has to count as well.
    """
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol), a, b)


def assert_same_metrics(metrics, others):
    """Of the same dialogues; how they are laid out is not one of theirs."""
    assert metrics.keys() == others.keys()
    for name, got in metrics.items():
        if name == "padding":
            continue
        np.testing.assert_allclose(got, others[name], rtol=1e-6, atol=1e-5, err_msg=name)


def gradient(state):
    """What plain descent at rate 1 has taken off the parameters."""
    return jax.tree.map(lambda old, new: old - new, random_params(MODEL), state.params)


def test_loss_and_gradient_are_those_of_the_plain_formula(whole, naive):
    state, metrics = whole
    assert metrics["loss"] == pytest.approx(float(naive[0]), abs=1e-5)
    assert_close(gradient(state), naive[1])
    assert float(optax.tree.norm(naive[1])) > 0.1
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(naive[1])), rel=1e-4)


@pytest.mark.parametrize(
    "fields",
    [{"logits_chunk": 3, "microbatches": 2}, {"logits_chunk": 1, "microbatches": 4}],
    ids=str,
)
def test_cutting_for_memory_changes_nothing(whole, fields):
    state, metrics = run(**fields)
    assert_close(state, whole[0])
    assert_same_metrics(metrics, whole[1])


@pytest.mark.parametrize("padding", [0, 6])
def test_more_padding_changes_nothing(whole, padding):
    """Though the padding be the stop token, id 0."""
    state, metrics = run(rows=episodes(width=17, padding=padding), logits_chunk=100)
    assert_close(state, whole[0])
    assert_same_metrics(metrics, whole[1])


def test_rematerialisation_changes_nothing(whole):
    decoder = Decoder(dataclasses.replace(MODEL, remat="full"))
    assert_close(run(decoder=decoder, logits_chunk=100)[0], whole[0])


def test_minibatches_are_updates_one_after_the_other():
    """Each sees its own rows once, at their mean, under the advantages of the whole batch."""
    rate, rows, params = 0.05, episodes(), random_params(MODEL)
    returns = np.stack([REWARDS[:, 0], 3 * REWARDS[:, 1] - 2 * REWARDS[:, 0]], 1)
    advantages = returns - returns[[1, 0, 3, 2]]
    owner = np.asarray(rows.turn)

    def loss(params, part):
        logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens[part]))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, rows.tokens[part][:, 1:, None], -1)[..., 0]
        ratio = jnp.exp(chosen - rows.logprobs[part][:, 1:])
        total = 0.0
        for turn in (1, 2):
            gain = advantages[part, turn - 1][:, None]
            pessimist = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain)
            total -= jnp.sum(jnp.where(owner[part][:, 1:] == turn, pessimist, 0.0))
        return total / len(part)

    for part in ([0, 2], [1, 3]):  # rows are dealt out
        slope = jax.jit(jax.grad(partial(loss, part=np.array(part))))(params)
        params = jax.tree.map(lambda p, g: p - rate * g, params, slope)
    clipped = dataclasses.replace(NO_KL, clip=0.2)
    state, metrics = run(PLAIN, rows, rate, estimator=clipped, minibatches=2)
    assert_close(state.params, params)
    assert (
        max(metrics[f"mismatch/max/turn{turn}"] for turn in (1, 2)) < 1e-4
    )  # before the first, where nothing has moved


def test_state_counts_steps_and_remembers_returns(whole):
    state, metrics = whole
    assert int(state.step) == 8
    returns = np.array([0.5, (1 + 2 * 1 + 0 - 2 * 1 + 0 + 1) / 4])  # alpha 2
    assert [metrics[f"return/turn{t}"] for t in (1, 2)] == pytest.approx(returns)
    np.testing.assert_allclose(state.baseline, 0.9 * np.array([0.5, 0.25]) + 0.1 * returns)


def test_the_running_mean_is_of_the_values_alone_from_the_first_on():
    """A decaying average that began at 0, against the weighted mean written out."""
    values, decay, average = [0.8, 0.2, 0.5], 0.9, 0.0
    assert learner.running_mean(jnp.zeros(1), jnp.asarray(0), decay).tolist() == [0.0]
    for count, value in enumerate(values, 1):
        average = decay * average + (1 - decay) * value
        weights = [decay ** (count - place) for place in range(1, count + 1)]
        want = np.average(values[:count], weights=weights)
        got = learner.running_mean(jnp.asarray([average]), jnp.asarray(count), decay)
        assert float(got[0]) == pytest.approx(want, rel=1e-5)


def test_metrics_by_hand(whole):
    metrics = whole[1]
    assert metrics["accuracy/turn1"] == 0.5 and metrics["accuracy/turn2"] == 0.5
    assert metrics["delta"] == 0.0
    assert metrics["delta_i_to_c"] == 0.25 and metrics["delta_c_to_i"] == 0.25
    assert metrics["length/turn1"] == (3 + 1 + 5 + 1) / 4
    assert metrics["length/turn2"] == (2 + 5 + 1 + 3) / 4
    assert metrics["truncated/turn1"] == 0.0
    assert max(metrics["mismatch/max/turn1"], metrics["mismatch/max/turn2"]) < 1e-5
    advantages = np.array([3 - -2, -2 - 3, 0 - 1, 1 - 0], float)  # less the sibling's
    assert metrics["advantage_std/turn2"] == pytest.approx(advantages.std())
    assert metrics["alone"] == 0.0
    assert metrics["reward/turn1"] == 0.5 and metrics["reward/turn2"] == 0.5
    # Turn 1: rewards 0, 1 and 0, 1; turn 2: 1, 0 and 0, 1.
    assert metrics["no_signal/turn1"] == 0.0 and metrics["no_signal/turn2"] == 0.0
    assert metrics["alpha"] == pytest.approx(2.0)
    assert [metrics["beta/turn1"], metrics["beta/turn2"]] == pytest.approx([0.2, 0.1])


def test_reported_kl_and_entropy_are_per_turn_and_per_token(whole):
    rows = episodes()
    tables = [
        np.asarray(jax.nn.log_softmax(row_logits(MODEL)(random_params(MODEL, seed=s), rows.tokens)))
        for s in (0, 1)
    ]
    policy, reference = (np.pad(t, ((0, 0), (1, 0), (0, 0)))[:, :-1] for t in tables)
    kl = (np.exp(policy) * (policy - reference)).sum(-1)
    entropy = -(np.exp(policy) * policy).sum(-1)
    for turn in (1, 2):
        own = np.asarray(rows.turn) == turn
        assert whole[1][f"kl/turn{turn}"] == pytest.approx(kl[own].sum() / 4, rel=1e-4)
        assert whole[1][f"entropy/turn{turn}"] == pytest.approx(entropy[own].mean(), rel=1e-4)


def test_the_gap_metric_sees_a_sampler_that_lies():
    rows = episodes()
    logprobs = rows.logprobs.at[2, 4].add(0.5)
    metrics = run(rows=rows.replace(logprobs=logprobs), logits_chunk=3, microbatches=2)[1]
    worst = [metrics[f"mismatch/max/turn{turn}"] for turn in (1, 2)]
    assert worst == pytest.approx([0.5, 0.0], abs=1e-4)
    means = [metrics[f"mismatch/mean/turn{turn}"] for turn in (1, 2)]
    assert means == pytest.approx([0.5 / 10, 0.0], abs=1e-4)  # row 2, place 4: of turn 1's 10


# Learner over sampler, log; none lies at a cap that is tried, where rounding would decide.
LIES = np.log([0.25, 0.5, 0.8, 0.98, 1.02, 1.25, 1.9, 2.5, 8.0])


def lying():
    """Dialogues whose sampler says other log-probabilities than the learner's."""
    rows = episodes()
    off = np.random.default_rng(5).choice(LIES, size=rows.turn.shape) * (np.asarray(rows.turn) > 0)
    return rows.replace(logprobs=rows.logprobs - off), off


def weighed_slope(rows, off, cap, advantages, part):
    """Gradient of the plain policy gradient with each token weighed by hand."""
    weight = np.minimum(np.exp(off), cap)[part][:, 1:]
    owner = np.asarray(rows.turn)[part][:, 1:]
    gain = np.where(owner == 1, advantages[part, :1], advantages[part, 1:]) * (owner > 0)

    def loss(params):
        logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens[part]))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, rows.tokens[part][:, 1:, None], -1)[..., 0]
        return -jnp.sum(weight * gain * chosen) / len(part)

    return jax.jit(jax.value_and_grad(loss))(random_params(MODEL))


PLAIN = dataclasses.replace(STAGE_TWO, beta=(0.0, 0.0))
NO_KL = EstimatorConfig(kl="k2")
RETURNS = np.stack([REWARDS[:, 0], 3 * REWARDS[:, 1] - 2 * REWARDS[:, 0]], 1)
ADVANTAGES = RETURNS - RETURNS[[1, 0, 3, 2]]
ALL = np.arange(4)


@pytest.mark.parametrize("clip", [None, 0.2], ids=["reinforce", "clip"])
@pytest.mark.parametrize("cap", [1.0, 2.0, 100.0, None], ids=str)
def test_importance_cap_weighs_each_tokens_loss(cap, clip):
    """With a clip range too: what rounding moved is not what an update has moved."""
    rows, off = lying()
    estimator = dataclasses.replace(NO_KL, importance_cap=cap, clip=clip)
    state, metrics = run(PLAIN, rows, estimator=estimator, logits_chunk=3, microbatches=2)
    by_hand = off if cap is not None else 0 * off
    loss, slope = weighed_slope(rows, by_hand, cap or 1.0, ADVANTAGES, ALL)
    assert_close(gradient(state), slope)
    if clip is None:
        assert metrics["loss"] == pytest.approx(float(loss), rel=3e-6)  # of float32 sums
    for turn in (1, 2):
        share = (np.exp(off[np.asarray(rows.turn) == turn]) > (cap or np.inf)).mean()
        name = f"importance_capped/turn{turn}"
        assert (name in metrics) == (cap is not None)
        assert metrics.get(name, share) == pytest.approx(share)


def test_later_minibatches_keep_the_weights_of_the_policy_before_the_first():
    """Weighed by learner / sampler before any update, clipped by what updates have moved."""
    rows, off = lying()
    estimator = dataclasses.replace(NO_KL, importance_cap=2.0, clip=0.2)
    rate, params, owner = 0.05, random_params(MODEL), np.asarray(rows.turn)
    before = np.asarray(rows.logprobs) + off

    def loss(params, part):
        logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens[part]))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, rows.tokens[part][:, 1:, None], -1)[..., 0]
        ratio, weight = jnp.exp(chosen - before[part][:, 1:]), np.minimum(np.exp(off), 2.0)
        total = 0.0
        for turn in (1, 2):
            gain = ADVANTAGES[part, turn - 1][:, None]
            pessimist = jnp.minimum(ratio * gain, jnp.clip(ratio, 0.8, 1.2) * gain)
            own = owner[part][:, 1:] == turn
            total -= jnp.sum(jnp.where(own, weight[part][:, 1:] * pessimist, 0.0))
        return total / len(part)

    for part in ([0, 2], [1, 3]):
        slope = jax.jit(jax.grad(partial(loss, part=np.array(part))))(params)
        params = jax.tree.map(lambda p, g: p - rate * g, params, slope)
    state, metrics = run(PLAIN, rows, rate, estimator=estimator, minibatches=2)
    assert_close(state.params, params)
    for turn in (1, 2):
        mean = np.abs(off[owner == turn]).mean()
        assert metrics[f"mismatch/mean/turn{turn}"] == pytest.approx(mean, abs=1e-4)


def test_the_kl_in_the_return_is_the_learners_not_the_samplers():
    estimator = EstimatorConfig(kl="reward")
    rows, off = lying()
    (honest, true), (state, metrics) = (
        run(rows=x, estimator=estimator, microbatches=2) for x in (episodes(), rows)
    )
    for turn in (1, 2):
        assert np.abs((off * (np.asarray(rows.turn) == turn)).sum(1)).max() > 0.5
        name = f"return/turn{turn}"
        assert metrics[name] == pytest.approx(true[name], abs=1e-5)
    assert_close(state, honest)


def test_rows_are_dealt_out_and_joined_again():
    tree = {"a": jnp.arange(12).reshape(6, 2)}
    parts = packing.split_rows(tree, 3)
    assert parts["a"][:, :, 0].tolist() == [[0, 6], [2, 8], [4, 10]]
    assert (packing.join_rows(parts)["a"] == tree["a"]).all()


MIB = 2**20


@pytest.mark.parametrize(
    ("most", "each", "expected"),
    [
        (100, MIB, 100),  # all of them: a quarter is too few
        (900, MIB // 8, 256),
        (4000, MIB // 8, 1000),  # a quarter
        (4000, MIB, 512),  # 512 MiB
        (4000, 1024 * MIB, 1),
    ],
)
def test_a_chunk_is_a_quarter_of_the_positions_within_what_pays_and_fits(most, each, expected):
    assert learner.chunk_positions(most, each) == expected
