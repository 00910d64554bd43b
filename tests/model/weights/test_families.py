"""config.json of each family, in both of its spellings, in and out."""

import json

import pytest

from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.weights.families import family_of, from_hf, to_hf
from tests.reference_models import FAMILIES, PINNED

LLAMA32 = {  # as Llama 3.2 1B is published
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
GEMMA3_4B = {  # as Gemma 3 4B is published: an image model that leaves defaults out
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152},
}


def test_llama_with_its_long_context_scaling():
    config = from_hf(LLAMA32)
    assert config.rope_base == 500_000
    assert config.rope_scaling == RopeScaling(kind="llama3", factor=32.0)
    assert (config.window, config.qk_norm, config.tied_embeddings) == (None, False, True)


def test_the_text_half_of_an_image_model():
    config = from_hf(GEMMA3_4B)
    assert (config.vocab_size, config.heads, config.kv_heads, config.head_dim) == (
        262208,
        8,
        4,
        256,
    )
    assert config.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert (config.rope_base, config.rope_local_base) == (1e6, 1e4)
    assert [i for i, local in enumerate(config.is_local) if not local] == [5, 11, 17, 23, 29]


def test_both_spellings_of_rope_agree():
    rope = LLAMA32["rope_scaling"] | {"rope_theta": LLAMA32["rope_theta"]}
    newer = {k: v for k, v in LLAMA32.items() if k not in ("rope_scaling", "rope_theta")}
    assert from_hf(newer | {"rope_parameters": rope}) == from_hf(LLAMA32)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_config_survives_export_and_import(family):
    config = from_hf(json.loads(PINNED.read_text())[family]["config"])
    written = to_hf(config)
    assert from_hf(written) == config
    assert from_hf(json.loads(json.dumps(written))) == config


def test_a_query_scale_survives_export():
    data = {"model_type": "gemma2", "hidden_size": 4608, "intermediate_size": 36864}
    data |= {"num_attention_heads": 32, "num_key_value_heads": 16, "head_dim": 128}
    data |= {"num_hidden_layers": 46, "vocab_size": 256000, "query_pre_attn_scalar": 144}
    config = from_hf(data)
    assert config.query_scale == pytest.approx(1 / 12)
    assert from_hf(to_hf(config)).query_scale == pytest.approx(config.query_scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "model_type is 'mamba'; supported are llama, qwen2, qwen3"),
        ({"model_type": None}, "model_type is 'None'"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope_type is 'longrope'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True; only Qwen 2.5"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"num_hidden_layers": None}, "config.json lacks num_hidden_layers"),
    ],
)
def test_what_is_not_supported_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        from_hf(LLAMA32 | change)


def test_a_mixture_of_families_cannot_be_exported():
    sizes = {"vocab_size": 8, "layers": 1, "width": 8, "heads": 2, "kv_heads": 1}
    sizes |= {"head_dim": 4, "mlp_dim": 8}
    assert family_of(ModelConfig(**sizes)) == "llama"
    with pytest.raises(ValueError, match="no Hugging Face architecture has this combination"):
        to_hf(ModelConfig(**sizes, post_norms=True))
