"""Which files an evaluation writes, of what, in which order, and what they take over."""

import json

import pytest
from ml_collections import ConfigDict

from score_jax.stages import evaluate
from score_jax.stages.chain import run_mode
from score_jax.stages.resolve import resolve_stages
from tests.stage_configs import train
from tests.tiny_stages import get_config, lines

SETS = {
    "longer": {"turns": 3, "samples": 0, "problems": 3},
    "again": {"seed": 5},
    "equations": {"task": "equations", "data": {"split": "validation"}, "samples": 1},
}
NAMES = ["evaluation_again", "evaluation_equations", "evaluation_longer", "evaluation"]


def measured(folder, name="evaluation"):
    return json.loads((folder / f"stage1/{name}.json").read_text())


def run(workdir):
    """The stage of the finished run, measured on further sets."""
    config = get_config()
    config.evaluation.sets = ConfigDict(SETS)
    run_mode("train", resolve_stages(config, {}), workdir, config="", command="")


def test_votes_ten_attempts_and_another_instruction_are_sets(tmp_path, compiled, capsys):
    config = get_config()
    config.evaluation.problems = 3
    config.evaluation.sets = ConfigDict(
        {
            "votes": {"samples": 8, "temperature": 0.7},
            "attempts": {"turns": 10, "samples": 0},
            "wait": {"dialogue": {"instructions": ("", "Wait")}},
        }
    )
    stages = resolve_stages(config, {})
    run_mode("evaluate", stages, tmp_path, config="", command="")
    votes, attempts, wait, main = (
        measured(tmp_path, name)
        for name in ("evaluation_votes", "evaluation_attempts", "evaluation_wait", "evaluation")
    )
    assert list(votes["models"]["base"]["scaling"]) == ["2", "4", "8"]
    assert votes["protocol"]["temperature"] == 0.7 and main["protocol"]["temperature"] == 1.0
    assert "accuracy/turn10" in attempts["models"]["base"]["greedy"]
    assert wait["protocol"]["instruction"] == "Wait" != main["protocol"]["instruction"]
    # The tokenizer of the embedded task has no "W", which neither file nor log passes over.
    assert wait["lost_characters"] == {"dialogue.instructions[1]": "W"}
    assert main["lost_characters"] == {}
    assert "evaluation_wait.json: dialogue.instructions[1] has 'W'" in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text()
    for text in ("Further evaluations", "samples 8, temperature 0.7", "turns 10", "no piece for W"):
        assert text in page


class Killed(BaseException):
    """Ends a run without its notice."""


@pytest.fixture
def killed(finished_run, workdir, monkeypatch, compiled):
    """The finished run without its evaluation, begun again and killed before its last file.

    Returns the folder and the names of the files in the order in which they were to be written.
    """
    (workdir / "stage1/evaluation.json").unlink()
    write, names = evaluate.write_evaluation, []

    def watch(path, *arguments, **options):
        names.append(path.stem)
        if len(names) == len(NAMES):
            raise Killed
        write(path, *arguments, **options)

    monkeypatch.setattr(evaluate, "write_evaluation", watch)
    with pytest.raises(Killed):
        run(workdir)
    return workdir, names


def test_further_sets_are_measured_before_the_file_that_ends_a_stage(killed, finished_run, capsys):
    """So a run that is killed among them measures the rest, trains nothing and does not end."""
    workdir, names = killed
    assert names == NAMES
    assert {path.stem for path in (workdir / "stage1").glob("evaluation*")} == set(NAMES[:-1])
    assert not (workdir / "stage1/evaluation.json").exists()
    run(workdir)
    assert {path.stem for path in (workdir / "stage1").glob("evaluation*.json")} == set(NAMES)
    assert not (workdir / "stage1/measuring").exists()
    assert len(lines(workdir / "stage1/metrics.jsonl")) == 6
    assert "already finished" not in capsys.readouterr().out
    run(workdir)
    assert "[stage1] already finished" in capsys.readouterr().out

    # The main file is as if there were no further sets.
    assert measured(workdir) == measured(finished_run)

    # Each further file is of its own set.
    found = {name: measured(workdir, name) for name in NAMES}
    longer, again = found["evaluation_longer"], found["evaluation_again"]
    assert "accuracy/turn3" in longer["models"]["stage1"]["greedy"]
    assert all("sampled" not in model for model in longer["models"].values())
    greedy = [found[name]["outcomes"]["stage1"]["greedy"] for name in NAMES]
    assert [len(outcomes) for outcomes in greedy] == [8, 8, 3, 8]
    assert again["seed"] == 5 and found["evaluation"]["seed"] == 0
    outcomes = found["evaluation"]["outcomes"]["stage1"]
    assert again["outcomes"]["stage1"]["greedy"] == outcomes["greedy"]
    assert again["outcomes"]["stage1"]["sampled"] != outcomes["sampled"]
    assert [outcome[:2] for outcome in greedy[2]] == outcomes["greedy"][:3]
    assert found["evaluation_equations"]["task"] == "equations"
    assert {value["task"] for value in (longer, again)} == {"tests.short_answers"}
    assert len({value["protocol"]["hash"] for value in found.values()}) == 4
    for value in found.values():
        assert value["step"] == found["evaluation"]["step"]
        assert value["selection"] == found["evaluation"]["selection"]
        assert set(value["models"]) == {"base", "stage1"}


def test_another_task_is_measured_into_a_file_of_its_own(workdir, compiled):
    before = (workdir / "stage1/evaluation.json").read_bytes()
    train(workdir, mode="evaluate", evaluation__task="equations", evaluation__samples=0)
    assert (workdir / "stage1/evaluation.json").read_bytes() == before
    found = measured(workdir, "evaluation_equations")
    assert found["task"] == "equations" and list(found["models"]) == ["base", "stage1"]
    assert found["step"] == measured(workdir)["step"] and found["selection"] == {}


def test_a_stage_without_a_checkpoint_is_measured_as_the_base_model(tmp_path, compiled):
    train(tmp_path, mode="evaluate", evaluation__samples=0)
    found = measured(tmp_path)
    assert found["step"] == 0 and found["models"]["base"] == found["models"]["stage1"]
    assert found["outcomes"]["base"] == found["outcomes"]["stage1"]
