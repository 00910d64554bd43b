"""Adapters in PEFT's folders: what goes out comes in, and PEFT computes the same."""

import json
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from score_jax.model.decoder import Decoder
from score_jax.model.lora import LoraConfig, init_lora, merge
from score_jax.model.weights import load
from score_jax.model.weights.peft import export_adapter
from tests.reference_models import PINNED, fill
from tests.tiny import row_logits

LORA = LoraConfig(rank=3, alpha=6.0)
QUERY = "model.layers.1.self_attn.q_proj"


def write_model(folder, family):
    """A small model with pinned weights."""
    folder.mkdir()
    pinned = json.loads(PINNED.read_text())[family]
    (folder / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, folder / "model.safetensors")


def made(folder):
    """The model in a folder, and an adapter whose halves are not zero."""
    config = load.model_config(str(folder))
    tokens = jnp.zeros((1, 1), jnp.int32)
    boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)["params"]
    shapes = jax.eval_shape(lambda: nn.unbox(init_lora(jax.random.key(1), boxed, LORA)))
    leaves, tree = jax.tree.flatten(shapes)
    random = np.random.default_rng(0)
    filled = [jnp.asarray(0.2 * random.normal(size=leaf.shape), jnp.float32) for leaf in leaves]
    return config, load.load_params(str(folder), config), jax.tree.unflatten(tree, filled)


@pytest.fixture(params=["llama", "qwen2", "gemma3"])
def folder(request, tmp_path):
    write_model(tmp_path / "base", request.param)
    return tmp_path


def rewrite(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def write_adapter(folder, halves, **config):
    """An adapter of one matrix, as PEFT's files hold it."""
    folder.mkdir(exist_ok=True)
    tensors = {
        f"base_model.model.{QUERY}.lora_{half}.weight": np.asarray(value, np.float32)
        for half, value in halves.items()
    }
    save_file(tensors, folder / "adapter_model.safetensors")
    usual = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(usual | config))


def test_what_goes_out_comes_in_as_the_merged_model(folder):
    config, params, adapter = made(folder / "base")
    export_adapter(adapter, LORA, config, folder / "out", base="hub:org/name@abc")
    found = load.load_params(str(folder / "base"), config, adapter=str(folder / "out"))
    expected = merge(params, adapter, LORA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
    changed = {
        path[-1].key
        for path, leaf in jax.tree_util.tree_leaves_with_path(
            jax.tree.map(lambda a, b: np.abs(a - b).max() > 1e-3, found, params)
        )
        if leaf
    }
    assert changed == set(LORA.targets)
    told = json.loads((folder / "out/adapter_config.json").read_text())
    assert (told["base_model_name_or_path"], told["revision"]) == ("org/name", "abc")
    assert told["target_modules"] == sorted(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 4 / 2),
        ({"use_rslora": True}, 4 / math.sqrt(2)),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 9, "q_proj": 1.0}}, 1 / 2),
        ({"alpha_pattern": {"j_proj": 1.0}}, 4 / 2),
        ({"lora_dropout": 0.1, "target_modules": ["q_proj"], "fan_in_fan_out": False}, 4 / 2),
    ],
)
def test_one_matrix_gets_the_scaled_product(folder, config, scale):
    shape = load_file(folder / "base/model.safetensors")[f"{QUERY}.weight"].shape
    random = np.random.default_rng(1)
    a, b = random.normal(size=(2, shape[1])), random.normal(size=(shape[0], 2))
    write_adapter(folder / "one", {"A": a, "B": b}, **config)
    model = load.model_config(str(folder / "base"))
    before = load.load_params(str(folder / "base"), model)
    after = load.load_params(str(folder / "base"), model, adapter=str(folder / "one"))
    difference = jax.tree.map(lambda new, old: np.array(new - old), after, before)
    added = difference["blocks"]["attention"]["query"][1].reshape(shape[1], -1).T
    expected = [[scale * sum(b[o, r] * a[r, i] for r in (0, 1)) for i in (0, 3)] for o in (0, 5)]
    np.testing.assert_allclose(added[np.ix_([0, 5], [0, 3])], expected, atol=1e-5)
    difference["blocks"]["attention"]["query"][1] = 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(difference))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "LOHA"}, r"peft_type is 'LOHA', which is not supported; merge the adapter"),
        ({"use_dora": True}, "use_dora is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"a_later_kind": 1}, "a_later_kind is 1"),
        ({"lora_alpha": "4"}, "lora_alpha is '4'; set a number"),
    ],
)
def test_what_would_merge_to_something_else_is_refused(folder, config, message):
    write_adapter(folder / "one", {"A": np.ones((2, 4)), "B": np.ones((4, 2))}, **config)
    with pytest.raises(ValueError, match=message):
        loaded(folder)


def loaded(folder, adapter=None):
    model = load.model_config(str(folder / "base"))
    return load.load_params(str(folder / "base"), model, adapter=adapter or str(folder / "one"))


def test_an_adapter_of_another_model_is_refused(folder):
    write_adapter(folder / "one", {"A": np.ones((2, 5)), "B": np.ones((7, 2))})
    with pytest.raises(ValueError, match=r"but its lora_A is \(2, 5\) and lora_B \(7, 2\); name"):
        loaded(folder)
    write_adapter(folder / "one", {"A": np.ones((2, 5))})
    with pytest.raises(ValueError, match="has lora_A alone; fetch it again"):
        loaded(folder)
    write_adapter(folder / "one", {"embedding_A": np.ones((2, 5))})
    with pytest.raises(ValueError, match="adapts nothing that can be adapted here"):
        loaded(folder)
    (folder / "one/adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"weights.adapter is .* which has no adapter_config.json"):
        loaded(folder)
    with pytest.raises(ValueError, match=r"weights.adapter is 'nowhere'; no such file or folder"):
        loaded(folder, "nowhere")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT's calls of transformers
def test_peft_computes_the_same(folder):
    torch = pytest.importorskip("torch")
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    config, params, adapter = made(folder / "base")
    export_adapter(adapter, LORA, config, folder / "out", base=str(folder / "base"))
    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base")
    model = peft.PeftModel.from_pretrained(base, folder / "out")
    tokens = np.random.default_rng(0).integers(2, 97, (2, 9))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = row_logits(config)(merge(params, adapter, LORA), tokens)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    model.save_pretrained(folder / "again")  # what PEFT writes comes in too
    found = load.load_params(str(folder / "base"), config, adapter=str(folder / "again"))
    expected = merge(params, adapter, LORA)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)
