"""Reading a workdir back: half-written, repeated and absent files included."""

import json
import math
import os

import pytest

from score_jax.report.workdir import KEPT_TRANSCRIPTS, read_run, transcript_of

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


def test_latest_transcripts_are_kept_as_records(tmp_path):
    rows = [TRANSCRIPT | {"step": step, "new_field": 1} for step in range(KEPT_TRANSCRIPTS + 5)]
    write(tmp_path / "s/transcripts.jsonl", *rows, {"step": 99})
    write(tmp_path / "s/metrics.jsonl", {"step": 1})
    kept = read_run(tmp_path).stages[0].transcripts
    assert [t.step for t in kept] == list(range(5, KEPT_TRANSCRIPTS + 5))
    assert kept[0].attempts == ("3", "2") and kept[0].extracted == ("3", None)


def test_a_transcript_without_its_fields_is_none():
    assert transcript_of({"step": 1}) is None


def test_a_run_of_an_earlier_version_is_refused(tmp_path):
    write(tmp_path / "stage1/metrics.jsonl", {"step": 1, "logprob_gap/mean/turn1": 0.5})
    write(tmp_path / "stage1/config.json", {"seed": 0, "gap_limit": None})
    with pytest.raises(ValueError, match=r"config.json is of an earlier .*gap_limit is mismatch_l"):
        read_run(tmp_path)
