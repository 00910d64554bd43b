"""Reads and writes a cache of keys and values where it lies.

A cache is most of a rollout's memory, and reading it most of a decode step's time: no more than
is needed is read, and nothing of it is copied.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from score_jax.types import Cache


def shards_apart(x: Array, shards: int, axis: int = 0) -> Array:
    """Splits the row axis into shards and the rows of each."""
    return x.reshape(*x.shape[:axis], shards, -1, *x.shape[axis + 1 :])


def layer_part(
    stacked: Float[Array, "L Z N K S H"], layer: Int[Array, ""], positions: Int[Array, "C s"]
) -> Float[Array, "C K s H"]:
    """A layer's keys or values in the rows and slots that positions are given of.

    It is one slice: of two, the TPU compiler copies what the first one gives.
    """
    _, shards, _, heads, _, size = stacked.shape
    sizes = (1, shards, len(positions) // shards, heads, positions.shape[1], size)
    part = jax.lax.dynamic_slice(stacked, (layer, *(0,) * 5), sizes)
    return part.reshape(-1, *sizes[3:])


def known_after(block: Cache, hidden: Float[Array, "B T D"]) -> Cache:
    """A block's keys and values, as they are, but not before its last layer's result is known.

    The compiler would not know otherwise that every layer's cache is read before it is written,
    and would copy it at every token. An optimization barrier does not tell it: a CPU's compiler
    drops barriers before it looks for copies.
    """
    # No more than any number, in a way that is decided when the program runs.
    low = jnp.where(jnp.isnan(hidden[:, 0, 0]), jnp.finfo(hidden.dtype).min, -jnp.inf)

    def wait(x: Float[Array, "L B K T H"]) -> Array:
        return jnp.maximum(x, low.astype(x.dtype)[None, :, None, None, None])

    return block.replace(keys=tuple(map(wait, block.keys)), values=tuple(map(wait, block.values)))


def write_cache(
    cache: Cache, new: Cache, slot: Int[Array, ""] | Int[Array, "B"], positions: Int[Array, "B T"]
) -> Cache:
    """Writes a block behind the tokens of a cache, into the first rows of each shard.

    In place where the cache is donated or carried. One slot for all rows is one slice on every
    backend; a slot for each row is a loop over rows on a CPU (docs/speed.md).

    Args:
      slot: of the block's first token.
      positions: of its tokens; negative where a row has none.
    """

    def put(whole: Array, new: Array, slot: Int[Array, "n"]) -> Array:
        row, slots = jnp.arange(len(slot))[:, None], slot[:, None] + jnp.arange(new.shape[3])
        return whole.at[:, row, :, slots].set(jnp.moveaxis(new, (1, 3), (0, 1)))

    def write(whole: Float[Array, "L C K S H"], new: Float[Array, "L B K T H"]) -> Array:
        apart, own = (shards_apart(x, cache.shards, 1) for x in (whole, new))
        if slot.ndim:
            slots = slot.reshape(cache.shards, -1)
            written = jax.vmap(put, in_axes=(1, 1, 0), out_axes=1)(apart, own, slots)
        else:
            written = jax.lax.dynamic_update_slice(apart, own, (0, 0, 0, 0, slot, 0))
        return written.reshape(whole.shape)

    known = jax.vmap(lambda row, own, at: jax.lax.dynamic_update_slice(row, own, (at,)))
    return cache.replace(
        keys=tuple(map(write, cache.keys, new.keys)),
        values=tuple(map(write, cache.values, new.values)),
        positions=(
            known(cache.positions, positions, slot)
            if slot.ndim
            else jax.lax.dynamic_update_slice(cache.positions, positions, (0, slot))
        ),
    )
