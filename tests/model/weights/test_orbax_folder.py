"""Parameters come out of a run's checkpoint, and out of a bare tree."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder
from score_jax.model.weights.load import load_params
from score_jax.rl.coefficients import initial
from score_jax.rl.objectives import Objective
from score_jax.types import TrainState

CONFIG = ModelConfig(vocab_size=11, layers=2, width=8, heads=2, kv_heads=1, head_dim=4, mlp_dim=6)


@pytest.fixture(scope="module")
def params():
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(Decoder(CONFIG).init)
    return nn.unbox(init(jax.random.key(0), tokens, tokens)["params"])


def save(path, tree):
    with ocp.StandardCheckpointer() as writer:
        writer.save(path, tree)


def test_a_runs_checkpoint(params, tmp_path):
    moments = jax.tree.map(jnp.ones_like, params)
    state = TrainState(
        step=jnp.ones((), jnp.int32),
        params=params,
        opt_state=(moments,),
        baseline=jnp.zeros(2),
        coefficients=initial(Objective(reward_weights=(0.0, 1.0), beta=(0.1, 0.1))),
    )
    save(tmp_path / "50" / "state", state)
    for source in (tmp_path / "50", tmp_path / "50" / "state"):
        found = load_params(str(source), CONFIG)
        jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_bare_tree_in_half_precision(params, tmp_path):
    save(tmp_path / "tree", params)
    found = load_params(str(tmp_path / "tree"), CONFIG, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype("bfloat16")}
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)


def test_another_models_checkpoint_is_refused(params, tmp_path):
    save(tmp_path / "tree", {name: leaf for name, leaf in params.items() if name != "final_norm"})
    with pytest.raises(ValueError, match="final_norm/scale is missing"):
        load_params(str(tmp_path / "tree"), CONFIG)
