"""A GGUF file holds the model that its safetensors folder holds."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from score_jax.model.weights import gguf as reader
from score_jax.model.weights.load import load_params, model_config
from tests.reference_models import PINNED, fill, write_sizes

gguf = pytest.importorskip("gguf")
LAYER = {hf: ours for ours, hf in reader.LAYER_NAMES.items() if ours != "post_attention_norm"}
GEMMA_LAYER = LAYER | {
    "pre_feedforward_layernorm": "ffn_norm",
    "post_attention_layernorm": "post_attention_norm",
}
TOP = {hf: ours for ours, hf in reader.TOP_NAMES.items()}


def stored_name(name, gemma):
    if name in TOP:
        return TOP[name]
    _, _, layer, *inner, kind = name.split(".")
    return f"blk.{layer}.{(GEMMA_LAYER if gemma else LAYER)['.'.join(inner)]}.{kind}"


def interleave(matrix, heads):
    """What llama.cpp's converter does to query and key rows, row by row."""
    width = matrix.shape[0] // heads
    rows = []
    for head in range(heads):
        for i in range(width // 2):
            rows += [head * width + i, head * width + width // 2 + i]
    return matrix[rows]


def write(path, family):
    """Writes a small model as converted by llama.cpp, and returns its plain tensors."""
    pinned = json.loads(PINNED.read_text())[family]
    config, gemma = pinned["config"], family.startswith("gemma")
    arch = {"smollm2": "llama", "gemma3": "gemma3"}.get(family, family)
    writer = gguf.GGUFWriter(path, arch)
    write_sizes(writer, config)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"].get("rope_theta", 1e4))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    for name, value in tensors.items():
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            value = interleave(value, heads)
        if gemma and name.endswith("norm.weight"):
            value = value + 1
        writer.add_tensor(stored_name(name, gemma), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return pinned["config"], tensors


@pytest.mark.parametrize("family", ["smollm2", "qwen3", "gemma2", "gemma3"])
def test_tensors_are_those_of_the_safetensors_folder(family, tmp_path):
    path = tmp_path / "model.gguf"
    config, tensors = write(path, family)
    file = reader.GgufFile(path)
    assert set(file.shapes) == set(tensors)
    for name, expected in tensors.items():
        np.testing.assert_allclose(file.read(name), expected, atol=1e-6, err_msg=name)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    known = model_config(str(tmp_path))
    found = model_config(str(path))
    for field in (
        "vocab_size",
        "layers",
        "heads",
        "kv_heads",
        "head_dim",
        "norm_eps",
        "post_norms",
    ):
        assert getattr(found, field) == getattr(known, field), field
    ours, theirs = load_params(str(path), known), load_params(str(tmp_path), known)
    np.testing.assert_allclose(
        ours["blocks"]["attention"]["query"], theirs["blocks"]["attention"]["query"], atol=1e-6
    )


def test_eight_bit_weights_are_near_the_real_ones(tmp_path):
    path = tmp_path / "model.gguf"
    value, kind = fill("x", (97, 64)), gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", gguf.quantize(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = reader.GgufFile(path).read("model.embed_tokens.weight")
    np.testing.assert_allclose(found, value, atol=np.abs(value).max() / 127)


def test_a_file_cut_short_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    write(path, "smollm2")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 4096])
    with pytest.raises(ValueError, match="cut short"):
        reader.GgufFile(path)
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="cut short within its header"):
        reader.GgufFile(path)
    path.write_bytes(b"PK" + whole[2:])
    with pytest.raises(ValueError, match="no GGUF file"):
        reader.GgufFile(path)


def test_an_unknown_quantisation_is_named(tmp_path, monkeypatch):
    path = tmp_path / "model.gguf"
    write(path, "smollm2")
    header = reader.read_header(path)
    places = {n: p._replace(quantisation=999) for n, p in header.tensors.items()}
    monkeypatch.setattr(reader, "read_header", lambda _: header._replace(tensors=places))
    with pytest.raises(ValueError, match="quantisation 999, which gguf cannot dequantise"):
        reader.GgufFile(path)


def test_an_unknown_architecture_is_named(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match=r"general.architecture is 'mamba'; supported are llama"):
        model_config(str(path))
