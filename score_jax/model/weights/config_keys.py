"""How each key of a config.json is handled: read, refused unless neutral, or harmless.

A key in none of the tables is refused too, as its effect is unknown. Tests in
tests/model/weights/test_config_keys.py compare the tables with transformers' config
classes and with docs/models.md.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Verdict = Literal["read", "refused", "harmless", "unknown"]
LAYER_TYPES = ("full_attention", "sliding_attention")
MOST = 1 << 31  # upper bound of any size of a model


class Key(NamedTuple):
    """A key that is read."""

    kind: str  # of KINDS
    default: Any = None  # transformers' default; NEEDED: the key is required
    null: bool = False  # whether null is an allowed value


class Refusal(NamedTuple):
    """A key for a feature that the decoder lacks; only neutral values are accepted."""

    neutral: tuple[Any, ...]  # values without effect; a list of them is neutral too
    reason: str  # the second half of the message


NEEDED: Any = ...


def is_count(value: Any) -> bool:
    """Whether a value is a positive integer below MOST."""
    return type(value) is int and 0 < value < MOST


def is_positive(value: Any) -> bool:
    """Whether a value is a number above 0 and below MOST."""
    return type(value) in (int, float) and 0 < value < MOST


def is_base(value: Any) -> bool:
    """Whether a value is a number above 1 that float32 can represent."""
    return type(value) in (int, float) and 1 < value < 1e30


def are_layer_types(value: Any) -> bool:
    """Whether a value is a list of the two layer types that the decoder has."""
    return isinstance(value, list) and all(part in LAYER_TYPES for part in value)


KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "count": (is_count, "set a positive integer"),
    "index": (lambda value: type(value) is int and value >= 0, "set an integer of at least 0"),
    "positive": (is_positive, "set a finite number above 0"),
    "base": (is_base, "set a finite number above 1"),
    "flag": (lambda value: isinstance(value, bool), "set true or false"),
    "text": (lambda value: isinstance(value, str), "set a name"),
    "layers": (are_layer_types, f"set a list of {' and '.join(LAYER_TYPES)}, one per layer"),
    "object": (lambda value: isinstance(value, Mapping), "set an object"),
}
PLAIN: dict[str, Key] = {
    "model_type": Key("text", NEEDED),
    "vocab_size": Key("count", NEEDED),
    "num_hidden_layers": Key("count", NEEDED),
    "hidden_size": Key("count", NEEDED),
    "num_attention_heads": Key("count", NEEDED),
    "intermediate_size": Key("count", NEEDED),
    "num_key_value_heads": Key("count", None, null=True),
    "head_dim": Key("count", None, null=True),
    "hidden_act": Key("text", "silu"),
    "max_position_embeddings": Key("count", 2048),
    "rms_norm_eps": Key("positive", 1e-6),
    "tie_word_embeddings": Key("flag", False),
    "rope_theta": Key("base"),
    "rope_scaling": Key("object", None, null=True),
    "rope_parameters": Key("object", None, null=True),
    "original_max_position_embeddings": Key("count"),
}
QWEN = PLAIN | {
    "num_key_value_heads": Key("count", 32, null=True),
    "max_position_embeddings": Key("count", 32_768),
    "use_sliding_window": Key("flag", False),
    "sliding_window": Key("count", 4096, null=True),
    "max_window_layers": Key("index", 28),
    "layer_types": Key("layers", None, null=True),
}
GEMMA = {name: key for name, key in PLAIN.items() if name != "hidden_act"} | {
    "num_key_value_heads": Key("count", 4),
    "head_dim": Key("count", 256),
    "hidden_activation": Key("text", "gelu_pytorch_tanh"),
    "tie_word_embeddings": Key("flag", True),
    "query_pre_attn_scalar": Key("positive", 256),
    "final_logit_softcapping": Key("positive", None, null=True),
    "sliding_window": Key("count", 4096, null=True),
    "layer_types": Key("layers", None, null=True),
}
GEMMA3 = {k: v for k, v in GEMMA.items() if k != "original_max_position_embeddings"} | {
    "vocab_size": Key("count", 262_208),
    "num_attention_heads": Key("count", 8),
    "max_position_embeddings": Key("count", 131_072),
    "rope_local_base_freq": Key("base"),
    "sliding_window_pattern": Key("count", 6),
    "_sliding_window_pattern": Key("count"),
}
READ: dict[str, dict[str, Key]] = {
    "llama": PLAIN,
    "qwen2": QWEN,
    "qwen3": QWEN | {"head_dim": Key("count", 128)},
    "gemma2": GEMMA
    | {
        "max_position_embeddings": Key("count", 8192),
        "attn_logit_softcapping": Key("positive", 50.0, null=True),
        "final_logit_softcapping": Key("positive", 30.0, null=True),
    },
    "gemma3_text": GEMMA3,
    "gemma3": {
        "model_type": Key("text", NEEDED),
        "text_config": Key("object", NEEDED),
        "tie_word_embeddings": Key("flag"),
    },
}
NOT_HERE = "the decoder has no such part, set null or false"
REFUSED: dict[str, Refusal] = {
    "quantization_config": Refusal((None,), "use the unquantised weights, or a GGUF file"),
    "attention_bias": Refusal((None, False), "only Qwen 2.5 has attention biases, set false"),
    "mlp_bias": Refusal((None, False), "only false is supported"),
    "use_bidirectional_attention": Refusal((None, False), "only false is supported"),
    "attn_logit_softcapping": Refusal((None,), "only Gemma 2 caps its attention, set null"),
    "final_logit_softcapping": Refusal((None,), "transformers ignores it here, set null"),
    "partial_rotary_factor": Refusal((None, 1), "partial rotation is not supported, set 1"),
    "rope_interleaved": Refusal((None, False), "only false is supported"),
    "use_mrope": Refusal((None, False), "only false is supported"),
    "rope_local_base_freq": Refusal((None,), "only Gemma 3 has a local base"),
    "original_max_position_embeddings": Refusal(
        (None,), "transformers ignores it here, write it into rope_parameters"
    ),
    "layer_types": Refusal((None, "full_attention"), "transformers ignores it in this family"),
    "sliding_window": Refusal((None,), "transformers ignores it in this family, set null"),
    "use_sliding_window": Refusal((None, False), "transformers ignores it in this family"),
    "sliding_window_size": Refusal((None, 4096), "write it as sliding_window"),
    "hidden_act": Refusal(  # Gemma's files have it in addition to hidden_activation
        (None, "gelu", "gelu_pytorch_tanh"), "Gemma's activation is hidden_activation"
    ),
    "per_layer_config": Refusal((None, {}), "layers differ by layer_types only"),
    "pruned_heads": Refusal((None, {}), "pruned heads are not supported"),
    "is_encoder_decoder": Refusal((None, False), NOT_HERE),
    "add_cross_attention": Refusal((None, False), NOT_HERE),
    "tie_encoder_decoder": Refusal((None, False), NOT_HERE),
}
NOTES = """
    architectures auto_map dtype torch_dtype transformers_version name_or_path
    attn_implementation experts_implementation output_attentions output_hidden_states return_dict
    return_dict_in_generate output_scores chunk_size_feed_forward id2label label2id num_labels
    problem_type finetuning_task task_specific_params tokenizer_class prefix torchscript
    use_bfloat16 tf_legacy_loss cross_attention_hidden_size is_decoder tie_last_hidden_states
    decoder_start_token_id bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id
    use_cache cache_implementation initializer_range attention_dropout pretraining_tp
    is_llama_config transformers.js_config unsloth_fixed unsloth_version max_sequence_length
