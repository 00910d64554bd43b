"""Each method of tests/methods.py, as a config's list of stages, makes its first update.

The package turns the list into settings, grades, weighs and updates a table of logits. The other
side is numpy in float64: sums over all dialogues, and finite differences of what the method is
said to maximise; and batch by batch, since what is added to all second attempts to the same first
one moves nothing in expectation. Float32 updates with bonuses of 10 agree with both to 3e-5.
"""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from configs import common
from score_jax.records import Grade
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.objectives import Objective
from score_jax.rl.rollout import graded_columns
from score_jax.stages import problem_sets
from score_jax.stages.resolve import resolve_stages
from tests.enumerable import INSTRUCTION, STOP, ascents, batches, slope, updates
from tests.method_stages import (
    PROBLEM,
    RIGHT,
    TASK,
    TOLERANCE,
    Claim,
    encoder,
    graded,
    last_run,
    learning,
    naive_rewards,
    resolved,
    turn_slopes,
    visited_kl,
)
from tests.methods import BETA1, BETA2, COLLECT, METHODS, THREE, TUNE, TWO, cocos


@pytest.mark.parametrize("name", METHODS)
def test_a_list_of_stages_says_what_starts_from_what(name):
    stages = resolved(name)
    starts = {n: s.parent.settings.name if s.parent else "" for n, s in stages.items()}
    assert starts == METHODS[name].starts
    assert list(starts) == list(METHODS[name].starts)


RL = [(name, entry) for name, method in METHODS.items() for entry in method.gains]


@pytest.mark.parametrize(("name", "entry"), RL)
def test_the_first_update_is_the_slope_of_what_the_method_maximises(name, entry):
    """In expectation over all batches; and for each batch, what its dialogues' gains make it."""
    world, settings = METHODS[name].world, last_run(name, entry)
    table, reference = world.random_table(0), world.random_table(1)
    given = settings.plan.sources[0] == "given"  # all dialogues of a problem then share it
    size = settings.sampling.group_size
    branches = {"second_attempts": size if given else 1}
    groups, odds = batches(world, table, reference, settings.plan, group_size=size, **branches)
    options = {**graded(world, settings), **learning(world, settings), **branches}
    moves = ascents(world, table, reference, groups=groups, **options)
    claim = Claim(world, settings.plan, METHODS[name].gains[entry], table, reference)
    claim = replace(claim, exact=settings.estimator.kl == "exact")
    mean = np.einsum("m,mcv->cv", odds, moves)
    want = turn_slopes(world, claim.values, table)
    np.testing.assert_allclose(mean, want, atol=TOLERANCE)
    np.testing.assert_allclose(moves, claim.ascents(groups), atol=TOLERANCE)
    for turn, trained in enumerate(settings.plan.trained, 1):
        own = world.turn_of_context == turn
        assert np.abs(mean[own]).max() > 0.01 if trained else not moves[:, own].any()


@pytest.mark.parametrize(("name", "entry"), RL)
def test_the_world_is_what_the_encoder_asks(name, entry):
    world, settings = METHODS[name].world, last_run(name, entry)
    given = ((1, 1),) if settings.plan.sources[0] == "given" else ()  # cut at its limit
    prompts = encoder(settings).prompts([replace(PROBLEM, given=given)], [0])
    opening = prompts.tokens[0, : prompts.length[0]].tolist()
    assert opening in [row[: len(opening)].tolist() for row in world.tokens]
    assert len(opening) == (5 if given else 1)
    for turn in range(settings.plan.drawn[0], world.turns):
        assert prompts.forced[0, turn, : prompts.forced_length[0, turn]].tolist() == [
            STOP,
            INSTRUCTION,
        ]
    assert encoder(settings).row_length() == world.tokens.shape[1]


def test_what_earlier_turns_have_earned_moves_nothing():
    """So CoCoS's scalar for all turns is the same objective as what each turn still earns."""
    table, plan = THREE.random_table(0), THREE.plan()
    claims = (
        Claim(THREE, plan, gain, table, table) for gain in (cocos, METHODS["CoCoS"].gains["cocos"])
    )
    whole, rest = (turn_slopes(THREE, claim.values, table) for claim in claims)
    np.testing.assert_allclose(whole, rest, atol=1e-9)


