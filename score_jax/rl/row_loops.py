"""Loops over the rows that still draw, in arrays of a few sizes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from score_jax.rl.decoding import (
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
        own, prompts = take_rows(rows, index), take_prompts(prompt, index, len(state.active))
        step = drafted_step if self.drafted else plain_step

        def one(_: int, part: SamplingState) -> SamplingState:
            part = step(engine, part, prompts, own, turn)
            cache = constrain_cache(part.cache)
            row_arrays = constrain_rows(part.replace(cache=None, slot=None))
            return row_arrays.replace(cache=cache, slot=part.slot)

        part = jax.lax.while_loop(
            lambda part: self.due(engine, part, turn),
            lambda part: jax.lax.fori_loop(0, engine.patience, one, part),
            take_state(state, index, self.slots),
        )
        return put_state(state, part, index)


def active_first(active: Bool[Array, "B"], shards: int, count: int) -> Int[Array, "Z n"] | None:
    """Where the active rows of each shard stand, then others; None: all rows as they are."""
    split = active.reshape(shards, -1)
    if split.shape[1] == count:
        return None
    return jnp.argsort(~split, axis=1, stable=True)[:, :count]


def take_rows(tree: Any, index: Int[Array, "Z n"] | None) -> Any:
    """Rows of each shard."""
    if index is None:
        return tree

    def take(x: Array) -> Array:
        parts = x.reshape(len(index), -1, *x.shape[1:])
        return jax.vmap(lambda part, own: part[own])(parts, index).reshape(-1, *x.shape[1:])

    return constrain_rows(jax.tree.map(take, tree))


def put_rows(tree: Any, part: Any, index: Int[Array, "Z n"] | None) -> Any:
    """Undoes `take_rows`."""
    if index is None:
        return part

    def put(x: Array, new: Array) -> Array:
        parts = x.reshape(len(index), -1, *x.shape[1:])
        rows = new.reshape(*index.shape, *x.shape[1:])
        return jax.vmap(lambda a, i, b: a.at[i].set(b))(parts, index, rows).reshape(x.shape)

    return constrain_rows(jax.tree.map(put, tree, part))


def take_cache(cache: Cache, index: Int[Array, "Z n"] | None, slots: int) -> Cache:
    """The first slots of rows of each shard."""

    def take(x: Array) -> Array:
        return jnp.moveaxis(take_rows(jnp.moveaxis(x[:, :, :, :slots], 1, 0), index), 0, 1)

    keys, values = jax.tree.map(take, (cache.keys, cache.values))
    positions = take_rows(cache.positions[:, :slots], index)
    return constrain_cache(Cache(keys=keys, values=values, positions=positions))


def put_cache(cache: Cache, part: Cache, index: Int[Array, "Z n"] | None) -> Cache:
    """Undoes `take_cache`."""
    slots = part.positions.shape[1]

    def put(x: Array, new: Array) -> Array:
        rows = put_rows(jnp.moveaxis(x[:, :, :, :slots], 1, 0), jnp.moveaxis(new, 1, 0), index)
        return x.at[:, :, :, :slots].set(jnp.moveaxis(rows, 0, 1))

    keys, values = jax.tree.map(put, (cache.keys, cache.values), (part.keys, part.values))
    positions = put_rows(cache.positions[:, :slots], part.positions, index)
    positions = cache.positions.at[:, :slots].set(positions)
    return constrain_cache(Cache(keys=keys, values=values, positions=positions))


def take_prompts(prompt: Cache, index: Int[Array, "Z n"] | None, rows: int) -> Cache:
    """The prompts' cache for rows of each shard, a copy for each; all rows share theirs."""
    if index is None:
        return prompt
    return take_cache(prompt, index // (rows // len(prompt.positions)), prompt.positions.shape[1])


def take_state(state: SamplingState, index: Int[Array, "Z n"] | None, slots: int) -> SamplingState:
    """Rows of each shard, with the first slots of their cache."""
    rows = take_rows(state.replace(cache=None, slot=None), index)
    return rows.replace(cache=take_cache(state.cache, index, slots), slot=state.slot)


def put_state(
    state: SamplingState, part: SamplingState, index: Int[Array, "Z n"] | None
) -> SamplingState:
    """Undoes `take_state`."""
    bare = (state.replace(cache=None, slot=None), part.replace(cache=None, slot=None))
    cache = put_cache(state.cache, part.cache, index)
    return put_rows(*bare, index).replace(cache=cache, slot=part.slot)
