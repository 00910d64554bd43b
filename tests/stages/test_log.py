"""Log files of a resumed run are those of an uninterrupted one."""

import json
import struct
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto import event_pb2

from score_jax.records import Transcript
from score_jax.stages import boards
from score_jax.stages import log as log_module
from score_jax.stages.log import LivePage, Log, cut_after, progress
from tests.stage_configs import train


def open_log(folder, step, **fields):
    return Log(folder, stage="s", step=step, steps=10, progress=False, **fields)


def write(folder, start, steps, **fields):
    log = open_log(folder, start, **fields)
    for step in range(start + 1, steps + 1):
        log.metrics(step, {"loss": step / 4})
    log.close()


def files(folder):
    return {path.name: path.read_text() for path in folder.glob("*.jsonl")}


def test_one_json_object_a_step(tmp_path):
    write(tmp_path / "new" / "stage", 0, 3)
    found = files(tmp_path / "new" / "stage")
    lines = [json.loads(line) for line in found["metrics.jsonl"].splitlines()]
    assert lines == [{"step": step, "loss": step / 4} for step in (1, 2, 3)]
    assert list(found) == ["metrics.jsonl"]


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
    log.units({"loss": "nats"})
    log.message("hello")
    log.sync()
    log.close()
    assert not (tmp_path / "none").exists()
    assert "hello" not in capsys.readouterr().err


def units(folder):
    path = folder / "units.json"
    return json.loads(path.read_text()) if path.exists() else None


def test_units_are_written_once(tmp_path):
    """A step tells its units again and again; the file is as it was until there is a new one."""
    log, path = open_log(tmp_path, 0), tmp_path / "units.json"
    assert units(tmp_path) is None
    log.units({"kl": "nats"})
    log.units({"time/step": "s"})
    assert units(tmp_path) == {"kl": "nats", "time/step": "s"}
    path.write_text("{}")
    for _ in range(3):
        log.units({"kl": "nats"})
        log.units({"time/step": "s"})
    assert units(tmp_path) == {}
    log.units({"entropy": "nats", "kl": "nats"})
    assert units(tmp_path) == {"entropy": "nats", "kl": "nats", "time/step": "s"}
    log.close()


def test_a_resumed_log_ends_with_the_units_of_the_uninterrupted_one(tmp_path):
    for start in (0, 3):
        log = open_log(tmp_path, start)
        log.units({"kl": "nats"})
        log.units({"time/step": "s"})
        log.close()
    assert units(tmp_path) == {"kl": "nats", "time/step": "s"}


def test_messages_name_the_stage(tmp_path, capsys):
    log = open_log(tmp_path, 0)
    log.message("saved step 3")
    log.close()
    assert "[s] saved step 3" in capsys.readouterr().err


def test_tensorboard_gets_every_metric(tmp_path):
    write(tmp_path, 0, 2, tensorboard=True)
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert events.count(b"loss") >= 2


def test_the_bar_shows_the_accuracies_of_all_turns_that_there_are():
    values = {"loss": 0.25, "accuracy/turn2": 0.5, "accuracy/turn10": 1.0, "accuracy/turn1": 0.125}
    more = {"validation/accuracy/turn1": 0.9, "task/math/accuracy/turn1": 0.9, "kl/turn1": 0.1}
    shown = progress(values | more)
    assert list(shown.items()) == [
        ("t1", "0.125"),
        ("t2", "0.500"),
        ("t10", "1.000"),
        ("loss", "0.250"),
    ]
    assert progress({"gradient_norm": 1.0}) == {}


def transcript(**fields):
    usual = {
        "step": 3, "problem": "p/1", "prompt": "7x = 14", "answer": "2",
        "attempts": ("x=3", "x=2\n<b>*so*</b>"), "verdicts": ("wrong", "correct"),
        "rewards": (0.0, 1.0), "lengths": (2, 5), "truncated": (False, False),
        "extracted": ("3", "2"),
    }  # fmt: skip
    return Transcript(**usual | fields)


def records(folder):
    """Step and value of what TensorBoard finds, by TFRecord's layout: length, sum, bytes, sum."""
    for path in sorted((folder / "tensorboard").glob("events*")):
        with path.open("rb") as file:
            while head := file.read(12):
                (size,) = struct.unpack("<Q", head[:8])
                event = event_pb2.Event()
                event.ParseFromString(file.read(size))
                file.read(4)
                yield from ((event.step, value) for value in event.summary.value)


def board(folder):
    """Scalars and texts that TensorBoard finds, by name."""
    scalars, texts = {}, {}
    for _, value in records(folder):
        if value.HasField("simple_value"):
            scalars[value.tag] = value.simple_value
        elif value.HasField("tensor"):
            texts[value.tag] = value.tensor.string_val[0].decode()
    return scalars, texts


