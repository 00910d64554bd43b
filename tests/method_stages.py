"""A method's stages as the package resolves and grades them, and what is claimed of their updates.

`Claim` is the other side: numpy in float64 that knows nothing of the package.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax
import numpy as np

from configs import common
from score_jax.records import Grade, Problem, Task
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.rollout import grade_rollout, graded_columns
from score_jax.stages.build import learner_functions, make_learner
from score_jax.stages.resolve import resolve_stages
from tests.enumerable import (
    INSTRUCTION,
    PROMPT,
    SGD,
    STOP,
    World,
    log_softmax,
    slope,
    turn_outcomes,
)
from tests.methods import METHODS

TOLERANCE = 3e-5
WORDS = {1: "right", 2: "wrong"}
TASK = Task(name="world", prompt=lambda p: p.prompt, instruction="i", grade=lambda *_: None)
PROBLEM = Problem(id="p", prompt="?")
RIGHT = {7: (0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0), 3: (0.0, 1.0, 0.5)}  # of each outcome of a turn


class Words:
    """A chat that encodes and decodes the dialogues of a world."""

    stops = (STOP,)

    def encode_prompt(self, _):
        return [PROMPT]

    def encode_instruction(self, _):
        return [INSTRUCTION]

    def decode(self, ids):
        return " ".join(WORDS[index] for index in ids)

    def answer(self, text):
        return text


def texts(world):
    """The text of each outcome of a turn."""
    outcomes = turn_outcomes(world.vocabulary, world.limit)
    return [" ".join(WORDS[word] for word in words if word != STOP) for words, _ in outcomes]


class Script:
    """A grader that knows the reward of each text."""

    def __init__(self, world):
        self.rewards = dict(zip(texts(world), RIGHT[len(texts(world))], strict=True))

    def submit(self, _, items, cut):
        found = [
            Grade(
                verdict="correct" if self.rewards[text] == 1 else "wrong",
                reward=self.rewards[text],
                extracted=text or None,
            )
            for _, text in items
        ]
        return SimpleNamespace(result=lambda: found)


def resolved(name, **overrides):
    """The stages of a method by name, as main makes them of a config."""
    method, config = METHODS[name], common.get_config()
    config.update_from_flattened_dict(
        {
            "sampling.prompt_limit": 1,
            "sampling.turn_limit": method.world.limit,
            "sampling.row_limit": 0,
            "sampling.group_size": 2,
            "estimator.kl": "reward",
            "learner.logits_chunk": 3,
        }
    )
    config.stages, config.rounds = method.stages, method.rounds
    return {stage.settings.name: stage for stage in resolve_stages(config, overrides)}


def last_run(name, entry):
    """The settings of an entry in the method's last round."""
    rounds = METHODS[name].rounds
    return resolved(name)[f"{entry}_{rounds}" if rounds > 1 else entry].settings


def encoder(settings, tasks=TASK):
    return Encoder(chat=Words(), tasks={"": tasks}, plan=settings.plan, prompt_limit=1)


def functions_of(world, settings):
    """The stage's learner functions, on plain descent."""
    learner = replace(make_learner(settings, world.decoder(), None), optimizer=SGD)
    return learner_functions(settings, learner)


def learning(world, settings):
    """How a stage learns, as arguments of tests.enumerable."""
    return {
        "objective": settings.objective,
        "plan": settings.plan,
        "functions": functions_of(world, settings),
    }


def graded(world, settings):
    """Rewards and shaping of all dialogues, as a rollout finds them."""
    plan, rows = settings.plan, np.arange(len(world.pairs))
    table = world.random_table(0)
    drawn = jax.tree.map(np.asarray, world.episodes(table, np.zeros(np.shape(world.pairs)), rows))
    found = grade_rollout(encoder(settings), Script(world), [PROBLEM] * len(rows), drawn)
    columns = graded_columns(found.grades, plan.roles, settings.objective.repeat_penalty)
    return {"rewards": columns["rewards"], "shaping": columns.get("shaping")}


def naive_rewards(world, roles):
    """The reward of each turn of all dialogues; a verdict is right about the answer before."""
    said = {"right": True, "wrong": False}
    out = []
    for row in world.pairs:
        rewards, answer = [], None
        for role, outcome in zip(roles, row, strict=True):
            if role == "answer":
                answer = RIGHT[len(texts(world))][outcome]
                rewards.append(answer)
            else:
                rewards.append(float(said.get(texts(world)[outcome]) is (answer == 1)))
        out.append(rewards)
    return np.array(out)


