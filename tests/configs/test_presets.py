"""Every preset is a config that the door lets in."""

import pytest

from configs import base, multi_turn, presets, single_turn, stage1, stage2
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.settings import parse


@pytest.mark.parametrize("task", presets.TASKS)
@pytest.mark.parametrize("model", presets.MODELS)
def test_a_preset_passes_the_door(model, task):
    if model.endswith(presets.THINKS) and task not in ("math", "code"):
        pytest.skip("models that think learn other tasks")
    for stage in (stage1, stage2):
        settings = parse(presets.apply(stage.get_config(), f"{model}_{task}"))
        assert settings.task == presets.TASKS[task]["task"]
        assert dict(settings.data)["source"] != "procedural"


@pytest.mark.parametrize("task", presets.TASKS)
@pytest.mark.parametrize("baseline", [single_turn, multi_turn])
def test_a_baseline_draws_as_many_dialogues_as_both_stages(baseline, task):
    """Per problem of a step as well: neither method sees more of them."""
    name = f"qwen25_0p5b_{task}"

    def drawn(stages):
        return sum(s.steps * s.batch * s.sampling.group_size for s in stages)

    chain = [stage.settings for stage in resolve_stages(stage2.get_config(name), {})]
    alone = parse(baseline.get_config(name))
    assert [stage.name for stage in chain] == ["stage1", "stage2"]
    assert drawn(chain) == drawn([alone]) and sum(s.steps for s in chain) == alone.steps
    assert {s.batch for s in chain} == {alone.batch}


@pytest.mark.parametrize("baseline", [single_turn, multi_turn])
def test_a_baseline_without_a_preset_has_both_stages_steps(baseline):
    chain = [stage.settings.steps for stage in resolve_stages(stage2.get_config(), {})]
    assert parse(baseline.get_config()).steps == sum(chain)


def test_the_parent_gets_the_same_preset():
    config = presets.apply(stage2.get_config(), "gemma2_2b_math")
    assert config.parent == "configs/stage1.py:gemma2_2b_math"
    assert config.weights.source == "hub:google/gemma-2-2b-it"
    assert config.tokenizer.chat == "gemma"


@pytest.mark.parametrize("stage", [stage1, stage2, single_turn, multi_turn])
def test_long_turns_are_recomputed(stage):
    """What their attention takes fits no device; an override still has the last word."""
    found = {task: parse(stage.get_config(f"gemma2_2b_{task}")).compute for task in presets.TASKS}
    assert {task for task, compute in found.items() if compute.remat == "full"} == {"math", "code"}
    config = stage.get_config("gemma2_2b_math")
    config.compute.remat = "dots"
    assert parse(config).compute.remat == "dots"
    assert stage.get_config("gemma2_2b_code").compute.remat == "full"  # of its own


def test_the_papers_numbers_are_in():
    first = presets.apply(stage1.get_config(), "gemma2_2b_math")
    second = presets.apply(stage2.get_config(), "gemma2_2b_math")
    assert first.steps + second.steps == 3000
    assert first.batch * first.sampling.group_size == 512
    assert (first.optimizer.learning_rate, second.objective.alpha) == (5e-6, 10)
    assert (first.objective.beta, second.objective.beta) == ((0.11, 0.01), (0.01, 0.01))
    code = presets.apply(stage1.get_config(), "qwen25_7b_code")
    assert (code.objective.beta, code.optimizer.learning_rate) == ((0.26, 0.01), 1e-5)


def test_a_model_alone_has_its_own_task_and_none_changes_nothing():
    assert presets.split("smollm2_135m") == ("smollm2_135m", "words")
    assert presets.apply(stage1.get_config(), "").to_dict() == stage1.get_config().to_dict()


@pytest.mark.parametrize("stage", [stage1, stage2, single_turn, multi_turn])
def test_the_second_embedded_task_changes_task_and_lengths_alone(stage):
    usual, other = (dict(flat(stage.get_config(name).to_dict())) for name in ("", "receipts"))
    assert usual.keys() == other.keys()
    assert {name: other[name] for name in other if other[name] != usual[name]} == {
        "task": "receipts",
        "data.task": "receipts",
        "sampling.turn_limit": 40,
        "sampling.row_limit": 80,
        **({"parent": "configs/stage1.py:receipts"} if stage is stage2 else {}),
    }


def flat(values, above=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{name}.")
        else:
            yield above + name, value


@pytest.mark.parametrize(
    ("part", "name", "parent"),
    [
        ("skills", "skills", ""),
        ("", "base", "configs/base.py:skills"),
        ("receipts_skills", "receipts_skills", ""),
        ("receipts", "receipts_base", "configs/base.py:receipts_skills"),
    ],
)
def test_each_embedded_task_has_its_base_policy_in_two_stages(part, name, parent):
    settings = parse(base.get_config(part))
    assert (settings.name, settings.parent) == (name, parent)
    task = "receipts" if "receipts" in part else "equations"
    assert (settings.task, dict(settings.examples)["source"]) == (task, task)
    with pytest.raises(ValueError, match="'skill'; choose skills, receipts_skills, receipts,"):
        base.get_config("skill")


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="preset is 'gpt5'; choose one of smollm2_135m"):
        presets.apply(stage1.get_config(), "gpt5")


def test_a_model_that_thinks_has_longer_turns_and_the_same_weights():
    usual = parse(stage1.get_config("qwen3_0p6b_math"))
    thinks = parse(stage1.get_config("qwen3_0p6b_thinking_math"))
    assert thinks == parse(stage1.get_config("qwen3_0p6b_thinking"))
    assert thinks.weights == usual.weights
    assert (usual.tokenizer.chat, thinks.tokenizer.chat) == ("qwen3_no_think", "qwen3")
    assert thinks.sampling.turn_limit == 4096 > usual.sampling.turn_limit


def test_a_model_that_thinks_learns_nothing_made_on_the_spot():
    with pytest.raises(ValueError, match=r"'qwen3_4b_thinking_words'; a model that thinks learns"):
        presets.apply(stage1.get_config(), "qwen3_4b_thinking_words")
