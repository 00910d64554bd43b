"""A policy small enough to enumerate: all its dialogues, their odds, the true gradients.

The policy is a table of logits, one row for each prefix at which it draws a token, so
that turn 1 and turn 2 have parameters of their own. The numpy side knows nothing of
the package: probabilities, objectives and finite differences in float64. `TableDecoder`
is the same policy in the shape that the package's learner calls.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import product
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_jax.rl import learner
from score_jax.rl.dialogue import DialoguePlan, row_ids
from score_jax.rl.estimators import EstimatorConfig
from score_jax.types import Episodes

REINFORCE, SGD = EstimatorConfig(baseline="none"), optax.sgd(1.0)
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


@dataclass(eq=False)
class World:
    """All dialogues of two or more turns on one prompt; row n is (first attempt, second, ...)."""

    vocabulary: int = 3
    limit: int = 2
    turns: int = 2
    tokens: np.ndarray = field(init=False)
    turn: np.ndarray = field(init=False)
    context: np.ndarray = field(init=False)  # row of the table that drew the token; -1: none
    pairs: list = field(init=False)  # the outcome of each turn
    prefixes: list = field(init=False)

    def __post_init__(self):
        outcomes = turn_outcomes(self.vocabulary, self.limit)
        self.pairs = list(product(range(len(outcomes)), repeat=self.turns))
        width = self.turns * (self.limit + 2) - 1
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
                if number < self.turns:
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
        """log pi(y1 | x1), log pi(y2 | x2) and so on of each row."""
        logprobs, numbers = self.token_logprobs(table), range(1, self.turns + 1)
        return np.stack([(logprobs * (self.turn == r)).sum(1) for r in numbers], axis=1)

    def drawn_logprobs(self, table, reference, plan):
        """`turn_logprobs`, of the reference where a turn is given."""
        given = np.array([source == "given" for source in plan.sources])
        return np.where(given, self.turn_logprobs(reference), self.turn_logprobs(table))

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
        """f64[N R] where `right` gives the reward of each outcome of a turn."""
        return np.array([[right[outcome] for outcome in row] for row in self.pairs])

    def decoder(self):
        """The policy as the learner calls it."""
        width = self.tokens.shape[1]
        padded = np.full((len(self.prefixes), width), -1)
        for place, prefix in enumerate(self.prefixes):
            padded[place, : len(prefix)] = prefix
        return TableDecoder(padded, np.array([len(prefix) for prefix in self.prefixes]))

    def plan(self, **fields):
        """The dialogues of this world."""
        return DialoguePlan(**fields).complete(self.turns, self.limit)

    def episodes(self, table, rewards, rows, *, second_attempts=1, plan=None, shaping=None):
        """The given rows, of one draw of the problem, as the sampler would return them."""
        plan = plan or self.plan()
        tokens, turn = self.tokens[rows], self.turn[rows]
        shape = tokens.shape[:-1]
        attempt = np.arange(shape[-1]) // second_attempts * second_attempts * (1 in plan.drawn)
        sampled = np.isin(turn, plan.drawn)
        return Episodes(
            tokens=jnp.asarray(tokens),
            length=jnp.full(shape, tokens.shape[-1]),
            turn=jnp.asarray(turn),
            sampled=jnp.asarray(sampled),
            trained=jnp.asarray(np.array([False, *plan.trained])[turn]),
            logprobs=jnp.asarray(self.token_logprobs(table)[rows] * sampled, jnp.float32),
            present=jnp.ones((*shape, self.turns), bool),
            truncated=jnp.zeros((*shape, self.turns), bool),
            rewards=jnp.asarray(rewards[rows], jnp.float32),
            shaping=None if shaping is None else jnp.asarray(shaping[rows], jnp.float32),
            ids=row_ids(np.zeros(shape), np.zeros(shape), np.arange(shape[-1]), attempt),
        )


@dataclass(frozen=True)
class TableDecoder:
    """`hidden` is a one-hot of the context, logits are its row of the table.

    `config` is what the package reads of a decoder's beside its functions.
    """

    prefixes: np.ndarray
    lengths: np.ndarray

    @property
    def config(self):
        return SimpleNamespace(logit_cap=None, dtype="float32", vocab_size=World.vocabulary)

    def apply(self, variables, tokens=None, positions=None, segments=None, method=None):
        """Hidden states of a block of tokens, or the table whose rows they choose."""
        if method == "output_table":
            return variables["params"]["table"].T
        width = tokens.shape[1]
        same = tokens[:, None, :] == jnp.asarray(self.prefixes)[None, :, :width]  # B C T
        so_far = jnp.cumprod(same, axis=-1)
        here = jnp.asarray(self.lengths)[:, None] == jnp.arange(1, width + 1)
        return (so_far * here[None]).swapaxes(1, 2).astype(jnp.float32)


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


def start_state(table, objective):
    """The train state before the first update, by a learning rate of 1."""
    options = learner.Learner(decoder=None, optimizer=SGD, max_tokens=0)
    return learner.begin(options, {"table": jnp.asarray(table, jnp.float32)}, objective)


def learner_functions(world, objective, plan, *, estimator=REINFORCE, config=None):
    """The learner's functions for a world, with their options bound."""
    options = learner.Learner(
        decoder=world.decoder(),
        optimizer=SGD,
        max_tokens=plan.drawn_tokens,
        # The table's contexts begin where a row does: one dialogue a row.
        config=config or learner.LearnerConfig(logits_chunk=3, pack=False),
        estimator=estimator,
    )
    keep = estimator.kl == "exact"
    score = partial(learner.score_episodes, options, keep_hidden=keep)
    update = partial(learner.update, options, plan=plan, objective=objective)
    return SimpleNamespace(score=score, update=update)


