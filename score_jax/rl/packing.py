"""Several dialogues in one row, so that a step costs what they are long, not what they may be.

Rows of every device are packed among themselves, which moves nothing between devices. The longest
dialogue is placed first, each into the first packed row that has room (first fit, decreasing):

    rows         a a a a a . . .        packed rows   a a a a a c c c
                 b b b b b b . .                      b b b b b b d d
                 c c c . . . . .
                 d d . . . . . .

Packed rows are processed a few at a time, by a loop that ends with the last that holds a token on
any device: one compiled shape, whatever the lengths. A token attends to its own dialogue only, at
its own position there.

Dimensions: S row shards (the mesh's), N rows of a shard, M packed rows of a microbatch on a shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from score_jax.rl.metrics import Metric, mean
from score_jax.types import Batch, Episodes

# At least so many microbatches; what rounding up to whole ones wastes is half of one.
MICROBATCHES = 16


def split_rows(tree: Any, parts: int) -> Any:
    """Splits rows into parts such that every device keeps its own rows."""
    return jax.tree.map(
        lambda x: x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1), tree
    )


def join_rows(tree: Any) -> Any:
    """Undoes `split_rows`."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), tree)


class Packing(struct.PyTreeNode):
    """Where dialogues stand in packed rows, which are counted through one after the other."""

    row: Int[Array, "S N"]  # the dialogues in the order in which they stand
    start: Int[Array, "S N"]  # position of each one's first token
    length: Int[Array, "S N"]  # tokens that are needed of each
    microbatches: Int[Array, ""]  # that hold tokens, on the fullest shard
    rows: int = struct.field(pytree_node=False)  # M
    width: int = struct.field(pytree_node=False)  # T

    @property
    def positions(self) -> Int[Array, ""]:
        """Positions that are processed on all shards."""
        return self.microbatches * (len(self.row) * self.rows * self.width)


class Places(struct.PyTreeNode):
    """What stands in the packed rows of a microbatch."""

    row: Int[Array, "S M T"]  # of the shard
    position: Int[Array, "S M T"]  # in that row
    own: Bool[Array, "S M T"]  # a token stands there; False: padding

    @property
    def segments(self) -> Int[Array, "S M T"]:
        """The dialogue of each token; padding is one of its own."""
        return jnp.where(self.own, self.row, -1)


def needed_lengths(episodes: Episodes) -> Int[Array, "B"]:
    """Tokens up to each row's last scored one; what follows changes no score."""
    scored = episodes.sampled | episodes.trained
    return jnp.max(jnp.where(scored, jnp.arange(1, scored.shape[1] + 1), 0), axis=1)


