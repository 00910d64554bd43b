"""Presets have the parameter counts that their publishers state."""

import pytest

from score_jax.model.decoder import parameter_count
from score_jax.model.published import SHAPES
from score_jax.model.weights.families import from_hf, to_hf

VISION = 416_866_032  # SigLIP, which the text half leaves out with its projection and norm
# What the hub states for each model's safetensors ("total"), as quoted in public code: of the
# Gemmas in keras-hub's gemma_presets.py and gemma3_presets.py ("params"), of the others by
# llama.cpp ("n_params") and by checks of downloaded weights.
COUNTS = {
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "llama31_8b": 8_030_261_248,
    "qwen25_0p5b": 494_032_768,
    "qwen25_coder_0p5b": 494_032_768,
    "qwen25_1p5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen25_32b": 32_763_876_352,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 4_300_079_472 - VISION - 2560 * 1152 - 1152,
    "gemma3_12b": 12_187_325_040 - VISION - 3840 * 1152 - 1152,
    "gemma3_27b": 27_432_406_640 - VISION - 5376 * 1152 - 1152,
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_counts_are_the_published_ones(name):
    assert parameter_count(SHAPES[name]) == COUNTS[name]


# What a count does not tell, as litgpt 0.5.13 states it of each config.json (litgpt/config.py):
# heads, key/value heads, rotary base, tokens, epsilon. Epsilon of the Gemmas: transformers'
# defaults; tokens of Qwen 2.5: those of the -Instruct models.
STATED = {
    "smollm2_135m": (9, 3, 1e5, 8192, 1e-5),
    "smollm2_360m": (15, 5, 1e5, 8192, 1e-5),
    "smollm2_1p7b": (32, 32, 1.3e5, 8192, 1e-5),
    "llama32_1b": (32, 8, 5e5, 131_072, 1e-5),
    "llama32_3b": (24, 8, 5e5, 131_072, 1e-5),
    "llama31_8b": (32, 8, 5e5, 131_072, 1e-5),
    "qwen25_0p5b": (14, 2, 1e6, 32_768, 1e-6),
    "qwen25_coder_0p5b": (14, 2, 1e6, 32_768, 1e-6),
    "qwen25_1p5b": (12, 2, 1e6, 32_768, 1e-6),
    "qwen25_3b": (16, 2, 1e6, 32_768, 1e-6),
    "qwen25_7b": (28, 4, 1e6, 32_768, 1e-6),
    "qwen25_32b": (40, 8, 1e6, 32_768, 1e-6),
    "qwen3_0p6b": (16, 8, 1e6, 40_960, 1e-6),
    "qwen3_1p7b": (16, 8, 1e6, 40_960, 1e-6),
    "qwen3_4b": (32, 8, 1e6, 40_960, 1e-6),
    "qwen3_8b": (32, 8, 1e6, 40_960, 1e-6),
    "gemma2_2b": (8, 4, 1e4, 8192, 1e-6),
    "gemma2_9b": (16, 8, 1e4, 8192, 1e-6),
    "gemma2_27b": (32, 16, 1e4, 8192, 1e-6),
    "gemma3_270m": (4, 1, 1e6, 32_768, 1e-6),
    "gemma3_1b": (4, 1, 1e6, 32_768, 1e-6),
    "gemma3_4b": (8, 4, 1e6, 131_072, 1e-6),
    "gemma3_12b": (16, 8, 1e6, 131_072, 1e-6),
    "gemma3_27b": (32, 16, 1e6, 131_072, 1e-6),
}


@pytest.mark.parametrize("name", SHAPES)
def test_what_a_count_does_not_tell_is_as_published(name):
    c = SHAPES[name]
    assert (c.heads, c.kv_heads, c.rope_base, c.max_length, c.norm_eps) == STATED[name]


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_survives_config_json(name):
    assert from_hf(to_hf(SHAPES[name])) == SHAPES[name]
