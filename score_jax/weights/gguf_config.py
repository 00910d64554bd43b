"""The decoder's fields from a GGUF header, and what the header leaves unsaid."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.weights.families import from_hf
from score_jax.weights.gguf import ROPE_FACTORS, Stored, family_of, read_header


def model_config(path: Path) -> ModelConfig:
    """The decoder's fields from a GGUF header."""
    header = read_header(path)
    family, found = family_of(header.metadata), header.metadata
    arch = found["general.architecture"]

    def field(name: str) -> Any:
        return found.get(f"{arch}.{name}")

    width, heads = field("embedding_length"), field("attention.head_count")
    data = {
        "model_type": family,
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "hidden_size": width,
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": field("attention.head_count_kv") or heads,
        "head_dim": field("attention.key_length") or width // heads,
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": float(str(np.float32(field("attention.layer_norm_rms_epsilon")))),
        "rope_theta": field("rope.freq_base"),
        "sliding_window": field("attention.sliding_window"),
        "attn_logit_softcapping": field("attn_logit_softcapping"),
        "final_logit_softcapping": field("final_logit_softcapping"),
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "query_pre_attn_scalar": query_scalar(family, found, arch),
    }
    if field("rope.scaling.type") == "linear":
        data["rope_scaling"] = {"rope_type": "linear", "factor": field("rope.scaling.factor")}
    elif ROPE_FACTORS in header.tensors:
        data["rope_scaling"] = llama3_scaling(path, header.tensors[ROPE_FACTORS], data)
    return from_hf(data)


def query_scalar(family: str, metadata: Mapping[str, Any], arch: str) -> float | None:
    """Gemma's query scale, which is not in the file: only the 27B models deviate from head_dim."""
    layers = metadata[f"{arch}.block_count"]
    if (family, layers) in (("gemma2", 46), ("gemma3_text", 62)):
        width = metadata[f"{arch}.embedding_length"]
        return width / metadata[f"{arch}.attention.head_count"]
    return metadata.get(f"{arch}.attention.key_length")


def llama3_scaling(path: Path, place: Stored, data: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling, recognised from the factors that the file holds.

    Raises:
      ValueError: the factors are not those of the Llama 3.1 release.
    """
    factors = np.memmap(path, np.float32, "r", place.offset, place.shape)
    scaling = RopeScaling(kind="llama3", factor=float(factors.max()))
    frequencies = data["rope_theta"] ** -(np.arange(0, data["head_dim"], 2) / data["head_dim"])
    turns = scaling.original_length * frequencies / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = np.clip((turns - low) / (high - low), 0, 1)
    expected = 1 / (blend + (1 - blend) / scaling.factor)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise ValueError(f"{path}: {ROPE_FACTORS} are not the factors of Llama 3.1's scaling")
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": scaling.original_length,
    }
