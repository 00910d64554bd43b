"""Rollouts of a fixed policy: each step once, by the policy's own keys, and nothing learnt."""

import functools
import json
import signal
from dataclasses import replace

import numpy as np
import pytest

from score_jax.data import store
from score_jax.distributed.signals import Interrupted, StopRequest
from score_jax.distributed.watchdog import Watchdog
from score_jax.records import Grade
from score_jax.stages import rollouts
from score_jax.stages.collect import collect, missing_steps
from tests.short_answers import TASK
from tests.stage_configs import train
from tests.stage_trial import Judge, draw, open_trial

pytestmark = pytest.mark.usefixtures("compiled")
STEPS, ROWS = 6, 8  # of the trial: four problems with two dialogues each


def never(*_):
    raise AssertionError("a collected rollout is scored by no reference")


def run(folder, *, steps=STEPS, judge=None, stop=None, params=None):
    """Collects in a folder; a signal arrives during the rollout `stop`, of those drawn here."""
    trial, request = open_trial(), StopRequest()

    def arrive(number):
        request.number = signal.SIGTERM if number == stop else request.number

    judge = judge or Judge(arrive)
    programs = trial.having(name="kept", program="collect", steps=steps)
    collect(
        programs,
        replace(trial.devices, score=never),
        trial.stream(programs),
        judge,
        params=params or trial.reference,
        folder=folder,
        request=request,
        watchdog=Watchdog(),
    )
    return judge.rollouts


def files(folder):
    return {path.name: path.read_bytes() for path in (folder / rollouts.NAME).iterdir()}


def drawn(folder):
    """Tokens by step and row."""
    kept = store.read(folder / rollouts.NAME)
    return {(dialogue.step, dialogue.row): dialogue.tokens.tolist() for dialogue in kept}


def missing(folder, steps=STEPS):
    return missing_steps(folder, open_trial().having(steps=steps).settings)


@functools.cache
def collected(make):
    folder = make("collected")
    assert run(folder) == STEPS
    return folder


@pytest.fixture
def whole(tmp_path_factory, compiled):
    """A folder in which all steps have been collected."""
    return collected(tmp_path_factory.mktemp)


def test_every_row_of_every_step_is_kept_with_its_grades(whole):
    """Whatever config.log keeps of training."""
    trial = open_trial()
    stream, found = trial.stream(trial.programs), list(store.read(whole / rollouts.NAME))
    assert [(d.step, d.row) for d in found] == [(s, r) for s in range(STEPS) for r in range(ROWS)]
    asked = [problem.id for _ in range(STEPS) for problem in stream.next()[2] for _ in range(2)]
    assert [dialogue.problem for dialogue in found] == asked
    for dialogue in found:
        graded = [TASK.grade(trial.problems[0], text) for text in dialogue.attempts]
        assert dialogue.rewards.tolist() == [grade.reward for grade in graded]
        assert dialogue.stage == "kept"


def test_a_step_is_drawn_by_other_keys_than_training_draws_it(whole):
    """The same policy, problems and draws; hardly a dialogue comes out the same."""
    trained = draw(open_trial(), 0).local
    found = store.read_step(whole / rollouts.NAME, 0)
    assert [d.draw for d in found] == trained.ids.draw.tolist()
    same = [
        np.array_equal(dialogue.tokens, trained.tokens[row, : trained.length[row]])
        for row, dialogue in enumerate(found)
    ]
    assert sum(same) <= 1


def test_another_policy_draws_other_dialogues(whole, tmp_path):
    params = {**open_trial().reference}
    params["embedding"] = -params["embedding"]
    run(tmp_path, steps=1, params=params)
    ours, theirs = drawn(tmp_path), drawn(whole)
    assert sum(ours[place] == theirs[place] for place in ours) <= 1


@pytest.mark.parametrize("stop", [0, 3])
def test_an_interrupted_run_goes_on_with_the_steps_that_it_lacks(stop, whole, tmp_path):
    with pytest.raises(Interrupted, match=r"SIGTERM: the same command goes on from here") as end:
        run(tmp_path, stop=stop)
    assert end.value.code == 128 + signal.SIGTERM
    assert store.steps(tmp_path / rollouts.NAME) == list(range(stop + 1))
    assert run(tmp_path) == STEPS - stop - 1
    assert files(tmp_path) == files(whole)


