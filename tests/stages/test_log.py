"""Log files of a resumed run are those of an uninterrupted one."""

import json

from score_jax.records import Transcript
from score_jax.stages.log import Log, cut_after


def open_log(folder, step, **fields):
    return Log(folder, stage="s", step=step, steps=10, progress=False, **fields)


def transcript(step):
    return Transcript(
        step=step,
        problem="p",
        prompt="1+1",
        answer="2",
        attempts=("3", "2"),
        verdicts=("wrong", "correct"),
        rewards=(0.0, 1.0),
        lengths=(2, 2),
        truncated=(False, False),
        extracted=("3", "2"),
    )


def write(folder, start, steps, **fields):
    log = open_log(folder, start, **fields)
    for step in range(start + 1, steps + 1):
        log.metrics(step, {"loss": step / 4})
        log.transcripts([transcript(step - 1), transcript(step - 1)])
    log.close()


def files(folder):
    return {path.name: path.read_text() for path in folder.glob("*.jsonl")}


def test_one_json_object_a_step(tmp_path):
    write(tmp_path / "new" / "stage", 0, 3)
    found = files(tmp_path / "new" / "stage")
    lines = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    assert lines == [{"step": step, "loss": step / 4} for step in (1, 2, 3)]
    records = [json.loads(line) for line in found["transcripts.jsonl"].splitlines()]
    assert len(records) == 6
    assert records[0]["attempts"] == ["3", "2"] and records[0]["verdicts"] == ["wrong", "correct"]


def test_a_resumed_log_equals_the_uninterrupted_one(tmp_path):
    write(tmp_path / "whole", 0, 6)
    write(tmp_path / "cut", 0, 5)  # killed after step 5, with a checkpoint of step 3
    write(tmp_path / "cut", 3, 6)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_a_half_written_line_is_cut(tmp_path):
    write(tmp_path, 0, 4)
    whole = files(tmp_path)
    for name in whole:
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 5, "lo')
    write(tmp_path, 4, 4)
    assert files(tmp_path) == whole


def test_a_run_from_the_start_drops_what_was_there(tmp_path):
    write(tmp_path, 0, 4)
    write(tmp_path, 0, 1)
    assert len(files(tmp_path)["metrics.jsonl"].splitlines()) == 1


def test_cutting_a_file_that_does_not_exist_makes_none(tmp_path):
    cut_after(tmp_path / "metrics.jsonl", 3)
    assert not list(tmp_path.iterdir())


def test_lines_are_on_disk_before_the_log_is_closed(tmp_path):
    log = open_log(tmp_path, 0)
    log.metrics(1, {"loss": 1.0})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "loss": 1.0}
    log.sync()
    log.close()


def test_numbers_that_json_cannot_hold_become_null(tmp_path):
    log = open_log(tmp_path, 0)
    log.metrics(1, {"loss": float("nan"), "kl": float("inf"), "reward": 0.5})
    log.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=lambda name: 1 / 0) == {
        "step": 1,
        "loss": None,
        "kl": None,
        "reward": 0.5,
    }


def test_only_the_first_host_writes(tmp_path, capsys):
    log = open_log(tmp_path / "none", 0, write=False)
    log.metrics(1, {"loss": 1.0})
    log.transcripts([transcript(1)])
    log.message("hello")
    log.sync()
    log.close()
    assert not (tmp_path / "none").exists()
    assert "hello" not in capsys.readouterr().err


def test_messages_name_the_stage(tmp_path, capsys):
    log = open_log(tmp_path, 0)
    log.message("saved step 3")
    log.close()
    assert "[s] saved step 3" in capsys.readouterr().err


def test_tensorboard_gets_every_metric(tmp_path):
    write(tmp_path, 0, 2, tensorboard=True)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert events.count(b"loss") >= 2
