"""The table of stored names covers every parameter, and its axes go there and back."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder
from score_jax.model.weights.names import entries

PLAIN = ModelConfig(vocab_size=11, layers=3, width=10, heads=4, kv_heads=2, head_dim=6, mlp_dim=14)
FULL = dataclasses.replace(
    PLAIN, qk_norm=True, post_norms=True, qkv_bias=True, tied_embeddings=False
)


@pytest.mark.parametrize("config", [PLAIN, FULL], ids=["plain", "full"])
def test_every_parameter_has_a_stored_name_and_its_shape(config):
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(boxed)["params"])
    made = {tuple(key.key for key in path): leaf.shape for path, leaf in leaves}
    assert {entry.path: entry.shape for entry in entries(config)} == made


def test_no_two_parameters_share_a_stored_name():
    names = [name for entry in entries(FULL) for name in entry.names]
    assert len(names) == len(set(names))


def test_a_head_lands_where_it_belongs():
    by_name = {entry.names[0]: entry for entry in entries(PLAIN)}
    query = by_name["model.layers.0.self_attn.q_proj.weight"]
    stored = np.arange(4 * 6 * 10).reshape(24, 10)
    ours = query.from_stored(stored)  # D N H
    assert ours[7, 3, 2] == stored[3 * 6 + 2, 7]
    out = by_name["model.layers.0.self_attn.o_proj.weight"]
    stored = np.arange(10 * 24).reshape(10, 24)
    assert out.from_stored(stored)[3, 2, 7] == stored[7, 3 * 6 + 2]


def test_axes_go_there_and_back_without_copies_on_the_way_in():
    for entry in entries(FULL):
        stored = np.arange(np.prod(entry.stored)).reshape(entry.stored)
        ours = entry.from_stored(stored)
        assert ours.base is not None, f"{entry.path} was copied"
        np.testing.assert_array_equal(entry.to_stored(np.array(ours)), stored)
