"""A model that cannot be used is refused by the main command in one line."""

import json
import re

import pytest
from safetensors.numpy import save_file

from score_jax.text.tokenizer import train_sentencepiece
from tests.reference_models import PINNED, fill, write_sizes
from tests.small_tokenizers import CORPUS, make
from tests.tiny_stages import FILE, refuse

gguf = pytest.importorskip("gguf")
REAL = [  # a model and the tokenizer beside it
    "--config=configs/stage1.py", "--config.tokenizer.source=", "--config.tokenizer.chat=chatml",
    "--config.sampling.prompt_limit=64",
]  # fmt: skip
REFUSED = {  # flags, and what stderr says in one line, with exit code 2
    "more pieces than embeddings": (
        [f"--config={FILE}:stage1", "--config.model.vocab_size=40"],
        r"tokenizer.source is 'trained' with 80 pieces, but the model has embeddings for 40; use",
    ),
    "no chat markers": (
        [f"--config={FILE}:stage1", "--config.tokenizer.source={bare}",
         "--config.tokenizer.chat=qwen25"],
        r"tokenizer has no <\|im_start\|>, <\|im_end\|>, .* for a model without .* one of base_",
    ),
    "no tokenizer": (
        [*REAL, "--config.weights.source={mute}"], r"holds tokenizer.json or tokenizer.model",
    ),
    "no config.json": ([*REAL, "--config.weights.source={nameless}"], r"has no config.json; point"),
    "no weights": (
        [*REAL, "--config.weights.source={weightless}"], r"holds neither model.safetensors nor",
    ),
    "weights cut short": (
        [*REAL, "--config.weights.source={cut}"], r"model.safetensors is cut short: \d+ bytes of",
    ),
    "another model's weights": (
        [*REAL, "--config.weights.source={other}"], r"does not fit .* misshapen: .*attn.q_proj",
    ),
    "unknown architecture": (
        [*REAL, "--config.weights.source={mamba}"], r"model_type is 'mamba'; supported are llama",
    ),
    "unknown rope": (
        [*REAL, "--config.weights.source={longrope}"],
        r"rope_type is 'longrope'; supported: default, linear, llama3, yarn",
    ),
    "unknown quantisation": (
        [*REAL, "--config.weights.source={quantised}", "--config.tokenizer.source={whole}"],
        r"model.norm.weight has quantisation 999, which gguf cannot dequantise; conv",
    ),
    "cut gguf": ([*REAL, "--config.weights.source={half}"], r"is cut short within its header"),
    "no such folder": ([*REAL, "--config.weights.source=/nowhere"], r"'/nowhere'; no such file"),
    "no such hub name": ([*REAL, "--config.weights.source=hub:a b/c d"], r"cannot be downloaded"),
    "hub without network": (
        [*REAL, "--config.weights.source=hub:org/name"], r"'hub:org/name', which cannot be down",
    ),
}  # fmt: skip


def write_model(folder, **changes):
    """A small Llama as a Hugging Face folder."""
    folder.mkdir()
    pinned = json.loads(PINNED.read_text())["llama"]
    shape = pinned["config"] | {"vocab_size": 400} | changes
    (folder / "config.json").write_text(json.dumps(shape))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = fill(name, (400, tensors[name].shape[1]))
    save_file(tensors, folder / "model.safetensors")
    make("chatml").save(folder)
    return tensors


def write_gguf(path, tensors):
    """A GGUF file whose norm is packed in a way that nobody knows."""
    config = json.loads(PINNED.read_text())["llama"]["config"]
    writer = gguf.GGUFWriter(path, "llama")
    write_sizes(writer, config)
    writer.add_context_length(512)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e4)
    writer.add_tensor("token_embd.weight", tensors["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", tensors["model.norm.weight"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = path.read_bytes()
    name = b"output_norm.weight"
    kind = whole.index(name) + len(name) + 4 + 8  # behind the number of dimensions and one of them
    path.write_bytes(whole[:kind] + (999).to_bytes(4, "little") + whole[kind + 4 :])


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    """Exit code and stderr of each of REFUSED."""
    root = tmp_path_factory.mktemp("models")
    places = {name: root / name for name in (
        "bare", "whole", "mute", "nameless", "weightless", "cut", "other", "mamba", "longrope",
    )}  # fmt: skip
    train_sentencepiece(CORPUS, vocab_size=200, markers=["<user>"]).save(places["bare"])
    for name in ("whole", "mute", "nameless", "weightless", "cut"):
        tensors = write_model(places[name])
    write_model(places["mamba"], model_type="mamba")
    write_model(places["other"], num_attention_heads=2)
    write_model(places["longrope"], rope_parameters={"rope_type": "longrope", "rope_theta": 1e4})
    (places["mute"] / "tokenizer.json").unlink()
    (places["nameless"] / "config.json").unlink()
    (places["weightless"] / "model.safetensors").unlink()
    weights = places["cut"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    places |= {"quantised": root / "quantised.gguf", "half": root / "half.gguf"}
    write_gguf(places["quantised"], tensors)
    places["half"].write_bytes(places["quantised"].read_bytes()[:200])
    cases = [
        [*(flag.format(**places) for flag in flags), f"--workdir={root / 'runs' / str(number)}"]
        for number, (flags, _) in enumerate(REFUSED.values())
    ]
    told = refuse(cases, HF_HUB_OFFLINE="1", HF_HOME=str(root / "hub"))
    return dict(zip(REFUSED, told, strict=True))


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_that_cannot_be_used_is_told_in_one_line(refusals, case):
    code, err = refusals[case]
    assert code == 2, err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")
    assert re.search(REFUSED[case][1], err), err
