"""A comparison's trials: what is tuned, at which rates, and what is refused."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from score_jax.stages.settings import build_section
from score_jax.stages.trials import (
    ComparisonConfig,
    Method,
    Spent,
    Trial,
    check_budgets,
    check_overrides,
)
from tests.methods import COLLECT, TUNE
from tests.tiny_stages import get_config

MULTI = {"name": "multi", "objective.reward_weights": (0.0, 1.0), "objective.gamma": 1.0}
TWICE = {"stages": ({"name": "one", "share": 0.5}, {"name": "two", "share": 0.5}), "rounds": 2}
RATE = "optimizer.learning_rate"


def shared(**evaluation):
    config = get_config()
    config.evaluation.update({"validation_problems": 5, **evaluation})
    config.comparison = ConfigDict({})
    return config


def comparison(methods, **fields):
    return build_section(ComparisonConfig, {"methods": methods, **fields}, "config.comparison")


def trial(method, *, fields=(), seed=0, variant=1):
    made = build_section(Method, {"title": "t", **method}, "m")
    return Trial(name="name", method=made, variant=variant, fields=fields, seed=seed)


def test_a_rate_is_times_the_stages_own():
    stages = (MULTI, MULTI | {"name": "slow", RATE: 0.5})
    found = trial({"stages": stages}, fields=(("rate", 0.25),)).stages(shared(), {}, "test")
    assert [s.settings.optimizer.learning_rate for s in found] == [0.25 * 1e-2, 0.25 * 0.5]


def test_a_variants_fields_reach_all_stages():
    own = trial(TWICE, fields=(("sampling.turn_limit", 5),)).stages(shared(), {}, "test")
    assert [s.settings.sampling.turn_limit for s in own] == [5] * 4
    assert [s.settings.name for s in own] == ["one_1", "two_1", "one_2", "two_2"]


def test_a_variants_fields_stand_over_a_stages_own():
    stages = (MULTI | {"objective.gamma": 0.5}, MULTI | {"name": "other"})
    own = trial({"stages": stages}, fields=(("objective.gamma", 0.25),))
    assert [s.settings.objective.gamma for s in own.stages(shared(), {}, "test")] == [0.25] * 2


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("seed", "comparison.seeds"),
        ("optimizer.learning_rate", "comparison.rates"),
        ("evaluation.sets.more.problems", "comparison.sets"),
        ("rounds", "comparison.methods"),
    ],
)
def test_an_override_that_would_reach_no_trial_is_refused(name, instead):
    with pytest.raises(ValueError, match=rf"--config\.{name} is set, .*: set {instead}"):
        check_overrides(shared(), {name: 1})
    check_overrides(shared(), {"steps": 3, "evaluation.problems": 4, "batch": 2})


@pytest.mark.parametrize("fields", [{"turns": 3}, {"sets": ConfigDict({"more": {"turns": 2}})}])
def test_further_measurements_are_the_comparisons_own(fields):
    with pytest.raises(ValueError, match=r"put further measurements into comparison\.sets"):
        check_overrides(shared(**fields), {})


def test_shares_are_of_the_steps_that_the_command_line_sets():
    config = shared()
    config.steps = 10
    own = trial(TWICE).stages(config, {"steps": 10}, "test")
    assert [s.settings.steps for s in own] == [5] * 4


def test_a_seed_is_the_trials_own_and_names_its_folder():
    made = trial({"stages": (MULTI,)}, seed=3, variant=2)
    assert made.stages(shared(), {}, "test")[0].settings.seed == 3
    assert made.folder == Path("name/variant2/seed3")


def test_variants_are_measured_on_validation_problems_greedily():
    config = shared(samples=4, task="tests.short_answers", prompt_limit=9)
    validation, test = (
        trial({"stages": (MULTI,)}).stages(config, {}, part)[0].settings
        for part in ("validation", "test")
    )
    own = validation.evaluation
    assert (own.problems, own.samples, own.task, own.prompt_limit) == (5, 0, "", 0)
    assert dict(validation.measured_data)["split"] == "validation"
    assert test.evaluation.samples == 4 and dict(test.measured_data)["split"] == "test"
    assert test.measured_prompt_limit == 9


def test_a_method_without_stages_is_the_base_model_asked_otherwise():
    text = "Please correct it."
    own = trial({}, fields=(("evaluation.dialogue.instructions", ("", text)),))
    (stage,) = own.stages(shared(), {}, "test")
    assert stage.settings.name == "name" and stage.parent is None
    assert stage.settings.measured_plan.instructions == ("", text)


def test_methods_are_those_of_only_with_the_seeds_of_all():
    made = comparison(
        {"a": {"stages": (MULTI,), "seeds": 4}, "b": {}, "c": {}}, only=("b", "a"), seeds=2
    )
    found = made.chosen_methods()
    assert list(found) == ["b", "a"] and [m.seeds for m in found.values()] == [2, 2]
    assert found["a"].title == "a"
    assert comparison({"a": {"seeds": 4}}).chosen_methods()["a"].seeds == 4


def test_variants_are_the_rates_or_the_methods_own():
    made = comparison({"a": {}, "b": {"variants": ({"x": 1}, {"x": 2})}}, rates=(1.0, 2.0))
    rates, own = (made.variants(method) for method in made.chosen_methods().values())
    assert rates == [{"rate": 1.0}, {"rate": 2.0}] and own == [{"x": 1}, {"x": 2}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"only": ("z",)}, r"comparison\.only is \('z',\); 'z' is none of a"),
        ({"scaled": ("z",)}, r"comparison\.scaled is"),
        ({"against": "z"}, r"comparison\.against is 'z'; choose one of a"),
        ({"rates": ()}, r"comparison\.rates is \(\)"),
        ({"rates": (0.0,)}, r"comparison\.rates is"),
        ({"sead": 1}, r"config\.comparison\.sead is no field.*did you mean seeds"),
    ],
)
def test_what_is_no_comparison_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        comparison({"a": {}}, **fields)


def test_what_all_are_compared_with_has_to_be_run():
    made = comparison({"a": {}, "b": {}}, only=("a",), against="b")
    with pytest.raises(ValueError, match=r"against is 'b', which comparison\.only leaves out"):
        made.chosen_methods()


def test_redraws_count_as_dialogues():
    stages = (MULTI | {"steps": 2, "sampling.redraws": 3},)
    own = trial({"stages": stages}).stages(shared(), {}, "test")
    assert Spent.of([s.settings for s in own]).dialogues == 2 * 8 * 4


def test_unequal_tuning_is_refused():
    made = comparison({"a": {}, "b": {"variants": ({"x": 1},)}})
    with pytest.raises(ValueError, match=r"different numbers of variants: \{'a': 3, 'b': 1\}"):
        made.chosen_methods()


def test_an_unknown_field_of_a_method_is_refused():
    with pytest.raises(ValueError, match=r"comparison\.methods\.a\.round is no field"):
        comparison({"a": {"round": 2}}).chosen_methods()


def test_what_is_spent_counts_dialogues_and_updates():
    """By hand, with 4 problems of 2 dialogues a step; tuning draws nothing."""
    stages = (COLLECT | {"steps": 3, "sampling.group_size": 2}, TUNE | {"steps": 5}, MULTI)
    own = trial({"stages": stages}).stages(shared(), {}, "test")
    assert Spent.of([s.settings for s in own]) == Spent(dialogues=8 * 3 + 8 * 6, updates=5 + 6)


def test_a_method_that_draws_more_than_its_budget_is_refused():
    method = build_section(Method, {"title": "t", "stages": (MULTI,), "budget": 1.5}, "m")
    check_budgets({"a": Spent(15, 1)}, {"a": method}, 10)
    with pytest.raises(ValueError, match=r"comparison\.methods\.a draws 20 dialogues, others 10"):
        check_budgets({"a": Spent(20, 1)}, {"a": method}, 10)
