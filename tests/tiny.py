"""A decoder of a few hundred parameters, and dialogues drawn by a plain Python loop."""

import dataclasses
from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder
from score_jax.rl.sampling import SamplingConfig, TurnTemplate
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
TEMPLATE = TurnTemplate(
    stops=(0,), instruction=(7, 8), turns=2
)  # the stop token is the padding as well
SAMPLING = SamplingConfig(group_size=3, prompt_limit=5, turn_limit=5)
PROMPTS = Prompts(
    tokens=np.array([[3, 4, 5, 0, 0], [6, 2, 1, 3, 0]], np.int32),
    length=np.array([3, 4], np.int32),
    draw=np.array([5, 9], np.int32),
)


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
        hidden, _ = decoder.apply({"params": params}, tokens, positions)
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


def naive_dialogue(config, params, prompt, first_key, own_key, template, sampling):
    """One dialogue, token by token, with a full forward pass for each."""
    width = template.row_length(sampling)
    line, owner, cuts = list(prompt), [0] * len(prompt), []
    for turn in range(1, template.turns + 1):
        if turn > 1:
            line += template.instruction
            owner += [0] * len(template.instruction)
        key = jax.random.fold_in(first_key if turn == 1 else own_key, turn)
        for count in range(1, sampling.turn_limit + 1):
            padded = np.asarray(line + [0] * (width - len(line)), np.int32)
            draw = next_token(config, sampling.temperature)
            token = int(draw(params, padded, len(line), key))
            line.append(token)
            owner.append(turn)
            if token in template.stops:
                cuts.append(False)
                break
            if count == sampling.turn_limit:
                cuts.append(True)
                if turn < template.turns:
                    line.append(template.stops[0])
                    owner.append(0)
    return line, owner, cuts


def naive_dialogues(config, params, prompts, key, template, sampling):
    """Every row's (tokens, turns, truncated), problem by problem, sample by sample."""
    out = []
    for tokens, length, ordinal in zip(prompts.tokens, prompts.length, prompts.draw, strict=True):
        mine = jax.random.fold_in(key, ordinal)
        for sample in range(sampling.group_size):
            trunk = sample - sample % sampling.second_attempts
            first, own = jax.random.fold_in(mine, trunk), jax.random.fold_in(mine, sample)
            prompt = [int(token) for token in tokens[:length]]
            out.append(naive_dialogue(config, params, prompt, first, own, template, sampling))
    return out


def rows_of(lines, turns, *, width=None, padding=0, logprobs=None, rewards=None):
    """Episodes of (tokens, turn) lists, with made-up rewards unless given."""
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
        logprobs=jnp.asarray(old, jnp.float32),
        truncated=jnp.zeros((len(lines), turns), bool),
        draw=jnp.zeros(len(lines), jnp.int32),
        rewards=jnp.asarray(rewards, jnp.float32),
    )