"""
SAMPLING = """
    assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
    diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
    encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
    no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
    num_beams num_return_sequences remove_invalid_values repetition_penalty suppress_tokens
    target_lookbehind temperature top_k top_p typical_p
"""
IMAGES = """
    vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
    boi_token_id eoi_token_id image_token_id
"""
HARMLESS = frozenset(f"{NOTES} {SAMPLING} {IMAGES}".split())
ONLY_HERE_HARMLESS = {  # keys that transformers ignores in these families
    "qwen2": {"attention_bias"},
    "llama": {"max_window_layers"},
    "gemma2": {"use_sliding_window"},
    "gemma3_text": {"use_sliding_window"},
}


def verdict(family: str, name: str) -> Verdict:
    """How a key is handled in the config.json of a family."""
    if name in READ[family]:
        return "read"
    if name in HARMLESS or name in ONLY_HERE_HARMLESS.get(family, ()):
        return "harmless"
    if name in REFUSED:
        return "refused"
    return "harmless" if name.startswith("_") else "unknown"  # _name: private to libraries


def read_keys(family: str, data: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of the keys that are read, with transformers' defaults for absent ones.

    Args:
      where: the file, for messages.

    Raises:
      ValueError: a key is missing, has a wrong type, or needs an unsupported feature.
    """
    table = READ[family]
    for name, value in data.items():
        found = verdict(family, name)
        if found == "read":
            check_value(name, value, table[name], where)
        elif found == "refused":
            check_neutral(name, value, where)
        elif found == "unknown" and value is not None:
            raise ValueError(
                f"{where}: {name} is {short(value)}, which is not read here; delete the key if "
                "the model computes the same without it"
            )
    missing = [n for n, key in table.items() if key.default is NEEDED and data.get(n) is None]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}; use the model's own file")
    return {name: data.get(name, key.default) for name, key in table.items()}


def check_value(name: str, value: Any, key: Key, where: str) -> None:
    """Raises ValueError where a key that is read has a value of the wrong kind."""
    if value is None and (key.null or key.default is NEEDED):  # NEEDED: reported as missing
        return
    fits, wanted = KINDS[key.kind]
    if not fits(value):
        raise ValueError(f"{where}: {name} is {short(value)}; {wanted}")


def check_neutral(name: str, value: Any, where: str) -> None:
    """Raises ValueError where a refused key has a value that is not neutral."""
    refusal = REFUSED[name]
    parts = value if isinstance(value, list) else [value]
    if not all(part in refusal.neutral for part in parts):
        raise ValueError(f"{where}: {name} is {short(value)}; {refusal.reason}")


def short(value: Any, most: int = 60) -> str:
    """The repr of a value for a message, cut at `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