def turn_slopes(world, values, table):
    """The slope of each turn's own value in the parameters of that turn."""
    out = np.zeros_like(table)
    for turn in range(1, world.turns + 1):
        own = world.turn_of_context == turn

        def value(part, turn=turn, own=own):
            moved = table.copy()
            moved[own] = part
            return values(moved)[turn - 1]

        out[own] = slope(value, table[own])
    return out


@dataclass(frozen=True)
class Claim:
    """What a stage is said to maximise, evaluated on all dialogues of its world."""

    world: World
    plan: DialoguePlan
    gain: Callable  # of tests.methods
    table: np.ndarray
    reference: np.ndarray
    exact: bool = False  # the KL is that of the contexts visited, instead of turns' log-ratios

    def gains(self, kl):
        """f64[R N]."""
        rewards = naive_rewards(self.world, self.plan.roles).T
        outcomes = np.array(self.world.pairs).T
        found = self.gain((None, *rewards), (None, *kl), (None, *outcomes))
        return np.array([np.broadcast_to(value, len(self.world.pairs)) for value in found])

    def log_ratios(self, table):
        """f64[R N]."""
        return (self.world.turn_logprobs(table) - self.world.turn_logprobs(self.reference)).T

    def values(self, table):
        """The expectation of each turn's gain; where the KL is exact, with its contexts fixed."""
        odds, fixed = (
            np.exp(self.world.drawn_logprobs(t, self.reference, self.plan).sum(1))
            for t in (table, self.table)
        )
        if not self.exact:
            return self.gains(self.log_ratios(table)) @ odds
        plain = self.gains(np.zeros((self.world.turns, len(odds))))
        kl = visited_kl(self.world, table, self.reference)
        return plain @ odds + (self.gains(kl) - plain) @ fixed

    def by_dialogue(self):
        """What each dialogue adds to each turn's gradient, for an advantage of 1; of its KL too.

        By hand: the slope of log p_i is onehot - p, that of a KL is p (log(p/q) - KL).
        """
        policy, reference = log_softmax(self.table), log_softmax(self.reference)
        odds, ratio = np.exp(policy), policy - reference
        pull = odds * (ratio - (odds * ratio).sum(-1, keepdims=True))
        shape = (self.world.turns, len(self.world.pairs), *odds.shape)
        scores, kl = np.zeros(shape), np.zeros(shape)
        for row, place in np.argwhere(self.world.context >= 0):
            turn, context = self.world.turn[row, place] - 1, self.world.context[row, place]
            scores[turn, row, context] += np.eye(odds.shape[1])[self.world.tokens[row, place]]
            scores[turn, row, context] -= odds[context]
            kl[turn, row, context] += pull[context]
        return scores, kl

    def ascents(self, groups):
        """The update by each batch, f64[M C V]: less the mean of the others of its rows."""
        scores, kl = self.by_dialogue()
        none = np.zeros(scores.shape[:2])
        gains = self.gains(none if self.exact else self.log_ratios(self.table))
        own = gains[:, groups]  # R M G
        others = (own.sum(-1, keepdims=True) - own) / (groups.shape[1] - 1)
        advantages = np.zeros((scores.shape[0], *groups.shape[:1], scores.shape[1]))
        for column in range(groups.shape[1]):
            part = (own - others)[:, :, column] / groups.shape[1]
            np.add.at(advantages, (slice(None), np.arange(len(groups)), groups[:, column]), part)
        moves = np.einsum("rmn,rncv->mcv", advantages, scores)
        if self.exact:
            prices = self.gains(none + 1.0) - self.gains(none)  # minus beta
            moves += np.einsum("rmg,rmgcv->mcv", prices[:, groups], kl[:, groups]) / len(groups[0])
        return moves


def visited_kl(world, table, reference):
    """For each turn and dialogue, the sum of KL(policy || reference) at its tokens' contexts."""
    policy = log_softmax(table)
    kl = (np.exp(policy) * (policy - log_softmax(reference))).sum(-1)
    tokens = np.where(world.context >= 0, kl[world.context], 0.0)
    return [(tokens * (world.turn == turn)).sum(1) for turn in range(1, world.turns + 1)]
