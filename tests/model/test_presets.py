"""Presets have the parameter counts that their publishers state."""

import pytest

from score_jax.model.decoder import parameter_count
from score_jax.model.presets import PRESETS, preset
from score_jax.weights.families import from_hf, to_hf

COUNTS = {  # of the published safetensors; Gemma 3 4B: its text half
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
    "smollm2_1p7b": 1_711_376_384,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "llama31_8b": 8_030_261_248,
    "qwen25_0p5b": 494_032_768,
    "qwen25_1p5b": 1_543_714_304,
    "qwen25_3b": 3_085_938_688,
    "qwen25_7b": 7_615_616_512,
    "qwen3_0p6b": 596_049_920,
    "qwen3_1p7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_4b": 3_880_263_168,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    assert parameter_count(preset(name)) == COUNTS[name]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_config_json(name):
    assert from_hf(to_hf(PRESETS[name])) == PRESETS[name]


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="model preset is 'gpt5'; choose one of smollm2_135m"):
        preset("gpt5")
