"""Attention against a loop over queries and keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.attention import Attention, query_blocks, visible
from score_jax.model.config import ModelConfig


def test_what_is_visible_within_a_window():
    found = visible(jnp.array([[4, 5]]), jnp.array([[2, 3, 4, 5, 6]]), jnp.asarray(2))[0]
    np.testing.assert_array_equal(found, [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0]])


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (1, [(0, 1)]),
        (127, [(0, 127)]),
        (130, [(0, 65), (65, 130)]),
        (1024, [(n, n + 128) for n in range(0, 1024, 128)]),
    ],
)
def test_blocks_of_queries_by_hand(length, expected):
    assert query_blocks(length) == expected


@pytest.mark.parametrize("length", [5, 150], ids=["one block", "two blocks"])
def test_grouped_heads_against_a_loop(length):
    """The row holds dialogues of four tokens, of which one lies in two blocks of queries."""
    config = ModelConfig(
        vocab_size=5,
        layers=1,
        width=6,
        heads=4,
        kv_heads=2,
        head_dim=2,
        mlp_dim=3,
        query_scale=0.3,
        attention_cap=2.0,
    )
    rng = np.random.default_rng(0)
    shapes = {"query": (6, 4, 2), "key": (6, 2, 2), "value": (6, 2, 2), "out": (4, 2, 6)}
    p = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x = rng.normal(size=(1, length, 6)).astype(np.float32)
    still = jnp.zeros(1)  # no rotation
    positions, segments = jnp.arange(length)[None, :], jnp.arange(length)[None, :] // 4
    found, (keys, _) = jax.jit(Attention(config).apply)(
        {"params": p}, x, positions, still, jnp.asarray(3), (), None, segments
    )
    expected = np.zeros((length, 6))
    for t in range(length):
        for n in range(4):
            k = n // 2  # query heads 0, 1 share key head 0
            query = x[0, t] @ p["query"][:, n]
            seen = range(max(0, t - 2, t - t % 4), t + 1)
            raw = [0.3 * query @ (x[0, s] @ p["key"][:, k]) for s in seen]
            weights = np.exp([2.0 * math.tanh(v / 2.0) for v in raw])
            weights /= weights.sum()
            mixed = sum(
                w * (x[0, s] @ p["value"][:, k]) for w, s in zip(weights, seen, strict=True)
            )
            expected[t] += mixed @ p["out"][n]
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert keys.shape == (1, 2, length, 2)
