"""A config.json that asks for what the decoder does not do is refused by key and file."""

import pytest

from score_jax.model.config import RopeScaling
from score_jax.model.weights.families import from_hf, to_hf
from tests.model.weights.odd_configs import GEMMA, LOCAL, base_config

LINEAR = {"rope_type": "linear", "factor": 2.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
NAN = float("nan")


def scaling(**rope):
    return {"rope_scaling": rope}


WRONG = {
    # rotary settings
    "longrope": ("llama", scaling(rope_type="longrope", factor=2.0), "rope_type is 'longrope'"),
    "dynamic": ("qwen2", scaling(type="dynamic", factor=2.0), "rope_type is 'dynamic'"),
    "su": ("llama", scaling(type="su"), "rope_type is 'su'; supported: default, linear"),
    "type of another type": ("llama", scaling(rope_type=["yarn"]), r"rope_type is \['yarn'\]"),
    "linear without factor": ("llama", scaling(type="linear"), "'linear' lacks factor; add it"),
    "linear, factor null": ("llama", scaling(type="linear", factor=None), "lacks factor"),
    "linear, factor as text": ("llama", scaling(type="linear", factor="2"), "factor is '2'; set"),
    "linear, factor 0": ("llama", scaling(type="linear", factor=0), "factor is 0; set a finite"),
    "linear, factor nan": ("llama", scaling(type="linear", factor=NAN), "factor is nan"),
    "factor without type": ("llama", scaling(factor=2.0), "factor is 2.0, which rope_type 'def"),
    "llama3 lacks": ("llama", scaling(rope_type="llama3", factor=8.0), "lacks low_freq_factor, hi"),
    "llama3 crossed": (
        "llama",
        scaling(rope_type="llama3", factor=8.0, low_freq_factor=4.0, high_freq_factor=1.0),
        "low_frequency_factor is 4.0; set less than high_frequency_factor 1.0",
    ),
    "two types": ("llama", scaling(**YARN, type="linear"), "rope_type is 'yarn', but type is 'li"),
    "two bases": (
        "llama", {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 7.0, b"
    ),
    "two spellings": (
        "llama", {"rope_scaling": LINEAR, "rope_parameters": YARN}, "rope_parameters differ; keep"
    ),
    "part of a head": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    "part of a head, inside": ("qwen3", scaling(**LINEAR, partial_rotary_factor=0.5), "is 0.5; p"),
    "a field of another kind": ("llama", scaling(**LINEAR, mscale=1.0), "mscale is 1.0, which rop"),
    "mrope": ("qwen2", scaling(rope_type="default", mrope_section=[1, 1]), "mrope_section is"),
    "one mscale": ("llama", scaling(**YARN, mscale=1.0), "has one of mscale and mscale_all_dim"),
    "yarn of vLLM": ("llama", scaling(**YARN, attn_factor=1.0), "attn_factor is 1.0, which rope_t"),
    "yarn without factor": ("llama", scaling(rope_type="yarn"), "'yarn' lacks factor"),
    "betas crossed": ("llama", scaling(**YARN, beta_fast=1.0, beta_slow=2.0), "beta_slow is 2.0;"),
    "kinds in a Llama": ("llama", {"rope_parameters": {"full_attention": LINEAR}}, "full_att"),
    "base null": ("llama", {"rope_theta": None}, "rope_theta is None; set a finite number above 1"),
    "base 1": ("llama", {"rope_theta": 1.0}, "rope_theta is 1.0; set"),
    "base inside": ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, "rope_theta is '1e4'"),
    "scaling as text": ("llama", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; set an object"),
    "flat in Gemma 3": ("gemma3_text", {"rope_parameters": LINEAR}, "rope_parameters.rope_type is"),
    "old name in Gemma 3": (
        "gemma3_text", scaling(type="linear", factor=2.0), "rope_scaling has no rope_type"
    ),
    "local base twice": (
        "gemma3_text",
        {"rope_local_base_freq": 5.0}
        | {"rope_parameters": {"sliding_attention": {"rope_theta": 7.0}}},
        "rope_theta is 7.0, but rope_local_base_freq is 5.0",
    ),
    "truncate in Gemma 3": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
        "truncate is False; transformers ignores it",
    ),
    # layers and windows
    "local layers in a Llama": ("llama", {"layer_types": LOCAL}, "layer_types is .*ignores it"),
    "a window in a Llama": ("llama", {"sliding_window": 5}, "sliding_window is 5; transformers"),
    "unknown kind of layer": (
        "gemma2", {"layer_types": ["linear_attention"] * 3}, "layer_types is .*; set a list of"
    ),
    "too few kinds": ("gemma2", {"layer_types": LOCAL[:2]}, "has 2 entries; give one per layer, 3"),
    "local without window": ("gemma3_text", {"sliding_window": None}, "no sliding_window; set it"),
    "window not used": ("qwen3", {"layer_types": LOCAL}, "there is no sliding_window; set it"),
    "window 0": ("gemma2", {"sliding_window": 0}, "sliding_window is 0; set a positive"),
    "private pattern": ("gemma3_text", {"_sliding_window_pattern": 3}, "pattern is 3, which tran"),
    "pattern 0": ("gemma3_text", {"sliding_window_pattern": 0}, "sliding_window_pattern is 0"),
    "both ways": ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_att"),
    # caps, biases, activations
    "cap in Gemma 3": ("gemma3_text", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is"),
    "cap in a Qwen": ("qwen2", {"final_logit_softcapping": 5.0}, "final_logit_softcapping is 5.0"),
    "cap 0": ("gemma2", {"attn_logit_softcapping": 0.0}, "attn_logit_softcapping is 0.0; set"),
    "biases": ("qwen3", {"attention_bias": True}, "attention_bias is True"),
    "unknown activation": ("gemma2", {"hidden_activation": "relu"}, "hidden_activation is 'relu'"),
    "activation null": ("gemma3_text", {"hidden_activation": None}, "hidden_activation is None"),
    "other spelling": ("gemma2", {"hidden_act": "silu"}, "hidden_act is 'silu'; Gemma's"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "quantization_config is {'bits'"),
    # types
    "text for a number": ("llama", {"hidden_size": "32"}, "hidden_size is '32'; set a positive"),
    "list for a number": ("llama", {"num_hidden_layers": [3]}, r"num_hidden_layers is \[3\]; set"),
    "float for a count": ("llama", {"vocab_size": 61.0}, "vocab_size is 61.0; set a positive int"),
    "true for a count": ("llama", {"num_attention_heads": True}, "num_attention_heads is True"),
    "negative": ("llama", {"intermediate_size": -1}, "intermediate_size is -1"),
    "enormous": ("llama", {"vocab_size": 10**30}, "vocab_size is 10+; set a positive int"),
    "enormous base": ("llama", {"rope_theta": 10**40}, "rope_theta is 10+; set a finite"),
    "enormous factor": ("llama", scaling(type="linear", factor=1e38), "factor is 1e.38; set"),
    "type nan": ("llama", scaling(rope_type=NAN), "rope_type is nan; supported"),
    "text for a flag": ("llama", {"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false"),
    "null flag": ("qwen3", {"tie_word_embeddings": None}, "tie_word_embeddings is None; set true"),
    "null width": ("qwen3", {"head_dim": None}, "head_dim is None; set a positive"),
    "infinite": ("llama", {"rms_norm_eps": float("inf")}, "rms_norm_eps is inf; set a finite"),
    "heads that do not divide": ("llama", {"num_key_value_heads": 3}, "heads is 4; set a multiple"),
    "odd heads": ("llama", {"head_dim": 7}, "head_dim is 7; RoPE needs an even number"),
    "width that does not divide": (
        "llama", {"hidden_size": 33, "head_dim": None}, "hidden_size is 33, not a multiple of"
    ),
    "absent heads that do not divide": (
        "qwen2", {"num_key_value_heads": ...}, "set a multiple of model.kv_heads 32"
    ),
    "no family": ("mistral", {}, "model_type is 'mistral'; supported are llama"),
    "a list of families": (["llama"], {}, r"model_type is .*llama.*; supported"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_not_supported_is_refused_by_key_and_file(case):
    family, changes, message = WRONG[case]
    raw = base_config("llama" if isinstance(family, list) else family) | {"model_type": family}
    raw = {name: value for name, value in (raw | changes).items() if value is not ...}
    with pytest.raises(ValueError, match=message) as caught:
        from_hf(raw, "/a/config.json")
    told = str(caught.value)
    assert told.startswith("/a/config.json") and "\n" not in told and len(told) < 300


RIGHT = {  # neighbours of the above
    "whole heads": ("llama", {"partial_rotary_factor": 1.0}),
    "no quantisation": ("llama", {"quantization_config": None}),
    "full layers": ("llama", {"layer_types": ["full_attention"] * 3, "sliding_window": None}),
    "one type twice": ("llama", scaling(rope_type="default", type="default")),
    "empty scaling": ("gemma3_text", {"rope_scaling": {}, "rope_parameters": {}}),
    "no cap": ("gemma3_text", {"attn_logit_softcapping": None}),
    "window not used": ("qwen2", {"sliding_window": 5, "max_window_layers": 0}),
    "all layers full": ("qwen3", {"layer_types": ["full_attention"] * 3}),
    "no biases": ("qwen3", {"attention_bias": False}),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_changes_nothing_is_let_through(case):
    family, changes = RIGHT[case]
    assert from_hf(base_config(family) | changes) == from_hf(base_config(family))


def test_no_layer_need_be_local():
    raw = base_config("gemma2") | {"sliding_window": None, "layer_types": ["full_attention"] * 3}
    assert not any(from_hf(raw).is_local)


TEXT = base_config("gemma3_text")
TIES = [  # top level, text_config, tied
    ({}, {}, True),
    ({"tie_word_embeddings": False}, {}, False),
    ({}, {"tie_word_embeddings": False}, False),
    ({"tie_word_embeddings": True}, {}, True),
    ({}, {"tie_word_embeddings": True}, True),
    ({"tie_word_embeddings": False}, {"tie_word_embeddings": False}, False),
    ({"tie_word_embeddings": True}, {"tie_word_embeddings": False}, True),  # the weights decide
    ({"tie_word_embeddings": False}, {"tie_word_embeddings": True}, True),
]


@pytest.mark.parametrize(("top", "inner", "tied"), TIES)
def test_the_tie_flag_of_an_image_folder_may_stand_at_either_level(top, inner, tied):
    raw = {"model_type": "gemma3", "text_config": TEXT | inner, "vision_config": {}} | top
    assert from_hf(raw).tied_embeddings is tied


IMAGES = {
    "no text half": ({"text_config": None}, "lacks text_config"),
    "a list": ({"text_config": [1]}, r"text_config is \[1\]; set an object"),
    "another text half": (
        {"text_config": {"model_type": "llama"}},
        "text_config.model_type is 'll",
    ),
    "a key inside": (
        {"text_config": TEXT | {"head_dim": "8"}},
        r"\(text_config\): head_dim is '8'",
    ),
    "a cap inside": (
        {"text_config": TEXT | {"final_logit_softcapping": 2.0}},
        "softcapping is 2.0",
    ),
    "quantised": ({"quantization_config": {"bits": 8}}, "quantization_config is"),
    "a key at the top": ({"num_experts": 8}, "num_experts is 8, which is not read"),
    "a flag as text": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'; set true"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_an_image_folder_is_held_to_the_same(case):
    changes, message = IMAGES[case]
    raw = {"model_type": "gemma3", "text_config": TEXT, "vision_config": {}}
    with pytest.raises(ValueError, match=message):
        from_hf(raw | changes)


NEAR_AND_FAR = {
    "full_attention": YARN | {"rope_theta": 500.0},
    "sliding_attention": LINEAR | {"rope_theta": 50.0},
}
KEPT = {
    "yarn": ("llama", scaling(**YARN)),
    "yarn, all fields": (
        "qwen3",
        scaling(**YARN, beta_fast=8.0, beta_slow=0.5, truncate=False, attention_factor=0.8),
    ),
    "yarn, mscales": ("qwen2", scaling(**YARN, mscale=1.0, mscale_all_dim=0.5)),
    "kinds": ("gemma3_text", {"layer_types": LOCAL, "rope_parameters": NEAR_AND_FAR}),
    "no caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "one cap": ("gemma2", {"attn_logit_softcapping": None}),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_was_read_is_written_again(case):
    family, changes = KEPT[case]
    config = from_hf(base_config(family) | changes)
    assert from_hf(to_hf(config)) == config


def test_each_kind_of_layer_has_its_scaling():
    raw = base_config("gemma3_text") | {"layer_types": LOCAL, "rope_parameters": NEAR_AND_FAR}
    config = from_hf(raw)
    assert (config.rope_base, config.rope_local_base) == (500.0, 50.0)
    assert config.rope_scaling == RopeScaling(kind="yarn", factor=4.0, original_length=16)
    assert config.rope_local_scaling == RopeScaling(kind="linear", factor=2.0)


def test_nulls_are_not_absent():
    capped, bare = (
        from_hf(base_config("gemma2")),
        from_hf(base_config("gemma2") | KEPT["no caps"][1]),
    )
    assert (capped.attention_cap, capped.logit_cap) == (50.0, 30.0)
    assert (bare.attention_cap, bare.logit_cap) == (None, None)
    heads = {"num_key_value_heads": None, "head_dim": None}
    assert from_hf(base_config("llama") | heads).kv_heads == 4
    assert GEMMA["sliding_window"] == from_hf(base_config("gemma2")).window
