"""The sampling loop: one program from prompts to finished dialogues.

A prompt, with the turns that were given, is prefilled once and fanned out to G rows. Then every
row advances by one token per iteration, independently of the others: it draws a turn up to the
stop token, takes the tokens that stand before the next turn (forced, not drawn), and draws that.
The loop ends when all rows are done. A row writes keys, values and tokens at its own length, so
rows stay contiguous and go to the learner as they are.

What is forced before a turn stands in one array per row, here `# i j` for the instruction
`i j`, and each row holds the index of its next one; an index behind the last, 3 (0 in turn 1,
before which nothing is forced), means that it draws. Row 0 draws its stop token `#`. Row 1 is
cut after 3 tokens, its limit, and the stop token that it lacks is forced as well; `turn` is 0
there, so that it is not trained:

    iteration     0  1  2  3  4  5  6  7
    row 0 token   y  #  i  j  y  #  .  .
          forced  0  0  1  2  3  3  3  3
          turn    1  1  0  0  2  2  0  0
    row 1 token   y  y  y  #  i  j  y  #
          forced  0  0  0  0  1  2  3  3
          turn    1  1  1  0  0  0  2  2

Long dialogues are decoded in segments, one loop after the other. After n iterations no row is
longer than T0 + n tokens, so an early segment attends only to the first slots of the cache.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import struct
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Bool, Float, Int, Key

from score_jax.checks import Count, Natural, NotNegative, check_fields
from score_jax.model.decoder import (
    Decoder,
    forward,
    output_table,
    vocabulary_logits,
    write_cache,
)
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.keys import row_keys, token_keys
from score_jax.rl.logprobs import log_softmax, select_logprob, spread_to_tokens
from score_jax.types import Cache, Episodes, Params, Prompts

TILE = 16  # slots of the cache that a TPU reads at a time, in bfloat16


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How dialogues are drawn."""

    group_size: Count = 8  # G, dialogues per problem
    second_attempts: Count = 1  # second attempts drawn from each first attempt; divides group_size
    prompt_limit: Count = 64  # tokens; longer prompts are refused
    turn_limit: Count = 64  # tokens of one turn, its stop token included
    row_limit: Natural = 0  # tokens of a whole dialogue; 0: all that the other limits allow
    temperature: NotNegative = 1.0  # 0: greedy
    decode_segments: Count = 1  # loops one after the other, each over more of the cache

    def __post_init__(self):
        check_fields(self, "sampling")
        if 0 < self.row_limit <= self.prompt_limit:
            raise ValueError(
                f"sampling.row_limit is {self.row_limit}; set more than sampling.prompt_limit "
                f"{self.prompt_limit}, or 0"
            )


class Sampler(Protocol):
    """What draws dialogues: a jitted program here, or a script in a test."""

    def __call__(self, params: Params, prompts: Prompts, key: Key[Array, ""], /) -> Episodes:
        """Draws a plan's rows with prepared parameters; a key of `keys.run_key`."""
        ...


