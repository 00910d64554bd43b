"""Supervised training follows the cross-entropy of the tokens that are to be learnt."""

import jax
import jax.numpy as jnp
import optax
import pytest

from score_jax.step import LearnerConfig
from score_jax.supervised import supervised_update
from score_jax.types import TrainState
from tests.test_step import DECODER, LIMIT, assert_close, episodes, gradient
from tests.tiny import MODEL, random_params, row_logits


def test_supervised_update_follows_the_mean_cross_entropy():
    rows, params = episodes(), random_params(MODEL)

    def loss(params):
        logprobs = jax.nn.log_softmax(row_logits(MODEL)(params, rows.tokens))[:, :-1]
        chosen = jnp.take_along_axis(logprobs, rows.tokens[:, 1:, None], -1)[..., 0]
        own = rows.turn[:, 1:] > 0
        return -jnp.sum(jnp.where(own, chosen, 0.0)) / 21

    value, slope = jax.jit(jax.value_and_grad(loss))(params)
    sgd = optax.sgd(1.0)
    state = TrainState(
        step=jnp.array(0), params=params, opt_state=sgd.init(params), baseline=jnp.zeros(2)
    )
    config = LearnerConfig(microbatches=2, chunk=3)
    new, metrics = jax.jit(
        lambda state, rows: supervised_update(
            DECODER, sgd, state, rows, config=config, most=2 * LIMIT
        )
    )(state, rows)
    assert float(metrics["loss"]) == pytest.approx(float(value), abs=1e-5)
    assert_close(gradient(new), slope)
    assert int(new.step) == 1


@pytest.mark.parametrize("field", ["microbatches", "minibatches", "chunk"])
def test_a_learner_cut_into_nothing_is_refused(field):
    with pytest.raises(ValueError, match=f"learner.{field} is 0; set at least 1"):
        LearnerConfig(**{field: 0})
