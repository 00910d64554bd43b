"""Model families: `config.json` of Hugging Face to `ModelConfig`, and back.

A family is told by its fields, never by a stored name: norms behind attention and
MLP make a Gemma, norms of queries and keys a Qwen 3 or Gemma 3, biases a Qwen 2.5,
none of them a Llama. Both spellings of the rotary settings are read: `rope_theta`
with `rope_scaling`, and the newer `rope_parameters`.
"""

from collections.abc import Mapping
from typing import Any

from score_jax.model.config import ModelConfig, RopeScaling

# What a config.json may leave out; the values are those of transformers.
DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"hidden_act": "silu", "rope_theta": 10_000.0},
    "qwen2": {"hidden_act": "silu", "rope_theta": 10_000.0},
    "qwen3": {"hidden_act": "silu", "rope_theta": 10_000.0, "head_dim": 128},
    "gemma2": {
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
        "sliding_window": 4096,
    },
}
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu_tanh",  # the first Gemma configs say gelu and mean the tanh form
}
REQUIRED = (
    "vocab_size",
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "intermediate_size",
)
GEMMA_ONLY = ("gelu_pytorch_tanh", "gelu")


def from_hf(data: Mapping[str, Any]) -> ModelConfig:
    """The decoder's fields from a parsed `config.json`.

    Raises:
      ValueError: the architecture, or one of its settings, is not supported.
    """
    family = str(data.get("model_type"))
    if family == "gemma3":  # the image-and-text model: its text half is a plain decoder
        return from_hf({"model_type": "gemma3_text", **data.get("text_config", {})})
    if family not in DEFAULTS:
        raise ValueError(f"model_type is {family!r}; supported are {', '.join(DEFAULTS)}")
    data = {**DEFAULTS[family], **{k: v for k, v in data.items() if v is not None}}
    refuse_unsupported(family, data)
    gemma = family.startswith("gemma")
    heads = data["num_attention_heads"]
    scalar = data.get("query_pre_attn_scalar") if gemma else None
    head_dim = data.get("head_dim") or data["hidden_size"] // heads
    return ModelConfig(
        vocab_size=data["vocab_size"],
        layers=data["num_hidden_layers"],
        width=data["hidden_size"],
        heads=heads,
        kv_heads=data.get("num_key_value_heads", heads),
        head_dim=head_dim,
        mlp_dim=data["intermediate_size"],
        activation=read_activation(family, data),
        norm_eps=data.get("rms_norm_eps", 1e-6),
        norm_plus_one=gemma,
        post_norms=gemma,
        qk_norm=family in ("qwen3", "gemma3_text"),
        qkv_bias=family == "qwen2",
        tied_embeddings=data.get("tie_word_embeddings", False),
        embedding_scale=gemma,
        query_scale=None if scalar in (None, head_dim) else scalar**-0.5,
        attention_cap=data.get("attn_logit_softcapping"),
        logit_cap=data.get("final_logit_softcapping"),
        max_length=data.get("max_position_embeddings"),
        **read_window(family, data),
        **read_rope(family, data),
    )


def refuse_unsupported(family: str, data: Mapping[str, Any]) -> None:
    """Names a setting that is missing, or that the decoder has no field for."""
    missing = [key for key in REQUIRED if key not in data]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; use the model's own file")
    for key in ("mlp_bias", "use_bidirectional_attention"):
        if data.get(key):
            raise ValueError(f"config.json: {key} is {data[key]}; only false is supported")
    if family != "qwen2" and data.get("attention_bias"):
        raise ValueError("config.json: attention_bias is true; only Qwen 2.5 has biases here")


