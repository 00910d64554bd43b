"""Supervised training follows the cross-entropy of just the tokens that are to be learnt."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from score_jax.data.equations import Part, WorkedDialogue
from score_jax.records import Task
from score_jax.rl import sft
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.sampling import TurnTemplate
from score_jax.rl.sft import random_move, supervised_update
from score_jax.types import TrainState
from tests.guarded import guarded
from tests.rl.test_learner import DECODER, LIMIT, assert_close, episodes, gradient
from tests.tiny import MODEL, random_params, row_logits

TASK = Task(name="letters", prompt=lambda p: f"?{p.prompt}", instruction="i", grade=lambda *_: None)
TEMPLATE = TurnTemplate(stops=(ord("#"),), instruction=(ord("i"), ord("j")), turns=2)
WRONG = WorkedDialogue("ab", ((Part("x="), Part("7:", learn=False), Part("cd")), (Part("efg"),)))
RIGHT = WorkedDialogue(
    "c", ((Part("x="), Part("7:"), Part("d")), (Part("e"), Part("fg", learn=False)))
)


class Letters:
    """A chat whose tokens are characters."""

    stops = TEMPLATE.stops

    @property
    def tokenizer(self):
        return self

    def encode(self, text):
        return [ord(letter) for letter in text]

    encode_prompt = encode


def test_learnt_tokens_are_exactly_the_intended_ones():
    ids, turns = sft.encode_dialogue(Letters(), TEMPLATE, "?ab", WRONG)
    assert "".join(map(chr, ids)) == "?abx=7:cd#ijefg#"
    assert "".join(map(str, turns)) == "0001100111002222"


def test_a_stop_token_is_learnt_with_the_part_that_it_ends():
    ids, turns = sft.encode_dialogue(Letters(), TEMPLATE, "?c", RIGHT)
    assert "".join(map(chr, ids)) == "?cx=7:d#ije" + "fg#"
    assert "".join(map(str, turns)) == "00111111002" + "000"


def test_rows_are_padded_behind_with_nothing_learnt():
    rows = sft.encode_dialogues(Letters(), TASK, TEMPLATE, [WRONG, RIGHT], 20)
    assert rows.length.tolist() == [16, 14]
    for row, dialogue in enumerate([WRONG, RIGHT]):
        ids, turns = sft.encode_dialogue(Letters(), TEMPLATE, f"?{dialogue.prompt}", dialogue)
        assert rows.tokens[row].tolist() == ids + [0] * (20 - len(ids))
        assert rows.turn[row].tolist() == turns + [0] * (20 - len(ids))
    assert not np.any(rows.logprobs) and not np.any(rows.rewards) and not np.any(rows.truncated)


def test_making_rows_leaves_the_script_alone():
    sft.encode_dialogues(Letters(), TASK, TEMPLATE, [WRONG] * 3, 20)
    assert TEMPLATE.instruction == (ord("i"), ord("j"))


def test_worked_turns_end_in_the_formats_own_stop():
    several = TurnTemplate(stops=(ord("#"), ord("!")), instruction=TEMPLATE.instruction, turns=2)
    ids, _ = sft.encode_dialogue(Letters(), several, "?ab", WRONG)
    assert "".join(map(chr, ids)) == "?abx=7:cd#ijefg#"


def test_a_dialogue_longer_than_a_row_is_refused_by_name():
    message = r"turn_limit allow 15 tokens; a dialogue on 'ab' has 16: raise them"
    with pytest.raises(ValueError, match=message):
        sft.encode_dialogues(Letters(), TASK, TEMPLATE, [WRONG], 15)


@jax.jit
def loss(params, rows):
    logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens))[:, :-1]
    chosen = jnp.take_along_axis(logprobs, rows.tokens[:, 1:, None], -1)[..., 0]
    own = rows.turn[:, 1:] > 0
    return -jnp.sum(jnp.where(own, chosen, 0.0)) / 21


def updated(params, rows, *, step=0, **options):
    """The state and metrics after one update by a learning rate of 1."""
    sgd = optax.sgd(1.0)
    state = TrainState(
        step=jnp.array(step), params=params, opt_state=sgd.init(params), baseline=jnp.zeros(2)
    )
    config = LearnerConfig(microbatches=2, logits_chunk=3)
    update = partial(
        supervised_update, DECODER, sgd, config=config, max_policy_tokens=2 * LIMIT, **options
    )
    return guarded(jax.jit(update))(state, rows)


def test_supervised_update_follows_the_mean_cross_entropy():
    rows, params = episodes(), random_params(MODEL)
    value, slope = jax.value_and_grad(loss)(params, rows)
    new, metrics = updated(params, rows)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
    assert_close(gradient(new), slope)
    assert int(new.step) == 1


def test_noise_takes_the_gradient_a_step_away_and_leaves_the_weights_where_they_are():
    rows, params = episodes(), random_params(MODEL)
    key = jax.random.fold_in(jax.random.key(5), 3)  # seed, step
    value, slope = jax.value_and_grad(loss)(random_move(params, key, 0.1), rows)
    assert abs(float(value) - float(loss(params, rows))) > 0.01
    new, metrics = updated(params, rows, step=3, noise=0.1, seed=5)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
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


@pytest.mark.parametrize("field", ["microbatches", "minibatches", "logits_chunk"])
def test_a_learner_cut_into_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"learner.{field} is 0; set at least 1"):
        LearnerConfig(**{field: 0})
