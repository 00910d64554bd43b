"""A model goes out as it came in, and opens in transformers."""

import copy
import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from score_jax.model import published
from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.decoder import Decoder
from score_jax.model.lora import LoraConfig, init_lora, merge
from score_jax.model.weights import export as exporting
from score_jax.model.weights import load
from score_jax.model.weights.export import chat_template, check_shape, export
from score_jax.model.weights.families import to_hf
from score_jax.model.weights.stops import load_stops
from score_jax.text.chat import FORMATS, Chat
from tests.reference_models import FAMILIES, PINNED, build, fill
from tests.small_tokenizers import make
from tests.tiny import random_params, row_logits

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


def test_the_exported_template_of_a_base_model_repeats_no_heading():
    jinja2 = pytest.importorskip("jinja2")
    template = jinja2.Template(chat_template(FORMATS["base_qwen"]))
    shown = [
        template.render(messages=[{"role": "user", "content": text}])
        for text in ("7 + 5?", "7 + 5?\nSolution:")
    ]
    assert shown == ["Problem: 7 + 5?\n\nSolution:", "Problem: 7 + 5?\nSolution:"]


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
            return model.logits(model(jnp.asarray(tokens), positions))

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


BASE = ModelConfig(
    vocab_size=430, layers=3, width=32, heads=4, kv_heads=2, head_dim=8, mlp_dim=48, max_length=128
)
QWEN2 = dataclasses.replace(BASE, qkv_bias=True)
QWEN3 = dataclasses.replace(BASE, qk_norm=True, rope_base=1e6)
GEMMA2 = dataclasses.replace(BASE, **published.GEMMA, window=4, local_layers=(True, False, True))
GEMMA3 = dataclasses.replace(GEMMA2, qk_norm=True, rope_base=1e6, rope_local_base=1e4)
LINEAR = RopeScaling(kind="linear", factor=4.0)
YARN = RopeScaling(kind="yarn", factor=4.0, original_length=32)
LLAMA3 = RopeScaling(kind="llama3", factor=8.0, original_length=32)


def other(config, **fields):
    return dataclasses.replace(config, **fields)


KEPT = {  # what the family can say comes back, and transformers computes it
    "llama": BASE,
    "llama, linear": other(BASE, rope_scaling=LINEAR, norm_eps=1e-5, tied_embeddings=False),
    "llama, llama3": other(BASE, rope_scaling=LLAMA3, rope_base=5e5),
    "llama, the usual query scale spelt out": other(BASE, query_scale=8**-0.5),
    "llama, local base and layers of nothing local": other(
        BASE, rope_local_base=7.0, local_layers=(True, False, True)
    ),
    "llama of no longest text": other(BASE, max_length=None),
    "qwen2, last layer local": other(QWEN2, window=3, local_layers=(False, False, True)),
    "qwen3, all layers local": other(QWEN3, window=5),
    "qwen3, local, scaled": other(
        QWEN3, window=5, local_layers=(True, False, True), rope_scaling=LINEAR
    ),
    "gemma2, no caps": GEMMA2,
    "gemma2, one cap": other(GEMMA2, attention_cap=3.0),
    "gemma2, other cap": other(GEMMA2, logit_cap=5.0),
    "gemma2, query scale of 24": other(GEMMA2, query_scale=24**-0.5, attention_cap=2.0),
    "gemma2, nothing local": other(GEMMA2, window=None, local_layers=None, logit_cap=4.0),
    "gemma3": other(GEMMA3, query_scale=20**-0.5),
    "gemma3, capped": other(GEMMA3, logit_cap=5.0, rope_scaling=LINEAR),
    "llama, yarn": other(BASE, rope_scaling=YARN),
    "gemma2, exact gelu": other(GEMMA2, activation="gelu"),
    "gemma3, silu": other(GEMMA3, activation="silu"),
    "gemma3, base and scaling of all": other(GEMMA3, rope_local_base=None, rope_scaling=LINEAR),
    "gemma3, both scaled": other(GEMMA3, rope_scaling=LINEAR, rope_local_scaling=YARN),
    "gemma3, one base": other(GEMMA3, rope_local_base=None),
    "gemma3, nothing local": other(GEMMA3, window=None, local_layers=None),
}
REFUSED = {  # what it cannot say is refused by its field
    "llama, cap": (
        other(BASE, attention_cap=30.0), r"model.attention_cap is 30.0, read back as None"
    ),
    "llama, logit cap": (other(BASE, logit_cap=9.0), r"model.logit_cap is 9.0, read back as None"),
    "llama, query scale": (
        other(BASE, query_scale=0.5), r"model.query_scale is 0.5, read back as 0.353"
    ),
    "llama, window": (
        other(BASE, window=4), r"model.window is 4, read back as None; model.local_layers"
    ),
    "llama, local": (
        other(BASE, window=4, local_layers=(True, False, False), rope_local_base=1e3),
        r"model.window is 4, read back as None; .*rope_local_base is 1000.0, read back as None",
    ),
    "qwen2, local base": (
        other(QWEN2, window=4, rope_local_base=1e3),
        r"model.rope_local_base is 1000.0, read back as 10000",
    ),
    "qwen3, local base": (
        other(QWEN3, window=4, rope_local_base=1e4),
        r"model.rope_local_base is 10000.0, read back as 1000",
    ),
    "qwen3, cap": (other(QWEN3, logit_cap=30.0), r"model.logit_cap is 30.0, read back as None"),
    "gemma2, local base": (
        other(GEMMA2, rope_local_base=100.0),
        r"model.rope_local_base is 100.0, read back as 10000.0",
    ),
    "gemma2, query scale": (
        other(GEMMA2, query_scale=0.3), r"model.query_scale is 0.3, read back as"
    ),
    "gemma3, query scale": (other(GEMMA3, query_scale=1.0 / 7.5), r"model.query_scale is 0.133"),
    "gemma3, attention cap": (
        other(GEMMA3, attention_cap=5.0), r"as gemma3_text \(.*attn_logit_softcapping is 5.0"
    ),
    "qwen3, local base, all scaled": (
        other(QWEN3, window=4, rope_local_base=1e6, rope_scaling=LINEAR),
        r"model.rope_local_scaling is None, read back as {'kind': 'linear'",
    ),
    "qwen3 with biases": (
        other(QWEN3, qkv_bias=True), r"model.qk_norm is True, not False as in qwen2, the nearest"
    ),
    "llama of gelu": (
        other(BASE, activation="gelu_tanh"), r"cannot be exported as llama \(.*hidden_act is 'gelu_"
    ),
    "gemma without its scale": (
        other(GEMMA2, embedding_scale=False),
        r"model.embedding_scale is False, not True as in gemma2",
    ),
}  # fmt: skip


