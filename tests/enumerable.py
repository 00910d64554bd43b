"""A policy small enough to enumerate: all its dialogues, their odds, the true gradients.

The policy is a table of logits, one row for each prefix at which it draws a token, so
that turn 1 and turn 2 have parameters of their own. The numpy side knows nothing of
the package: probabilities, objectives and finite differences in float64. `TableDecoder`
is the same policy in the shape that the package's learner calls.
"""

from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.rl import learner
from score_jax.types import Episodes, TrainState

STOP = 0
PROMPT = 1
INSTRUCTION = 2


def turn_outcomes(vocabulary, limit):
    """Every attempt as (tokens, cut): it stops itself, or is cut at the limit."""
    letters = range(1, vocabulary)
    stopped = [
        ((*word, STOP), False) for size in range(limit) for word in product(letters, repeat=size)
    ]
    return stopped + [(word, True) for word in product(letters, repeat=limit)]


@dataclass
class World:
    """All dialogues of two turns on one prompt; row n is (first attempt, second attempt)."""

    vocabulary: int = 3
    limit: int = 2
    tokens: np.ndarray = field(init=False)
    turn: np.ndarray = field(init=False)
    context: np.ndarray = field(init=False)  # row of the table that drew the token; -1: none
    pairs: list = field(init=False)
    prefixes: list = field(init=False)

    def __post_init__(self):
        outcomes = turn_outcomes(self.vocabulary, self.limit)
        self.pairs = list(product(range(len(outcomes)), repeat=2))
        width = 2 * self.limit + 3
        self.tokens, self.turn = np.zeros((2, len(self.pairs), width), np.int32)
        self.context = np.full(self.tokens.shape, -1)
        known = {}
        for row, pair in enumerate(self.pairs):
            line, owner = [PROMPT], [0]
            for number, index in enumerate(pair, 1):
                words, cut = outcomes[index]
                for word in words:
                    place = known.setdefault((number, tuple(line)), len(known))
                    self.context[row, len(line)] = place
                    line, owner = [*line, word], [*owner, number]
                if number == 1:
                    between = [STOP, INSTRUCTION] if cut else [INSTRUCTION]
                    line, owner = line + between, owner + [0] * len(between)
            self.tokens[row, : len(line)], self.turn[row, : len(owner)] = line, owner
        self.prefixes = [prefix for _, prefix in known]
        self.turn_of_context = np.array([number for number, _ in known])

    def random_table(self, seed, scale=1.0):
        """Logits of a policy."""
        draws = np.random.default_rng(seed).normal(size=(len(self.prefixes), self.vocabulary))
        return scale * draws

    def token_logprobs(self, table):
        """log pi of every policy token, 0 elsewhere."""
        own = self.turn > 0
        chosen = log_softmax(table)[self.context, np.where(own, self.tokens, 0)]
        return np.where(own, chosen, 0.0)

    def turn_logprobs(self, table):
        """log pi(y1 | x1), log pi(y2 | x2) of each row."""
        logprobs = self.token_logprobs(table)
        return np.stack([(logprobs * (self.turn == r)).sum(1) for r in (1, 2)], axis=1)

    def odds(self, table):
        """The probability of each row."""
        return np.exp(self.turn_logprobs(table).sum(1))

    def occupancy(self, table):
        """How often a dialogue visits each context, in expectation."""
        visits = np.zeros(len(self.prefixes))
        own = self.context >= 0
        np.add.at(
            visits, self.context[own], np.broadcast_to(self.odds(table)[:, None], own.shape)[own]
        )
        return visits

    def rewards(self, right):
        """f64[N 2] where `right` gives the reward of each outcome of a turn."""
        return np.array([[right[first], right[second]] for first, second in self.pairs])

    def decoder(self):
        """The policy as the learner calls it."""
        width = self.tokens.shape[1]
        padded = np.full((len(self.prefixes), width), -1)
        for place, prefix in enumerate(self.prefixes):
            padded[place, : len(prefix)] = prefix
        return TableDecoder(padded, np.array([len(prefix) for prefix in self.prefixes]))

    def episodes(self, table, rewards, rows):
        """The given rows as the sampler would return them."""
        tokens, turn = self.tokens[rows], self.turn[rows]
        return Episodes(
            tokens=jnp.asarray(tokens),
            length=jnp.full(tokens.shape[:-1], tokens.shape[-1]),
            turn=jnp.asarray(turn),
            logprobs=jnp.asarray(self.token_logprobs(table)[rows], jnp.float32),
            truncated=jnp.zeros((*tokens.shape[:-1], 2), bool),
            draw=jnp.zeros(tokens.shape[:-1], jnp.int32),
            rewards=jnp.asarray(rewards[rows], jnp.float32),
        )


