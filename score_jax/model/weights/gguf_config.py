"""The decoder's config from a GGUF header, and values that the header lacks.

Every field of the architecture is read, or refused unless it has no effect, as with a
config.json (`config_keys`). Absent values have llama.cpp's defaults.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.weights.config_keys import KINDS, MOST, short
from score_jax.model.weights.families import from_hf
from score_jax.model.weights.gguf import ROPE_FACTORS, Header, Stored, family_of, read_header

EMBEDDING = "token_embd.weight"
NEEDED = {  # GGUF's name: config.json's, and its kind
    "embedding_length": ("hidden_size", "count"),
    "feed_forward_length": ("intermediate_size", "count"),
    "block_count": ("num_hidden_layers", "count"),
    "attention.head_count": ("num_attention_heads", "count"),
    "context_length": ("max_position_embeddings", "count"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "positive"),
}
OPTIONAL = {
    "attention.head_count_kv": ("num_key_value_heads", "count"),
    "attention.key_length": ("head_dim", "count"),
    "rope.freq_base": ("rope_theta", "base"),
    "attention.sliding_window": ("sliding_window", "count"),
    "attn_logit_softcapping": ("attn_logit_softcapping", "positive"),
    "final_logit_softcapping": ("final_logit_softcapping", "positive"),
}
GEMMA3 = {  # of Gemma 3 only
    "rope.freq_base_swa": ("rope_local_base_freq", "base"),
    "attention.sliding_window_pattern": ("sliding_window_pattern", "count"),
}
SCALING = "rope.scaling."
FACTOR, ORIGINAL, ATTENTION = "factor", "original_context_length", "attn_factor"
YARN = {  # name after SCALING: config.json's name in rope_scaling, and its kind
    FACTOR: ("factor", "positive"),
    ORIGINAL: ("original_max_position_embeddings", "count"),
    "yarn_beta_fast": ("beta_fast", "positive"),
    "yarn_beta_slow": ("beta_slow", "positive"),
}
NEUTRAL: dict[str, tuple[Any, ...]] = {  # values without effect; others are refused
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "rope.scale_linear": (0.0, 1.0),
    f"{SCALING}{FACTOR}": (0.0, 1.0),
    f"{SCALING}{ATTENTION}": (1.0,),
    f"{SCALING}yarn_ext_factor": (1.0, -1.0),
}
HARMLESS = (
    "vocab_size",
    "tensor_data_layout",
    f"{SCALING}type",  # read by rope_scaling
    f"{SCALING}finetuned",
    f"{SCALING}{ORIGINAL}",
)
IMAGES = ("vision.", "mm.")  # prefixes of the image encoder's fields


class Fields:
    """The fields of a header's architecture; keeps track of those that were read."""

    def __init__(self, header: Header, path: Path):
        """Args: path: for messages."""
        self.arch, self.path = header.metadata["general.architecture"], path
        start = f"{self.arch}."
        self.found = {
            name.removeprefix(start): value
            for name, value in header.metadata.items()
            if name.startswith(start)
        }
        self.read: set[str] = set()

    def take(self, name: str, kind: str) -> Any:
        """Reads a field and checks its kind; None where the header lacks it."""
        self.read.add(name)
        value = self.found.get(name)
        fits, wanted = KINDS[kind]
        if value is not None and not fits(value):
            raise self.error(name, wanted)
        return value

    def error(self, name: str, remedy: str) -> ValueError:
        """The error for an unusable value."""
        value = short(self.found.get(name))
        return ValueError(f"{self.path}: {self.arch}.{name} is {value}; {remedy}")

    def refuse_rest(self) -> None:
        """Raises ValueError where a field was not read and may have an effect."""
        for name, value in self.found.items():
            if name in self.read or name in HARMLESS or name.startswith(IMAGES):
                continue
            neutral = NEUTRAL.get(name, (0, False, ""))
            if isinstance(value, np.ndarray | list) or value not in neutral:
                raise self.error(name, "it is not read here, convert the model without it")


def model_config(path: Path) -> ModelConfig:
    """The decoder's config from a GGUF header.

    Raises:
      ValueError: a field is missing, has a wrong type, or is not supported.
    """
    header = read_header(path)
    family = family_of(header.metadata, path)
    fields = Fields(header, path)
    table = NEEDED | OPTIONAL | (GEMMA3 if family == "gemma3_text" else {})
    values = {name: fields.take(name, kind) for name, (_, kind) in table.items()}
    check_needed(header, fields, family, values)
    data = {table[name][0]: value for name, value in values.items() if value is not None}
    data["rms_norm_eps"] = float(str(np.float32(data["rms_norm_eps"])))
    data |= {
        "model_type": family,
        "vocab_size": header.tensors[EMBEDDING].shape[0],
        "num_key_value_heads": data.get("num_key_value_heads", data["num_attention_heads"]),
        "head_dim": data.get("head_dim") or data["hidden_size"] // data["num_attention_heads"],
        "tie_word_embeddings": "output.weight" not in header.tensors,
    }
    check_heads(fields, data["head_dim"])
    if family.startswith("gemma"):
        data["query_pre_attn_scalar"] = query_scalar(family, header.metadata, fields.arch)
    elif data.pop("sliding_window", MOST) < data["max_position_embeddings"]:
        raise fields.error("attention.sliding_window", "llama.cpp ignores it in this family")
    data["rope_scaling"] = rope_scaling(header, fields, data)
    fields.refuse_rest()
    return from_hf(data, str(path))