@pytest.mark.parametrize("name", ["balanced beta", "target KL"])
def test_an_adaptive_beta_follows_the_first_updates_kl(name):
    """And the second update is made with it: turn 1 has no reward, only its KL."""
    settings = last_run(name, "stage1")
    table, reference = TWO.random_table(0), TWO.random_table(1)
    every = np.arange(49)
    states = [
        jax.tree.map(
            lambda x: np.asarray(x[0], np.float64),
            updates(
                TWO,
                table,
                reference,
                groups=every[None],
                count=count,
                **graded(TWO, settings),
                **learning(TWO, settings),
            ),
        )
        for count in (1, 2)
    ]
    kl = np.mean(visited_kl(TWO, table, reference)[0])
    if name == "balanced beta":
        beta = 0.5 * naive_rewards(TWO, ("answer", "answer"))[:, 1].mean() / kl
    else:
        assert kl > 0.1 * 1.2  # far above its target: it moves by at most a fifth of the rate
        beta = (BETA1 + BETA2) * (1 + 0.4 * 0.2)
    np.testing.assert_allclose(states[0].coefficients.beta, [beta, BETA1], rtol=1e-5)
    start = states[0].params["table"]
    moved = states[1].params["table"] - start
    pull = slope(lambda t: np.mean(visited_kl(TWO, t, reference)[0]), start)
    first = TWO.turn_of_context == 1
    np.testing.assert_allclose(moved[first], -beta * pull[first], atol=TOLERANCE)
    assert np.abs(pull[first]).max() > 0.01


@pytest.mark.parametrize(
    ("name", "high", "cut"),
    # Of 22 tokens; both sides, else a bound would be untested.
    [("PPO", 0.2, [(0, 0), (5, 2)]), ("PPO, clipped higher", 0.28, [(0, 0), (4, 2)])],
)
def test_clipped_minibatches_climb_the_clipped_surrogate_one_after_the_other(name, high, cut):
    settings = last_run(name, "stage2")
    table, reference = TWO.random_table(0), TWO.random_table(1)
    size, clip = settings.sampling.group_size, settings.estimator.clip
    rows = np.random.default_rng(10).integers(0, 49, size)
    rewards = TWO.rewards(RIGHT[7])[rows]
    ratios = (TWO.turn_logprobs(table) - TWO.turn_logprobs(reference))[rows]
    returns = np.stack(
        [rewards[:, 0] - BETA1 * ratios[:, 0], 2 * rewards[:, 1] - rewards[:, 0]], axis=1
    )
    returns[:, 1] -= BETA1 * ratios[:, 1]
    others = (returns.sum(0) - returns) / (size - 1)
    advantages = np.pad(returns - others, ((0, 0), (1, 0)))  # by turn from 1
    before, clipped, now = TWO.token_logprobs(table), [], table
    for part in (np.arange(0, size, 2), np.arange(1, size, 2)):
        own = rows[part]
        turn = TWO.turn[own]
        gain = np.take_along_axis(advantages[part], turn, axis=1)

        def surrogate(t, own=own, gain=gain):
            ratio = np.exp(TWO.token_logprobs(t)[own] - before[own])
            capped = np.clip(ratio, 1 - clip, 1 + high)
            return np.minimum(ratio * gain, capped * gain).sum() / len(own)

        ratio = np.exp(TWO.token_logprobs(now)[own] - before[own])
        own_gain, own_ratio = gain[turn > 0], ratio[turn > 0]
        above = (own_gain > 0) & (own_ratio > 1 + high)
        below = (own_gain < 0) & (own_ratio < 1 - clip)
        clipped.append((int(above.sum()), int(below.sum())))
        now = now + slope(surrogate, now)
    assert clipped == cut
    state = updates(
        TWO, table, reference, groups=rows[None], **graded(TWO, settings), **learning(TWO, settings)
    )
    np.testing.assert_allclose(state.params["table"][0], now, atol=TOLERANCE)


