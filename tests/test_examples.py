"""What examples/ shows: the one-file loop takes the package's steps, and the notebook runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import stage1
from examples import score_loop
from score_jax.stages.chain import run_mode
from score_jax.stages.resolve import resolve_stages
from tests.tiny_stages import lines

ROOT = Path(__file__).parent.parent
STEPS, PROBLEMS = 2, 4


def test_the_loop_in_one_file_takes_the_steps_of_the_package(tmp_path):
    config = stage1.get_config()
    config.steps, config.batch = STEPS, PROBLEMS
    config.evaluation.update({"problems": 1, "batch": 1, "samples": 0})
    config.log.update({"tensorboard": False, "progress": False})
    run_mode("train", resolve_stages(config, {}), tmp_path, config="", command="")
    told = lines(tmp_path / "stage1/metrics.jsonl")
    found = score_loop.train(STEPS, PROBLEMS, seed=0)[:STEPS]
    for row, own in zip(told, found, strict=True):
        assert own["turn1"] == row["accuracy/turn1"] and own["turn2"] == row["accuracy/turn2"]
        for turn in (1, 2):
            assert own[f"kl/turn{turn}"] == pytest.approx(row[f"kl/turn{turn}"], rel=1e-3, abs=1e-6)


def test_the_loop_in_one_file_is_short_and_says_what_it_leaves_out():
    text = (ROOT / "examples/score_loop.py").read_text()
    assert len(text.splitlines()) <= 160
    assert "leaves out" in score_loop.__doc__


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells))
    (tmp_path / "score_jax").symlink_to(ROOT)  # as beside the notebook
    environment = os.environ | {
        "QUICKSTART_STEPS": "2",
        "QUICKSTART_PROBLEMS": "4",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "512 dialogues" in done.stdout
    assert "step   1:" in done.stdout and "attempt 2" in done.stdout
    assert (tmp_path / "runs/quickstart/report.html").is_file()
