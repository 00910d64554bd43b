"""Small random models of each family, made by transformers, all features switched on.

`python -m tests.reference_models` (needs torch and transformers) writes pinned.json:
each family's config and some logits, for weights that `fill` makes from names alone.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

PINNED = Path(__file__).parent / "pinned.json"

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
PATTERN = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rope_parameters": LLAMA3_ROPE,
        "rms_norm_eps": 1e-5,
    },
    "smollm2": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "num_attention_heads": 6,
        "head_dim": 8,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
    },
    "qwen2": {
        "model_type": "qwen2",
        "tie_word_embeddings": True,
        "head_dim": 12,
        "use_sliding_window": True,
        "sliding_window": 7,
        "max_window_layers": 2,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
    },
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": False},
    "gemma2": {
        "model_type": "gemma2",
        "sliding_window": 6,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3": {
        "model_type": "gemma3_text",
        "sliding_window": 5,
        "query_pre_attn_scalar": 20,
        "layer_types": PATTERN,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
}


def build(family: str, seed: int = 0) -> Any:
    """A transformers model of a family with random weights, norms and biases."""
    import torch
    import transformers

    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(**(SMALL | FAMILIES[family]))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:  # norms start at 1 (Gemma: 0) and biases at 0: hide nothing
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "embed_tokens" in name:
                parameter.normal_(std=0.5)
    return model.eval()


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Random values that depend on a tensor's name and shape only."""
    values = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) == 1:
        return (0.3 * values + ("bias" not in name)).astype(np.float32)
    return ((0.5 if "embed" in name else 0.2) * values).astype(np.float32)


def pinned_tokens() -> np.ndarray:
    """One row of 24 tokens, longer than every window."""
    return (np.arange(24)[None, :] * 37 + 5) % 97


def pin(family: str) -> dict[str, Any]:
    """A family's config, the shapes of its tensors, and its last logits."""
    import torch

    model = build(family)
    shapes = {name: list(value.shape) for name, value in model.named_parameters()}
    filled = {name: torch.tensor(fill(name, tuple(shape))) for name, shape in shapes.items()}
    model.load_state_dict(filled, strict=False)
    model.tie_weights()
    with torch.no_grad():
        logits = model(torch.tensor(pinned_tokens())).logits[0, -1].numpy()
    config = {k: v for k, v in model.config.to_dict().items() if v is not None}
    return {"config": config, "shapes": shapes, "logits": [round(float(x), 5) for x in logits[:16]]}


def write_sizes(writer, config):
    """What the header of a GGUF file says of a model's shape."""
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])


if __name__ == "__main__":
    PINNED.write_text(json.dumps({family: pin(family) for family in FAMILIES}, indent=1) + "\n")
