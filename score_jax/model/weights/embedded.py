"""The small base policies that ship in the package, one folder per task.

A folder holds `weights.safetensors`, `config.json` (ModelConfig) and the
tokenizer; `configs/base.py` trains it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors.flax import load_file, save_file

from score_jax.model.config import ModelConfig
from score_jax.text import tokenizer as tokenizers
from score_jax.types import Params

ROOT = Path(__file__).parent / "bundled"


def folder(task: str) -> Path:
    """The folder of a task's base policy.

    Raises:
      ValueError: the package ships none for this task.
    """
    path = ROOT / task
    if not (path / "config.json").is_file():
        known = sorted(p.parent.name for p in ROOT.glob("*/config.json"))
        raise ValueError(
            f"weights.source is 'embedded'; the package has no base policy for task {task!r}, "
            f"only for {', '.join(known)}: set config.weights.source and "
            "config.tokenizer.source"
        )
    return path


def model_config(task: str) -> ModelConfig:
    """The embedded model's config."""
    return ModelConfig(**json.loads((folder(task) / "config.json").read_text(encoding="utf-8")))


def tokenizer(task: str) -> tokenizers.Tokenizer:
    """The embedded model's tokenizer."""
    return tokenizers.load(folder(task))


def load(task: str) -> Params:
    """The embedded model's parameters in float32, on the host."""
    flat = load_file(str(folder(task) / "weights.safetensors"))
    return traverse_util.unflatten_dict(
        {name: np.asarray(array) for name, array in flat.items()}, sep="/"
    )


def save(path: Path, params: Params, config: ModelConfig, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes a folder that `load` reads."""
    path.mkdir(parents=True, exist_ok=True)
    flat: dict[str, Any] = traverse_util.flatten_dict(params, sep="/")
    save_file(
        {name: jnp.asarray(array, jnp.float32) for name, array in flat.items()},
        str(path / "weights.safetensors"),
    )
    text = json.dumps(dataclasses.asdict(config), indent=1) + "\n"
    (path / "config.json").write_text(text, encoding="utf-8")
    tokenizer.save(path)
