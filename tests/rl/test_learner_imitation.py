"""Supervised learning follows the cross-entropy of just the tokens that are to be learnt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.rl.dialogue import given_rows
from score_jax.rl.learner import (
    Learner,
    LearnerConfig,
    all_trained,
    begin,
    imitate,
    random_move,
)
from score_jax.rl.metrics import flat
from tests.guarded import guarded
from tests.rl.test_learner import DECODER, LIMIT, LINES, STAGE_TWO, assert_close, gradient
from tests.tiny import MODEL, random_params, row_logits, rows_of

UNLEARNT = [(0, 4), (1, 6), (1, 7), (3, 2), (3, 5), (3, 6), (3, 7)]  # row, place of LINES


def worked(width=11):
    """Worked dialogues: nothing is sampled, and some of the turns' tokens are not to be learnt."""
    rows = rows_of(LINES, 2, width=width)
    trained = np.asarray(rows.turn) > 0
    trained[tuple(zip(*UNLEARNT, strict=True))] = False
    arrays = (np.asarray(rows.tokens), np.asarray(rows.length), np.asarray(rows.turn), trained)
    return given_rows(*arrays, turns=2)


@jax.jit
def loss(params, rows):
    """The mean of -log pi over the tokens to be learnt."""
    logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens))[:, :-1]
    chosen = jnp.take_along_axis(logprobs, rows.tokens[:, 1:, None], -1)[..., 0]
    learnt = jnp.asarray([[turn > 0 and (row, place) not in UNLEARNT
                           for place, turn in enumerate(owner + [0] * (11 - len(owner)))]
                          for row, (_, owner) in enumerate(LINES)])  # fmt: skip
    return -jnp.sum(jnp.where(learnt[:, 1:], chosen, 0.0)) / 14


def updated(params, rows, *, step=0, microbatches=2, seed=0, compose=all_trained, **fields):
    """The state and metrics after one update by a learning rate of 1; seed 1 is the reference."""
    learner = Learner(
        decoder=DECODER,
        optimizer=optax.sgd(1.0),
        max_tokens=2 * LIMIT,
        config=LearnerConfig(microbatches=microbatches, logits_chunk=3, **fields),
        compose=compose,
        seed=seed,
    )
    state = begin(learner, params, STAGE_TWO)
    state = state.replace(step=jnp.array(step), baseline=jnp.array([0.5, 0.25]))
    go = guarded(jax.jit(partial(imitate, learner)))
    state, found = go(state, random_params(MODEL, seed=1), rows)
    return state, flat(jax.device_get(found))


def test_imitation_follows_the_mean_cross_entropy_of_what_is_learnt():
    rows, params = worked(), random_params(MODEL)
    value, slope = jax.value_and_grad(loss)(params, rows)
    new, metrics = updated(params, rows)
    assert metrics["loss"] == pytest.approx(float(value), abs=1e-5)
    assert_close(gradient(new), slope)
    assert metrics["gradient_norm"] == pytest.approx(float(optax.tree.norm(slope)), rel=1e-4)
    assert int(new.step) == 1
    assert new.baseline.tolist() == [0.5, 0.25]  # no return has been seen


def test_the_entropy_that_is_told_is_of_the_learnt_tokens():
    rows = worked()
    table = np.asarray(jax.nn.log_softmax(row_logits(MODEL)(random_params(MODEL), rows.tokens)))
    entropy = -(np.exp(table) * table).sum(-1)[:, :-1]
    _, metrics = updated(random_params(MODEL), rows)
    names = {"loss", "gradient_norm", "entropy/turn1", "entropy/turn2", "padding"}
    assert metrics.keys() == names
    for turn in (1, 2):
        own = (rows.trained & (rows.turn == turn))[:, 1:]
        assert metrics[f"entropy/turn{turn}"] == pytest.approx(entropy[own].mean(), rel=1e-4)


def test_neither_microbatches_nor_padding_change_what_is_learnt():
    """A row of its own that teaches nothing, behind the others, does not either."""
    params = random_params(MODEL)
    base, told = updated(params, worked())
    told.pop("padding")
    empty = jax.tree.map(lambda x: np.concatenate([x, 0 * x[:1], 0 * x[:1]]), worked())
    for rows, microbatches in ((worked(width=15), 4), (empty, 2)):
        state, metrics = updated(params, rows, microbatches=microbatches)
        metrics.pop("padding")
        assert_close(state, base)
        assert metrics == pytest.approx(told, rel=1e-5)


def test_what_is_trained_may_be_a_part_that_the_policy_is_composed_of():
    """Here a tenth of a difference from the reference, so its gradient is a tenth, too."""
    rows, params, reference = worked(), random_params(MODEL), random_params(MODEL, seed=1)
    part = jax.tree.map(lambda a, b: 10 * (a - b), params, reference)

    def compose(part, reference):
        return jax.tree.map(lambda x, base: base + x / 10, part, reference)

    value, slope = jax.value_and_grad(loss)(params, rows)
    new, metrics = updated(part, rows, compose=compose)
    assert metrics["loss"] == pytest.approx(float(value), abs=1e-5)
    taken = jax.tree.map(lambda old, after: 10 * (old - after), part, new.params)
    assert_close(taken, slope, atol=1e-4)


def test_noise_takes_the_gradient_a_step_away_and_leaves_the_weights_where_they_are():
    rows, params = worked(), random_params(MODEL)
    key = jax.random.fold_in(jax.random.key(5), 3)  # seed, step
    value, slope = jax.value_and_grad(loss)(random_move(params, key, 0.1), rows)
    assert abs(float(value) - float(loss(params, rows))) > 0.01
    new, metrics = updated(params, rows, step=3, weight_noise=0.1, seed=5)
    assert metrics["loss"] == pytest.approx(float(value), abs=1e-5)
    assert_close(gradient(new), slope)  # from params, not from where the gradient was taken


def test_each_tensor_moves_by_its_share_and_on_its_own():
    rng = np.random.default_rng(0)
    sizes = {"small": 0.01, "large": 30.0, "wide": 1.0}
    tensors = {name: size * rng.normal(size=(40, 50)) for name, size in sizes.items()}
    moved = random_move(tensors, jax.random.key(0), 0.02)
    steps = {name: np.asarray(moved[name]) - tensors[name] for name in tensors}
    for name, step in steps.items():
        share = np.linalg.norm(step) / np.linalg.norm(tensors[name])
        assert share == pytest.approx(0.02, rel=0.07)  # 2,000 draws: 1.6% standard deviation
    directions = [step.ravel() / np.linalg.norm(step) for step in steps.values()]
    assert np.allclose(directions @ np.transpose(directions), np.eye(3), atol=0.1)


def test_no_step_is_no_step():
    tensors = {"a": jnp.ones((3, 2)), "b": jnp.zeros(4)}
    moved = random_move(tensors, jax.random.key(0), 0.0)
    assert all(np.array_equal(moved[name], tensors[name]) for name in tensors)


@pytest.mark.parametrize("field", ["microbatches", "minibatches"])
def test_a_learner_cut_into_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"learner.{field} is 0; set at least 1"):
        LearnerConfig(**{field: 0})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_noise": -0.1}, r"learner.weight_noise is -0.1; set a value in 0..1"),
        ({"baseline_decay": 1.0}, r"learner.baseline_decay is 1.0; set a value in 0..1, below 1"),
    ],
)
def test_impossible_values_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        LearnerConfig(**fields)