@dataclass(frozen=True)
class TableDecoder:
    """`hidden` is a one-hot of the context, logits are its row of the table.

    `config` is what the package reads of a decoder's beside its functions: no soft cap.
    """

    prefixes: np.ndarray
    lengths: np.ndarray

    @property
    def config(self):
        return SimpleNamespace(logit_cap=None)

    def apply(self, variables, tokens=None, positions=None, method=None):
        """Hidden states of a block of tokens, or the table whose rows they choose."""
        if method == "output_table":
            return variables["params"]["table"].T
        width = tokens.shape[1]
        same = tokens[:, None, :] == jnp.asarray(self.prefixes)[None, :, :width]  # B C T
        so_far = jnp.cumprod(same, axis=-1)
        here = jnp.asarray(self.lengths)[:, None] == jnp.arange(1, width + 1)
        return (so_far * here[None]).swapaxes(1, 2).astype(jnp.float32), None


def log_softmax(table):
    """Log-probabilities in float64."""
    shifted = table - table.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def slope(function, table, size=1e-5):
    """Central differences of a function of the table, entry by entry."""
    out = np.zeros_like(table)
    for place in np.ndindex(*table.shape):
        moved = np.zeros_like(table)
        moved[place] = size
        out[place] = (function(table + moved) - function(table - moved)) / (2 * size)
    return out


def ascents(world, table, reference, rewards, objective, groups, *, second_attempts=1, config=None):
    """The direction in which one `update` moves the table, for each batch of rows.

    Args:
      groups: i[M G], the rows of each of M batches.
    """
    decoder, sgd = world.decoder(), optax.sgd(1.0)
    config = config or learner.LearnerConfig(logits_chunk=3)
    max_policy_tokens = 2 * world.limit
    fixed = {"table": jnp.asarray(reference, jnp.float32)}
    start = {"table": jnp.asarray(table, jnp.float32)}

    def one(episodes):
        scores = learner.score_episodes(
            decoder,
            fixed,
            episodes,
            max_policy_tokens=max_policy_tokens,
            config=config,
            keep_hidden=objective.kl == "exact",
        )
        state = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=start,
            opt_state=sgd.init(start),
            baseline=jnp.zeros(2),
        )
        state, _ = learner.update(
            decoder,
            sgd,
            state,
            fixed,
            episodes,
            scores,
            objective=objective,
            config=config,
            group_size=groups.shape[1],
            second_attempts=second_attempts,
            turn_limit=world.limit,
        )
        return state.params["table"] - start["table"]

    batches = world.episodes(table, rewards, groups)
    return np.asarray(jax.jit(jax.vmap(one))(batches), np.float64)


def expected_ascent(
    world, table, reference, rewards, objective, *, group_size=1, second_attempts=1
):
    """The exact mean of `ascents` over what the policy would sample.

    The rows of a batch are independent draws, except that branches share a first attempt.
    """
    firsts = group_size // second_attempts
    outcomes = len(turn_outcomes(world.vocabulary, world.limit))
    odds = np.exp(world.turn_logprobs(table))
    groups, chances = [], []
    for y1 in product(range(outcomes), repeat=firsts):
        for y2 in product(range(outcomes), repeat=group_size):
            rows = [y1[i // second_attempts] * outcomes + y for i, y in enumerate(y2)]
            groups.append(rows)
            chances.append(np.prod(odds[rows[::second_attempts], 0]) * np.prod(odds[rows, 1]))
    moves = ascents(
        world,
        table,
        reference,
        rewards,
        objective,
        np.array(groups),
        second_attempts=second_attempts,
    )
    assert np.isclose(sum(chances), 1.0), "the batches don't cover all that can be sampled"
    return np.einsum("m,mcv->cv", np.array(chances), moves)
