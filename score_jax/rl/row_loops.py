"""Loops over the rows that still draw, in arrays of a few sizes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from score_jax.model.cache import shards_apart
from score_jax.rl.decoding import (
    CACHE_AXES,
    Engine,
    SamplingState,
    TurnRows,
    constrain_cache,
    constrain_rows,
    drafted_step,
    plain_step,
)
from score_jax.types import Cache

TRIAL = 8  # drafted iterations before their acceptance is judged


@dataclass(frozen=True, kw_only=True)
class Loop:
    """One of the loops that draw a turn, over arrays of a fixed size."""

    rows: int  # of each shard
    fewer: int  # rows of the next loop, which goes on when no shard has more active ones
    slots: int  # of the cache
    drafted: bool

    def due(self, engine: Engine, state: SamplingState, turn: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether to draw on: enough rows are active, and the cache has room for them."""
        active = state.active.reshape(engine.shards, -1).sum(1).max()
        reach, stride = state.slot, engine.patience
        if engine.config.draft_tokens:
            reach += jnp.where(state.active, state.used, 0).max()
            stride *= engine.config.draft_tokens + 1
        due = (active > self.fewer) & (reach + stride <= self.slots)
        if self.drafted:
            tried, kept = state.effort.drafted, state.effort.accepted
            pays = kept.sum() >= tried.sum() * (engine.config.draft_yield - 1)
            due &= (turn > 1) & (pays | (tried.max() < TRIAL))
        return due

    def run(
        self,
        engine: Engine,
        state: SamplingState,
        prompt: Cache,
        rows: TurnRows,
        turn: Int[Array, ""],
    ) -> SamplingState:
        """Draws with the active rows alone, in arrays of the loop's size, until it is not due."""
        index = active_first(state.active, engine.shards, self.rows)
        own = constrain_rows(take_rows(rows, index))
        prompts = take_prompts(prompt, index, len(state.active))
        step = drafted_step if self.drafted else plain_step

        def one(_: int, part: SamplingState) -> SamplingState:
            part = step(engine, part, prompts, own, turn)
            cache = constrain_cache(part.cache)
            row_arrays = constrain_rows(part.replace(cache=None, slot=None))
            return row_arrays.replace(cache=cache, slot=part.slot)

        part = jax.lax.while_loop(
            lambda part: self.due(engine, part, turn),
            lambda part: jax.lax.fori_loop(0, engine.patience, one, part),
            take_state(engine, state, index, self.slots),
        )
        return put_state(engine, state, part, index)


def active_first(active: Bool[Array, "B"], shards: int, count: int) -> Int[Array, "Z n"] | None:
    """Where the active rows of each shard stand, then others; None: all rows as they are."""
    split = active.reshape(shards, -1)
    if split.shape[1] == count:
        return None
    return jnp.argsort(~split, axis=1, stable=True)[:, :count]


def each_shard(function: Callable[..., Array], index: Int[Array, "Z n"], axis: int) -> Any:
    """Makes a function of one shard's rows and index work on arrays of all shards' rows.

    Args:
      axis: of the rows, in arguments and result.
    """

    def whole(*arrays: Array) -> Array:
        if len(index) == 1:
            return function(*arrays, index[0])
        apart = [shards_apart(x, len(index), axis) for x in arrays]
        over = jax.vmap(function, in_axes=(*(axis for _ in arrays), 0), out_axes=axis)
        found = over(*apart, index)
        return found.reshape(*found.shape[:axis], -1, *found.shape[axis + 2 :])

    return whole


def take_rows(tree: Any, index: Int[Array, "Z n"] | None, axis: int = 0) -> Any:
    """Rows of each shard."""
    if index is None:
        return tree
    all_before = (slice(None),) * axis
    return jax.tree.map(each_shard(lambda x, own: x[(*all_before, own)], index, axis), tree)


def put_rows(tree: Any, part: Any, index: Int[Array, "Z n"] | None, axis: int = 0) -> Any:
    """Undoes `take_rows`."""
    if index is None:
        return part
    all_before = (slice(None),) * axis
    put = each_shard(lambda x, new, own: x.at[(*all_before, own)].set(new), index, axis)
    return jax.tree.map(put, tree, part)


def take_prompts(prompt: Cache, index: Int[Array, "Z n"] | None, rows: int) -> Cache:
    """The prompts' cache for rows of each shard, a copy for each; all rows share theirs."""
    if index is None:
        return prompt
    own = index // (rows // len(prompt.positions))
    keys, values = take_rows((prompt.keys, prompt.values), own, 1)
    positions = take_rows(prompt.positions, own)
    return constrain_cache(prompt.replace(keys=keys, values=values, positions=positions))