def read_activation(family: str, data: Mapping[str, Any]) -> Any:
    """The MLP's activation, by our name."""
    gemma = family.startswith("gemma")
    default = "gelu_pytorch_tanh" if gemma else "silu"
    name = data.get("hidden_activation", default) if gemma else data.get("hidden_act", default)
    if name not in ACTIVATIONS or (name in GEMMA_ONLY and not gemma):
        raise ValueError(f"config.json: hidden_act is {name!r}; supported are {list(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def read_window(family: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers are local, and how far they see."""
    layers, window = data["num_hidden_layers"], data.get("sliding_window")
    if family.startswith("qwen") and not data.get("use_sliding_window", False):
        window = None
    kinds = data.get("layer_types")
    if kinds is not None:
        local = tuple(kind == "sliding_attention" for kind in kinds)
    elif family == "gemma2":
        local = tuple(i % 2 == 0 for i in range(layers))
    elif family == "gemma3_text":
        every = data.get("sliding_window_pattern", data.get("_sliding_window_pattern", 6))
        local = tuple((i + 1) % every != 0 for i in range(layers))
    elif family.startswith("qwen"):
        local = tuple(i >= data.get("max_window_layers", layers) for i in range(layers))
    else:
        local = (False,) * layers
    if window is None or not any(local):
        return {}
    return {"window": window, "local_layers": local}


def read_rope(family: str, data: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary bases and their scaling."""
    rope = data.get("rope_parameters") or {}
    if "full_attention" in rope:
        near = rope.get("sliding_attention", {}).get("rope_theta")
        rope = rope["full_attention"]
    else:
        near = None
    base = rope.get("rope_theta", data.get("rope_theta"))
    scaling = read_scaling(rope or data.get("rope_scaling") or {})
    if family == "gemma3_text":
        return {
            "rope_base": base,
            "rope_local_base": near or data["rope_local_base_freq"],
            "rope_scaling": scaling,
        }
    return {"rope_base": base, "rope_scaling": scaling}


def read_scaling(rope: Mapping[str, Any]) -> RopeScaling | None:
    """How rotary frequencies are stretched, or None."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope["factor"])
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=rope["factor"],
            low_frequency_factor=rope["low_freq_factor"],
            high_frequency_factor=rope["high_freq_factor"],
            original_length=rope["original_max_position_embeddings"],
        )
    raise ValueError(f"config.json: rope_type is {kind!r}; supported: default, linear, llama3")


def family_of(config: ModelConfig) -> str:
    """The `model_type` that a config amounts to.

    Raises:
      ValueError: no family has this combination of fields.
    """
    c = config
    marks = (c.post_norms, c.qk_norm, c.qkv_bias, c.norm_plus_one, c.activation, c.embedding_scale)
    known = {
        (False, False, False, False, "silu", False): "llama",
        (False, False, True, False, "silu", False): "qwen2",
        (False, True, False, False, "silu", False): "qwen3",
        (True, False, False, True, "gelu_tanh", True): "gemma2",
        (True, True, False, True, "gelu_tanh", True): "gemma3_text",
    }
    if marks not in known:
        raise ValueError(
            "model: (post_norms, qk_norm, qkv_bias, norm_plus_one, activation, embedding_scale) "
            f"is {marks}; no Hugging Face architecture is made so, so it cannot be exported"
        )
    family = known[marks]
    if family in ("llama", "qwen2", "qwen3") and (c.attention_cap or c.logit_cap or c.query_scale):
        raise ValueError(
            f"model: soft caps and query_scale have no place in {family}'s config.json"
        )
    if family == "llama" and any(c.is_local):
        raise ValueError(f"model.window is {c.window}; {family} has no local layers, set None")
    return family


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that transformers and vLLM read; inverse of `from_hf`."""
    family = family_of(config)
    gemma = family.startswith("gemma")
    act = "gelu_pytorch_tanh" if gemma else "silu"
    data: dict[str, Any] = {
        "architectures": [ARCHITECTURES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": act,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "rope_theta": config.rope_base,
        "rope_scaling": write_scaling(config.rope_scaling),
        "max_position_embeddings": config.max_length or 8192,
    }
    if gemma:
        scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
        data |= {
            "hidden_activation": act,
            "query_pre_attn_scalar": round(scalar),  # transformers takes integers only
            "attn_logit_softcapping": config.attention_cap,
            "final_logit_softcapping": config.logit_cap,
        }
    if family == "gemma3_text":
        data["rope_local_base_freq"] = config.rope_local_base or config.rope_base
    if gemma or any(config.is_local):
        kinds = {True: "sliding_attention", False: "full_attention"}
        data |= {
            "sliding_window": config.window or config.max_length or 8192,
            "use_sliding_window": any(config.is_local),
            "layer_types": [kinds[local] for local in config.is_local],
        }
        if family.startswith("qwen"):
            data["max_window_layers"] = config.is_local.index(True)
    return data


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` entry."""
    if scaling is None:
        return None
    entry: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        entry |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return entry