def test_a_board_has_metrics_in_groups_and_dialogues_to_read(tmp_path):
    log = open_log(tmp_path, 0, tensorboard=True)
    log.metrics(1, {"loss": 0.5, "delta_i_to_c": 0.25, "accuracy/turn2": 0.75})
    assert log.has_board
    log.dialogues(1, [transcript()])
    log.close()
    scalars, texts = board(tmp_path)
    assert scalars == {
        "training/loss": 0.5,
        "correction/delta_i_to_c": 0.25,
        "accuracy/turn2": 0.75,
    }
    (text,) = texts.values()
    assert text == (  # blocks, in which nothing is a mark, apart from each other
        "**p/1**, answer 2\n\n    7x = 14\n\nattempt 1, wrong:\n\n    x=3\n\n"
        "attempt 2, correct:\n\n    x=2\n    <b>*so*</b>"
    )


def test_a_table_of_dialogues_goes_to_wandb(tmp_path, monkeypatch):
    sent = []
    run = SimpleNamespace(log=lambda values, step: sent.append((step, values)), finish=lambda: None)
    library = SimpleNamespace(init=lambda **_: run, Table=lambda **fields: fields)
    monkeypatch.setitem(sys.modules, "wandb", library)
    log = open_log(tmp_path, 0, wandb="mine")
    log.metrics(1, {"delta": 0.5})
    log.dialogues(1, [transcript()])
    log.close()
    (_, scalars), (step, table) = sent
    assert (scalars, step) == ({"correction/delta": 0.5}, 1)
    rows = table["dialogues"]
    assert rows["columns"] == ["problem", "answer", "prompt", "attempts", "verdicts", "rewards"]
    assert rows["data"][0][3] == "[1] x=3\n\n[2] x=2\n<b>*so*</b>"
    assert rows["data"][0][4:] == ["wrong, correct", "0, 1"]


def test_a_resumed_stage_goes_on_in_its_run_of_wandb(tmp_path, monkeypatch):
    opened = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    library = SimpleNamespace(init=lambda **fields: opened.append(fields) or run)
    monkeypatch.setitem(sys.modules, "wandb", library)
    for folder, step in ((tmp_path / "a", 0), (tmp_path / "a", 3), (tmp_path / "b", 0)):
        open_log(folder, step, wandb="mine").close()
    first, resumed, other = (fields["id"] for fields in opened)
    assert first == resumed != other
    assert {fields["resume"] for fields in opened} == {"allow"}


def test_marks_in_a_problems_name_are_shown_as_they_are():
    shown = boards.as_markdown([transcript(problem="a_b*<c>", answer="")])
    assert shown.startswith("**a\\_b\\*\\<c\\>**, answer none\n")


def test_the_page_is_written_when_its_minutes_are_over_and_a_failure_is_said(tmp_path, monkeypatch):
    clock, written, said = [0.0], [], []
    monkeypatch.setattr(log_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(log_module.page, "write_report", written.append)
    live = LivePage(tmp_path, 2.0, said.append)
    for clock[0] in (1.0, 119.0, 120.0, 121.0, 239.0, 241.0):
        live.refresh()
        if live.writing:
            live.writing.result()
    assert written == [tmp_path, tmp_path] and not said

    def fail(folder):
        raise ValueError("nothing there")

    monkeypatch.setattr(log_module.page, "write_report", fail)
    clock[0] = 400.0
    live.refresh()
    live.close()
    assert said == ["report.html was not written: nothing there"]


def test_without_minutes_there_is_no_page_in_the_making(tmp_path, monkeypatch):
    monkeypatch.setattr(log_module.page, "write_report", lambda _: 1 / 0)
    live = LivePage(tmp_path, 0.0, print)
    monkeypatch.setattr(log_module.time, "monotonic", lambda: 1e9)
    live.refresh()
    live.close()
    assert live.writing is None


def shown(folder):
    """Steps at which TensorBoard has dialogues, with how many."""
    return {
        step: sum(line.startswith(b"**") for line in value.tensor.string_val[0].split(b"\n"))
        for step, value in records(folder)
        if value.HasField("tensor")
    }


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"log__samples": 3, "log__samples_every": 2}, {1: 3, 3: 3}),
        ({"log__samples": 100, "log__samples_every": 3}, {1: 8}),  # a step has eight
        ({"log__samples": 0}, {}),
    ],
    ids=["three", "all", "none"],
)
def test_a_run_shows_dialogues_and_writes_its_page_on_the_way(
    tmp_path, compiled, monkeypatch, fields, expected
):
    written = []
    monkeypatch.setattr(log_module.page, "write_report", written.append)
    fields |= {"log__tensorboard": True, "log__report_minutes": 1e-9}
    train(tmp_path, steps=3, evaluation__samples=0, **fields)
    assert shown(tmp_path / "stage1") == expected
    assert len(written) >= 1 + 1 and set(written) == {tmp_path}  # the last one is run_mode's
