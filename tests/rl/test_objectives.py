"""Returns per turn and what an objective must agree with its dialogues on, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import objectives
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.objectives import Objective

STAGE_ONE = Objective(reward_weights=(0.0, 1.0), beta=(0.11, 0.01))
STAGE_TWO = Objective(reward_weights=(1.0, 1.0), beta=(0.01, 0.01), alpha=10.0)
SINGLE_TURN = Objective(reward_weights=(1.0, 0.0), beta=(0.01, 0.01))
MULTI_TURN = Objective(reward_weights=(0.0, 1.0), beta=(0.01, 0.01), gamma=1.0)
OUTCOMES = jnp.array([[0.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])  # 00 01 11 10


def value(**fields):
    return Objective(**({"reward_weights": (1.0, 1.0), "beta": (0.0, 0.0)} | fields))


def returns(objective, rewards, roles=None):
    roles = roles or ("answer",) * objective.turns
    rewards = jnp.asarray(rewards)
    got = objectives.turn_returns(objective, rewards, alpha=objective.alpha, roles=roles)
    return np.asarray(got)


@pytest.mark.parametrize(
    ("objective", "first", "second"),
    [
        (STAGE_ONE, [0, 0, 0, 0], [0, 1, 1, 0]),
        (STAGE_TWO, [0, 0, 1, 1], [0, 11, 1, -10]),
        (SINGLE_TURN, [0, 0, 1, 1], [0, 0, 0, 0]),
        (MULTI_TURN, [0, 1, 1, 0], [0, 1, 1, 0]),
    ],
    ids=["stage I", "stage II", "single turn", "standard multi-turn"],
)
def test_returns_are_the_papers_table(objective, first, second):
    got = returns(objective, OUTCOMES)
    np.testing.assert_array_equal(got, np.array([first, second], float).T)


def test_failing_first_is_never_paid():
    """One scalar for both turns would credit turn 1 with 1 - alpha = -9 per reward."""
    got = returns(STAGE_TWO, OUTCOMES)
    right_first, wrong_first = got[2:, 0], got[:2, 0]
    assert right_first.min() > wrong_first.max()


def test_discounting_passes_rewards_back_but_never_the_bonus():
    rewards = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    objective = value(reward_weights=(1.0, 1.0, 1.0), beta=(0.0,) * 3, gamma=0.5, alpha=4.0)
    got = returns(objective, rewards)
    # plain: [0 + .5(1 + .5), 1 + .5, 1], [1 + .5(0 + .5), .5, 1]; bonus: [0, +4, 0], [0, -4, +4]
    np.testing.assert_allclose(got, [[0.75, 5.5, 1.0], [1.25, -3.5, 5.0]])


def test_weights_scale_each_turns_own_reward():
    got = objectives.discounted(OUTCOMES, (2.0, 3.0), 0.0)
    np.testing.assert_array_equal(got, [[0, 0], [0, 3], [2, 3], [2, 0]])


def test_partial_credit_gives_partial_progress():
    got = returns(STAGE_TWO, [[0.25, 0.75]])
    np.testing.assert_allclose(got, [[0.25, 0.75 + 10 * 0.5]])


def test_the_bonus_is_weighed_with_what_alpha_is_now_not_with_what_it_began_with():
    got = objectives.turn_returns(STAGE_TWO, OUTCOMES, alpha=3.0, roles=("answer",) * 2)
    np.testing.assert_allclose(got, np.array([[0, 0, 1, 1], [0, 4, 1, -3]]).T)


@pytest.mark.parametrize(
    ("roles", "gains"),
    [
        (("answer", "answer", "answer"), [0.0, 0.75, -0.25]),
        (("answer", "verify", "answer"), [0.0, 0.0, 0.5]),
        (("answer", "answer", "verify"), [0.0, 0.75, 0.0]),
        (("answer", "verify", "verify"), [0.0, 0.0, 0.0]),
    ],
    ids=str,
)
def test_progress_is_over_the_answer_before_whatever_stands_between(roles, gains):
    """Rewards 1/4, 1, 3/4: a judgement makes no progress, and is none to be made over."""
    got = objectives.progress(jnp.array([[0.25, 1.0, 0.75]]), roles)
    np.testing.assert_allclose(got, [gains])


def test_a_bonus_is_passed_back_by_its_own_share_alone():
    """Rewards 0, 1, 1 and 1, 0, 1: gains 0, 1, 0 and 0, -1, 1; alpha 4, half of it handed on."""
    objective = value(reward_weights=(0.0,) * 3, beta=(0.0,) * 3, alpha=4.0, bonus_gamma=0.5)
    got = returns(objective, [[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    np.testing.assert_allclose(got, [[2.0, 4.0, 0.0], [4 * (-0.5 + 0.25), 4 * (-1 + 0.5), 4.0]])


def test_each_turns_bonus_has_a_weight_of_its_own():
    objective = value(
        reward_weights=(0.0,) * 3, beta=(0.0,) * 3, alpha=4.0, bonus_weights=(1.0, 0.0, 0.5)
    )
    got = returns(objective, [[0.0, 1.0, 0.0]])
    np.testing.assert_allclose(got, [[0.0, 0.0, -2.0]])


def test_a_judgement_is_paid_for_itself_and_the_revision_for_its_progress():
    objective = value(reward_weights=(1.0, 0.5, 1.0), beta=(0.0,) * 3, alpha=2.0)
    got = returns(objective, [[0.0, 1.0, 1.0], [1.0, 1.0, 0.0]], ("answer", "verify", "answer"))
    np.testing.assert_allclose(got, [[0.0, 0.5, 1 + 2], [1.0, 0.5, 0 - 2]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"alpha": -1.0}, r"objective.alpha is -1.0; set a finite value >= 0"),
        ({"alpha": float("nan")}, r"objective.alpha is nan"),
        ({"gamma": 1.5}, r"objective.gamma is 1.5; set a value in 0..1"),
        ({"beta": (0.1,)}, r"objective.beta is \(0.1,\); give one value per turn"),
        (
            {"beta": (0.1, -0.1)},
            r"objective.beta is \(0.1, -0.1\); set a finite value >= 0 for",
        ),
        ({"reward_weights": (1.0, float("inf"))}, r"objective.reward_weights is \(1.0, inf\)"),
        ({"bonus_gamma": 1.5}, r"objective.bonus_gamma is 1.5; set a value in 0..1"),
        (
            {"bonus_weights": (1.0,)},
            r"objective.bonus_weights is \(1.0,\); give one value per turn, or \(\)",
        ),
        ({"repeat_penalty": -1.0}, r"objective.repeat_penalty is -1.0; set a finite value >= 0"),
        ({"reward_weights": (), "beta": ()}, r"objective.beta is \(\); give one value per turn"),
    ],
)
def test_impossible_values_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        value(**fields)


def plan(turns=2, **fields):
    return DialoguePlan(**fields).complete(turns, 5)


GIVEN = {"sources": ("given", "sampled")}
THREE = {"turns": 3, "roles": ("answer", "verify", "answer")}


@pytest.mark.parametrize(
    ("fields", "dialogue", "message"),
    [
        (
            {"reward_weights": (0.0, 1.0)},
            {},
            r"dialogue.trained\[0\] is True, but no reward, bonus or KL reaches turn 1; set it "
            "False, or a weight in objective",
        ),
        (
            {"reward_weights": (1.0, 0.0)},
            {},
            r"dialogue.trained\[1\] is True, but no reward, bonus or KL reaches turn 2",
        ),
        (  # alpha pays answers only
            {"reward_weights": (1.0, 0.0, 1.0), "beta": (0.0,) * 3, "alpha": 2.0},
            THREE,
            r"dialogue.trained\[1\] is True, but no reward, bonus or KL reaches turn 2",
        ),
        (  # through turn 2, which earns by its bonus alone, nothing reaches turn 1
            {"reward_weights": (0.0, 0.0), "alpha": 2.0, "gamma": 0.5},
            {},
            r"dialogue.trained\[0\] is True, but no reward, bonus or KL reaches turn 1",
        ),
        (
            {"reward_weights": (1.0, 0.0), "alpha": 2.0, "bonus_weights": (1.0, 0.0)},
            {},
            r"dialogue.trained\[1\] is True, but no reward, bonus or KL reaches turn 2",
        ),
        (
            {"beta": (0.5, 0.0), "reward_weights": (0.0, 1.0)},
            GIVEN,
            r"objective.beta\[0\] is 0.5, but turn 1 is not trained; set it to 0",
        ),
        (
            {},
            GIVEN,
            r"objective.reward_weights\[0\] is 1.0, but turn 1 is not trained; set it to 0",
        ),
        (
            {"reward_weights": (1.0, 1.0)},
            {"trained": (True, False)},
            r"objective.reward_weights\[1\] is 1.0, but turn 2 is not trained; set it to 0",
        ),
        (
            {"reward_weights": (0.0, 0.0)},
            {"trained": (False, False)},
            r"dialogue.trained is \(False, False\); nothing would be learnt",
        ),
    ],
)
def test_what_is_paid_for_in_vain_is_named_with_its_remedy(fields, dialogue, message):
    with pytest.raises(ValueError, match=message):
        value(**fields).check_plan(plan(**dialogue))


@pytest.mark.parametrize(
    ("fields", "dialogue"),
    [
        ({}, {}),
        ({"reward_weights": (0.0, 1.0), "beta": (0.1, 0.0)}, {}),  # Stage I: turn 1 has its KL
        ({"reward_weights": (0.0, 1.0), "gamma": 0.5}, {}),  # turn 2's reward reaches turn 1
        ({"reward_weights": (0.0, 1.0), "gamma": 0.5}, {"trained": (True, False)}),
        ({"reward_weights": (1.0, 0.0), "alpha": 1.0}, {}),  # turn 2 has its bonus
        ({"reward_weights": (0.0, 1.0)}, GIVEN),
        ({"reward_weights": (1.0, 0.5, 1.0), "beta": (0.0,) * 3}, THREE),
        ({"reward_weights": (1.0, 0.0, 1.0), "beta": (0.0, 0.1, 0.0)}, THREE),
        ({"reward_weights": (1.0, 0.0), "alpha": 1.0, "gamma": 0.5}, {}),
        ({"reward_weights": (0.0, 0.0), "alpha": 1.0, "bonus_gamma": 0.5}, {}),
        ({"reward_weights": (0.0, 0.0, 1.0), "beta": (0.0,) * 3, "gamma": 0.5}, {"turns": 3}),
    ],
    ids=str,
)
def test_plans_that_pay_for_what_they_train_pass(fields, dialogue):
    value(**fields).check_plan(plan(**dialogue))
