"""The two-turn sampling loop: one program from prompts to finished dialogues.

The prompt is prefilled once per problem and fanned out to G rows. Then every row advances by
one token per iteration, independently of the others: it draws turn 1 up to the stop token,
takes the instruction's tokens (forced, not drawn), and draws turn 2. The loop ends when all
rows are done. A row writes keys, values and tokens at its own length, so rows stay contiguous
and go to the learner as they are.

Forced tokens stand in one array, here `# i j #` for the instruction `i j`, and each row holds
the index of its next one; an index behind the instruction, here 3, means that it draws. Row 0
draws its stop token `#`. Row 1 is cut after turn_limit=3 tokens, and the stop token that it
lacks is forced as well; `turn` is 0 there, so that it is not trained:

    iteration     0  1  2  3  4  5  6  7
    row 0 token   y  #  i  j  y  #  .  .
          forced  3  3  1  2  3  3  3  3
          turn    1  1  0  0  2  2  0  0
    row 1 token   y  y  y  #  i  j  y  #
          forced  3  3  3  0  1  2  3  3
          turn    1  1  1  0  0  0  2  2

Long dialogues are decoded in segments, one loop after the other. After n iterations no row is
longer than prompt_limit + n tokens, so an early segment attends only to the first slots of
the cache.
"""

from dataclasses import dataclass
from typing import Any

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
from score_jax.rl.keys import row_keys, token_keys
from score_jax.rl.logprobs import log_softmax, select_logprob
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
        if self.group_size % self.second_attempts:
            raise ValueError(
                f"sampling.group_size is {self.group_size}; "
                f"set a multiple of sampling.second_attempts {self.second_attempts}"
            )
        if 0 < self.row_limit <= self.prompt_limit:
            raise ValueError(
                f"sampling.row_limit is {self.row_limit}; set more than sampling.prompt_limit "
                f"{self.prompt_limit}, or 0"
            )


