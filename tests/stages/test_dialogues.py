"""Stages whose first attempts are given, and whose problems are of two tasks."""

import json

import numpy as np
import pytest

from score_jax.data import sources, store
from score_jax.records import Problem
from score_jax.stages.build import build
from score_jax.stages.handoff import open_checkpoints
from score_jax.stages.train import StageRun
from tests import odd_answers, short_answers
from tests.stage_configs import stages, train
from tests.tiny_stages import assert_same_tree, kept_dialogues, lines, without_times

BRIEF = {"evaluation__problems": 4, "evaluation__samples": 0, "checkpoint__every": 2}
WHOLE = {"log__rollouts": -1, "log__rollouts_every": 1}
GIVEN = {
    "dialogue__sources": ("given", "sampled"),
    "objective__reward_weights": (0.0, 1.0),
    "objective__beta": (0.0, 0.01),
    "data__count": 8,
    "steps": 4,
}
PROBLEMS = sources.load(source="procedural", count=8)
TEXTS = ("x=3:", "b", "1+1")  # right by their first character where that is even


def attempts():
    """Of each problem the texts at it, two of every second one; the last problem has none."""
    return {
        problem.id: [TEXTS[(number + n) % 3] for n in range(1 + number % 2)]
        for number, problem in enumerate(PROBLEMS[:-1])
    }


@pytest.fixture(scope="module")
def given(tmp_path_factory, cache):
    """The fields of a stage with given first attempts, half of them as token ids."""
    path = tmp_path_factory.mktemp("given") / "attempts.jsonl"
    chat = build(stages()[-1].settings).chat
    rows = []
    for name, texts in attempts().items():
        rows += [{"id": name, "attempt": text} for text in texts[:1]]
        rows += [{"id": name, "tokens": chat.encode_plain(text)} for text in texts[1:]]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return GIVEN | BRIEF | WHOLE | {"data__first_attempts": str(path)}


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("trained")
    train(workdir, **given)
    return workdir


def test_first_attempts_are_those_that_were_given(trained):
    chat, texts = build(stages()[-1].settings).chat, attempts()
    seen = set()
    for dialogue in store.read(trained / "stage1/rollouts"):
        name, _, number = dialogue.problem.partition("#")
        text = texts[name][int(number or 1) - 1]
        first = dialogue.turn == 1
        assert dialogue.tokens[first].tolist() == [*chat.encode_plain(text), chat.stop]
        assert dialogue.attempts[0] == text
        graded = short_answers.TASK.grade(Problem(id="", prompt="", answer=dialogue.answer), text)
        assert dialogue.verdicts[0] == graded.verdict and dialogue.rewards[0] == graded.reward
        seen.add(dialogue.problem)
    assert seen >= {name for name, own in texts.items() if len(own) > 1}
    assert any(name.endswith("#2") for name in seen)


def test_turn_one_is_never_drawn_nor_trained_and_turn_two_is(trained):
    for dialogue in store.read(trained / "stage1/rollouts"):
        first, second = dialogue.turn == 1, dialogue.turn == 2
        assert first.any() and second.any()
        for mask in (dialogue.sampled, dialogue.trained):
            assert np.array_equal(mask, second)
        assert not dialogue.logprobs[~second].any() and (dialogue.logprobs[second] < 0).all()
    rows = lines(trained / "stage1/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(row["kl/turn1"] == 0 and row["gradient_norm"] > 1e-4 for row in rows)
    assert rows[-1]["kl/turn2"] > 0


def test_given_attempts_count_in_the_metrics_as_they_are_graded(trained):
    dialogues = list(store.read(trained / "stage1/rollouts"))
    for row in lines(trained / "stage1/metrics.jsonl"):
        own = [d.rewards for d in dialogues if d.step == row["step"] - 1]
        assert len(own) == 8  # 4 problems, 2 dialogues each
        for turn in (1, 2):
            assert row[f"accuracy/turn{turn}"] == pytest.approx(np.mean(own, 0)[turn - 1])
    evaluation = json.loads((trained / "stage1/evaluation.json").read_text())
    assert "accuracy/turn2" in evaluation["models"]["stage1"]["greedy"]  # of two drawn attempts


def test_a_killed_stage_with_given_attempts_ends_as_the_uninterrupted_one(
    given, trained, tmp_path, compiled, monkeypatch
):
    class Killed(BaseException):
        pass

    def kill(self, step):
        if step == 3:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "validate_if_due", kill)
        patch.setattr(StageRun, "validate_if_due", lambda s, step: kill(s, step) or {})
        with pytest.raises(Killed):
            train(tmp_path, **given)
    assert len(lines(tmp_path / "stage1/metrics.jsonl")) == 2
    train(tmp_path, **given)
    stage = stages(**given)[-1]
    like, found = build(stage.settings).abstract_state(), []
    for workdir in (tmp_path, trained):
        with open_checkpoints(stage.settings, workdir / "stage1") as checkpoints:
            found.append(checkpoints.restore(4, like))
    assert_same_tree(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]
    ours, theirs = (without_times(lines(w / "stage1/metrics.jsonl")) for w in (tmp_path, trained))
    assert ours == theirs
    assert kept_dialogues(tmp_path / "stage1") == kept_dialogues(trained / "stage1")


