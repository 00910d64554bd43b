"""Log files of a resumed run are those of an uninterrupted one."""

import json

from score_jax.stages.log import Log, cut_after, progress


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
