"""Blocks are written, and layers read, in the first rows of each shard and nowhere else."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.model.cache import known_after, layer_part, shards_apart, write_cache
from score_jax.types import Cache


def test_a_block_is_written_at_each_rows_own_place():
    zeros, places = jnp.zeros((2, 2, 1, 5, 1)), jnp.array([[7, 8], [4, -1]])
    cache = Cache(keys=(zeros,), values=(zeros,), positions=jnp.full((2, 5), -1))
    block = jnp.arange(8.0).reshape(2, 2, 1, 2, 1) + 1
    new = Cache(keys=(block,), values=(-block,), positions=places)
    written = write_cache(cache, new, jnp.array([0, 3]), places)
    expected = [[[1, 2, 0, 0, 0], [0, 0, 0, 3, 4]], [[5, 6, 0, 0, 0], [0, 0, 0, 7, 8]]]
    np.testing.assert_array_equal(written.keys[0][:, :, 0, :, 0], expected)
    np.testing.assert_array_equal(written.values[0][:, :, 0, :, 0], -np.array(expected))
    assert written.positions.tolist() == [[7, 8, -1, -1, -1], [-1, -1, -1, 4, -1]]
    together = write_cache(cache, new, jnp.asarray(2), places)
    np.testing.assert_array_equal(together.keys[0][:, :, 0, 2:4, 0], block[:, :, 0, :, 0])
    assert not together.keys[0][:, :, 0, 4].any() and not together.keys[0][:, :, 0, :2].any()
    assert together.positions.tolist() == [[-1, -1, 7, 8, -1], [-1, -1, 4, -1, -1]]


def test_a_layer_is_read_in_the_first_rows_of_each_shard_and_the_first_slots():
    """Two shards of three rows, of which two are read; numbers say layer, row and slot."""
    layer, row, slot = jnp.arange(2.0), jnp.arange(6.0), jnp.arange(5.0)
    whole = 100 * layer[:, None, None] + 10 * row[:, None] + slot
    stacked = shards_apart(whole[:, :, None, :, None], 2, axis=1)
    found = layer_part(stacked, jnp.asarray(1), jnp.zeros((4, 3), int))
    assert found.shape == (4, 1, 3, 1)
    expected = [[100, 101, 102], [110, 111, 112], [130, 131, 132], [140, 141, 142]]
    assert found[:, 0, :, 0].tolist() == expected


@pytest.mark.parametrize("slot", [1, [1, 0, 2, 1]])
def test_a_block_of_fewer_rows_is_written_to_the_first_of_each_shard(slot):
    zeros, places = jnp.zeros((1, 6, 1, 3, 1)), jnp.array([[7], [8], [9], [-1]])
    cache = Cache(keys=(zeros,), values=(zeros,), positions=jnp.full((4, 3), -1), shards=2)
    block = jnp.array([1.0, 2, 3, 4]).reshape(1, 4, 1, 1, 1)
    new = Cache(keys=(block,), values=(-block,), positions=places)
    written = write_cache(cache, new, jnp.asarray(slot), places)
    expected = np.zeros((6, 3))
    for number, (row, at) in enumerate(zip([0, 1, 3, 4], np.broadcast_to(slot, 4), strict=True)):
        expected[row, at] = number + 1
    np.testing.assert_array_equal(written.keys[0][0, :, 0, :, 0], expected)
    np.testing.assert_array_equal(written.values[0], -written.keys[0])
    assert written.positions.max(1).tolist() == [7, 8, 9, -1]


@pytest.mark.parametrize("found", [0.5, -jnp.inf, jnp.nan], ids=str)
def test_what_is_written_after_a_result_stays_as_it_is(found):
    """Whatever the result; and in the cache's own type."""
    values = jnp.array([1.5, -3e38, 3e38, 0.0]).astype(jnp.bfloat16)
    block = values.reshape(1, 1, 1, 4, 1)
    cache = Cache(keys=(block,), values=(-block,), positions=jnp.arange(4)[None])
    kept = known_after(cache, jnp.full((1, 4, 2), found, jnp.bfloat16))
    assert kept.keys[0].dtype == jnp.bfloat16
    np.testing.assert_array_equal(kept.keys[0].astype(float), block.astype(float))
    np.testing.assert_array_equal(kept.values[0].astype(float), -block.astype(float))
