"""Reading a workdir back: half-written, repeated and absent files included."""

import json
import math
import os

import pytest

from score_jax.data import store
from score_jax.report.workdir import READ_ROWS, READ_STEPS, read_run, transcript_of
from tests.data.test_store import dialogue

TRANSCRIPT = {
    "step": 3,
    "problem": "p1",
    "prompt": "1+1?",
    "answer": "2",
    "attempts": ["3", "2"],
    "verdicts": ["wrong", "correct"],
    "rewards": [0.0, 1.0],
    "lengths": [1, 1],
    "truncated": [False, False],
    "extracted": ["3", None],
}


def write(path, *objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in objects))


def test_stages_come_in_chain_order_whatever_their_age(tmp_path):
    write(tmp_path / "stage2/metrics.jsonl", {"step": 1})
    write(tmp_path / "stage1/metrics.jsonl", {"step": 1})
    write(tmp_path / "run.json", {"stages": ["stage1", "stage2"]})
    assert [stage.name for stage in read_run(tmp_path).stages] == ["stage1", "stage2"]


def test_without_a_chain_the_older_metrics_come_first(tmp_path):
    for name, age in (("b", 100), ("a", 200)):
        write(tmp_path / name / "metrics.jsonl", {"step": 1})
        os.utime(tmp_path / name / "metrics.jsonl", (age, age))
    (tmp_path / "notes").mkdir()
    run = read_run(tmp_path)
    assert [stage.name for stage in run.stages] == ["b", "a"]
    assert any("run.json is missing" in line for line in run.missing)


def test_a_half_written_line_is_left_out_and_said(tmp_path):
    path = tmp_path / "stage1/metrics.jsonl"
    write(path, {"step": 1, "loss": 0.5})
    path.write_text(path.read_text() + '{"step": 2, "lo')
    run = read_run(tmp_path)
    assert run.stages[0].rows == ({"step": 1.0, "loss": 0.5},)
    assert "stage1/metrics.jsonl has 1 unreadable line(s), left out" in run.missing


def test_a_step_logged_again_after_a_restart_counts_once(tmp_path):
    rows = [{"step": 1, "x": 1}, {"step": 2, "x": 2}, {"step": 3, "x": 3}, {"step": 2, "x": 20}]
    write(tmp_path / "s/metrics.jsonl", *rows)
    assert read_run(tmp_path).stages[0].column("x") == ([1, 2, 3], [1, 20, 3])


def test_null_text_and_nan_values_are_tolerated(tmp_path):
    row = {"step": 1, "a": None, "b": "text", "c": math.nan, "d": True, "e": 2}
    write(tmp_path / "s/metrics.jsonl", row, {"loss": 1}, {"step": None}, [1])
    (kept,) = read_run(tmp_path).stages[0].rows
    assert kept.keys() == {"step", "c", "e"} and math.isnan(kept["c"])


def test_absent_files_and_stages_are_named(tmp_path):
    write(tmp_path / "run.json", {"stages": ["stage1", "stage2"]})
    write(tmp_path / "stage1/metrics.jsonl", {"step": 1})
    run = read_run(tmp_path)
    assert "stage2 has not started" in run.missing
    assert "stage1/evaluation.json is missing: no held-out measurements" in run.missing
    assert run.evaluated is None


def test_a_broken_evaluation_is_named_and_an_earlier_one_used(tmp_path):
    write(tmp_path / "run.json", {"stages": ["stage1", "stage2"]})
    write(tmp_path / "stage1/evaluation.json", {"stage": "stage1"})
    write(tmp_path / "stage2/metrics.jsonl", {"step": 1})
    (tmp_path / "stage2/evaluation.json").write_text("{")
    run = read_run(tmp_path)
    assert run.evaluated is not None and run.evaluated.name == "stage1"
    assert any(line.startswith("stage2/evaluation.json cannot be read") for line in run.missing)


@pytest.mark.parametrize("name", ["", "absent"])
def test_a_workdir_without_a_run_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"no stage in it has metrics\.jsonl"):
        read_run(tmp_path / name)


def test_latest_dialogues_are_read_from_rows_all_over_their_steps(tmp_path):
    write(tmp_path / "s/metrics.jsonl", {"step": 1})
    rows = 2 * READ_ROWS + 1
    for step in range(READ_STEPS + 2):
        stored = [dialogue(step, row, problem=f"{step}/{row}") for row in range(rows)]
        store.write(tmp_path / "s/rollouts", stored, step=step)
    kept = read_run(tmp_path).stages[0].transcripts
    assert [t.step for t in kept] == [s for s in range(2, READ_STEPS + 2) for _ in range(READ_ROWS)]
    assert [t.problem for t in kept[:READ_ROWS]] == [f"2/{2 * n}" for n in range(READ_ROWS)]
    assert kept[0].attempts == ("5", "√16 = 4 🙂") and kept[0].extracted == ("5", None)
    assert kept[0].lengths == (3, 3) and kept[0].verdicts == ("wrong", "correct")


def test_a_damaged_file_of_rollouts_is_named_and_the_others_are_read(tmp_path):
    write(tmp_path / "s/metrics.jsonl", {"step": 1})
    for step in range(3):
        for row in (0, 1):
            own = [dialogue(step, row, problem=f"{step}/{row}")]
            store.write(tmp_path / "s/rollouts", own, step=step, host=row)
    bad = [f"step-00000001.host-00{host}.arrow" for host in (0, 1)] + [
        "step-00000002.host-000.arrow"
    ]
    for name in bad:
        path = tmp_path / "s/rollouts" / name
        path.write_bytes(path.read_bytes()[:-30])
    run = read_run(tmp_path)
    assert [t.problem for t in run.stages[0].transcripts] == ["0/0", "0/1", "2/1"]
    told = [line for line in run.missing if "rollouts" in line]
    assert len(told) == 3
    for line, name in zip(told, bad, strict=True):
        assert line.startswith(f"skipped: {tmp_path / 's/rollouts' / name} is damaged (")


def test_units_come_with_the_stage_and_may_be_absent_or_unreadable(tmp_path):
    for name in ("one", "two", "three"):
        write(tmp_path / name / "metrics.jsonl", {"step": 1})
    write(tmp_path / "run.json", {"stages": ["one", "two", "three"]})
    write(tmp_path / "one/units.json", {"kl": "nats", "time/sample": "s"})
    (tmp_path / "two/units.json").write_text('{"kl": "na')
    run = read_run(tmp_path)
    assert [s.units for s in run.stages] == [{"kl": "nats", "time/sample": "s"}, {}, {}]
    told = [line for line in run.missing if "units.json" in line]
    assert len(told) == 1 and told[0].startswith("two/units.json cannot be read: ")


def test_a_stored_transcript_may_have_more_fields_and_lack_those_with_a_default():
    """Evaluations of an earlier version name no task."""
    found = transcript_of(TRANSCRIPT | {"new_field": 1})
    assert found is not None and found.task == "" and found.extracted == ("3", None)
    assert transcript_of(TRANSCRIPT | {"task": "math"}).task == "math"


@pytest.mark.parametrize("name", TRANSCRIPT)
def test_a_transcript_without_one_of_its_fields_is_none(name):
    assert transcript_of({k: v for k, v in TRANSCRIPT.items() if k != name}) is None


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    write(tmp_path / "stage1/metrics.jsonl", {"step": 1, "logprob_gap/mean/turn1": 0.5})
    write(tmp_path / "stage1/config.json", {"seed": 0, "gap_limit": None})
    with pytest.raises(ValueError, match=r"config.json is of an earlier .*gap_limit is mismatch_l"):
        read_run(tmp_path)
