"""Sampling: from prompts to finished dialogues, one turn after the other.

A prompt, with the turns that were given, is prefilled once; its G rows share its cache. Then
each turn is drawn: rows get the tokens that stand before it (forced, not drawn) in blocks, and
one token per iteration until all rows have ended the turn. Rows are contiguous and go to the
learner as they are; in the cache of drawn and forced tokens all rows write at the same slot,
which is one slice, so a row that ended its turn early has empty slots there:

    tokens     row 0   x x x y # i j y y y #         row 1   x x y y y i j y #
    prompt's cache     x x x                                 x x .
    own cache          y # . i j y y y #                     y y y i j y # . .
                       turn 1        turn 2

Row 1 was cut after 3 tokens, its limit, so it lacks the stop token `#`; what is forced before a
turn begins with it for such rows, which the picture leaves out.

What the loops do not pay for:

- rows that have ended their turn: when half of them have, the loop goes on with the other half
  in smaller arrays (`SamplingConfig.row_sizes`);
- slots of the cache that no row has reached (`SamplingConfig.decode_segments`);
- the question whether all rows have ended, which is a reduction over devices: it is asked every
  eighth iteration where rows lie on several devices.

All of it changes no draw: keys are folded from who and where a token is (`keys`).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from score_jax.model.decoder import Decoder, decode, output_table
from score_jax.rl.decoding import (
    Engine,
    SamplingState,
    TurnRows,
    constrain_cache,
    constrain_rows,
    feed_forced,
)
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.keys import row_keys, turn_keys
from score_jax.rl.logprobs import spread_to_tokens
from score_jax.rl.row_loops import Loop
from score_jax.rl.sampling_plan import SamplingConfig, loop_sizes, segment_slots
from score_jax.types import Cache, Effort, Episodes, Params, Prompts


def fan_out(prompts: Prompts, config: SamplingConfig) -> Prompts:
    """Repeats each prompt for its G rows and numbers these."""
    limits, prompts = prompts.turn_limits, prompts.replace(turn_limits=None)
    rows: Prompts = jax.tree.map(lambda x: jnp.repeat(x, config.group_size, axis=0), prompts)
    own = jnp.tile(jnp.arange(config.group_size), len(prompts.length))
    sample = rows.ids.sample + own
    shared = sample // config.second_attempts * config.second_attempts
    attempt = jnp.where(rows.drawn[:, 0], shared, 0)
    ids = rows.ids.replace(sample=sample, attempt=attempt)
    own_limits = None if limits is None else limits.reshape(-1, limits.shape[-1])
    return rows.replace(ids=ids, turn_limits=own_limits)


def prefill(
    engine: Engine, prompts: Prompts, rows: Prompts, *, length: int, slots: int
) -> tuple[SamplingState, Cache]:
    """Runs each prompt once.

    Args:
      rows: of `fan_out`.
      length: T.
      slots: of the cache of drawn and forced tokens.

    Returns:
      The rows before their first drawn turn, and the cache of the prompts.
    """
    count, width = prompts.tokens.shape
    group_size = len(rows.length) // count
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    hidden, new = decode(engine.decoder, engine.params, prompts.tokens, positions)
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]
    there = jnp.where(positions < prompts.length[:, None], positions, -1)
    prompt = new.replace(positions=there, shards=engine.shards)

    def empty(x: Float[Array, "L P K T0 H"]) -> Float[Array, "L B K S H"]:
        layers, _, heads, _, size = x.shape
        return jnp.zeros((layers, len(rows.length), heads, slots, size), x.dtype)

    def widen(x: Int[Array, "B T0"]) -> Int[Array, "B T"]:
        return jnp.pad(x, ((0, 0), (0, length - width)))

    zeros = jnp.zeros_like(rows.length)
    state = SamplingState(
        tokens=widen(rows.tokens),
        turn_ids=widen(rows.turn),
        logprobs=jnp.zeros((len(rows.length), length), jnp.float32),
        truncated=jnp.zeros(rows.drawn.shape, bool),
        length=rows.length,
        used=zeros,
        active=zeros > 0,
        cut=zeros > 0,
        done=~rows.drawn.any(1),
        hidden=jnp.repeat(last, group_size, axis=0),
        effort=Effort(computed=zeros, drafted=zeros, accepted=zeros),
        cache=Cache(
            keys=jax.tree.map(empty, new.keys),
            values=jax.tree.map(empty, new.values),
            positions=jnp.full((len(rows.length), slots), -1, jnp.int32),
            shards=engine.shards,
        ),
        slot=jnp.zeros((), jnp.int32),
    )
    return state, prompt


def draw_turn(
    engine: Engine,
    state: SamplingState,
    prompt: Cache,
    rows: TurnRows,
    turn: Int[Array, ""],
    segments: list[int],
) -> SamplingState:
    """Draws a turn of the active rows, to its end."""
    sizes = loop_sizes(len(state.active) // engine.shards, engine.config)
    kinds = (True, False) if engine.config.draft_tokens else (False,)
    for slots in segments:
        for count, fewer in zip(sizes, [*sizes[1:], 0], strict=True):
            for drafted in kinds:
                loop = Loop(rows=count, fewer=fewer, slots=slots, drafted=drafted)
                state = jax.lax.cond(
                    loop.due(engine, state, turn),
                    lambda state, loop=loop: loop.run(engine, state, prompt, rows, turn),
                    lambda state: state,
                    state,
                )
    if engine.config.draft_tokens:
        state = state.replace(slot=state.slot + state.used.max())
    return state


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How dialogues are drawn: pure functions of arrays, a turn at a time."""

    decoder: Decoder
    plan: DialoguePlan  # complete; the turns and their limits
    stops: tuple[int, ...]  # ids that end a turn; the first is the one that is forced
    config: SamplingConfig
    shards: int = 1  # parts of the prompts that lie on different devices
    # Smaller arrays are the first rows of the cache, not a copy of their part of it, which is
    # faster but takes as much memory again as that part.
    in_place: bool = False

    def engine(self, params: Params) -> Engine:
        """What the loops share.

        Args:
          params: of the model, or of `decoder.split_layers`.
        """
        return Engine(
            decoder=self.decoder,
            params=params,
            table=output_table(self.decoder, params),
            stops=self.stops,
            config=self.config,
            shards=self.shards,
            in_place=self.in_place,
        )

    def begin(self, params: Params, prompts: Prompts) -> tuple[Cache, SamplingState]:
        """Prefills the prompts: their cache, and the rows before the first drawn turn."""
        prompts = constrain_rows(prompts)
        width, block = prompts.tokens.shape[1], prompts.forced.shape[2]
        length = self.plan.row_length(width, block, self.config.row_limit)
        slots = segment_slots(self.plan, block, self.config)[-1]
        rows = constrain_rows(fan_out(prompts, self.config))
        engine = self.engine(params)
        state, prompt = prefill(engine, prompts, rows, length=length, slots=slots)
        return constrain_cache(prompt), state

    def turn(
        self,
        params: Params,
        prompts: Prompts,
        key: Key[Array, ""],
        prompt: Cache,
        state: SamplingState,
        turn: Int[Array, ""],
    ) -> SamplingState:
        """Draws a turn of all rows that have one, behind what stands before it.

        Args:
          key: of `keys.run_key`; draw, sample, turn and position are folded into it.
          prompt: of `begin`.
        """
        rows = constrain_rows(fan_out(constrain_rows(prompts), self.config))
        engine, block = self.engine(params), rows.forced.shape[2]
        if len(self.plan.drawn) > 1:
            state = feed_forced(engine, state, prompt, rows, turn)
        state = state.replace(active=rows.drawn[:, turn - 1] & ~state.done)
        limits = rows.turn_limits
        if limits is None:
            limits = jnp.broadcast_to(jnp.asarray(self.plan.limits), rows.drawn.shape)
        first, own = constrain_rows(row_keys(key, rows.ids))
        numbers = jnp.arange(1, self.plan.turns + 1)[None, :]
        fixed = TurnRows(
            keys=turn_keys(first, own, turn),
            limit=limits[:, turn - 1],
            ahead=rows.drawn & (numbers > turn),
        )
        segments = segment_slots(self.plan, block, self.config)
        return draw_turn(engine, state, prompt, fixed, turn, segments)

    def episodes(self, prompts: Prompts, state: SamplingState) -> Episodes:
        """The dialogues so far, with rewards 0; rows p * G .. p * G + G - 1 are of prompt p."""
        return finished(constrain_rows(fan_out(constrain_rows(prompts), self.config)), state)