def small_chat():
    return Chat(make("chatml"), FORMATS["qwen25"])


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_family_cannot_say_is_refused_by_field(case, tmp_path):
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        export({}, config, small_chat(), tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("case", KEPT)
def test_what_a_family_can_say_comes_back(case):
    check_shape(KEPT[case], to_hf(KEPT[case]))


@pytest.mark.slow
@pytest.mark.parametrize("case", KEPT)
def test_transformers_computes_what_came_back(case, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = KEPT[case]
    params = random_params(config)
    export(params, config, small_chat(), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (2, 40))
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    ours = np.asarray(row_logits(config)(params, tokens))
    assert np.abs(ours).max() > 1, "logits near 0 would agree by themselves"
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_transformers_draws_from_all_tokens_and_stops_at_every_stop(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = other(BASE, tied_embeddings=False)
    params = random_params(config)
    params = {**params, "unembedding": params["unembedding"] * 1e-3}  # all tokens likely
    tokenizer = make("chatml")
    ends = tuple(tokenizer.marker(name) for name in ("<|im_end|>", "<|endoftext|>"))
    export(params, config, Chat(tokenizer, FORMATS["qwen25"], (ends[1], 399)), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.manual_seed(0)
    prompt = torch.tensor([[5, 6, 7]])
    one = model.generate(
        prompt, max_new_tokens=1, num_return_sequences=4000, output_scores=True,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    np.testing.assert_allclose(one.scores[0].numpy(), one.logits[0].numpy(), atol=1e-6)
    assert len(np.unique(one.sequences[:, 3].numpy())) > 400
    rows = model.generate(prompt, max_new_tokens=200, num_return_sequences=200)[:, 3:].numpy()
    stops = (*ends, 399)
    last = [next(t for t in row if t in stops) for row in rows if np.isin(row, stops).any()]
    assert set(last) == set(stops)
    for row in rows:
        where = np.flatnonzero(np.isin(row, stops))
        assert not len(where) or (row[where[0] + 1 :] == ends[0]).all()  # padding


def test_generation_is_that_of_training(folder, tmp_path):
    source, chat = folder
    config = load.model_config(str(source))
    chat = dataclasses.replace(chat, more_stops=(9, chat.stop, 3))
    export(load.load_params(str(source), config), config, chat, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    described = json.loads((tmp_path / "out" / "config.json").read_text())
    assert told["eos_token_id"] == described["eos_token_id"] == [chat.stop, 9, 3]
    drawing = {name: told[name] for name in ("do_sample", "temperature", "top_k", "top_p")}
    assert drawing == {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert load_stops(str(tmp_path / "out")) == chat.stops


def test_a_new_export_leaves_nothing_of_the_one_before(folder, tmp_path):
    source, chat = folder
    config, out = load.model_config(str(source)), tmp_path / "out"
    params = load.load_params(str(source), config)
    export(params, config, chat, out, shard_bytes=20_000)
    (out / "notes.txt").write_text("mine")
    again = jax.tree.map(lambda x: x + 1, params)
    export(again, config, chat, out)
    assert [p.name for p in out.glob("*.safetensors*")] == ["model.safetensors"]
    assert (out / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out.partial").exists()
    jax.tree.map(np.testing.assert_array_equal, load.load_params(str(out), config), again)


@pytest.mark.parametrize("spoilt", ["tokenizer", "stops", "weights", "config"])
def test_what_does_not_read_back_does_not_count(folder, tmp_path, monkeypatch, spoilt):
    source, chat = folder
    config = load.model_config(str(source))
    params = load.load_params(str(source), config)
    other_tokenizer = copy.copy(chat.tokenizer)
    other_tokenizer.encode = lambda text: [1, *chat.tokenizer.encode(text)]
    changes = {
        "tokenizer": ("load_tokenizer", lambda _: other_tokenizer),
        "stops": ("load_stops", lambda _: (chat.stop, 96)),
        "weights": ("write_weights", lambda *_: None),
        "config": ("model_config", lambda _: dataclasses.replace(config, norm_eps=0.5)),
    }  # fmt: skip
    monkeypatch.setattr(exporting, *changes[spoilt])
    with pytest.raises(
        ValueError, match=r"out\.partial (differs from the exported model|holds neither)"
    ):
        export(params, config, chat, tmp_path / "out")
    assert not (tmp_path / "out").exists()