class Letters:
    """A chat whose tokens are characters."""

    stops = (ord("#"),)

    def encode_prompt(self, text):
        return [ord(letter) for letter in f"<{text}>"]

    encode_instruction = encode_prompt

    def encode_plain(self, text):
        return [ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("instructions", "row"),
    [
        (("", "Improve it."), "<7x=14>a#<Improve it.>b#"),
        (("", "What is wrong?", "Improve it."), "<7x=14>a#<What is wrong?>b#<Improve it.>c#"),
        (("", "", "Improve it."), "<7x=14>a#<again>b#<Improve it.>c#"),
    ],
)
def test_self_refine_is_instructions_alone(instructions, row):
    config = common.get_config()
    fields = {"evaluation.dialogue.instructions": instructions}
    config.stages = ({"name": "refine", "evaluation.turns": len(instructions), **fields},)
    (stage,) = resolve_stages(config, {})
    plan, asking = stage.settings.measured_plan, replace(TASK, instruction="again")
    rows = Encoder(chat=Letters(), tasks={"": asking}, plan=plan, prompt_limit=12)
    prompts = rows.prompts([replace(PROBLEM, prompt="7x=14")], [0])
    text = "".join(map(chr, prompts.tokens[0, : prompts.length[0]]))
    for turn, answer in enumerate("abc"[: plan.turns]):
        forced = "".join(map(chr, prompts.forced[0, turn, : prompts.forced_length[0, turn]]))
        assert forced[:1] == ("#" if turn else "")  # only a turn that was cut needs it
        text += forced[1:] + answer + "#"
    assert text == row


def test_only_problems_of_the_right_difficulty_are_drawn(tmp_path):
    rates = {"a": 0.0, "b": 0.2, "c": 0.5, "d": 0.81, "e": 1.0}
    rows = [{"id": name, "prompt": "?", "answer": "1"} for name in rates]
    passed = [{"id": name, "pass_rate": rate} for name, rate in rates.items()]
    for name, lines in (("problems", rows), ("rates", passed)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = common.get_config()
    fields = {"path": "problems.jsonl", "pass_rates": "rates.jsonl"}
    config.stages = (
        {
            "name": "stage1",
            "task": "numeric",
            "data.source": "jsonl",
            "data.pass_rate_range": (0.2, 0.8),
            **{f"data.{name}": str(tmp_path / file) for name, file in fields.items()},
        },
    )
    (stage,) = resolve_stages(config, {})
    _, problems = problem_sets.read(problem_sets.training_spec(stage.settings))
    assert [problem.id for problem in problems] == [n for n, r in rates.items() if 0.2 <= r <= 0.8]


def test_a_verdict_that_comes_again_repeats_no_answer():
    roles = ("answer", "verify", "answer", "verify", "answer")
    answers = ("7", "right", "8", "right", "7")
    grades = [[Grade(verdict="correct", reward=1.0, extracted=answer) for answer in answers]]
    columns = graded_columns(grades, roles, 0.5)
    assert columns["shaping"].tolist() == [[0, 0, 0, 0, -0.5]]


WRONG = {
    "no such stage": ([{"name": "a", "start": "b"}], r"stages\[0\].start is 'b'; set 'previous'"),
    "one that does not train": (
        [COLLECT, {**TUNE, "start": "collect"}],
        r"stages\[1\].start is 'collect'; set .* a stage before it that trains",
    ),
    "twice": ([{"name": "a"}, {"name": "a"}], r"names \['a', 'a'\]; give each entry a name"),
    "no name": ([{"steps": 3}], r"stages\[0\] is .*; give a dict with a name"),
    "no field": ([{"name": "a", "objective.alhpa": 1.0}], r"no field config.objective.alhpa"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_list_is_refused_by_the_entrys_name(case):
    config = common.get_config()
    config.stages = tuple(WRONG[case][0])
    with pytest.raises(ValueError, match=WRONG[case][1]):
        resolve_stages(config, {})


def test_a_bonus_by_turn_needs_a_weight_for_each():
    fields = {"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0)}
    with pytest.raises(ValueError, match=r"bonus_weights is \(1.0,\); give one value per turn"):
        Objective(**fields, bonus_weights=(1.0,))


def test_a_turn_may_be_paid_by_a_later_turns_bonus_alone():
    plan = DialoguePlan().complete(2, 4)
    fields = {"reward_weights": (0.0, 1.0), "beta": (0.0, 0.0), "alpha": 1.0}
    Objective(**fields, bonus_gamma=0.5).check_plan(plan)
    for other in ({}, {"bonus_gamma": 0.5, "bonus_weights": (1.0, 0.0)}):
        with pytest.raises(ValueError, match="no reward, bonus or KL reaches turn 1"):
            Objective(**fields, **other).check_plan(plan)
