"""Odd config.json files: the logits are those of transformers, or a key is refused by name."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from score_jax.model.decoder import Decoder
from score_jax.model.weights.load import load_params, model_config
from tests.model.weights.odd_configs import GEMMA, LOCAL, SIZES
from tests.reference_models import fill

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
TOLERANCE = 1e-4  # largest difference of a logit, in float32
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def scaled(**rope):
    return {"rope_scaling": rope, "rope_theta": 500.0}


def layered(far, near=None):
    """Gemma 3's rotary settings by kind of layer."""
    near = {"rope_type": "default"} if near is None else near
    return GEMMA | {
        "layer_types": LOCAL,
        "rope_parameters": {
            "full_attention": far | {"rope_theta": 500.0},
            "sliding_attention": near | {"rope_theta": 50.0},
        },
    }


AGREE = {
    "llama plain": ("llama", {}),
    "llama, all but sizes absent": ("llama", {"num_key_value_heads": ..., "head_dim": ...}),
    "llama, nulls": ("llama", {"num_key_value_heads": None, "head_dim": None}),
    "llama, rope_theta": ("llama", {"rope_theta": 100.0}),
    "llama linear": ("llama", scaled(rope_type="linear", factor=3.0)),
    "llama linear, old name": ("llama", scaled(type="linear", factor=3.0)),
    "llama linear, both names": ("llama", scaled(type="linear", rope_type="linear", factor=3)),
    "llama linear, parameters": (
        "llama", {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 90.0}}
    ),
    "llama, theta above parameters": (
        "llama", {"rope_theta": 90.0, "rope_parameters": {"rope_type": "linear", "factor": 3.0}}
    ),
    "llama3": ("llama", scaled(**LLAMA3, original_max_position_embeddings=16)),
    "llama3, length absent": ("llama", scaled(**LLAMA3)),
    "llama3, length at the top": (
        "llama",
        scaled(**LLAMA3, original_max_position_embeddings=64)
        | {"original_max_position_embeddings": 16},
    ),
    "yarn": ("llama", scaled(**YARN)),
    "yarn as Qwen advises": (
        "qwen2", {"rope_scaling": {"type": "yarn", "factor": 4.0,
                                   "original_max_position_embeddings": 32}}
    ),
    "yarn, length absent": ("llama", scaled(rope_type="yarn", factor=4.0)),
    "yarn, length at the top": (
        "llama", scaled(**YARN) | {"original_max_position_embeddings": 64}
    ),
    "yarn, betas": ("llama", scaled(**YARN, beta_fast=8.0, beta_slow=0.5)),
    "yarn, not truncated": ("llama", scaled(**YARN, truncate=False)),
    "yarn, attention factor": ("llama", scaled(**YARN, attention_factor=0.8)),
    "yarn, nulls": ("llama", scaled(**YARN, attention_factor=None, beta_fast=None)),
    "yarn, mscales": ("llama", scaled(**YARN, mscale=1.0, mscale_all_dim=0.5)),
    "yarn, mscales above one": ("qwen3", scaled(**YARN, mscale=0.7, mscale_all_dim=1.3)),
    "yarn, finetuned": ("llama", scaled(**YARN, finetuned=True)),
    "yarn below one": ("qwen3", scaled(**YARN | {"factor": 0.5})),
    "yarn of Gemma 2": ("gemma2", GEMMA | scaled(**YARN)),
    "default, said": ("qwen3", scaled(rope_type="default")),
    "llama, pretraining_tp": ("llama", {"pretraining_tp": 2, "attention_dropout": 0.1}),
    "llama, full layer_types": ("llama", {"layer_types": ["full_attention"] * 3}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, notes": ("llama", {"unsloth_fixed": True, "_name_or_path": "x", "temperature": 0.6}),
    "qwen2 plain": ("qwen2", {}),
    "qwen2, window unused": ("qwen2", {"sliding_window": 5, "max_window_layers": 1}),
    "qwen2, window": (
        "qwen2", {"sliding_window": 5, "max_window_layers": 1, "use_sliding_window": True}
    ),
    "qwen2, max_window_layers absent": ("qwen2", {"sliding_window": 5, "use_sliding_window": True}),
    "qwen2, window null": ("qwen2", {"sliding_window": None, "use_sliding_window": True}),
    "qwen2, layer_types": (
        "qwen2", {"sliding_window": 5, "use_sliding_window": True, "layer_types": LOCAL}
    ),
    "qwen2, bias key": ("qwen2", {"attention_bias": False}),
    "qwen2, heads null": ("qwen2", {"num_key_value_heads": None}),
    "qwen3 plain": ("qwen3", {}),
    "qwen3, head_dim absent": ("qwen3", {"head_dim": ...}),
    "qwen3, window": (
        "qwen3", {"sliding_window": 5, "max_window_layers": 0, "use_sliding_window": True}
    ),
    "gemma2 plain": ("gemma2", GEMMA),
    "gemma2, no caps": (
        "gemma2", GEMMA | {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma2, caps": (
        "gemma2", GEMMA | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0}
    ),
    "gemma2, one cap null": ("gemma2", GEMMA | {"attn_logit_softcapping": None}),
    "gemma2, most absent": ("gemma2", {"sliding_window": 5, "head_dim": ...}),
    "gemma2, erf": ("gemma2", GEMMA | {"hidden_activation": "gelu"}),
    "gemma2, hidden_act": ("gemma2", GEMMA | {"hidden_act": "gelu"}),
    "gemma2, silu": ("gemma2", GEMMA | {"hidden_activation": "silu"}),
    "gemma2, layer_types": ("gemma2", GEMMA | {"layer_types": LOCAL}),
    "gemma2, untied": ("gemma2", GEMMA | {"tie_word_embeddings": False}),
    "gemma3 plain": ("gemma3_text", GEMMA),
    "gemma3, pattern": ("gemma3_text", GEMMA | {"sliding_window_pattern": 2}),
    "gemma3, pattern below layer_types": (
        "gemma3_text", GEMMA | {"_sliding_window_pattern": 2, "layer_types": LOCAL}
    ),
    "gemma3, final cap": ("gemma3_text", GEMMA | {"final_logit_softcapping": 2.0}),
    "gemma3, erf": ("gemma3_text", GEMMA | {"hidden_activation": "gelu"}),
    "gemma3, bases": (
        "gemma3_text",
        GEMMA | {"layer_types": LOCAL, "rope_theta": 500.0, "rope_local_base_freq": 50.0},
    ),
    "gemma3, scaling": (
        "gemma3_text",
        GEMMA | {"layer_types": LOCAL, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "gemma3, local scaling": (
        "gemma3_text", layered({"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0})
    ),
    "gemma3, two scalings": (
        "gemma3_text",
        layered({"rope_type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 4.0}),
    ),
    "gemma3, yarn": ("gemma3_text", layered(YARN)),
    "gemma3, local yarn": ("gemma3_text", layered({"type": "linear", "factor": 2.0}, YARN)),
    "gemma3, half of the parameters": (
        "gemma3_text",
        GEMMA | {"layer_types": LOCAL, "rope_local_base_freq": 50.0,
                 "rope_parameters": {"full_attention": {"rope_theta": 500.0},
                                     "sliding_attention": None}},
    ),
}  # fmt: skip


def raw_config(family, changes):
    """A config.json as a user has it; `...` removes a key."""
    whole = {"model_type": family} | SIZES | changes
    return {name: value for name, value in whole.items() if value is not ...}


def write_folder(folder, raw, head=None):
    """The config as it is, and weights that depend on names and shapes only.

    Args:
      head: whether to store an output table; None: where the embeddings are not tied.
    """
    (folder / "config.json").write_text(json.dumps(raw))
    fields = json.loads(json.dumps(raw))
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    shapes = transformers.AutoModelForCausalLM.from_config(config).state_dict()
    head = not config.tie_word_embeddings if head is None else head
    names = [name for name in shapes if head or name != "lm_head.weight"]
    tensors = {name: fill(name, tuple(shapes[name].shape)) for name in names}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def their_logits(folder, tokens):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        return model.eval()(torch.tensor(tokens)).logits.numpy()


def our_logits(folder, tokens):
    config = model_config(str(folder))
    params = load_params(str(folder), config)

    def run(model):
        return model.logits(model(jnp.asarray(tokens), jnp.arange(tokens.shape[1])[None]))

    return np.asarray(jax.jit(lambda p: Decoder(config).apply({"params": p}, method=run))(params))


def compare(folder):
    tokens = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (1, 40))
    theirs = their_logits(folder, tokens)
    assert np.ptp(theirs) > 1, "logits too small to tell anything"
    return np.abs(our_logits(folder, tokens) - theirs).max()


@pytest.mark.parametrize("name", AGREE)
def test_logits_are_those_of_transformers(name, tmp_path):
    write_folder(tmp_path, raw_config(*AGREE[name]))
    assert compare(tmp_path) < TOLERANCE


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_an_output_table_beside_tied_embeddings_is_used(family, tmp_path, capsys):
    raw = raw_config(family, {"tie_word_embeddings": True} | (GEMMA if "gemma" in family else {}))
    write_folder(tmp_path, raw, head=True)
    assert compare(tmp_path) < TOLERANCE
    assert "lm_head.weight differs" in capsys.readouterr().out


IMAGES = {
    "id2label": {},
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


@pytest.mark.parametrize(
    ("top", "inner"), [(None, None), (False, None), (False, True), (True, False)]
)
def test_the_text_half_of_an_image_folder(top, inner, tmp_path):
    def level(tie):
        return {} if tie is None else {"tie_word_embeddings": tie}

    text = raw_config("gemma3_text", GEMMA | {"layer_types": LOCAL} | level(inner))
    raw = {"model_type": "gemma3", "text_config": text, "vision_config": IMAGES}
    raw |= {"mm_tokens_per_image": 4, "image_token_index": 60} | level(top)
    write_folder(tmp_path, raw)
    assert compare(tmp_path) < TOLERANCE