def sample_dialogues(
    decoder: Decoder, params: Params, prompts: Prompts, key: Key[Array, ""], **options: Any
) -> Episodes:
    """Draws G dialogues for each prompt, all turns in one function, to be read or jitted alone.

    Training runs the parts of `Drawing` as programs of their own (stages/program.py).

    Args:
      options: other fields of Drawing.
    """
    drawing = Drawing(decoder=decoder, **options)
    prompt, begun = drawing.begin(params, prompts)
    turns = jnp.asarray(drawing.plan.drawn)
    end = jax.lax.fori_loop(
        0,
        len(turns),
        lambda n, state: drawing.turn(params, prompts, key, prompt, state, turns[n]),
        begun,
    )
    return constrain_rows(drawing.episodes(prompts, end))


def finished(rows: Prompts, end: SamplingState) -> Episodes:
    """The dialogues of rows that draw nothing more.

    Args:
      rows: of `fan_out`.
    """
    sampled = mark_turns(rows.drawn, end.turn_ids)
    return Episodes(
        tokens=end.tokens,
        length=end.length,
        turn=end.turn_ids,
        sampled=sampled,
        trained=sampled & mark_turns(rows.trained, end.turn_ids),
        logprobs=end.logprobs,
        present=rows.present,
        truncated=end.truncated,
        rewards=jnp.zeros(end.truncated.shape, jnp.float32),
        ids=rows.ids,
        effort=end.effort,
    )


def mark_turns(turns: Bool[Array, "B R"], turn: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at the tokens of the given turns."""
    return spread_to_tokens(turns.astype(jnp.float32), turn) > 0