TASKS = {"0": short_answers.TASK, "1": odd_answers.TASK}  # by the part of the mixture


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, cache):
    """Two steps on four problems of one task and four of another; as many others are held out."""
    folder = tmp_path_factory.mktemp("mixed")
    held_out = sources.load(source="procedural", split="test", count=8)

    def parts(name, problems):
        found = []
        for part, task in TASKS.items():
            own = problems[4 * int(part) : 4 * int(part) + 4]
            rows = [{"id": p.id, "prompt": p.prompt, "answer": p.answer} for p in own]
            path = folder / f"{name}{part}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            found.append({"source": "jsonl", "path": str(path), "task": task.name})
        return {"source": "mixture", "parts": tuple(found)}

    data = {f"data__{field}": value for field, value in parts("train", PROBLEMS).items()}
    data["evaluation__data"] = parts("test", held_out)
    fields = BRIEF | WHOLE | data | {"evaluation__problems": 0, "steps": 2}
    train(folder / "run", **fields)
    return folder / "run"


def test_each_row_is_asked_asked_again_and_graded_by_its_own_task(mixed):
    chat, seen = build(stages()[-1].settings).chat, set()
    for dialogue in store.read(mixed / "stage1/rollouts"):
        task = TASKS[dialogue.problem[0]]
        problem = next(p for p in PROBLEMS if dialogue.problem.endswith(f"/{p.id}"))
        assert dialogue.task == task.name and dialogue.prompt == task.ask(problem)
        prompt, again = (
            chat.encode_prompt(dialogue.prompt),
            chat.encode_instruction(task.instruction),
        )
        assert dialogue.tokens[: len(prompt)].tolist() == prompt
        second = int(np.flatnonzero(dialogue.turn == 2)[0])
        assert dialogue.tokens[second - len(again) : second].tolist() == list(again)
        for turn, text in enumerate(dialogue.attempts):
            graded = task.grade(problem, text)
            if not dialogue.truncated[turn]:
                assert (dialogue.verdicts[turn], dialogue.rewards[turn]) == (
                    graded.verdict,
                    graded.reward,
                )
            seen.add((task.name, dialogue.verdicts[turn]))
    assert len(seen) == 4  # each task finds answers right, and others wrong


def test_metrics_of_a_step_go_by_task(mixed):
    dialogues = list(store.read(mixed / "stage1/rollouts"))
    for row in lines(mixed / "stage1/metrics.jsonl"):
        for task in TASKS.values():
            own = [
                d.rewards for d in dialogues if d.step == row["step"] - 1 and d.task == task.name
            ]
            for turn in (1, 2) if own else ():
                share = np.mean(own, 0)[turn - 1]
                assert row[f"task/{task.name}/accuracy/turn{turn}"] == pytest.approx(share)
                assert row[f"task/{task.name}/reward/turn{turn}"] == pytest.approx(share)
            assert own or not any(task.name in name for name in row)
    assert any(name.startswith("task/tests.odd_answers/accuracy/") for name in row)


def test_an_evaluation_has_the_numbers_of_each_task(mixed):
    evaluation = json.loads((mixed / "stage1/evaluation.json").read_text())
    assert evaluation["task"] == "tests.odd_answers, tests.short_answers"
    assert evaluation["problems"] == 8
    for name, model in evaluation["models"].items():
        shown = evaluation["transcripts"][name]
        assert len(shown) == 8
        assert set(model["by_task"]["greedy"]) == {task.name for task in TASKS.values()}
        for task in TASKS.values():
            own = [d["rewards"] for d in shown if d["task"] == task.name]
            found = model["by_task"]["greedy"][task.name]
            for turn in (1, 2):
                assert found[f"accuracy/turn{turn}"]["value"] == np.mean(own, 0)[turn - 1]
        whole = np.mean([d["rewards"] for d in shown], 0)
        assert model["greedy"]["accuracy/turn1"]["value"] == whole[0]
    page = (mixed / "report.html").read_text()
    assert "tests.odd_answers: Greedy" in page and "tests.short_answers: Greedy" in page