def microbatch_rows(rows: int, microbatches: int) -> int:
    """Packed rows of one microbatch on a shard that has this many rows."""
    return -(-rows // max(microbatches, MICROBATCHES))


def first_fit(
    lengths: Int[Array, "N"], width: int
) -> tuple[Int[Array, "N"], Int[Array, "N"], Int[Array, "N"]]:
    """Rows, starts and lengths of `Packing` for one shard; rows of no length stand last."""
    order = jnp.argsort(-lengths)

    def place(used: Int[Array, "N"], length: Int[Array, ""]) -> tuple[Array, Array]:
        row = jnp.argmax(used + length <= width)  # there is one: as many rows as dialogues
        return used.at[row].add(length), row * width + used[row]

    _, start = jax.lax.scan(place, jnp.zeros_like(lengths), lengths[order])
    start = jnp.where(lengths[order] > 0, start, len(lengths) * width)
    placed = jnp.argsort(start)
    return order[placed], start[placed], lengths[order][placed]


def pack(episodes: Episodes, *, shards: int, microbatches: int) -> Packing:
    """Packs the rows of each shard.

    Args:
      shards: parts of the rows, one after the other, that devices hold.
      microbatches: that unpacked rows would be split into; packed ones are no larger.
    """
    width = episodes.tokens.shape[1]
    lengths = needed_lengths(episodes).reshape(shards, -1)
    row, start, length = jax.vmap(lambda own: first_fit(own, width))(lengths)
    rows = microbatch_rows(lengths.shape[1], microbatches)
    end = jnp.max(jnp.where(length > 0, start + length, 0))
    return Packing(
        row=row,
        start=start,
        length=length,
        microbatches=-(-end // (rows * width)),
        rows=rows,
        width=width,
    )


def places_of(packing: Packing, index: Int[Array, ""]) -> Places:
    """What stands in the packed rows of a microbatch."""
    shape = (packing.rows, packing.width)
    size = packing.rows * packing.width
    at = (index * size + jnp.arange(size)).reshape(shape)

    def one(row: Array, start: Array, length: Array) -> Places:
        nearest = jnp.maximum(jnp.searchsorted(start, at, side="right") - 1, 0)
        position = at - start[nearest]
        own = (position >= 0) & (position < length[nearest])
        return Places(row=row[nearest], position=jnp.clip(position, 0, packing.width - 1), own=own)

    return jax.vmap(one)(packing.row, packing.start, packing.length)


def gather(places: Places, values: Array) -> Array:
    """Values of rows [B T ...] at a microbatch's places [S M*T ...]; 0 where there is padding."""
    row, position, own = (x.reshape(len(x), -1) for x in (places.row, places.position, places.own))
    values = values.reshape(len(row), -1, *values.shape[1:])
    found = jax.vmap(lambda x, row, position: x[row, position])(values, row, position)
    return jnp.where(own.reshape(*own.shape, *(1,) * (found.ndim - 2)), found, 0).astype(
        values.dtype
    )


def spread(places: Places, rows: Array, values: Array) -> Array:
    """Undoes `gather`: rows [B T ...] with the values of a microbatch [S M*T ...] put in."""
    row, position, own = (x.reshape(len(x), -1) for x in (places.row, places.position, places.own))
    whole = rows.reshape(len(row), -1, *rows.shape[1:])
    row = jnp.where(own, row, whole.shape[1])  # padding is dropped

    def put(whole: Array, row: Array, position: Array, values: Array) -> Array:
        return whole.at[row, position].set(values, mode="drop")

    return jax.vmap(put)(whole, row, position, values).reshape(rows.shape)


def packed_episodes(places: Places, episodes: Episodes) -> Episodes:
    """Episodes whose tokens are those of a microbatch; what belongs to rows stays as it is."""
    names = ("tokens", "turn", "sampled", "trained", "logprobs")
    return episodes.replace(**{name: gather(places, getattr(episodes, name)) for name in names})


def packed_batch(places: Places, batch: Batch) -> Batch:
    """The tokens of a microbatch with everything that their loss needs."""
    arrays: Any = jax.tree.map(lambda x: gather(places, x), batch.replace(episodes=None))
    return arrays.replace(episodes=packed_episodes(places, batch.episodes))


@dataclass(frozen=True)
class Microbatches:
    """The parts of a batch that are in memory one at a time."""

    count: Int[Array, ""] | int
    get: Callable[[Int[Array, ""]], tuple[Batch, Places | None]]  # a part; None: unpacked rows
    positions: Int[Array, ""] | int  # of all parts together


def split_batch(batch: Batch, *, microbatches: int) -> Microbatches:
    """Unpacked: equally many rows in each part, whatever their lengths."""
    parts = split_rows(batch, microbatches)

    def get(index: Int[Array, ""]) -> tuple[Batch, None]:
        return jax.tree.map(lambda x: x[index], parts), None

    return Microbatches(microbatches, get, batch.weights.size)


def pack_batch(batch: Batch, *, shards: int, microbatches: int) -> Microbatches:
    """Packed, with the arguments of `pack`."""
    packing = pack(batch.episodes, shards=shards, microbatches=microbatches)

    def get(index: Int[Array, ""]) -> tuple[Batch, Places]:
        places = places_of(packing, index)
        return packed_batch(places, batch), places

    return Microbatches(packing.microbatches, get, packing.positions)


def padding(episodes: Episodes, positions: Int[Array, ""] | int) -> Metric:
    """The share of the processed positions that hold no token that is needed."""
    processed = jnp.asarray(positions, jnp.float32)
    return mean(processed - needed_lengths(episodes).sum(), processed)