def test_a_step_that_is_lost_is_drawn_again_with_the_same_tokens(whole, tmp_path):
    run(tmp_path)
    for step in (1, 4):
        (path,) = (tmp_path / rollouts.NAME).glob(f"step-{step:08d}.*")
        path.unlink()
    assert missing(tmp_path) == [1, 4]
    assert run(tmp_path) == 2
    assert files(tmp_path) == files(whole)
    assert missing(tmp_path) == []


def test_a_run_that_was_killed_within_a_rollout_keeps_those_before(whole, tmp_path):
    def die(number):
        if number == 2:
            raise SystemError

    with pytest.raises(SystemError):
        run(tmp_path, judge=Judge(die))
    assert store.steps(tmp_path / rollouts.NAME) == [0, 1]
    run(tmp_path)
    assert files(tmp_path) == files(whole)


def test_a_run_of_more_steps_draws_only_those(whole, tmp_path):
    assert run(tmp_path, steps=2) == 2
    assert missing(tmp_path, 3) == [2] and missing(tmp_path, 2) == []
    assert run(tmp_path, steps=STEPS) == STEPS - 2
    assert files(tmp_path) == files(whole)


@pytest.mark.parametrize("fault", ["a host's part", "damaged"])
def test_the_last_step_of_a_killed_run_is_drawn_again_unless_it_is_whole(fault, whole, tmp_path):
    """The other host had not yet written its half of the rows."""
    run(tmp_path, steps=3)
    (path,) = (tmp_path / rollouts.NAME).glob("step-00000002.*")
    half = store.read_step(tmp_path / rollouts.NAME, 2)[:4]
    if fault == "damaged":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        path.unlink()
        store.write(tmp_path / rollouts.NAME, half, step=2, host=1)
    assert missing(tmp_path) == [2, 3, 4, 5]
    assert run(tmp_path) == 4
    assert drawn(tmp_path) == drawn(whole)


def test_size_and_share_of_right_answers_are_told(tmp_path, capsys):
    """Every second dialogue ends in a right answer; the share is of what was drawn here."""
    answers = iter(([0] * 8 + [0, 1] * 4) * STEPS)  # first turns of eight rows, then second ones

    def grade(problem, text):
        right = next(answers)
        return Grade(verdict="correct" if right else "wrong", reward=float(right))

    run(tmp_path, judge=Judge(grade=grade))
    size = sum(len(data) for data in files(tmp_path).values()) / 1e6
    told = f"{size:.1f} MB: {tmp_path / rollouts.NAME}\n"
    assert capsys.readouterr().out == f"[kept] 6 steps of rollouts, 50.0% right at last, {told}"
    run(tmp_path)
    assert capsys.readouterr().out == f"[kept] 6 steps of rollouts, {told}"


def test_a_trained_policys_rollouts_are_collected_by_a_command(workdir, capsys):
    """From the checkpoint that it hands on, whose step the dialogues name; once."""
    train(workdir, mode="collect")
    folder = workdir / "stage1_collected"
    handoff = json.loads((folder / "handoff.json").read_text())
    assert handoff["parent"] == "stage1" and handoff["step"] > 0
    found = list(store.read(folder / rollouts.NAME))
    assert {(d.stage, d.policy_step) for d in found} == {("stage1_collected", handoff["step"])}
    assert len(found) == STEPS * ROWS
    assert not (folder / "checkpoints").exists() and not (folder / "evaluation.json").exists()
    told = capsys.readouterr().out
    assert "[stage1_collected] collects from stage1\n" in told
    before = files(folder)
    train(workdir, mode="collect")
    assert f"[stage1_collected] already finished: {folder}" in capsys.readouterr().out
    assert files(folder) == before
    with pytest.raises(ValueError, match=r"config.sampling.group_size is 4, but .*_collected was"):
        train(workdir, mode="collect", sampling__group_size=4)