@dataclass(frozen=True, kw_only=True)
class TurnTemplate:
    """The tokens that end a turn and those that stand between two turns."""

    stops: tuple[int, ...]  # ids that end a turn; the first is the one that is forced
    instruction: tuple[int, ...]  # ids between the stop token and the next turn
    turns: int = 2  # R, attempts per dialogue

    def row_length(self, config: SamplingConfig) -> int:
        """T: the largest number of tokens of a dialogue."""
        whole = config.prompt_limit + self.steps(config)
        return min(whole, config.row_limit or whole)

    def steps(self, config: SamplingConfig) -> int:
        """The largest number of tokens after a prompt, which has at least one token."""
        whole = self.turns * config.turn_limit + (self.turns - 1) * (len(self.instruction) + 1)
        return min(whole, (config.row_limit or whole + 1) - 1)

    def segment_schedule(self, config: SamplingConfig) -> list[tuple[int, int]]:
        """For each segment, the iteration at which it ends and the slots that it attends to."""
        ends = [
            self.steps(config) * n // config.decode_segments
            for n in range(1, config.decode_segments + 1)
        ]
        slots = [-(-(config.prompt_limit + end) // TILE) * TILE for end in ends]
        return [(e, min(s, self.row_length(config))) for e, s in zip(ends, slots, strict=True)]


class SamplingState(struct.PyTreeNode):
    """State of the sampling loop."""

    tokens: Int[Array, "B T"]
    turn_ids: Int[Array, "B T"]
    logprobs: Float[Array, "B T"]
    truncated: Bool[Array, "B R"]
    length: Int[Array, "B"]  # tokens so far
    turn: Int[Array, "B"]  # current turn, 1..R; the next one while its instruction is forced
    used: Int[Array, "B"]  # tokens drawn in that turn
    forced: Int[Array, "B"]  # index of the next forced token; above len(instruction): draw one
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


def prefill(
    decoder: Decoder,
    params: Params,
    prompts: Prompts,
    template: TurnTemplate,
    config: SamplingConfig,
) -> SamplingState:
    """Runs each problem's prompt once and repeats its cache for G rows."""
    problems, width = prompts.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(width), (problems, width))
    hidden, new = forward(decoder, params, prompts.tokens, positions)
    last = jnp.take_along_axis(hidden, (prompts.length - 1)[:, None, None], axis=1)[:, 0]

    length = template.row_length(config)
    rows = problems * config.group_size

    def fan(x: Array, axis: int = 0) -> Array:
        return jnp.repeat(x, config.group_size, axis=axis)

    def grow(x: Float[Array, "L B K T0 H"]) -> Float[Array, "L B K S H"]:
        x = jnp.pad(x, [(0, 0), (0, 0), (0, 0), (0, length - width), (0, 0)])
        return with_logical_constraint(x, ("layers", "batch", "kv_heads", "length", "head_dim"))

    tokens = jnp.pad(fan(prompts.tokens), ((0, 0), (0, length - width)))
    return SamplingState(
        tokens=tokens,
        turn_ids=jnp.zeros((rows, length), jnp.int32),
        logprobs=jnp.zeros((rows, length), jnp.float32),
        truncated=jnp.zeros((rows, template.turns), bool),
        length=fan(prompts.length),
        turn=jnp.ones(rows, jnp.int32),
        used=jnp.zeros(rows, jnp.int32),
        forced=jnp.full(rows, len(template.instruction) + 1),
        done=jnp.zeros(rows, bool),
        hidden=fan(last),
        cache=Cache(keys=grow(fan(new.keys, 1)), values=grow(fan(new.values, 1))),
    )


def advance(
    state: SamplingState,
    token: Int[Array, "B"],
    logprob: Float[Array, "B"],
    template: TurnTemplate,
    limit: int,
) -> SamplingState:
    """Appends one token to every row that is not done, and starts the next turn where one ends.

    A turn that draws a stop token owns it. A turn that reaches its limit is flagged as truncated
    and followed by a forced stop token, which is not the policy's. A row that is full ends, its
    current turn flagged as truncated.
    """
    forcing = state.forced <= len(template.instruction)
    policy = ~forcing & ~state.done
    used = state.used + policy
    stopped = policy & (token[:, None] == jnp.asarray(template.stops)).any(axis=1)
    cut = policy & ~stopped & (used >= limit)
    ended = stopped | cut
    final = state.turn == template.turns
    over = ended & final
    full = (state.length + 1 >= state.tokens.shape[1]) & ~over & ~state.done
    this_turn = jnp.arange(1, template.turns + 1)[None, :] == state.turn[:, None]
    ahead = jnp.arange(1, template.turns + 1)[None, :] > state.turn[:, None]
    lost = (this_turn & ~stopped[:, None]) | ahead  # turns that a full row does not finish
    forced = jnp.where(forcing, state.forced + 1, state.forced)
    return state.replace(
        tokens=write_where(state.tokens, state.length, token, ~state.done),
        turn_ids=write_where(state.turn_ids, state.length, state.turn, policy),
        logprobs=write_where(state.logprobs, state.length, logprob, policy),
        truncated=state.truncated | (this_turn & cut[:, None]) | (lost & full[:, None]),
        length=state.length + ~state.done,
        turn=jnp.where(ended & ~final, state.turn + 1, state.turn),
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
    template: TurnTemplate,
    config: SamplingConfig,
) -> Episodes:
    """Draws G dialogues of R turns for each prompt.

    Args:
      key: of `keys.run_key`; draw, sample, turn and position are folded into it.

    Returns:
      Episodes whose rows p * G .. p * G + G - 1 belong to problem p, with rewards 0.
    """
    rows = row_keys(
        key, prompts.draw, group_size=config.group_size, second_attempts=config.second_attempts
    )
    first_keys, own_keys = constrain_rows(rows)
    forced_tokens = jnp.asarray(
        (template.stops[0], *template.instruction, template.stops[0]), jnp.int32
    )
    table = output_table(decoder, params)

    def body(state: SamplingState, slots: int) -> SamplingState:
        logits = vocabulary_logits(decoder.config, table, state.hidden)
        keys = token_keys(first_keys, own_keys, state.turn, state.length)
        drawn = sample_token(keys, logits, config.temperature)
        forcing = state.forced <= len(template.instruction)
        token = jnp.where(forcing, forced_tokens[state.forced], drawn)
        logprob = select_logprob(log_softmax(logits), token)
        at = jnp.minimum(state.length, state.tokens.shape[1] - 1)  # rows that are done may be full
        assert state.cache is not None, "the loop starts with the prefilled cache"
        attended = state.cache.replace(attended_slots=slots)
        hidden, new = forward(decoder, params, token[:, None], at[:, None], attended)
        cache = write_cache(state.cache, new, at)
        state = advance(state.replace(cache=None), token, logprob, template, config.turn_limit)
        return constrain_rows(state.replace(hidden=hidden[:, 0])).replace(cache=cache)

    start = prefill(decoder, params, constrain_rows(prompts), template, config)
    # A row grows by at most one token per iteration, so the count of iterations bounds all lengths.
    end, step = start, jnp.zeros((), jnp.int32)
    for last, slots in template.segment_schedule(config):
        end, step = jax.lax.while_loop(
            lambda now, last=last: ~jnp.all(now[0].done) & (now[1] < last),
            lambda now, slots=slots: (body(now[0], slots), now[1] + 1),
            (end, step),
        )
    episodes = Episodes(
        tokens=end.tokens,
        length=end.length,
        turn=end.turn_ids,
        logprobs=end.logprobs,
        truncated=end.truncated,
        draw=jnp.repeat(prompts.draw, config.group_size),
        rewards=jnp.zeros(end.truncated.shape, jnp.float32),
    )
    return constrain_rows(episodes)
