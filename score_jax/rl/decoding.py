"""Rows that are being drawn: what is forced, and one iteration of a turn, plain or drafted."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int, Key

from score_jax.model.cache import known_after, write_cache
from score_jax.model.decoder import Decoder, decode, vocabulary_logits
from score_jax.rl.draws import guess_continuation, sample_scored
from score_jax.rl.keys import token_keys
from score_jax.rl.sampling_plan import (
    PATIENCE,
    SamplingConfig,
    forced_blocks,
    iterations_between,
)
from score_jax.types import Cache, Effort, Params, Prompts

CACHE_AXES = ("layers", "batch", "kv_heads", "length", "head_dim")


class SamplingState(struct.PyTreeNode):
    """Rows that are being drawn."""

    tokens: Int[Array, "B T"]
    turn_ids: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    truncated: Bool[Array, "B R"]
    length: Int[Array, "B"]  # tokens so far
    used: Int[Array, "B"]  # tokens drawn in the current turn
    active: Bool[Array, "B"]  # draws the current turn and has not ended it
    cut: Bool[Array, "B"]  # the last turn that it drew was cut at its limit
    done: Bool[Array, "B"]  # draws nothing more
    hidden: Float[Array, "B D"]  # of the last token
    effort: Effort
    cache: Cache  # of drawn and forced tokens
    slot: Int[Array, ""]  # of the cache: the next one


class TurnRows(struct.PyTreeNode):
    """What is fixed for each row while a turn is drawn."""

    keys: Key[Array, "B"]  # of `turn_keys`
    limit: Int[Array, "B"]  # tokens of this turn
    ahead: Bool[Array, "B R"]  # turns that it draws after this one


def constrain_rows(tree: Any) -> Any:
    """Constrains arrays to the row sharding of sampling.

    Without it the partitioner carries the finer sharding of the resulting episodes into the
    loop, and gathers rows again for every matrix product.
    """
    return jax.tree.map(
        lambda x: with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1))), tree
    )


def constrain_cache(cache: Cache) -> Cache:
    """Constrains a cache to the row and head sharding of sampling."""
    keys, values = jax.tree.map(
        lambda x: with_logical_constraint(x, CACHE_AXES), (cache.keys, cache.values)
    )
    return cache.replace(keys=keys, values=values, positions=constrain_rows(cache.positions))


def write_where(row: Array, at: Int[Array, "B"], value: Array, write: Bool[Array, "B"]) -> Array:
    """Sets entry `at` of each row where `write`; elementwise, so that no scatter is compiled."""
    here = (jnp.arange(row.shape[1])[None, :] == at[:, None]) & write[:, None]
    return jnp.where(here, value[:, None], row)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What all loops of a rollout share."""

    decoder: Decoder
    params: Params  # of the model, or of `decoder.split_layers`
    table: Float[Array, "V D"]  # of `decoder.output_table`
    stops: tuple[int, ...]
    config: SamplingConfig
    shards: int  # Z, parts of the rows that lie on different devices
    # Rows that draw on change places in the cache, where a copy of their part has no room.
    in_place: bool = False

    @property
    def patience(self) -> int:
        """Iterations between two questions whether rows are still drawing."""
        return iterations_between(self.shards)

    def drawn(
        self, keys: Key[Array, "B ..."], hidden: Float[Array, "B ... D"]
    ) -> tuple[Int[Array, "B ..."], Float[Array, "B ..."]]:
        """The tokens drawn behind hidden states, and their log-probabilities."""
        logits = vocabulary_logits(self.decoder.config, self.table, hidden)
        return sample_scored(keys, logits, self.config.temperature)


