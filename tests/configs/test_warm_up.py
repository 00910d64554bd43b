"""The config of a warm-up and both stages on it."""

import pytest

from configs import presets, warm_up
from score_jax.stages.resolve import resolve_stages


@pytest.mark.parametrize("preset", ["smollm2_135m_brief", "qwen25_0p5b_math"])
def test_a_warm_up_comes_first_and_is_the_base_of_both_stages(preset):
    stages = resolve_stages(warm_up.get_config(preset), {})
    warm, one, two = (stage.settings for stage in stages)
    assert [s.name for s in (warm, one, two)] == ["warm_up", "stage1", "stage2"]
    assert (warm.program, warm.plan.turns, dict(warm.examples)["source"]) == (
        "supervised", 2, "answers"
    )  # fmt: skip
    assert one.weights.source == two.weights.source == "stage:warm_up" != warm.weights.source
    assert [stage.parent and stage.parent.settings.name for stage in stages] == [
        None, None, "stage1"
    ]  # fmt: skip
    assert one.objective.beta == presets.STAGE1_BETAS[presets.split(preset)[1]]
    assert one.steps == two.steps and warm.steps == warm_up.STEPS[presets.split(preset)[1]]
    assert warm.batch == one.batch * one.sampling.group_size  # dialogues a step


def test_subtraction_learns_first_attempts_before_both_turns():
    found = [s.settings for s in resolve_stages(warm_up.get_config("smollm2_135m_subtraction"), {})]
    assert [s.name for s in found] == ["first_attempts", "warm_up", "stage1", "stage2"]
    assert [s.plan.turns for s in found] == [1, 2, 2, 2]
    assert [s.optimizer.learning_rate for s in found] == [1e-4, 1e-4, 2e-5, 2e-5]
    assert [s.rows for s in found] == [64, 64, 64, 64]


@pytest.mark.parametrize("preset", ["", "receipts", "none"])
def test_an_embedded_task_needs_none(preset):
    with pytest.raises(ValueError, match=r"preset (of configs/warm_up.py )?is '" + preset):
        warm_up.get_config(preset)