def updates(
    world,
    table,
    reference,
    rewards,
    objective,
    groups,
    *,
    functions=None,
    second_attempts=1,
    plan=None,
    shaping=None,
    count=1,
    **options,
):
    """The train states, stacked, after `count` updates by each of M batches of rows.

    Args:
      groups: i[M G], the rows of each of M batches.
      functions: as of stages.build.learner_functions; None: made of the options.
    """
    plan = plan or world.plan()
    functions = functions or learner_functions(world, objective, plan, **options)
    fixed = {"table": jnp.asarray(reference, jnp.float32)}

    def one(episodes):
        scores = functions.score(fixed, episodes)
        state = start_state(table, objective)
        for _ in range(count):
            state, _ = functions.update(state, fixed, episodes, scores)
        return state

    batches = world.episodes(
        table, rewards, groups, second_attempts=second_attempts, plan=plan, shaping=shaping
    )
    # One after the other: what an update skips by a condition is skipped, as in a run.
    return jax.jit(partial(jax.lax.map, one))(batches)


def ascents(world, table, reference, rewards, objective, groups, **options):
    """The direction in which one `update` moves the table, for each batch of `updates`."""
    states = updates(world, table, reference, rewards, objective, groups, **options)
    return np.asarray(states.params["table"] - jnp.asarray(table, jnp.float32), np.float64)


def batches(world, table, reference, plan, *, group_size, second_attempts=1):
    """All batches that the policy may sample, i[M G], and the odds of each.

    The rows of a batch are independent draws, except that branches share a first attempt.
    Turns that are given were drawn from the reference.
    """
    outcomes, firsts = (
        len(turn_outcomes(world.vocabulary, world.limit)),
        group_size // second_attempts,
    )
    later = outcomes ** (world.turns - 1)
    odds = np.exp(world.drawn_logprobs(table, reference, plan))
    groups, chances = [], []
    for y1 in product(range(outcomes), repeat=firsts):
        for rest in product(range(later), repeat=group_size):
            rows = [y1[i // second_attempts] * later + y for i, y in enumerate(rest)]
            groups.append(rows)
            chances.append(np.prod(odds[rows[::second_attempts], 0]) * np.prod(odds[rows, 1:]))
    assert np.isclose(sum(chances), 1.0), "the batches don't cover all that can be sampled"
    return np.array(groups), np.array(chances)


def expected_ascent(
    world,
    table,
    reference,
    rewards,
    objective,
    *,
    group_size=1,
    second_attempts=1,
    plan=None,
    **options,
):
    """The exact mean of `ascents` over what the policy would sample."""
    plan, branches = plan or world.plan(), {"second_attempts": second_attempts}
    groups, chances = batches(world, table, reference, plan, group_size=group_size, **branches)
    options |= {"plan": plan, **branches}
    moves = ascents(world, table, reference, rewards, objective, groups, **options)
    return np.einsum("m,mcv->cv", chances, moves)