def feed_forced(
    engine: Engine, state: SamplingState, prompt: Cache, rows: Prompts, turn: Int[Array, ""]
) -> SamplingState:
    """Appends what stands before a turn to the rows that have drawn one before, in blocks.

    The first forced token is the stop of the turn before, which only a turn that was cut needs.
    A row that is full ends, and the turns that it does not reach are flagged as truncated.
    """
    numbers = jnp.arange(1, rows.drawn.shape[1] + 1)[None, :]
    begun = (rows.drawn & (numbers < turn)).any(1)
    going = rows.drawn[:, turn - 1] & begun & ~state.done
    skipped = jnp.where(state.cut, 0, 1)
    count = jnp.where(going, jnp.maximum(rows.forced_length[:, turn - 1] - skipped, 0), 0)
    number, size = forced_blocks(rows.forced.shape[2])
    # One more, since one is skipped.
    padding = ((0, 0), (0, number * size - rows.forced.shape[2] + 1))

    def behind(x: Int[Array, "B R I"]) -> Int[Array, "B I"]:
        own = jnp.pad(x[:, turn - 1], padding)
        return jnp.where(state.cut[:, None], own[:, :-1], own[:, 1:])

    forced = behind(rows.forced)

    def one_block(carry: tuple[SamplingState, Array]) -> tuple[SamplingState, Array]:
        state, number = carry
        index = number * size + jnp.arange(size)[None, :]
        at = state.length[:, None] + index
        ids = jax.lax.dynamic_slice_in_dim(forced, number * size, size, axis=1)
        hidden, new = decode(
            engine.decoder, engine.params, ids, at, (prompt, constrain_cache(state.cache))
        )
        there = jnp.where(index < count[:, None], at, -1)
        last = count - 1 - number * size
        own = jnp.take_along_axis(hidden, jnp.clip(last, 0, size - 1)[:, None, None], axis=1)
        here = (last >= 0) & (last < size)
        state = state.replace(
            cache=write_cache(state.cache, known_after(new, hidden), state.slot, there),
            slot=state.slot + size,
            hidden=jnp.where(here[:, None], own[:, 0], state.hidden),
            effort=state.effort.replace(computed=state.effort.computed + size),
        )
        return state, number + 1

    blocks = -(-count.max() // size)
    state, _ = jax.lax.while_loop(
        lambda carry: carry[1] < blocks, one_block, (state, jnp.zeros((), jnp.int32))
    )
    whole = state.tokens.shape[1]
    full = going & (state.length + count >= whole)
    return state.replace(
        tokens=write_block(state.tokens, state.length, forced, count),
        turn_ids=write_block(state.turn_ids, state.length, behind(rows.forced_turn), count),
        truncated=state.truncated | (full[:, None] & rows.drawn & (numbers >= turn)),
        length=jnp.minimum(state.length + count, whole),
        slot=-(-state.slot // PATIENCE) * PATIENCE,
        used=jnp.zeros_like(state.used),
        done=state.done | full,
    )


def write_block(
    rows: Int[Array, "B T"], at: Int[Array, "B"], block: Int[Array, "B I"], count: Int[Array, "B"]
) -> Int[Array, "B T"]:
    """Writes the first `count` entries of each row's block from its place `at` on."""
    index = jnp.arange(rows.shape[1])[None, :] - at[:, None]
    value = jnp.take_along_axis(block, jnp.clip(index, 0, block.shape[1] - 1), axis=1)
    return jnp.where((index >= 0) & (index < count[:, None]), value, rows)


def advance(
    state: SamplingState,
    token: Int[Array, "B"],
    logprob: Float[Array, "B"],
    go: Bool[Array, "B"],
    rows: TurnRows,
    *,
    turn: Int[Array, ""],
    stops: tuple[int, ...],
) -> SamplingState:
    """Appends a drawn token to the rows that go on, and ends their turn where it does.

    A turn that draws a stop token owns it. A turn that reaches its limit is flagged as truncated.
    A row that is full ends, what it does not finish flagged as truncated.
    """
    this_turn = (jnp.arange(1, rows.ahead.shape[1] + 1) == turn)[None, :]
    used, length = state.used + go, state.length + go
    stopped = go & (token[:, None] == jnp.asarray(stops)).any(axis=1)
    cut = go & ~stopped & (used >= rows.limit)
    over = (stopped | cut) & ~rows.ahead.any(axis=1)
    full = go & ~over & (length >= state.tokens.shape[1])
    lost = (this_turn & ~stopped[:, None]) | rows.ahead  # turns that a full row does not finish
    return state.replace(
        tokens=write_where(state.tokens, state.length, token, go),
        turn_ids=write_where(state.turn_ids, state.length, jnp.full_like(token, turn), go),
        logprobs=write_where(state.logprobs, state.length, logprob, go),
        truncated=state.truncated | (this_turn & cut[:, None]) | (lost & full[:, None]),
        length=length,
        used=used,
        cut=jnp.where(go, cut, state.cut),
        active=state.active & ~stopped & ~cut & ~full,
        done=state.done | over | full,
    )


def plain_step(
    engine: Engine, state: SamplingState, prompt: Cache, rows: TurnRows, turn: Int[Array, ""]
) -> SamplingState:
    """Draws one token for every active row."""
    go, at = state.active, state.length
    token, logprob = engine.drawn(token_keys(rows.keys, at), state.hidden)
    hidden, new = decode(
        engine.decoder, engine.params, token[:, None], at[:, None], (prompt, state.cache)
    )
    slot = state.slot + state.used if engine.config.draft_tokens else state.slot
    new = known_after(new, hidden)
    cache = write_cache(state.cache, new, slot, jnp.where(go, at, -1)[:, None])
    state = advance(state, token, logprob, go, rows, turn=turn, stops=engine.stops)
    return state.replace(
        hidden=jnp.where(go[:, None], hidden[:, 0], state.hidden),
        effort=state.effort.replace(computed=state.effort.computed + 1),
        cache=cache,
        slot=state.slot if engine.config.draft_tokens else state.slot + 1,
    )


def drafted_step(
    engine: Engine, state: SamplingState, prompt: Cache, rows: TurnRows, turn: Int[Array, ""]
) -> SamplingState:
    """Draws one token for every active row, and those behind it as far as they were guessed.

    Each token is drawn with its own key from the logits behind the tokens before it, so guesses
    change how many are drawn at a time, and nothing else.
    """
    count, go, begin = engine.config.draft_tokens, state.active, state.length
    token, logprob = engine.drawn(token_keys(rows.keys, begin), state.hidden)
    before = state
    state = advance(state, token, logprob, go, rows, turn=turn, stops=engine.stops)
    earlier = (state.turn_ids > 0) & (state.turn_ids < turn)
    guess = guess_continuation(state.tokens, begin + 1, earlier, before.used + 1, count)
    block = jnp.concatenate([token[:, None], guess], axis=1)
    at = begin[:, None] + jnp.arange(count + 1)
    hidden, new = decode(engine.decoder, engine.params, block, at, (prompt, before.cache))
    keys = jax.vmap(token_keys, in_axes=(None, 1), out_axes=1)(rows.keys, at[:, 1:])
    drawn, logprobs = engine.drawn(keys, hidden[:, :-1])
    kept, agree = jnp.zeros_like(begin), go
    for n in range(count):
        agree &= state.active & (drawn[:, n] == guess[:, n])
        state = advance(
            state, drawn[:, n], logprobs[:, n], agree, rows, turn=turn, stops=engine.stops
        )
        kept += agree
    last = jnp.take_along_axis(hidden, kept[:, None, None], axis=1)[:, 0]
    there = go[:, None] & (jnp.arange(count + 1) <= kept[:, None])
    slot = state.slot + before.used
    effort = state.effort
    return state.replace(
        hidden=jnp.where(go[:, None], last, before.hidden),
        effort=effort.replace(
            computed=effort.computed + count + 1,
            drafted=effort.drafted + go,
            accepted=effort.accepted + kept,
        ),
        cache=write_cache(before.cache, known_after(new, hidden), slot, jnp.where(there, at, -1)),
    )
