"""Rows that still draw are brought forward in the cache, and go back to where they were."""

import importlib.util

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from score_jax.planning.chips import parse_topology
from score_jax.planning.tpu import topology_devices
from score_jax.rl.row_loops import active_first, swap_rows, swaps_to_front
from score_jax.types import Cache

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'score_jax[tpu]'"
)
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


@pytest.mark.slow
@needs_libtpu
def test_on_tpus_no_second_cache_is_held():
    """Four devices of 16 rows each, 8 of them exchanged: temporaries are a few rows."""
    mesh = jax.make_mesh(
        (4,),
        ("rows",),
        axis_types=(jax.sharding.AxisType.Auto,),
        devices=topology_devices(parse_topology("v5e:2x2")),
    )

    def shape(sizes, dtype, spec):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, spec))

    stacked = shape((26, 64, 2, 2144, 256), jnp.bfloat16, P(None, "rows"))
    positions = shape((64, 2144), jnp.int32, P("rows"))
    cache = Cache(keys=(stacked,), values=(stacked,), positions=positions, shards=4)
    index = shape((4, 8), jnp.int32, P("rows"))
    with jax.set_mesh(mesh), nn.logical_axis_rules([("batch", "rows")]):
        lowered = jax.jit(swap_rows, donate_argnums=0).lower(cache, index)
    memory = lowered.compile().memory_analysis()
    row = 2 * 26 * 2 * 2144 * 256 * 2  # keys and values, layers, heads, slots, size, bytes
    assert memory.argument_size_in_bytes > 16 * row and memory.temp_size_in_bytes < 4 * row