def swap_rows(cache: Cache, index: Int[Array, "Z n"], *, back: bool = False) -> Cache:
    """Exchanges row k of each shard with its row index[k], for k from 0 to n - 1.

    In place, since a cache is most of the memory: no more than two rows are held besides. Under
    shard_map, because the partitioner makes a scatter of it, which copies the cache.

    Args:
      back: undo it, in the other order.
    """
    order = range(index.shape[1])[:: -1 if back else 1]

    def exchange(x: Float[Array, "L N K S H"], partner: Int[Array, "n"]) -> Array:
        def read(x: Array, k: Any) -> list[Array]:
            return [jax.lax.dynamic_slice_in_dim(x, at, 1, axis=1) for at in (k, partner[k])]

        def write(x: Array, rows: list[Array], k: Any) -> Array:
            x = jax.lax.dynamic_update_slice_in_dim(x, rows[1], k, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(x, rows[0], partner[k], axis=1)

        def one(n: Int[Array, ""], carry: tuple[Array, list[Array]]) -> tuple[Array, list[Array]]:
            # Rows are carried from where they are read to where they are written; else the
            # compiler reads again after the first write, from a copy that it keeps for this.
            x = write(carry[0], carry[1], order.start + order.step * (n - 1))
            return x, read(x, order.start + order.step * n)

        x, rows = jax.lax.fori_loop(1, len(order), one, (x, read(x, order[0])))
        return write(x, rows, order[-1])

    def swap(arrays: Any, index: Int[Array, "Z n"]) -> Any:
        return jax.tree.map(each_shard(exchange, index, 1), arrays)

    if not jax.sharding.get_abstract_mesh().empty:
        split = logical_to_mesh_axes(CACHE_AXES) or P(None, None)
        ins = (split, P(split[1]))
        swap = jax.shard_map(swap, in_specs=ins, out_specs=split, check_vma=False)
    keys, values = swap((cache.keys, cache.values), index)
    return constrain_cache(cache.replace(keys=keys, values=values))


def swaps_to_front(active: Bool[Array, "B"], index: Int[Array, "Z n"]) -> Int[Array, "Z n"]:
    """The exchanges that bring the active rows forward; places that none takes keep their row.

    Row k changes places with the k-th active one, which stands at k or behind it and was not
    moved before.
    """
    place = jnp.arange(index.shape[1])
    count = active.reshape(len(index), -1).sum(1)
    return jnp.where(place < count[:, None], index, place)


def first_slots(cache: Cache, slots: int) -> Cache:
    """A copy of so many slots."""
    keys, values = jax.tree.map(lambda x: x[:, :, :, :slots], (cache.keys, cache.values))
    return cache.replace(keys=keys, values=values, positions=cache.positions[:, :slots])


def copy_rows(cache: Cache, index: Int[Array, "Z n"] | None, slots: int) -> Cache:
    """The first slots of rows of each shard."""
    part = first_slots(cache, slots)
    keys, values = take_rows((part.keys, part.values), index, 1)
    positions = take_rows(part.positions, index)
    return constrain_cache(cache.replace(keys=keys, values=values, positions=positions))


def put_copies(cache: Cache, part: Cache, index: Int[Array, "Z n"] | None) -> Cache:
    """Undoes `copy_rows`."""
    slots = part.positions.shape[1]
    before = first_slots(cache, slots)
    found = put_rows((before.keys, before.values), (part.keys, part.values), index, 1)
    keys, values = jax.tree.map(
        lambda x, new: x.at[:, :, :, :slots].set(new), (cache.keys, cache.values), found
    )
    positions = put_rows(before.positions, part.positions, index)
    positions = cache.positions.at[:, :slots].set(positions)
    return constrain_cache(cache.replace(keys=keys, values=values, positions=positions))


def bring_forward(
    cache: Cache, active: Bool[Array, "B"], index: Int[Array, "Z n"] | None, slots: int
) -> Cache:
    """The first slots of rows of each shard, which change places with the first rows.

    Places behind the active rows may have any row's cache: nothing is drawn there.
    """
    cache = cache.replace(positions=cache.positions[:, :slots])
    if index is None:
        return cache
    cache = swap_rows(cache, swaps_to_front(active, index))
    return cache.replace(positions=take_rows(cache.positions, index))


def bring_back(
    cache: Cache, part: Cache, active: Bool[Array, "B"], index: Int[Array, "Z n"] | None
) -> Cache:
    """Undoes `bring_forward`."""
    slots, whole = part.positions.shape[1], part
    if index is not None:
        whole = swap_rows(part, swaps_to_front(active, index), back=True)
    positions = put_rows(cache.positions[:, :slots], part.positions, index)
    positions = cache.positions.at[:, :slots].set(positions)
    return constrain_cache(whole.replace(positions=positions))


def take_state(
    engine: Engine, state: SamplingState, index: Int[Array, "Z n"] | None, slots: int
) -> SamplingState:
    """Rows of each shard, with the first slots of their cache."""
    if engine.in_place:
        cache = bring_forward(state.cache, state.active, index, slots)
    else:
        cache = copy_rows(state.cache, index, slots)
    rows = constrain_rows(take_rows(state.replace(cache=None, slot=None), index))
    return rows.replace(cache=cache, slot=state.slot)


def put_state(
    engine: Engine, state: SamplingState, part: SamplingState, index: Int[Array, "Z n"] | None
) -> SamplingState:
    """Undoes `take_state`."""
    if engine.in_place:
        cache = bring_back(state.cache, part.cache, state.active, index)
    else:
        cache = put_copies(state.cache, part.cache, index)
    bare = (state.replace(cache=None, slot=None), part.replace(cache=None, slot=None))
    return constrain_rows(put_rows(*bare, index)).replace(cache=cache, slot=part.slot)
