"""A decoder of a few hundred parameters, and dialogues drawn by a plain Python loop."""

import dataclasses
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder
from score_jax.rl.dialogue import DialoguePlan, row_ids
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.types import Episodes, Prompts

MODEL = ModelConfig(vocab_size=9, layers=2, width=16, heads=4, kv_heads=2, head_dim=4, mlp_dim=24)
GEMMA = dataclasses.replace(  # every switch that could break a cache
    MODEL,
    window=4,
    local_layers=(True, False),
    rope_local_base=100.0,
    qk_norm=True,
    attention_cap=3.0,
    logit_cap=5.0,
    post_norms=True,
    norm_plus_one=True,
    embedding_scale=True,
)
STOPS = (0,)  # the stop token is the padding as well
INSTRUCTION = (7, 8)
SAMPLING = SamplingConfig(group_size=3, prompt_limit=5, turn_limit=5)
PLAN = DialoguePlan().complete(2, SAMPLING.turn_limit)


def prompts_of(
    lines, *, plan=PLAN, draws=None, instructions=None, owners=None, stop=STOPS[0], **columns
):
    """Rows that begin with these tokens.

    Args:
      lines: token ids of each.
      draws: ordinals; None: 0, 1 and so on.
      instructions: of each row, the ids before each turn; None: INSTRUCTION before all but the
        first.
      owners: of each row, the turn that each of its tokens belongs to; None: nobody's.
      stop: of a turn that was cut.
      columns: fields of Prompts to set otherwise.
    """
    count, width = len(lines), max(map(len, lines))
    usual = [()] + [INSTRUCTION] * (plan.turns - 1)
    rows = instructions or [usual] * count
    between = [[(), *((stop, *ids) for ids in row[1:])] for row in rows]
    block = max((len(ids) for row in between for ids in row), default=1) or 1

    def padded(rows, size):
        return np.array([[*row, *[0] * (size - len(row))] for row in rows], np.int32)

    draws = np.arange(count) if draws is None else np.asarray(draws)
    fields = {
        "tokens": padded(lines, width),
        "turn": padded(owners or [[]] * count, width),
        "length": np.array(list(map(len, lines)), np.int32),
        "forced": np.stack([padded(row, block) for row in between]),
        "forced_turn": np.zeros((count, plan.turns, block), np.int32),
        "forced_length": np.array([list(map(len, row)) for row in between], np.int32),
        "present": np.ones((count, plan.turns), bool),
        "drawn": np.tile([source == "sampled" for source in plan.sources], (count, 1)),
        "trained": np.tile(np.array(plan.trained), (count, 1)),
        "ids": row_ids(draws, draws),
    }
    return Prompts(**fields | columns)


PROMPTS = prompts_of([[3, 4, 5], [6, 2, 1, 3]], draws=[5, 9])


