"""What the small sections of a config make of their fields."""

import dataclasses

import pytest
from ml_collections import ConfigDict

from score_jax.model.config import ModelConfig
from score_jax.stages.sections import (
    CheckpointConfig,
    ComputeConfig,
    EvaluationConfig,
    LogConfig,
    ProfileConfig,
    TokenizerConfig,
)
from score_jax.stages.settings import parse
from tests.tiny_stages import get_config

WRONG = [
    (TokenizerConfig, "chat", 3, r"tokenizer\.chat is 3; "),
    (ComputeConfig, "dtype", 16, r"compute\.dtype is 16; "),
    (CheckpointConfig, "keep", 0, r"checkpoint\.keep is 0; set at least 1"),
    (EvaluationConfig, "turns", 0, r"evaluation\.turns is 0; set 1 to 10"),
    (LogConfig, "rollouts", -2, r"log\.rollouts is -2; set a value >= 0, or -1: all"),
    (ProfileConfig, "every", 3, r"profile\.every is 3; set 0, or more than profile\.steps \(3\)"),
]


@pytest.mark.parametrize(("kind", "field", "value", "told"), WRONG)
def test_a_sections_wrong_value_names_the_field(kind, field, value, told):
    usual = {"steps": 3} if kind is ProfileConfig else {}
    kind(**usual)
    with pytest.raises(ValueError, match=f"^{told}"):
        kind(**usual | {field: value})


@pytest.mark.parametrize("rollouts", [-1, 0, 3])
def test_all_no_or_some_dialogues_may_be_kept(rollouts):
    assert LogConfig(rollouts=rollouts).rollouts == rollouts


MODEL = ModelConfig(
    vocab_size=40, layers=1, width=8, heads=2, kv_heads=1, head_dim=4, mlp_dim=8, remat="dots"
)


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"dtype": "bfloat16"},
        {"remat": "full"},
        {"dtype": "bfloat16", "remat": "none"},
        {"attention": "plain"},
    ],
)
def test_what_compute_leaves_open_stays_as_the_model_has_it(own):
    found = ComputeConfig(**own).apply_to(MODEL)
    changed = {
        field.name: getattr(found, field.name)
        for field in dataclasses.fields(MODEL)
        if getattr(found, field.name) != getattr(MODEL, field.name)
    }
    assert changed == own
    with pytest.raises(ValueError, match=r"model\.remat is 'some'; "):
        ComputeConfig(remat="some").apply_to(MODEL)
    with pytest.raises(
        ValueError, match=r"model\.attention is 'flash'; choose one of auto, plain,"
    ):
        ComputeConfig(attention="flash").apply_to(MODEL)


def settings(**sets):
    config = get_config()
    config.evaluation.update({"seed": 7, "turns": 3})
    config.evaluation.sets = ConfigDict(sets)
    return parse({k: v for k, v in config.items() if k not in ("stages", "rounds")})


def test_a_further_set_differs_from_the_evaluation_in_its_own_fields_only():
    whole = settings(long={"turns": 5, "dialogue": {"limits": (9,) * 5}}, other={"task": "math"})
    long, other = whole.measured_sets["long"], whole.measured_sets["other"]
    assert list(whole.measured_sets) == ["long", "other"]
    assert (long.evaluation.turns, other.evaluation.turns, whole.evaluation.turns) == (5, 3, 3)
    assert long.measured_plan.limits == (9,) * 5 and other.measured_plan.limits == (8,) * 3
    assert (other.measured_task, whole.measured_task) == ("math", "tests.short_answers")
    for own in (long, other):
        assert own.evaluation.seed == 7 and own.evaluation.sets == ()
        assert dataclasses.replace(own, evaluation=whole.evaluation) == whole
    assert settings().measured_sets == {}


@pytest.mark.parametrize(
    ("own", "told"),
    [
        ({"turnz": 3}, r"config\.evaluation\.sets\.long\.turnz is no field .* did you mean turns"),
        ({"turns": 11}, r"evaluation\.turns is 11; set 1 to 10"),
        ({"problems": -1}, r"evaluation\.problems is -1; "),
    ],
)
def test_a_wrong_further_set_is_refused_with_the_config(own, told):
    with pytest.raises(ValueError, match=told):
        settings(long=own)


def test_a_sets_dialogue_is_put_over_the_evaluations_field_by_field():
    config = get_config()
    config.evaluation.update({"turns": 3})
    config.evaluation.dialogue.roles = ("answer", "verify", "answer")
    config.evaluation.sets = ConfigDict(
        {
            "wait": {"dialogue": {"instructions": ("", "Wait", "Wait")}},
            "usual": {"turns": 2, "dialogue": {"roles": ()}},
        }
    )
    found = parse({k: v for k, v in config.items() if k not in ("stages", "rounds")}).measured_sets
    wait, usual = found["wait"].measured_plan, found["usual"].measured_plan
    assert wait.instructions == ("", "Wait", "Wait") and wait.roles == (
        "answer",
        "verify",
        "answer",
    )
    assert usual.roles == ("answer", "answer")


def test_a_sets_dialogue_that_does_not_fit_its_turns_is_refused_by_its_name():
    with pytest.raises(
        ValueError, match=r"config\.evaluation\.sets\.wait: dialogue\.instructions is"
    ):
        settings(wait={"dialogue": {"instructions": ("", "Wait")}})  # of three turns
