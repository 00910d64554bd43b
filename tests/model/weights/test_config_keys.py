"""Every key is read, refused or harmless: in code, in docs/models.md and in transformers."""

import dataclasses
import re
from pathlib import Path

import pytest

from score_jax.model.weights.config_keys import NEEDED, READ, REFUSED, verdict
from score_jax.model.weights.families import from_hf
from tests.model.weights.odd_configs import FAMILIES, base_config

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
CLASSES = {
    "llama": "LlamaConfig",
    "qwen2": "Qwen2Config",
    "qwen3": "Qwen3Config",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gemma3": "Gemma3Config",
}
ROTARY = {  # older names that the constructors of the decoders take
    "rope_theta", "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings",
}  # fmt: skip
OLDER = {  # what all constructors take besides their fields
    "torch_dtype", "num_labels", "name_or_path", "attn_implementation", "output_attentions",
    "per_layer_config", "experts_implementation", "_commit_hash", "quantization_config",
}  # fmt: skip


def documented():
    """The verdicts of the table in docs/models.md, by family and key."""
    rows = re.findall(r"^\| (`.*) \|$", DOCS.read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    return {
        (family, name): word
        for keys, *words in cells
        if len(words) == len(FAMILIES)
        for name in re.findall(r"`(.+?)`", keys)
        for family, word in zip(FAMILIES, words, strict=True)
    }


def test_the_documented_table_is_that_of_the_code():
    table = documented()
    assert len(table) > 5 * 90
    words = {"unknown": "refused"}  # what nobody knows is refused as well
    found = {key: words.get(verdict(*key), verdict(*key)) for key in table}
    assert found == table


@pytest.mark.slow
@pytest.mark.parametrize("family", CLASSES)
def test_every_key_that_transformers_knows_has_a_verdict(family):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, CLASSES[family])
    sampling = transformers.GenerationConfig._get_default_generation_params()
    names = {field.name for field in dataclasses.fields(kind)} | set(kind().to_dict()) | OLDER
    names |= set(sampling) | (ROTARY if family in FAMILIES else set())
    assert len(names) > 50
    assert not {name for name in names if verdict(family, name) == "unknown"}
    if family in FAMILIES:
        assert not {name for name in names if (family, name) not in documented()}


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_absent_keys_mean_what_they_mean_to_transformers(family):
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, CLASSES[family])
    theirs = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, key in READ[family].items():
        if name in theirs and key.default is not NEEDED:
            assert key.default == theirs[name], name


CHANGES = {  # another value of each key that is read
    "model_type": "qwen9",
    "vocab_size": 7, "num_hidden_layers": 4, "hidden_size": 16, "num_attention_heads": 8,
    "intermediate_size": 5, "num_key_value_heads": 1, "head_dim": 6, "hidden_act": "tanh",
    "hidden_activation": "gelu", "max_position_embeddings": 99, "rms_norm_eps": 0.5,
    "rope_theta": 77.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_parameters": {"rope_type": "dynamic"}, "_sliding_window_pattern": 2,
    "original_max_position_embeddings": 11, "max_window_layers": 1, "sliding_window": 3,
    "sliding_window_pattern": 2, "query_pre_attn_scalar": 3, "rope_local_base_freq": 5.0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0,
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_read_changes_the_model(family):
    """Or is refused, where the value is one that nobody can use."""
    raw = base_config(family)
    if family.startswith("qwen"):
        raw |= {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
    if family != "gemma3_text":
        raw |= {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}
    before = from_hf(raw)
    for name in READ[family]:
        value = CHANGES.get(name, not raw.get(name, READ[family][name].default))
        try:
            after = from_hf(raw | {name: value})
        except ValueError as error:
            assert f" {name}" in str(error)
        else:
            assert after != before, name


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_refused_is_refused_by_name_unless_it_changes_nothing(family):
    raw = base_config(family)
    plain = from_hf(raw)
    for name, refusal in REFUSED.items():
        if verdict(family, name) != "refused":
            continue
        for value in refusal.neutral:
            assert from_hf(raw | {name: value}) == plain, name
        with pytest.raises(ValueError, match=rf"^config\.json: {name} is 'on'; "):
            from_hf(raw | {name: "on"})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_called_harmless_changes_nothing(family):
    raw = base_config(family)
    plain = from_hf(raw)
    names = {name for (which, name), word in documented().items() if word == "harmless"}
    mine = sorted(name for name in names if verdict(family, name) == "harmless")
    assert len(mine) > 60
    assert from_hf(raw | dict.fromkeys(mine, 7)) == plain


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("residual_multiplier", 0.2),
        ("num_experts", 8),
        ("logits_scaling", 4.0),
        ("clip_qkv", 8.0),
        ("alibi", True),
        ("attention_multiplier", 0.1),
    ],
)
def test_a_key_that_nobody_knows_is_refused_unless_null(name, value):
    raw = base_config("llama")
    with pytest.raises(ValueError, match=f"config.json: {name} is {value}, which is not read"):
        from_hf(raw | {name: value})
    assert from_hf(raw | {name: None}) == from_hf(raw)
