"""Presets of published models at a size that two cores run in minutes, on weights at hand.

    python -m score_jax.main --config=tests/reduced.py:stage2:gemma2_2b_math

What is changed is how much is done and which model does it; task, data, chain of stages,
rewards and all other fields stay the preset's.
"""

import os
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from ml_collections import ConfigDict

from score_jax.model.config import ModelConfig

FILE = "tests/reduced.py"
QWEN = Path(os.environ.get("SCORE_JAX_TOKENIZERS", "/nonexistent")) / "qwen25.gguf"


def get_config(name: str) -> ConfigDict:
    """STAGE:PRESET, a config file and what stands behind its colon."""
    stage, preset = name.split(":")
    config = import_module(f"configs.{stage}").get_config(preset)
    if config.parent:
        config.parent = f"{FILE}:stage1:{preset}"
    if preset.startswith("gemma2"):  # with heads for two shards
        config.weights.source, config.tokenizer.chat = str(QWEN), "qwen25"
        config.sampling.prompt_limit, config.evaluation.prompt_limit = 192, 448
    else:
        config.mesh.fsdp, config.compute.remat = 4, "full"  # so that two processes fit 24 GB
    # As many problems as row shards: of four devices each, or of one.
    config.steps, config.batch = 1, 4 if preset.startswith("gemma2_9b") else 8
    config.sampling.group_size = 2
    config.sampling.turn_limit = 8
    config.learner.microbatches, config.learner.logits_chunk = 1, 32
    config.checkpoint.keep = 1
    config.evaluation.problems = config.evaluation.batch = 8
    config.evaluation.samples = 0
    config.grading.workers = 1
    config.log.progress = False
    return config


def narrow(model: ModelConfig, vocab_size: int) -> ModelConfig:
    """A model of the same family with two narrow layers, of Gemma's a local and a global one."""
    return replace(
        model,
        vocab_size=vocab_size,
        layers=2,
        local_layers=(model.local_layers or ())[4:6] or None,
        width=32,
        heads=2,
        kv_heads=1,
        head_dim=16,
        mlp_dim=32,
    )
