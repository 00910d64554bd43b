"""Whole runs: ended by signals, begun again, and refused."""

import json
import os

import pytest

from score_jax.build import build
from score_jax.chain import run_mode
from score_jax.handoff import open_checkpoints
from score_jax.main import resolve_chain
from tests import tiny_stages
from tests.tiny_stages import FILE, ROOT, command, finish, lines

INTERRUPTED = str(ROOT / "tests/interrupted.py")
STEPS = 6


def interrupt(number, moment, step, workdir, cache):
    flags = command(workdir)[2:]
    environment = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(environment)
    try:
        return finish([INTERRUPTED, number, moment, step, *flags], cache)
    finally:
        os.environ["PYTHONPATH"] = os.pathsep.join(environment[1:])


def links(name="stage1", **fields):
    """A chain as main makes it, with fields changed as a command line does."""
    config = tiny_stages.get_config(name)
    overrides = {path.replace("__", "."): value for path, value in fields.items()}
    config.update_from_flattened_dict(overrides)
    return resolve_chain(config, overrides)


def train(workdir, name="stage1", **fields):
    run_mode("train", links(name, **fields), workdir, config=f"{FILE}:{name}", command="")


def saved(workdir):
    """Every checkpoint of Stage I: its state, what stands beside it, its reward."""
    link = links()[-1]
    like = build(link.settings).abstract_state()
    with open_checkpoints(link.settings, workdir / "stage1") as checkpoints:
        return {
            step: (*checkpoints.restore(step, like), checkpoints.reward(step))
            for step in checkpoints.steps()
        }


def assert_same_run(workdir, other):
    """Bitwise the same checkpoints; the same lines but for what a clock says."""
    ours, theirs = saved(workdir), saved(other)
    shared = sorted(set(ours) & set(theirs))  # one that a signal asked for displaces another
    assert shared[-1] == STEPS
    for step in shared:
        state, extra, reward = ours[step]
        tiny_stages.assert_same_tree(state, theirs[step][0])
        assert (extra, reward) == theirs[step][1:]
    for name in ("metrics", "transcripts"):
        rows = [
            tiny_stages.without_times(lines(folder / f"stage1/{name}.jsonl"))
            for folder in (workdir, other)
        ]
        assert rows[0] == rows[1], name
    evaluations = [
        json.loads((folder / "stage1/evaluation.json").read_text()) for folder in (workdir, other)
    ]
    assert evaluations[0] == evaluations[1]
    assert evaluations[0]["step"] in shared


@pytest.fixture(scope="module")
def interruptions(cache, tmp_path_factory):
    """One run, ended in turn at each moment, each time by the same command, then let run."""
    workdir = tmp_path_factory.mktemp("interrupted")
    told = [
        (moment, *interrupt(*moment, workdir, cache))
        for moment in (
            ("SIGKILL", "rollout", 2),
            ("SIGKILL", "update", 4),
            ("SIGKILL", "save", 4),
            ("SIGTERM", "update", 5),
        )
    ]
    return workdir, told, finish(command(workdir), cache)


def test_the_trial_run_learns_something(finished_run):
    rows = lines(finished_run / "stage1/metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert all(row["gradient_norm"] > 1e-3 for row in rows)
    assert len({row["reward/turn2"] for row in rows}) > 1


def test_a_run_killed_at_three_moments_ends_as_an_uninterrupted_one(
    interruptions, finished_run, compiled
):
    workdir, told, (code, _, err) = interruptions
    assert [code for (number, *_), code, _, _ in told if number == "SIGKILL"] == [-9] * 3
    assert code == 0, err
    assert_same_run(workdir, finished_run)


def test_sigterm_saves_and_says_so_in_one_line(interruptions):
    _, told, (_, _, resumed) = interruptions
    _, code, _, err = told[-1]
    assert code == 143
    assert err.splitlines()[-1] == (
        "stopped: SIGTERM at step 5 of 6: saved; the same command goes on from here"
    )
    assert "Traceback" not in err
    assert "goes on from the checkpoint of step 5 of 6" in resumed


def test_a_killed_run_goes_on_from_what_was_saved(interruptions):
    _, told, _ = interruptions
    stderr = [err for *_, err in told]
    assert "goes on" not in stderr[0] + stderr[1]  # killed before any checkpoint: begins anew
    assert "goes on from the checkpoint of step 2 of 6" in stderr[2]
    assert "goes on from the checkpoint of step 2 of 6" in stderr[3]