def check_needed(header: Header, fields: Fields, family: str, values: Mapping[str, Any]) -> None:
    """Raises ValueError where the header lacks a field without a default."""
    needed = [*NEEDED, *(("rope.freq_base",) if family == "gemma3_text" else ())]
    missing = [f"{fields.arch}.{name}" for name in needed if values[name] is None]
    if EMBEDDING not in header.tensors:
        missing.append(f"the tensor {EMBEDDING}")
    if missing:
        raise ValueError(
            f"{fields.path} lacks {', '.join(missing)}; convert the model again, or use its "
            "folder of safetensors"
        )


def check_heads(fields: Fields, head_dim: int) -> None:
    """Raises ValueError where heads are rotated in part, or values have another width."""
    names = ("rope.dimension_count", "attention.value_length")
    for name in (*names, "rope.dimension_count_swa", "attention.key_length_swa"):
        if fields.take(name, "count") not in (None, head_dim):
            raise fields.error(name, f"only the width of a head, {head_dim}, is supported")


def query_scalar(family: str, metadata: Mapping[str, Any], arch: str) -> float | None:
    """Gemma's query_pre_attn_scalar, which GGUF lacks: head_dim, except in the 27B models."""
    layers = metadata[f"{arch}.block_count"]
    width, heads = (metadata[f"{arch}.{n}"] for n in ("embedding_length", "attention.head_count"))
    if (family, layers) in (("gemma2", 46), ("gemma3_text", 62)):
        return width / heads
    return metadata.get(f"{arch}.attention.key_length", width // heads)


def rope_scaling(header: Header, fields: Fields, data: Mapping[str, Any]) -> dict[str, Any] | None:
    """A header's RoPE scaling as the `rope_scaling` of a config.json."""
    kind = fields.found.get(f"{SCALING}type", "none")
    factors = header.tensors.get(ROPE_FACTORS)
    if factors is not None:
        if kind != "none" or data["model_type"] != "llama":
            raise ValueError(
                f"{fields.path} holds {ROPE_FACTORS}, which are supported only for a Llama "
                "without rope.scaling.type; convert the model again"
            )
        return llama3_scaling(fields.path, factors, {"rope_theta": 10_000.0, **data})
    if kind == "none":
        return None
    kinds = ("linear",) if data["model_type"].startswith("gemma") else ("linear", "yarn")
    if kind not in kinds:
        raise fields.error(f"{SCALING}type", f"supported: none, {', '.join(kinds)}")
    table = YARN if kind == "yarn" else {FACTOR: YARN[FACTOR]}
    found = {
        key: fields.take(f"{SCALING}{name}", value_kind)
        for name, (key, value_kind) in table.items()
    }
    if found["factor"] is None:
        raise ValueError(
            f"{fields.path} lacks {fields.arch}.{SCALING}{FACTOR} for {SCALING}type {kind!r}; "
            "convert the model again"
        )
    if kind == "yarn":
        found |= yarn_magnitude(fields, found["factor"])
    present = {key: value for key, value in found.items() if value is not None}
    return {"rope_type": kind} | present


def yarn_magnitude(fields: Fields, factor: float) -> dict[str, float]:
    """YaRN's attention factor; {} if the header has none. GGUF stores its ratio to the paper's."""
    ratio = fields.take(f"{SCALING}{ATTENTION}", "positive")
    if ratio is None:
        return {}
    return {"attention_factor": ratio * max(1.0, 0.1 * math.log(factor) + 1.0)}


def llama3_scaling(path: Path, stored: Stored, data: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3.1's scaling, recognised by the factors in the file.

    Raises:
      ValueError: the factors are not those of the Llama 3.1 release.
    """
    factors = np.memmap(path, np.float32, "r", stored.offset, stored.shape)
    fault = ValueError(f"{path}: {ROPE_FACTORS} are not the factors of Llama 3.1's scaling")
    if not np.isfinite(factors).all() or factors.max() <= 0:
        raise fault
    scaling = RopeScaling(kind="llama3", factor=float(factors.max()))
    frequencies = data["rope_theta"] ** -(np.arange(0, data["head_dim"], 2) / data["head_dim"])
    rotations = scaling.original_length * frequencies / (2 * np.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = np.clip((rotations - low) / (high - low), 0, 1)
    expected = 1 / (blend + (1 - blend) / scaling.factor)
    if factors.shape != expected.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise fault
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": scaling.original_length,
    }