@lru_cache
def random_params(config, seed=0, scale=0.7):
    """Parameters whose distributions are far from uniform."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(Decoder(config).init)
    params = nn.unbox(init(jax.random.key(seed), tokens, tokens)["params"])
    return {**params, "embedding": params["embedding"] * scale}


@lru_cache
def row_logits(config):
    """A jitted function (params, tokens [B T]) -> logits [B T V], without any cache."""

    @jax.jit
    def run(params, tokens):
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        decoder = Decoder(config)
        hidden = decoder.apply({"params": params}, tokens, positions)
        return decoder.apply({"params": params}, hidden, method="logits")

    return run


@lru_cache
def next_token(config, temperature):
    """A jitted function (params, tokens [T], length, key) -> the token at `length`."""

    @jax.jit
    def run(params, tokens, length, key):
        logits = row_logits(config)(params, tokens[None])[0, length - 1]
        if temperature == 0:
            return jnp.argmax(logits)
        return jax.random.categorical(jax.random.fold_in(key, length), logits / temperature)

    return run


def naive_logprobs(config, params, tokens):
    """log p(token t | tokens before t) over the whole vocabulary table; 0 at t = 0."""
    logits = np.asarray(row_logits(config)(params, jnp.asarray(tokens)), np.float64)
    table = logits - logits.max(-1, keepdims=True)
    table -= np.log(np.exp(table).sum(-1, keepdims=True))
    chosen = np.take_along_axis(table[:, :-1], np.asarray(tokens)[:, 1:, None], -1)[..., 0]
    return np.pad(chosen, ((0, 0), (1, 0)))


def naive_dialogue(config, params, prompts, row, first_key, own_key, plan, sampling, stops):
    """One dialogue, token by token, with a full forward pass for each that is drawn."""
    size = prompts.length[row]
    line, owner = prompts.tokens[row, :size].tolist(), prompts.turn[row, :size].tolist()
    cuts, drawn = [False] * plan.turns, np.flatnonzero(prompts.drawn[row]).tolist()
    for index, before in zip(drawn, [None, *drawn], strict=False):
        if before is not None:  # the first of what is forced stands for a stop that is missing
            known = slice(0 if cuts[before] else 1, prompts.forced_length[row, index])
            line += prompts.forced[row, index, known].tolist()
            owner += prompts.forced_turn[row, index, known].tolist()
        key = jax.random.fold_in(first_key if index == 0 else own_key, index + 1)
        for count in range(1, plan.limits[index] + 1):
            padded = np.asarray(line + [0] * (-len(line) % 64), np.int32)
            draw = next_token(config, sampling.temperature)
            token = int(draw(params, padded, len(line), key))
            line.append(token)
            owner.append(index + 1)
            if token in stops:
                break
            cuts[index] = count == plan.limits[index]
    return line, owner, cuts


def naive_dialogues(config, params, prompts, key, plan, sampling, stops=STOPS):
    """Every row's (tokens, turns, truncated), problem by problem, sample by sample."""
    out = []
    for row, ordinal in enumerate(prompts.ids.draw):
        mine = jax.random.fold_in(key, ordinal)
        for sample in range(prompts.ids.sample[row], prompts.ids.sample[row] + sampling.group_size):
            trunk = sample - sample % sampling.second_attempts
            first, own = jax.random.fold_in(mine, trunk), jax.random.fold_in(mine, sample)
            out.append(
                naive_dialogue(config, params, prompts, row, first, own, plan, sampling, stops)
            )
    return out


def rows_of(lines, turns, *, width=None, padding=0, logprobs=None, rewards=None, ids=None):
    """Episodes of (tokens, turn) lists, all of whose turns are drawn and trained.

    Rewards are made up unless given, and the rows are draws 0, 1, 2 unless ids are given.
    """
    width = width or max(len(tokens) for tokens, _ in lines)
    tokens = np.full((len(lines), width), padding, np.int32)
    turn = np.zeros((len(lines), width), np.int32)
    for row, (words, owner) in enumerate(lines):
        tokens[row, : len(words)], turn[row, : len(owner)] = words, owner
    if rewards is None:
        rewards = np.random.default_rng(0).integers(0, 2, (len(lines), turns))
    old = np.zeros(tokens.shape) if logprobs is None else logprobs
    return Episodes(
        tokens=jnp.asarray(tokens),
        length=jnp.asarray([len(words) for words, _ in lines]),
        turn=jnp.asarray(turn),
        sampled=jnp.asarray(turn > 0),
        trained=jnp.asarray(turn > 0),
        logprobs=jnp.asarray(old, jnp.float32),
        present=jnp.ones((len(lines), turns), bool),
        truncated=jnp.zeros((len(lines), turns), bool),
        rewards=jnp.asarray(rewards, jnp.float32),
        ids=jax.tree.map(jnp.asarray, ids or row_ids(*[np.arange(len(lines))] * 2)),
    )


def grouped(count, group_size, second_attempts=1):
    """Ids of rows that lie problem by problem, G of each."""
    sample = np.arange(count) % group_size
    draws = np.arange(count) // group_size
    return row_ids(draws, draws, sample, sample // second_attempts * second_attempts)
