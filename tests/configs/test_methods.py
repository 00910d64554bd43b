"""Every method is a list of stages that the door lets in, and says what the literature says."""

import pytest

from configs import methods, paper
from score_jax.stages import chain
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.settings import build_section
from score_jax.stages.trials import ComparisonConfig
from tests import methods as written

TRAINED = [name for name, own in methods.METHODS.items() if own["stages"]]
# Methods that stand, written by hand, in tests/methods.py too, whose gradients are tested there.
COUNTERPARTS = {
    "star": "STaR",
    "star_plus": "STaR, D+",
    "pair_sft": "Pair-SFT",
    "pair_sft_plus": "Pair-SFT, D+",
    "single_turn": "single-turn RL",
    "multi_turn": "multi-turn RL",
    "score": "SCoRe",
    "score_no_stage1": "SCoRe without Stage I",
    "score_alpha0": "SCoRe, alpha = 0",
    "score_star": "STaR in Stage II",
    "interleaved": "interleaved",
}


def settings(name, preset=""):
    config = methods.get_config(f"{name}:{preset}" if preset else name)
    return [stage.settings for stage in resolve_stages(config, {})]


@pytest.mark.parametrize("preset", ["", "receipts", "qwen25_0p5b_math", "smollm2_135m_code"])
@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_passes_the_door_alone_and_with_a_preset(name, preset):
    assert settings(name, preset)


@pytest.mark.parametrize("preset", ["", "receipts", "qwen25_0p5b_math", "smollm2_135m_code"])
@pytest.mark.parametrize("name", TRAINED)
def test_a_method_draws_its_budget_and_no_more(name, preset):
    found = settings(name, preset)
    whole = settings("multi_turn", preset)[0]
    drawn = sum(
        s.steps * s.batch * s.sampling.group_size * (1 + s.sampling.redraws)
        for s in found
        if s.program != "supervised"
    )
    per_step = whole.batch * whole.sampling.group_size
    assert drawn == methods.METHODS[name].get("budget", 1) * whole.steps * per_step


@pytest.mark.parametrize("name", COUNTERPARTS)
def test_a_method_has_the_stages_that_are_written_out_by_hand(name):
    """What a stage learns from and is paid for, whatever the numbers of beta are."""
    own, other = methods.METHODS[name], written.METHODS[COUNTERPARTS[name]]
    assert own.get("rounds", 1) == other.rounds and len(own["stages"]) == len(other.stages)
    for mine, theirs in zip(own["stages"], other.stages, strict=True):
        for field in (
            "program", "objective.reward_weights", "objective.alpha", "objective.gamma",
            "examples.keep", "dialogue.trained",
        ):  # fmt: skip
            assert mine.get(field) == theirs.get(field), field


def test_the_papers_numbers_are_those_of_its_table():
    first, second = settings("score")
    assert first.objective.beta == (0.11, 0.01) and first.objective.reward_weights == (0, 1)
    assert second.objective.beta == (0.01, 0.01) and second.objective.reward_weights == (1, 1)
    assert second.objective.alpha == 10 and first.objective.alpha == 0
    code = settings("score", "smollm2_135m_code")
    assert [s.objective.beta for s in code] == [(0.26, 0.01), (0.01, 0.01)]
    early = settings("interleaved")
    assert [s.objective.beta for s in early] == [(0.11, 0.01), (0.01, 0.01)] * 2


def test_first_attempts_that_are_given_are_those_that_were_collected():
    collect, first, second = settings("offline")
    assert (collect.program, collect.objective.turns) == ("collect", 1)
    assert dict(first.data)["first_attempts"] == "stage:collect"
    assert first.plan.sources == ("given", "sampled") and first.plan.trained == (False, True)
    assert "first_attempts" not in {k for k, v in second.data if v}


def test_arms_differ_in_what_they_are_for():
    score, on = settings("score"), settings("stage1_on")
    assert on[1].objective == score[0].objective and on[1].steps == score[1].steps
    assert on[1].optimizer == score[1].optimizer
    arms = ("score_no_baseline", "score_running", "score_batch", "score_attempt")
    found = {name: settings(name)[1].estimator.baseline for name in arms}
    assert found["score_no_baseline"] == "none" and found["score_running"] == "running"
    assert found["score_batch"] == "batch" and found["score_attempt"] == "leave_one_out_attempt"
    for name in ("multi_turn", "single_turn", "score"):
        steps, longer = ([s.steps for s in settings(n)] for n in (name, f"{name}_longer"))
        assert longer == [2 * count for count in steps]


def test_prompting_alone_can_not_be_trained_but_measured(tmp_path):
    stages = resolve_stages(methods.get_config("self_refine"), {})
    assert stages[-1].settings.measured_plan.instructions == ("", "Please correct it.")
    with pytest.raises(ValueError, match="'self_refine' is 'prompting'"):
        chain.run_mode("train", stages, tmp_path / "run", config="", command="")
    assert not (tmp_path / "run").exists()
    for name in TRAINED:
        chain.check_trainable(resolve_stages(methods.get_config(name), {}))


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="the method is 'scor'; choose one of self_refine, star"):
        methods.get_config("scor")


@pytest.mark.parametrize("preset", ["", "receipts", "qwen25_0p5b_math"])
def test_the_papers_comparison_tunes_all_methods_alike(preset):
    config = paper.get_config(preset)
    comparison = build_section(ComparisonConfig, config.comparison, "config.comparison")
    found = comparison.chosen_methods()
    assert set(found) == set(methods.METHODS)
    assert {len(comparison.variants(method)) for method in found.values()} == {3}
    assert {name for name, method in found.items() if method.seeds == 5} == set(paper.MAIN)


@pytest.mark.parametrize("preset", ["", "smollm2_135m_math"])
def test_fine_tuning_keeps_its_shares_of_the_rate_of_rl(preset):
    """2e-4, 5e-4 and 5e-5 on the embedded model: 2.5 times the rate, and a quarter of it."""
    rate = settings("multi_turn", preset)[0].optimizer.learning_rate
    assert preset or rate == 2e-4
    whole = settings("star_plus", preset)[1].optimizer.learning_rate
    second = settings("pair_sft", preset)[1].optimizer.learning_rate
    other = settings("score_star", preset)[-1].optimizer.learning_rate
    assert (whole, second) == pytest.approx((2.5 * rate, 0.25 * rate)) and other == second


def test_methods_of_other_turns_are_measured_by_their_own_dialogue_too():
    found = {name: settings(name)[-1].measured_sets for name in methods.METHODS}
    own = {name: sets["own"].measured_plan for name, sets in found.items() if sets}
    assert {name: plan.roles for name, plan in own.items()} == {
        "three_turns": ("answer",) * 3,
        "four_turns": ("answer",) * 4,
        "pag": ("answer", "verify", "answer"),
    }
    assert own["pag"].instructions[1] == "Is this right?"