def segment_schedule(
    plan: DialoguePlan, width: int, block: int, config: SamplingConfig
) -> list[tuple[int, int]]:
    """For each segment, the iteration at which it ends and the slots that it attends to.

    Args:
      width: T0, the tokens that a row may begin with.
      block: I, the tokens that may stand between two drawn turns.
    """
    steps = plan.steps(block, config.row_limit)
    length = plan.row_length(width, block, config.row_limit)
    ends = [steps * n // config.decode_segments for n in range(1, config.decode_segments + 1)]
    slots = [-(-(width + end) // TILE) * TILE for end in ends]
    return [(e, min(s, length)) for e, s in zip(ends, slots, strict=True)]


class SamplingState(struct.PyTreeNode):
    """State of the sampling loop."""

    tokens: Int[Array, "B T"]
    turn_ids: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    truncated: Bool[Array, "B R"]
    length: Int[Array, "B"]  # tokens so far
    turn: Int[Array, "B"]  # current turn, 1..R; the next one while what precedes it is forced
    used: Int[Array, "B"]  # tokens drawn in that turn
    forced: Int[Array, "B"]  # index of the next forced token; behind the last: draw one
    done: Bool[Array, "B"]
    hidden: Float[Array, "B D"]  # of the last token
    cache: Cache | None  # None while `advance` and `constrain_rows` handle the other fields


def sample_token(
    keys: Key[Array, "B"], logits: Float[Array, "B V"], temperature: float
) -> Int[Array, "B"]:
    """Draws one token per row, each from its own key; argmax at temperature 0."""
    if temperature == 0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return jax.vmap(jax.random.categorical)(keys, logits / temperature).astype(jnp.int32)


def constrain_rows(tree: Any) -> Any:
    """Constrains arrays to the row sharding of sampling.

    Without it the partitioner carries the finer sharding of the resulting episodes into the
    loop, and gathers rows again for every matrix product.
    """
    return jax.tree.map(
        lambda x: with_logical_constraint(x, ("batch", *(None,) * (x.ndim - 1))), tree
    )


def write_where(row: Array, at: Int[Array, "B"], value: Array, write: Bool[Array, "B"]) -> Array:
    """Sets entry `at` of each row where `write`; elementwise, so that no scatter is compiled."""
    here = (jnp.arange(row.shape[1])[None, :] == at[:, None]) & write[:, None]
    return jnp.where(here, value[:, None], row)


def read_at(row: Int[Array, "B N"], at: Int[Array, "B"]) -> Int[Array, "B"]:
    """Entry `at` of each row, 0 outside; elementwise as `write_where`."""
    return jnp.where(jnp.arange(row.shape[1])[None, :] == at[:, None], row, 0).sum(1)


def fan_out(prompts: Prompts, config: SamplingConfig) -> Prompts:
    """Repeats each prompt for its G rows and numbers these."""
    rows: Prompts = jax.tree.map(lambda x: jnp.repeat(x, config.group_size, axis=0), prompts)
    own = jnp.tile(jnp.arange(config.group_size), len(prompts.length))
    sample = rows.ids.sample + own
    shared = sample // config.second_attempts * config.second_attempts
    attempt = jnp.where(rows.drawn[:, 0], shared, 0)
    return rows.replace(ids=rows.ids.replace(sample=sample, attempt=attempt))


def prefill(
    decoder: Decoder, params: Params, prompts: Prompts, rows: Prompts, length: int
) -> SamplingState:
    """Runs each prompt once and repeats its cache for its rows.

    Args:
      rows: of `fan_out`.
      length: T.
    """
    count, width = prompts.tokens.shape
    group_size = len(rows.length) // count
    positions = jnp.broadcast_to(jnp.arange(width), (count, width))
    hidden, new = forward(decoder, params, prompts.tokens, positions)
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]

    def grow(x: Float[Array, "L P K T0 H"]) -> Float[Array, "L B K S H"]:
        x = jnp.repeat(x, group_size, axis=1)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, length - width), (0, 0)])
        return with_logical_constraint(x, ("layers", "batch", "kv_heads", "length", "head_dim"))

    def widen(x: Int[Array, "B T0"]) -> Int[Array, "B T"]:
        return jnp.pad(x, ((0, 0), (0, length - width)))

    first = jnp.argmax(rows.drawn, axis=1)
    return SamplingState(
        tokens=widen(rows.tokens),
        turn_ids=widen(rows.turn),
        logprobs=jnp.zeros((len(rows.length), length), jnp.float32),
        truncated=jnp.zeros(rows.drawn.shape, bool),
        length=rows.length,
        turn=first.astype(jnp.int32) + 1,
        used=jnp.zeros_like(rows.length),
        forced=read_at(rows.forced_length, first),
        done=~rows.drawn.any(1),
        hidden=jnp.repeat(last, group_size, axis=0),
        cache=Cache(keys=grow(new.keys), values=grow(new.values)),
    )


def forced_next(state: SamplingState, rows: Prompts) -> tuple[Array, Array, Array]:
    """Whether each row's next token is forced, the token, and the turn that it belongs to."""
    block = rows.forced.shape[2]
    at = (state.turn - 1) * block + state.forced
    forcing = state.forced < read_at(rows.forced_length, state.turn - 1)
    flat = (len(at), -1)
    return (
        forcing,
        read_at(rows.forced.reshape(flat), at),
        read_at(rows.forced_turn.reshape(flat), at),
    )


