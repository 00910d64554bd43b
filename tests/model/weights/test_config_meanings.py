"""Each key with two dozen odd values: refused in one line, or meant as transformers means it."""

import itertools
import json

import numpy as np
import pytest

from score_jax.model.layers import layer_frequencies, layer_magnitudes
from score_jax.model.weights.config_keys import READ, REFUSED
from score_jax.model.weights.families import from_hf
from tests.model.weights.odd_configs import FAMILIES, base_config

FULL, LOCAL = ["full_attention"] * 3, ["sliding_attention"] * 3
NAN, INFINITE = float("nan"), float("inf")
VALUES = (
    *(None, "x", "", [], {}, -1, 0, 1, 2, 3, 5, 0.5, 1.5, True, False, NAN, INFINITE, 10**40),
    *([[1]], [None], {"a": 1}, FULL, LOCAL, [*FULL[:2], "x"], "linear", "yarn", "llama3"),
)
FIELDS = (
    *("rope_type", "type", "factor", "rope_theta", "partial_rotary_factor", "low_freq_factor"),
    *("high_freq_factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
    *("attention_factor", "mscale", "mscale_all_dim", "truncate", "finetuned"),
    *("full_attention", "sliding_attention"),
)
LENGTH = {"original_max_position_embeddings": 16}
SCALINGS = (
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | LENGTH,
    {"rope_type": "yarn", "factor": 4.0} | LENGTH,
)
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "swish": "silu"}


def odd_configs(family):
    """One key at a time, and one field of each kind of scaling at a time."""
    base = base_config(family)
    for name, value in itertools.product([*READ[family], *REFUSED], VALUES):
        yield base | {name: value}
    for scaling, name, value in itertools.product(SCALINGS, FIELDS, VALUES):
        rope = scaling | {name: value}
        yield base | {"rope_scaling": rope}
        yield base | {"rope_parameters": rope}
        yield base | {"rope_parameters": {"full_attention": rope, "sliding_attention": rope}}


def accepted(family):
    """The configs that are not refused, and what they mean here."""
    for raw in odd_configs(family):
        try:
            found = from_hf(raw)
        except ValueError as error:
            assert str(error).startswith("config.json") and "\n" not in str(error)
        else:
            yield raw, found


@pytest.mark.parametrize("family", FAMILIES)
def test_odd_values_are_refused_in_one_line_or_taken(family):
    assert sum(1 for _ in accepted(family)) > 300


def meaning_here(config):
    """What the logits depend on, by the names of the function below."""
    magnitudes = layer_magnitudes(config)
    return {
        "sizes": (config.layers, config.width, config.heads, config.kv_heads, config.head_dim),
        "epsilon": config.norm_eps,
        "tied": config.tied_embeddings,
        "longest": config.max_length,
        "windows": tuple(config.window if local else None for local in config.is_local),
        "activation": config.activation,
        "scale": round(config.query_scale or config.head_dim**-0.5, 6),
        "caps": (config.attention_cap, config.logit_cap),
        "frequencies": np.asarray(layer_frequencies(config)),
        "magnitudes": np.ones(config.layers) if magnitudes is None else np.asarray(magnitudes),
    }


def meaning_there(family, raw, rotary):
    """The same of transformers' own config class and rotary module."""
    transformers = pytest.importorskip("transformers")
    fields = json.loads(json.dumps(raw))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    turning = rotary(config)
    kinds = FULL[:1] * config.num_hidden_layers if family == "llama" else config.layer_types
    local = [kind == "sliding_attention" for kind in kinds]
    prefixes = [f"{kind}_" if family == "gemma3_text" else "" for kind in kinds]
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    gemma = family.startswith("gemma")
    act = config.hidden_activation if gemma else config.hidden_act
    scalar = config.query_pre_attn_scalar if gemma else head_dim
    return {
        "sizes": (
            *(config.num_hidden_layers, config.hidden_size, config.num_attention_heads),
            *(config.num_key_value_heads, head_dim),
        ),
        "epsilon": config.rms_norm_eps,
        "tied": config.tie_word_embeddings,
        "longest": config.max_position_embeddings,
        "windows": tuple(config.sliding_window if is_local else None for is_local in local),
        "activation": ACTIVATIONS.get(act, act),
        "scale": round(scalar**-0.5, 6),
        "caps": (
            config.attn_logit_softcapping if family == "gemma2" else None,
            config.final_logit_softcapping if gemma else None,
        ),
        "frequencies": np.stack([getattr(turning, f"{p}inv_freq").numpy() for p in prefixes]),
        "magnitudes": np.array([getattr(turning, f"{p}attention_scaling") for p in prefixes]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_taken_means_the_same_to_transformers(family):
    """But for what transformers cannot open at all: nulls and integers that it is strict about."""
    transformers = pytest.importorskip("transformers")
    errors = pytest.importorskip("huggingface_hub.errors")
    module = family.removesuffix("_text")
    modeling = getattr(transformers.models, module)
    rotary = getattr(modeling, f"modeling_{module}").__dict__[f"{module.title()}RotaryEmbedding"]
    same = 0
    for raw, config in accepted(family):
        try:
            theirs = meaning_there(family, raw, rotary)
        except (errors.StrictDataclassError, TypeError, KeyError, AttributeError):
            continue
        mine = meaning_here(config)
        for name, value in theirs.items():
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(mine[name], value, rtol=1e-4, atol=1e-9, err_msg=raw)
            else:
                assert mine[name] == value, (name, raw)
        same += 1
    assert same > 250
