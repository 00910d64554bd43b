"""The decoder agrees with itself: cached and whole, padded and bare, remat and plain."""

from dataclasses import replace
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.cache import write_cache
from score_jax.model.config import ModelConfig
from score_jax.model.decoder import (
    Decoder,
    decode,
    parameter_count,
    split_layers,
)
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


def run(variables, tokens, positions):
    return jax.jit(Decoder(CONFIG).apply)(variables, tokens, positions)


@partial(jax.jit, static_argnames="groups")
def behind(variables, tokens, positions, caches=(), groups=1):
    """The hidden states of a block, and its keys and values."""
    params = split_layers(variables["params"], groups)
    return decode(Decoder(CONFIG), params, tokens, positions, caches)


def block_traces(groups):
    """How often Python runs through a block while `decode` of so many groups is traced."""
    config = replace(CONFIG, layers=6, local_layers=(True, False) * 3)
    shapes = jax.eval_shape(Decoder(config).init, jax.random.key(0), TOKENS, POSITIONS)
    params = jax.eval_shape(partial(split_layers, groups=groups), nn.unbox(shapes)["params"])
    met = []

    def note(call, args, kwargs, context):
        met.append(type(context.module).__name__)
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(partial(decode, Decoder(config)), params, TOKENS, POSITIONS)
    return met.count("Block")


def test_groups_of_layers_are_traced_once():
    """Each by itself, the sampler of a model of 30 layers was traced in 8 s, and so in 2.5."""
    assert block_traces(6) == block_traces(2) == block_traces(1) > 0


def grown(cache, slots):
    """The cache with room for more tokens, noise in it."""
    pad = [(0, 0), (0, 0), (0, 0), (0, slots), (0, 0)]
    keys, values = jax.tree.map(
        lambda x: jnp.pad(x, pad, constant_values=1e6), (cache.keys, cache.values)
    )
    positions = jnp.pad(cache.positions, [(0, 0), (0, slots)], constant_values=-1)
    return Cache(keys=keys, values=values, positions=positions)


def test_rows_of_unequal_length_decode_as_alone(variables):
    """Two rows are prefilled together, padded; each goes on at its own length."""
    lengths = jnp.array([5, 8])
    whole = run(variables, TOKENS, POSITIONS)
    _, new = behind(variables, TOKENS[:, :8], POSITIONS[:, :8])
    there = jnp.where(POSITIONS[:, :8] < lengths[:, None], POSITIONS[:, :8], -1)
    for wise in ("one slot for all", "a slot for each row"):
        cache = grown(new.replace(positions=there), 5)
        for step in range(4):
            at = lengths + step
            slot = jnp.asarray(8 + step) if wise == "one slot for all" else jnp.array([9, 8]) + step
            token = jnp.take_along_axis(TOKENS, at[:, None], axis=1)
            hidden, own = behind(variables, token, at[:, None], [cache])
            for row in range(2):
                expected = whole[row, at[row]]
                np.testing.assert_allclose(hidden[row, 0], expected, atol=2e-5)
            cache = write_cache(cache, own, slot, at[:, None])


@pytest.mark.parametrize("groups", [1, 3])
def test_rows_that_share_a_cache_decode_as_alone(variables, groups):
    """Four rows, the first two behind one prompt, the others behind the other; layers split."""
    _, prompt = behind(variables, TOKENS[:, :5], POSITIONS[:, :5], groups=groups)
    rows = jnp.repeat(TOKENS, 2, axis=0).at[:, 5:].add(jnp.arange(4)[:, None]) % 29
    places = jnp.repeat(POSITIONS, 2, axis=0)
    whole = run(variables, rows, places)
    _, own = behind(variables, rows[:, 5:8], places[:, 5:8], [prompt], groups=groups)
    hidden, _ = behind(variables, rows[:, 8:], places[:, 8:], [prompt, own], groups=groups)
    np.testing.assert_allclose(hidden, whole[:, 8:], atol=2e-5)


def test_a_token_sees_nothing_ahead_of_it(variables):
    whole = run(variables, TOKENS, POSITIONS)
    changed = run(variables, TOKENS.at[:, 7:].set(0), POSITIONS)
    np.testing.assert_array_equal(changed[:, :7], whole[:, :7])
    assert np.abs(changed[:, 7:] - whole[:, 7:]).max() > 1e-3


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(variables, remat):
    def gradient(config):
        def loss(params):
            return jnp.sum(Decoder(config).apply({"params": params}, TOKENS, POSITIONS) ** 2)

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
            return jnp.sum(decoder.apply({"params": params}, tokens, positions) ** 2)

        params = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, positions)
        compiled = jax.jit(jax.grad(loss)).lower(params["params"]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    attention = 4 * 4 * config.heads * 64 * 64 * 4  # bytes: of all layers, rows and heads
    assert kept("full") < kept("dots") < kept("none") - attention / 2


def test_parameters_are_counted_by_hand():
    attention = 12 * 24 + 2 * 12 * 12 + 24 * 12 + 2 * 6  # query, key and value, out, norms
    layer = attention + 3 * 12 * 20 + 4 * 12  # MLP, four norms
    assert parameter_count(CONFIG) == 29 * 12 + 3 * layer + 12
    assert parameter_count(replace(CONFIG, tied_embeddings=False)) - parameter_count(CONFIG) == 348
