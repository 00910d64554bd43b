"""Before the first step: the whole chain is looked at, and told what would end it later."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace

import jax
import numpy as np
import pytest

from score_jax.data import store
from score_jax.stages import chain, measure
from score_jax.stages.build import build, load_reference
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.preflight import check_disk_space, check_stage, state_bytes, try_row
from tests.stage_configs import stages, train


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"sampling__prompt_limit": 4}, r"config.sampling.prompt_limit is 4; problem '"),
        ({"evaluation__prompt_limit": 3}, r"config.evaluation.prompt_limit is 3; .* evaluation"),
        ({"evaluation__task": "maths"}, "task is 'maths'; choose one of"),
        (
            {"evaluation__task": "numeric", "evaluation__prompt_limit": 100},
            "gold answer of 8 of 8 evaluation problems",
        ),
        ({"evaluation__data": {"split": "dev"}}, "data.split is 'dev'"),
        ({"evaluation__every": 1, "evaluation__validation": {"split": "x"}}, "data.split is 'x'"),
        ({"data__task": "equations"}, "config.task is 'tests.short_answers', but .* 'equations'"),
    ],
)
def test_a_fault_of_the_last_stage_stops_the_run_before_the_first_one(tmp_path, fields, told):
    config = stages("stage2", shared=False, **fields)
    with pytest.raises(ValueError, match=told):
        chain.run_mode("train", config, tmp_path, config="", command="")
    assert not (tmp_path / "stage1").exists() and not (tmp_path / "stage2").exists()


@pytest.mark.parametrize("mode", ["train", "evaluate"])
def test_evaluation_alone_is_looked_at_as_well(tmp_path, mode):
    with pytest.raises(ValueError, match=r"config.evaluation.prompt_limit is 3; .* evaluation pro"):
        train(tmp_path, mode=mode, evaluation__prompt_limit=3)


def test_a_disk_without_room_for_the_checkpoints_is_told(tmp_path, monkeypatch):
    """Two stages of six steps, saved at every second: the latest, the best, the one written."""
    chain = stages("stage2", checkpoint__keep=1, steps=6)
    checked = [check_stage(stage.settings, tmp_path) for stage in chain]
    need = 3 * sum(state_bytes(stage.programs) for stage in checked)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(need))
    check_disk_space(checked, tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(need - 1))
    with pytest.raises(StorageError, match=r"GB free, but the checkpoints of stage1, stage2 take"):
        check_disk_space(checked, tmp_path)
    (tmp_path / "stage1/checkpoints/2").mkdir(parents=True)  # one is there already
    check_disk_space(checked, tmp_path)


def test_a_states_bytes_are_its_arrays(compiled):
    programs = build(stages()[-1].settings)
    state = programs.init_state(load_reference(programs))
    assert state_bytes(programs) == sum(leaf.nbytes for leaf in jax.tree.leaves(state))


def test_a_trial_row_agrees_and_broken_weights_are_refused(compiled, tmp_path):
    checked = check_stage(stages(evaluation__task="equations")[-1].settings, tmp_path)
    programs = checked.programs
    reference = load_reference(programs)
    with measure.open_pool(programs.settings, [checked.evaluation.tasks]) as pool:
        assert 0 <= try_row(programs, checked.evaluation, reference, pool) < 1e-4
        broken = jax.tree.map(lambda leaf: leaf * np.nan, reference)
        with pytest.raises(ValueError, match=r"weights.source is 'random'; a trial row's"):
            try_row(programs, checked.evaluation, broken, pool)


def test_what_is_left_out_is_neither_trained_nor_measured_and_said(tmp_path, compiled, capsys):
    """Of prompts with 8 to 11 tokens those of 11; problems are their own ids."""
    limits = {"sampling__prompt_limit": 10, "data__skip_long": True, "steps": 2}
    train(tmp_path, log__rollouts_every=1, **limits)
    run = json.loads((tmp_path / "run.json").read_text())["problems"]["stage1"]
    assert run["training"]["long"] > 0 and run["training"]["bad"] == 0
    assert run["training"]["problems"] + run["training"]["long"] == 5868
    evaluation = json.loads((tmp_path / "stage1/evaluation.json").read_text())
    left = evaluation["left_out"]["long"]
    assert 0 < len(left) < 8 and evaluation["problems"] == 8 - len(left)
    chat = build(stages()[-1].settings).chat
    shown = {dialogue.problem for dialogue in store.read(tmp_path / "stage1/rollouts")}
    assert len(shown) > 1
    shown |= {row["problem"] for row in evaluation["transcripts"]["base"]}
    assert all(len(chat.encode_prompt(problem)) <= 10 for problem in shown)
    assert all(len(chat.encode_prompt(problem)) == 11 for problem in left)
    told = capsys.readouterr().out
    assert f"{run['training']['long']} too long and 0 with a bad gold answer left out" in told
    assert f"on {8 - len(left)} problems ({len(left)} left out)" in told
    assert "trial row: sampler and scorer differ by" in told


def test_a_further_set_must_fit_the_models_context_too(tmp_path):
    settings = stages(model__max_length=80)[-1].settings  # two turns take half of it
    check_stage(settings, tmp_path)
    evaluation = replace(settings.evaluation, sets=(("attempts", (("turns", 10),)),))
    with pytest.raises(ValueError, match=r"evaluation\.turns 10 may take .* has 80; lower one"):
        check_stage(replace(settings, evaluation=evaluation), tmp_path)


def test_held_out_problems_that_are_trained_on_are_refused(tmp_path):
    """A JSONL file has no splits, so that `split` alone holds nothing out of it."""
    rows = [{"id": str(n), "prompt": f"{n}x = {2 * n}", "answer": "2"} for n in range(1, 9)]
    for name, part in (("train", rows[:6]), ("mixed", rows[5:]), ("test", rows[6:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))

    def checked(**held_out):
        fields = {"data__source": "jsonl", "data__path": str(tmp_path / "train.jsonl")}
        for part, name in held_out.items():
            fields[f"evaluation__{part}"] = {"path": str(tmp_path / f"{name}.jsonl")}
        every = int("validation" in held_out)
        settings = stages(evaluation__every=every, **fields)[-1].settings
        return check_stage(settings, tmp_path)

    ids = [problem.id for problem in checked(data="test", validation="test").evaluation.problems]
    assert ids == ["7", "8"]
    with pytest.raises(ValueError, match=r"^6 of 6 evaluation problems are training problems too"):
        checked()
    with pytest.raises(
        ValueError, match=r"^1 of 3 evaluation .*:1 \(6\); .*config.evaluation.data"
    ):
        checked(data="mixed")
    with pytest.raises(ValueError, match=r"^1 of 3 validation .* config.evaluation.validation, by"):
        checked(data="test", validation="mixed")
