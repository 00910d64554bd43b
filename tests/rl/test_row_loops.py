"""Rows that still draw are brought forward in the cache, and go back to where they were."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl.row_loops import active_first, swap_rows, swaps_to_front
from score_jax.types import Cache

ACTIVE = np.array([[0, 1, 0, 1, 1, 0, 0, 1], [1, 0, 0, 0, 0, 0, 1, 0]], bool)


@pytest.mark.parametrize("shards", [1, 2])
def test_active_rows_are_brought_forward_in_order_and_back(shards):
    """Each row of the cache holds its number."""
    active = jnp.asarray(ACTIVE[:shards].reshape(-1))
    index = active_first(active, shards, 4)
    numbers = jnp.broadcast_to(
        jnp.arange(8.0 * shards)[None, :, None, None, None], (2, 8 * shards, 1, 3, 1)
    )
    cache = Cache(keys=(numbers,), values=(-numbers,), positions=jnp.zeros((8, 3)), shards=shards)
    partners = swaps_to_front(active, index)
    moved = swap_rows(cache, partners)
    for shard in range(shards):
        expected = 8 * shard + np.flatnonzero(ACTIVE[shard])
        begin = moved.keys[0][:, 8 * shard : 8 * shard + len(expected), 0, :, 0]
        np.testing.assert_array_equal(begin, np.broadcast_to(expected[None, :, None], begin.shape))
    np.testing.assert_array_equal(moved.values[0], -moved.keys[0])
    back = swap_rows(moved, partners, back=True)
    np.testing.assert_array_equal(back.keys[0], numbers)
    np.testing.assert_array_equal(back.values[0], -numbers)


def test_all_rows_stay_where_they_are():
    assert active_first(jnp.ones(8, bool), 2, 4) is None
