"""The decoder agrees with itself: cached and whole, padded and bare, remat and plain."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder, parameter_count, write_cache
from score_jax.types import Cache

CONFIG = ModelConfig(
    vocab_size=29,
    layers=3,
    width=12,
    heads=4,
    kv_heads=2,
    head_dim=6,
    mlp_dim=20,
    qk_norm=True,
    post_norms=True,
    window=4,
    local_layers=(True, False, True),
    attention_cap=20.0,
)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 29, (2, 12)))
POSITIONS = jnp.broadcast_to(jnp.arange(12), (2, 12))


@pytest.fixture(scope="module")
def variables():
    return nn.unbox(jax.jit(Decoder(CONFIG).init)(jax.random.key(0), TOKENS, POSITIONS))


def run(variables, tokens, positions, cache=None, config=CONFIG):
    return jax.jit(Decoder(config).apply)(variables, tokens, positions, cache)


def test_rows_of_unequal_length_decode_as_alone(variables):
    """Two rows are prefilled together, padded; each goes on at its own length."""
    lengths = jnp.array([5, 8])
    whole, _ = run(variables, TOKENS, POSITIONS)
    _, new = run(variables, TOKENS[:, :8], POSITIONS[:, :8])
    cache = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 4), (0, 0)]), new)
    for step in range(4):
        at = lengths + step
        token = jnp.take_along_axis(TOKENS, at[:, None], axis=1)
        hidden, new = run(variables, token, at[:, None], cache)
        for row in range(2):
            expected = whole[row, at[row]]
            np.testing.assert_allclose(hidden[row, 0], expected, atol=2e-5)
        cache = write_cache(cache, new, at)


def test_what_lies_in_slots_ahead_is_never_seen(variables):
    _, cache = run(variables, TOKENS[:, :6], POSITIONS[:, :6])
    grown = jax.tree.map(lambda x: jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, 6), (0, 0)]), cache)
    dirty = jax.tree.map(lambda x: x.at[:, :, :, 6:].set(1e6), grown)
    clean, _ = run(variables, TOKENS[:, 6:7], POSITIONS[:, 6:7], grown)
    found, _ = run(variables, TOKENS[:, 6:7], POSITIONS[:, 6:7], dirty)
    np.testing.assert_array_equal(found, clean)


def test_a_token_sees_nothing_ahead_of_it(variables):
    whole, _ = run(variables, TOKENS, POSITIONS)
    changed, _ = run(variables, TOKENS.at[:, 7:].set(0), POSITIONS)
    np.testing.assert_array_equal(changed[:, :7], whole[:, :7])
    assert np.abs(changed[:, 7:] - whole[:, 7:]).max() > 1e-3


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(variables, remat):
    def gradient(config):
        def loss(params):
            return jnp.sum(Decoder(config).apply({"params": params}, TOKENS, POSITIONS)[0] ** 2)

        return jax.jit(jax.grad(loss))(variables["params"])

    found, plain = gradient(replace(CONFIG, remat=remat)), gradient(CONFIG)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, plain)


def test_remat_keeps_less_for_the_backward_pass():
    """Nothing of the layers; then the products of weights, but no attention; then all of it."""
    config = replace(CONFIG, layers=4, window=None, local_layers=None)
    tokens = jnp.zeros((4, 64), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(64), tokens.shape)

    def kept(remat):
        def loss(params):
            decoder = Decoder(replace(config, remat=remat))
            return jnp.sum(decoder.apply({"params": params}, tokens, positions)[0] ** 2)

        params = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, positions)
        compiled = jax.jit(jax.grad(loss)).lower(params["params"]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    attention = 4 * 4 * config.heads * 64 * 64 * 4  # bytes: of all layers, rows and heads
    assert kept("full") < kept("dots") < kept("none") - attention / 2


def test_a_block_is_written_at_each_rows_own_place():
    cache = Cache(keys=jnp.zeros((2, 2, 1, 5, 1)), values=jnp.zeros((2, 2, 1, 5, 1)))
    block = jnp.arange(8.0).reshape(2, 2, 1, 2, 1) + 1
    written = write_cache(cache, Cache(keys=block, values=-block), jnp.array([0, 3]))
    expected = [[[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]], [[5, 6, 0, 0, 0], [0, 0, 0, 7, 8]]]
    np.testing.assert_array_equal(written.keys[:, :, 0, :, 0], expected)
    np.testing.assert_array_equal(written.values[:, :, 0, :, 0], -np.array(expected))


def test_parameters_are_counted_by_hand():
    attention = 12 * 24 + 2 * 12 * 12 + 24 * 12 + 2 * 6  # query, key and value, out, norms
    layer = attention + 3 * 12 * 20 + 4 * 12  # MLP, four norms
    assert parameter_count(CONFIG) == 29 * 12 + 3 * layer + 12
    assert parameter_count(replace(CONFIG, tied_embeddings=False)) - parameter_count(CONFIG) == 348