def advance(
    state: SamplingState,
    token: Int[Array, "B"],
    logprob: Float[Array, "B"],
    rows: Prompts,
    *,
    stops: tuple[int, ...],
    limits: tuple[int, ...],
) -> SamplingState:
    """Appends one token to every row that is not done, and starts the next turn where one ends.

    A turn that draws a stop token owns it. A turn that reaches its limit is flagged as truncated
    and followed by a forced stop token, which is not the policy's. A row that is full ends, its
    current turn flagged as truncated.
    """
    forcing, _, owner = forced_next(state, rows)
    policy = ~forcing & ~state.done
    turns = jnp.arange(1, rows.drawn.shape[1] + 1)[None, :]
    this_turn = turns == state.turn[:, None]
    ahead = rows.drawn & (turns > state.turn[:, None])
    used = state.used + policy
    stopped = policy & (token[:, None] == jnp.asarray(stops)).any(axis=1)
    cut = policy & ~stopped & (this_turn & (used[:, None] >= jnp.asarray(limits))).any(axis=1)
    ended = stopped | cut
    final = ~ahead.any(axis=1)
    over = ended & final
    full = (state.length + 1 >= state.tokens.shape[1]) & ~over & ~state.done
    lost = (this_turn & ~stopped[:, None]) | ahead  # turns that a full row does not finish
    following = jnp.argmax(ahead, axis=1).astype(jnp.int32) + 1
    forced = jnp.where(forcing, state.forced + 1, state.forced)
    return state.replace(
        tokens=write_where(state.tokens, state.length, token, ~state.done),
        turn_ids=write_where(
            state.turn_ids, state.length, jnp.where(policy, state.turn, owner), ~state.done
        ),
        logprobs=write_where(state.logprobs, state.length, logprob, policy),
        truncated=state.truncated | (this_turn & cut[:, None]) | (lost & full[:, None]),
        length=state.length + ~state.done,
        turn=jnp.where(ended & ~final, following, state.turn),
        used=jnp.where(ended, 0, used),
        # Forced tokens begin with the stop token, which only a truncated turn still needs.
        forced=jnp.where(ended & ~final, jnp.where(cut, 0, 1), forced),
        done=state.done | over | full,
    )


def sample_dialogues(
    decoder: Decoder,
    params: Params,
    prompts: Prompts,
    key: Key[Array, ""],
    *,
    plan: DialoguePlan,
    stops: tuple[int, ...],
    config: SamplingConfig,
) -> Episodes:
    """Draws G dialogues for each prompt.

    Args:
      key: of `keys.run_key`; draw, sample, turn and position are folded into it.
      plan: complete; the turns and their limits.
      stops: ids that end a turn; the first is the one that is forced.

    Returns:
      Episodes with rewards 0; rows p * G .. p * G + G - 1 belong to prompt p.
    """
    prompts = constrain_rows(prompts)
    rows = constrain_rows(fan_out(prompts, config))
    width, block = prompts.tokens.shape[1], prompts.forced.shape[2]
    first_keys, own_keys = constrain_rows(row_keys(key, rows.ids))
    table = output_table(decoder, params)

    def body(state: SamplingState, slots: int) -> SamplingState:
        logits = vocabulary_logits(decoder.config, table, state.hidden)
        keys = token_keys(first_keys, own_keys, state.turn, state.length)
        forcing, forced, _ = forced_next(state, rows)
        token = jnp.where(forcing, forced, sample_token(keys, logits, config.temperature))
        logprob = select_logprob(log_softmax(logits), token)
        at = jnp.minimum(state.length, state.tokens.shape[1] - 1)  # rows that are done may be full
        assert state.cache is not None, "the loop starts with the prefilled cache"
        attended = state.cache.replace(attended_slots=slots)
        hidden, new = forward(decoder, params, token[:, None], at[:, None], attended)
        cache = write_cache(state.cache, new, at)
        state = advance(
            state.replace(cache=None), token, logprob, rows, stops=stops, limits=plan.limits
        )
        return constrain_rows(state.replace(hidden=hidden[:, 0])).replace(cache=cache)

    length = plan.row_length(width, block, config.row_limit)
    # A row grows by at most one token per iteration, so the count of iterations bounds all lengths.
    end, step = prefill(decoder, params, prompts, rows, length), jnp.zeros((), jnp.int32)
    for last, slots in segment_schedule(plan, width, block, config):
        end, step = jax.lax.while_loop(
            lambda now, last=last: ~jnp.all(now[0].done) & (now[1] < last),
            lambda now, slots=slots: (body(now[0], slots), now[1] + 1),
            (end, step),
        )
    sampled = mark_turns(rows.drawn, end.turn_ids)
    episodes = Episodes(
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
    )
    return constrain_rows(episodes)


def mark_turns(turns: Bool[Array, "B R"], turn: Int[Array, "B T"]) -> Bool[Array, "B T"]:
    """True at the tokens of the given turns."""
    return spread_to_tokens(turns.astype(jnp.float32), turn) > 0
