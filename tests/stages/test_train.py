"""What a stage carries from step to step, and which words a failure gets."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from score_jax.records import Grade
from score_jax.report.alarms import AlarmsConfig
from score_jax.rl.metrics import mean
from score_jax.rl.rollout import Clock
from score_jax.stages.train import Progress, StageRun, TrainingError, sft_step
from tests.stage_trial import Judge, open_trial, train


def test_every_candidate_is_judged_by_equally_many_steps():
    """Also the last, where the stage does not end with a checkpoint that was due."""
    rewards = [0.1, 0.5, 0.9, 0.3, 0.7, 0.2, 0.6]
    progress, found = Progress(window=3), {}
    for step, reward in enumerate(rewards, 1):
        progress.add(reward)
        progress = Progress(**json.loads(json.dumps(asdict(progress))))  # through a checkpoint
        found[step] = progress.reward()
    assert found[1] is None and found[2] is None
    for step in (3, 6, 7):
        assert found[step] == pytest.approx(np.mean(rewards[step - 3 : step]))


def stage_that_failed(**learner):
    optimizer = SimpleNamespace(learning_rate=0.1)
    settings = SimpleNamespace(
        optimizer=optimizer,
        weights=SimpleNamespace(source="folder"),
        learner=SimpleNamespace(**{"minibatches": 1} | learner),
        mismatch_limit=1.0,
    )
    stage = object.__new__(StageRun)
    stage.programs = SimpleNamespace(settings=settings)
    stage.last_saved = lambda: "there is no checkpoint yet"
    return stage


BROKEN = {"loss": float("nan"), "gradient_norm": 1.0}


def test_a_nan_before_any_update_is_not_blamed_on_the_learning_rate():
    with pytest.raises(RuntimeError) as error:
        stage_that_failed().check(1, BROKEN)
    assert "loss is nan" in str(error.value) and "weights of 'folder'" in str(error.value)
    assert "Lower" not in str(error.value)


@pytest.mark.parametrize(("step", "minibatches"), [(2, 1), (1, 2)])
def test_a_nan_behind_an_update_is(step, minibatches):
    with pytest.raises(RuntimeError, match=r"Lower optimizer.learning_rate \(0.1\)"):
        stage_that_failed(minibatches=minibatches).check(step, BROKEN)


def test_a_supervised_step_learns_from_its_rows_and_tells_its_units():
    def update(state, reference, rows):
        total = mean(sum(rows) + state, 2.0)
        return state + 1, {"loss": total, "entropy": mean(1.0, 4.0, "nats")}

    told = {}
    stage = SimpleNamespace(
        programs=SimpleNamespace(
            own_rows=lambda rows: rows[1:], to_global=lambda rows: rows, sft_update=update
        ),
        enter_phase=lambda phase, step: None,
        log=SimpleNamespace(units=told.update),
        progress=Progress(),
        state=10.0,
        reference=None,
        unfinished=None,
        finish_step=lambda: None,
        clock=Clock(),
    )
    values = sft_step(lambda step: [100 * step, step, step + 1])(stage, 3)()
    assert values.pop("time/update") >= 0
    assert values == {"loss": (3 + 4 + 10) / 2, "entropy": 0.25}
    assert stage.state == 11.0 and stage.progress.position == 4
    assert told == {"entropy": "nats", "time/update": "s"}


def test_a_steps_metrics_are_logged_while_the_next_rollout_is_drawn(tmp_path):
    """Except where a checkpoint is saved, here after every second step."""

    def logged():
        return len((tmp_path / "metrics.jsonl").read_text().splitlines())

    def sample(*arguments):
        before.append(logged())
        return open_trial().devices.sample(*arguments)

    before, behind = [], []
    train(tmp_path, judge=Judge(lambda number: behind.append(logged())), sample=sample)
    assert before == [0, 0, 2, 2, 4, 4]
    assert behind == [0, 1, 2, 3, 4, 5]
    assert logged() == 6


def test_a_loss_that_is_no_number_stops_before_the_next_update(tmp_path):
    def spoiled(updates):
        def update(state, reference, episodes, scores):
            updates.append(int(state.step))
            state, found = open_trial().programs.update(state, reference, episodes, scores)
            bad = replace(found["loss"], total=found["loss"].total * np.nan)
            return state, found | ({"loss": bad} if len(updates) == 3 else {})

        return update

    updates = []
    with pytest.raises(TrainingError, match=r"step 3: loss is nan.*the last checkpoint is step 2"):
        train(tmp_path, update=spoiled(updates))
    assert updates == [0, 1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def alarmed(name="accuracy_fall", **fields):
    """Alarms in windows of two steps, on a policy whose first attempts all turn wrong."""
    return AlarmsConfig(window=2, **{name: fields.pop("bound", 0.1)}, **fields)


def worse_from(rollout):
    """A judge to whom all is right before a rollout, and all wrong from it on."""
    judge = Judge()
    right = [Grade(verdict=v, reward=float(v == "correct")) for v in ("correct", "wrong")]
    judge.grade = lambda problem, text: right[judge.rollouts >= rollout]
    return judge


def alarm_lines(folder):
    return [json.loads(line) for line in (folder / "alarms.jsonl").read_text().splitlines()]


def test_an_alarm_is_written_once_and_the_run_goes_on(tmp_path, capsys):
    """Right in steps 1 and 2, wrong from step 3: the mean of steps 2 and 3 is a half less."""
    train(tmp_path, judge=worse_from(2), alarms=alarmed())
    (line,) = [line for line in alarm_lines(tmp_path) if line["name"] == "accuracy_fall"]
    assert (line["step"], line["event"]) == (3, "raised")
    assert line["metric"] == "accuracy/turn1" and line["value"] == 0.5 and line["bound"] == 0.1
    assert "step 3: alarm raised: accuracy_fall" in capsys.readouterr().err


def test_an_alarm_that_stops_names_step_value_bound_and_remedy(tmp_path):
    told = (
        r"step 3: alarm accuracy_fall: .*accuracy/turn1: 0\.5, .* is 0\.1.*objective\.beta.*step 2"
    )
    with pytest.raises(TrainingError, match=told):
        train(tmp_path, judge=worse_from(2), alarms=alarmed(stop=("accuracy_fall",)))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_resumed_run_leaves_the_same_alarms(tmp_path):
    train(tmp_path / "whole", judge=worse_from(2), alarms=alarmed())
    with pytest.raises(TrainingError):
        train(tmp_path / "cut", judge=worse_from(2), alarms=alarmed(stop=("accuracy_fall",)))
    assert alarm_lines(tmp_path / "cut")
    train(tmp_path / "cut", judge=worse_from(0), alarms=alarmed())  # from the checkpoint of step 2
    assert alarm_lines(tmp_path / "cut") == alarm_lines(tmp_path / "whole")
