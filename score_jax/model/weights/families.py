"""Model families: `config.json` of Hugging Face to `ModelConfig`, and back.

On export the family follows from the config's fields: a model with norms after attention
and MLP is a Gemma, with norms of queries and keys a Qwen 3 or Gemma 3, with biases a
Qwen 2.5, with none of them a Llama. `config_keys` lists the keys that are read and
refused, and `rope` reads the rotary settings. An absent key has transformers' default; a
null is null.
"""

from collections.abc import Mapping
from typing import Any

from score_jax.model.config import ModelConfig
from score_jax.model.weights.config_keys import READ, read_keys, short
from score_jax.model.weights.rope import read_rope, write_rope

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
}
PLAIN_ACTIVATIONS = {"silu": "silu", "swish": "silu"}
GEMMA_ACTIVATIONS = PLAIN_ACTIVATIONS | {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
WRITTEN = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu"}
TEXT_CONFIG = "text_config"  # of an image-and-text model


def from_hf(data: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
    """The decoder's config from a parsed `config.json`.

    Args:
      where: the file, for messages.

    Raises:
      ValueError: the architecture, or one of its settings, is not supported.
    """
    family = str(data.get("model_type"))
    if family == "gemma3":
        return from_hf(text_config(data, where), f"{where} ({TEXT_CONFIG})")
    if family not in READ:
        supported = ", ".join(READ)
        raise ValueError(f"{where}: model_type is {family!r}; supported are {supported}")
    values = read_keys(family, data, where)
    fields = {
        **read_sizes(values, where),
        **read_marks(family, values, where),
        **read_window(family, values, where),
        **read_rope(family, values, where),
    }
    try:
        return ModelConfig(**fields)
    except ValueError as error:  # sizes that contradict each other
        raise ValueError(f"{where}: {error}") from error


def text_config(data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The text model inside Gemma 3's image-and-text config.

    Both levels may state tie_word_embeddings. Where they differ the embeddings count as tied
    here, and `load` unties them if the weights contain a different output table.
    """
    values = read_keys("gemma3", data, where)
    text = dict(values[TEXT_CONFIG])
    kind = text.get("model_type", "gemma3_text")
    if kind != "gemma3_text":
        raise ValueError(f"{where}: {TEXT_CONFIG}.model_type is {short(kind)}; set 'gemma3_text'")
    if text.get("final_logit_softcapping") is not None:
        raise ValueError(
            f"{where}: {TEXT_CONFIG}.final_logit_softcapping is "
            f"{short(text['final_logit_softcapping'])}; transformers ignores it here, set null"
        )
    tie = "tie_word_embeddings"
    stated = [level[tie] for level in (data, text) if tie in level]
    tied = stated[0] if stated in ([False], [False, False]) else True
    return text | {"model_type": "gemma3_text", tie: tied}


def read_sizes(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Widths and counts."""
    width, heads = values["hidden_size"], values["num_attention_heads"]
    head_dim = values.get("head_dim")
    if head_dim is None and width % heads:
        raise ValueError(
            f"{where}: hidden_size is {width}, not a multiple of num_attention_heads {heads}; "
            "set head_dim"
        )
    return {
        "vocab_size": values["vocab_size"],
        "layers": values["num_hidden_layers"],
        "width": width,
        "heads": heads,
        "kv_heads": values["num_key_value_heads"] or heads,
        "head_dim": head_dim or width // heads,
        "mlp_dim": values["intermediate_size"],
        "max_length": values["max_position_embeddings"],
    }


def read_marks(family: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields that depend on the family, and its scales and caps."""
    gemma = family.startswith("gemma")
    key = "hidden_activation" if gemma else "hidden_act"
    activations = GEMMA_ACTIVATIONS if gemma else PLAIN_ACTIVATIONS
    if values[key] not in activations:
        raise ValueError(
            f"{where}: {key} is {values[key]!r}; supported are {', '.join(activations)}"
        )
    scalar = values.get("query_pre_attn_scalar")
    head_dim = values.get("head_dim")
    return {
        "activation": activations[values[key]],
        "norm_eps": values["rms_norm_eps"],
        "norm_plus_one": gemma,
        "post_norms": gemma,
        "qk_norm": family in ("qwen3", "gemma3_text"),
        "qkv_bias": family == "qwen2",
        "tied_embeddings": values["tie_word_embeddings"],
        "embedding_scale": gemma,
        "query_scale": None if scalar in (None, head_dim) else scalar**-0.5,
        "attention_cap": values.get("attn_logit_softcapping"),
        "logit_cap": values.get("final_logit_softcapping"),
    }


def read_window(family: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The window and which layers are local; {} if none is."""
    layers, window = values["num_hidden_layers"], values.get("sliding_window")
    if family.startswith("qwen") and not values["use_sliding_window"]:
        window = None
    kinds = values.get("layer_types")
    if kinds is not None:
        if len(kinds) != layers:
            raise ValueError(
                f"{where}: layer_types has {len(kinds)} entries; give one per layer, {layers}"
            )
        local = tuple(kind == "sliding_attention" for kind in kinds)
    elif family == "gemma2":
        local = tuple(i % 2 == 0 for i in range(layers))
    elif family == "gemma3_text":
        local = tuple((i + 1) % read_pattern(values, where) != 0 for i in range(layers))
    elif family.startswith("qwen"):
        local = tuple(
            window is not None and i >= values["max_window_layers"] for i in range(layers)
        )
    else:
        local = (False,) * layers
    if not any(local):
        return {}
    if window is None:
        raise ValueError(
            f"{where}: some layers have the type sliding_attention, but there is no "
            "sliding_window; set it (and use_sliding_window for Qwen)"
        )
    return {"window": window, "local_layers": local}


def read_pattern(values: Mapping[str, Any], where: str) -> int:
    """The period of Gemma 3's layer pattern: its last layer is global, the others local."""
    every, private = values["sliding_window_pattern"], values["_sliding_window_pattern"]
    if private not in (None, every):
        raise ValueError(
            f"{where}: _sliding_window_pattern is {private}, which transformers ignores without "
            "layer_types; write it as sliding_window_pattern"
        )
    return every


MARKS = ("post_norms", "qk_norm", "qkv_bias", "norm_plus_one", "embedding_scale")
FAMILY_MARKS = {  # values of MARKS
    "llama": (False, False, False, False, False),
    "qwen2": (False, False, True, False, False),
    "qwen3": (False, True, False, False, False),
    "gemma2": (True, False, False, True, True),
    "gemma3_text": (True, True, False, True, True),
}


def family_of(config: ModelConfig) -> str:
    """The Hugging Face `model_type` of a config.

    Raises:
      ValueError: no family has this combination of fields.
    """
    marks = [getattr(config, name) for name in MARKS]

    def deviations(family: str) -> list[str]:
        return [
            f"model.{name} is {found!r}, not {expected!r}"
            for name, found, expected in zip(MARKS, marks, FAMILY_MARKS[family], strict=True)
            if found != expected
        ]

    nearest = min(FAMILY_MARKS, key=lambda family: len(deviations(family)))
    if found := deviations(nearest):
        raise ValueError(
            f"{'; '.join(found)} as in {nearest}, the nearest: no Hugging Face architecture has "
            "this combination, so it cannot be exported; train without it"
        )
    return nearest


def to_hf(config: ModelConfig) -> dict[str, Any]:
    """The content of `config.json`; inverse of `from_hf`."""
    family = family_of(config)
    gemma = family.startswith("gemma")
    act = WRITTEN[config.activation]
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
        "hidden_act": "gelu_pytorch_tanh" if gemma else act,  # Gemma reads hidden_activation
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "attention_bias": False,
        "max_position_embeddings": config.max_length or 8192,
        **write_rope(family, config),
    }
    if gemma:
        scalar = config.head_dim if config.query_scale is None else config.query_scale**-2
        data |= {
            "hidden_activation": act,
            "query_pre_attn_scalar": round(scalar),  # transformers takes integers only
            "attn_logit_softcapping": config.attention_cap,
            "final_logit_softcapping": config.logit_cap,
        }
    if gemma or (family != "llama" and any(config.is_local)):  # transformers' Llama has none
        kinds = {True: "sliding_attention", False: "full_attention"}
        data |= {
            "sliding_window": config.window or config.max_length or 8192,
            "use_sliding_window": any(config.is_local),
            "layer_types": [kinds[local] for local in config.is_local],
        }
        if family.startswith("qwen"):
            data["max_window_layers"] = config.is_local.index(True)
    return data
