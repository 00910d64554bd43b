"""A model goes out as it came in, and opens in transformers."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from score_jax.model.decoder import Decoder
from score_jax.model.lora import LoraConfig, init_lora, merge
from score_jax.text.chat import FORMATS, Chat
from score_jax.weights import load
from score_jax.weights.export import chat_template, export
from tests.reference_models import FAMILIES, PINNED, build, fill
from tests.small_tokenizers import make

FORMAT = {"llama": "llama3", "smollm2": "smollm2", "qwen2": "qwen25", "qwen3": "qwen3"}
KIND = {"llama3": "llama3", "smollm2": "chatml", "qwen25": "chatml", "qwen3": "chatml"}


def chat_of(family):
    name = FORMAT.get(family, "gemma")
    return Chat(make(KIND.get(name, "gemma")), FORMATS[name])


@pytest.fixture(params=["llama", "qwen2", "gemma3"])
def folder(request, tmp_path):
    pinned = json.loads(PINNED.read_text())[request.param]
    (tmp_path / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path, chat_of(request.param)


def test_tensors_come_out_as_they_went_in(folder, tmp_path):
    source, chat = folder
    config = load.model_config(str(source))
    params = load.load_params(str(source), config)
    export(params, config, chat, tmp_path / "out")
    before = load_file(source / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert set(before) == set(after)
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value, err_msg=name)
    assert load.model_config(str(tmp_path / "out")) == config
    described = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert described["eos_token_id"] == chat.stop


def test_shards_are_written_with_an_index(folder, tmp_path):
    source, chat = folder
    config = load.model_config(str(source))
    params = load.load_params(str(source), config)
    export(params, config, chat, tmp_path / "out", dtype="bfloat16", shard_bytes=20_000)
    files = sorted(p.name for p in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    found = load.load_params(str(tmp_path / "out"), config)
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), params)
    jax.tree.map(np.testing.assert_array_equal, found, rounded)


@pytest.mark.parametrize("name", ["gemma", "llama31", "qwen25_math", "qwen3_no_think", "base_qwen"])
def test_the_exported_template_writes_dialogues_as_they_were_trained(name):
    jinja2 = pytest.importorskip("jinja2")
    answer = "<think>\nhm\n</think>\n\n12"
    messages = [
        {"role": "user", "content": "What is 7 + 5? "},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": 'Look "again".\n'},
    ]
    text = jinja2.Template(chat_template(FORMATS[name])).render(messages=messages)
    known = FORMATS[name]
    strip = str.strip if known.trim else str
    expected = known.prompt.replace("{text}", strip("What is 7 + 5? ")) + answer + known.stop
    expected += known.instruction.replace("{text}", strip('Look "again".\n'))
    assert text == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
def test_transformers_to_ours_and_back_leaves_logits_unchanged(family, adapted, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = build(family)
    reference.save_pretrained(tmp_path / "in")
    config = load.model_config(str(tmp_path / "in"))
    params = load.load_params(str(tmp_path / "in"), config)
    tokens = np.random.default_rng(0).integers(2, 97, (2, 30))

    def ours(params):
        positions = jnp.broadcast_to(jnp.arange(30), tokens.shape)

        def run(model):
            return model.logits(model(jnp.asarray(tokens), positions)[0])

        return jax.jit(lambda p: Decoder(config).apply({"params": p}, method=run))(params)

    if adapted:
        lora = LoraConfig(rank=2, alpha=4.0)
        boxed = jax.eval_shape(Decoder(config).init, jax.random.key(0), tokens, tokens)["params"]
        adapter = nn.unbox(init_lora(jax.random.key(1), boxed, lora))
        noise = jax.tree.map(lambda x: 0.1 * jax.random.normal(jax.random.key(2), x.shape), adapter)
        params = merge(params, noise, lora)
    export(params, config, chat_of(family), tmp_path / "out")
    again = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        theirs = again(torch.tensor(tokens)).logits.numpy()
        before = reference(torch.tensor(tokens)).logits.numpy()
    assert np.abs(np.asarray(ours(params)) - theirs).max() < 1e-4
    assert (np.abs(theirs - before).max() > 1e-2) if adapted else np.array_equal(theirs, before)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_transformers_reads_the_tokenizer_and_its_template(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    pinned = json.loads(PINNED.read_text())[family]
    (tmp_path / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config, chat = load.model_config(str(tmp_path)), chat_of(family)
    export(load.load_params(str(tmp_path), config), config, chat, tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    messages = [{"role": "user", "content": "What is 37 + 58?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ids == chat.encode_prompt("What is 37 + 58?")
    assert tokenizer.eos_token_id == chat.stop


READ_BY_VLLM = {  # vllm/model_executor/models/{llama,qwen2,qwen3,gemma2,gemma3}.py of vLLM
    "every": "architectures model_type torch_dtype vocab_size hidden_size intermediate_size "
    "num_hidden_layers num_attention_heads num_key_value_heads hidden_act rms_norm_eps "
    "rope_theta rope_scaling max_position_embeddings tie_word_embeddings eos_token_id",
    "llama": "attention_bias head_dim",
    "qwen2": "head_dim",
    "qwen3": "attention_bias head_dim",
    "gemma2": "attention_bias head_dim hidden_activation query_pre_attn_scalar "
    "attn_logit_softcapping final_logit_softcapping sliding_window layer_types",
    "gemma3": "attention_bias head_dim hidden_activation query_pre_attn_scalar "
    "rope_local_base_freq sliding_window layer_types",
}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_config_json_has_every_field_that_vllm_reads(family, tmp_path):
    """vLLM itself is not run here: this holds what is written to what its source asks for."""
    pinned = json.loads(PINNED.read_text())[family]
    (tmp_path / "config.json").write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / "model.safetensors")
    config = load.model_config(str(tmp_path))
    params = load.load_params(str(tmp_path), config)
    export(params, config, chat_of(family), tmp_path / "out")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    asked = f"{READ_BY_VLLM['every']} {READ_BY_VLLM[family]}".split()
    assert [name for name in asked if name not in written] == []
    assert written["hidden_act"] == ("gelu_pytorch_tanh" if "gemma" in family else "silu")
    if "gemma" in family:
        assert written["hidden_activation"] == written["hidden_act"]
        assert len(written["layer_types"]) == config.layers
