"""What a GGUF header leaves unsaid is worked out, or refused."""

from dataclasses import replace

import numpy as np
import pytest

from score_jax.model.config import RopeScaling
from score_jax.model.weights.gguf import Stored
from score_jax.model.weights.gguf_config import llama3_scaling, model_config, query_scalar

gguf = pytest.importorskip("gguf")


def test_only_the_largest_gemmas_scale_queries_by_another_width():
    def header(arch, layers, width, heads, key):
        names = {"block_count": layers, "embedding_length": width}
        names |= {"attention.head_count": heads, "attention.key_length": key}
        return {f"{arch}.{name}": value for name, value in names.items()}

    assert query_scalar("gemma2", header("gemma2", 46, 4608, 32, 128), "gemma2") == 144
    assert query_scalar("gemma2", header("gemma2", 26, 2304, 8, 256), "gemma2") == 256
    assert query_scalar("gemma3_text", header("gemma3", 62, 5376, 32, 128), "gemma3") == 168


def test_llama3_scaling_is_recognised_from_its_factors(tmp_path):
    base, width = 500_000.0, 64
    frequencies = base ** -(np.arange(0, width, 2) / width)
    factors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4:
            factors.append(1.0)
        elif wavelength > 8192 / 1:
            factors.append(32.0)
        else:
            smooth = (8192 / wavelength - 1) / (4 - 1)
            factors.append(1 / ((1 - smooth) / 32 + smooth))
    path = tmp_path / "factors.bin"
    path.write_bytes(np.array(factors, np.float32).tobytes())
    place = Stored(0, 0, (width // 2,))
    found = llama3_scaling(path, place, {"rope_theta": base, "head_dim": width})
    assert (found["rope_type"], found["factor"]) == ("llama3", 32.0)
    with pytest.raises(ValueError, match="not the factors"):
        llama3_scaling(path, place, {"rope_theta": 10_000.0, "head_dim": width})


HEADER = {
    "embedding_length": 32,
    "feed_forward_length": 48,
    "block_count": 3,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 8,
    "context_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 500.0,
}
FACTORS = "rope_freqs.weight"


def write(path, arch="llama", tensors=("token_embd.weight",), **changes):
    """A header with the given fields of its architecture; `...` leaves one out."""
    writer = gguf.GGUFWriter(path, arch)
    for name, value in (HEADER | changes).items():
        key = name if name.startswith("split.") else f"{arch}.{name}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
    for name in tensors:
        writer.add_tensor(name, np.ones((4,) if name == FACTORS else (61, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def scaling(**fields):
    return {f"rope.scaling.{name}": value for name, value in fields.items()}


YARN = scaling(type="yarn", factor=4.0)
REFUSED = {
    "no layers": ("llama", {"block_count": ...}, "lacks llama.block_count; convert the model ag"),
    "no sizes": (
        "qwen2", {"embedding_length": ..., "attention.head_count": ...},
        "lacks qwen2.embedding_length, qwen2.attention.head_count",
    ),
    "no epsilon": ("llama", {"attention.layer_norm_rms_epsilon": ...}, "lacks .*rms_epsilon"),
    "no base": ("gemma3", {"rope.freq_base": ...}, "lacks gemma3.rope.freq_base"),
    "heads by layer": ("llama", {"attention.head_count_kv": [2, 2, 2]}, "head_count_kv is array"),
    "text for a number": ("llama", {"block_count": "3"}, "llama.block_count is '3'; set a posit"),
    "a number below zero": ("llama", {"rope.freq_base": -1.0}, "llama.rope.freq_base is -1.0; set"),
    "part of a head": ("llama", {"rope.dimension_count": 4}, "rope.dimension_count is 4; only the"),
    "other values": ("llama", {"attention.value_length": 16}, "attention.value_length is 16; only"),
    "longrope": ("llama", scaling(type="longrope"), "rope.scaling.type is 'longrope'; supp"),
    "linear without factor": ("llama", scaling(type="linear"), "lacks llama.rope.scaling.factor"),
    "yarn without factor": ("qwen3", scaling(type="yarn"), "lacks qwen3.rope.scaling.factor"),
    "yarn of a Gemma": ("gemma2", YARN, "rope.scaling.type is 'yarn'; supported: none, linear"),
    "factor without type": ("llama", scaling(factor=4.0), "rope.scaling.factor is 4.0; it is not"),
    "factor of none": ("llama", scaling(type="none", factor=4.0), "rope.scaling.factor is 4.0"),
    "the old name": ("llama", {"rope.scale_linear": 4.0}, "rope.scale_linear is 4.0; it is not"),
    "linear with magnitude": (
        "llama", scaling(type="linear", factor=2.0, attn_factor=0.5), "attn_factor is 0.5"
    ),
    "yarn, other factors": ("llama", YARN | scaling(yarn_attn_factor=0.9), "yarn_attn_factor is"),
    "yarn, half": ("llama", YARN | scaling(yarn_ext_factor=0.5), "yarn_ext_factor is 0.5"),
    "alpha": ("llama", scaling(alpha=2.0), "rope.scaling.alpha is 2.0"),
    "sections": ("qwen2", {"rope.dimension_sections": [1, 1, 2]}, "rope.dimension_sections is"),
    "a window in a Llama": ("llama", {"attention.sliding_window": 5}, "sliding_window is 5; llama"),
    "a local base elsewhere": ("qwen3", {"rope.freq_base_swa": 5.0}, "rope.freq_base_swa is 5.0"),
    "experts": ("llama", {"expert_count": 8}, "llama.expert_count is 8; it is not read here"),
    "not causal": ("llama", {"attention.causal": False}, "attention.causal is False"),
    "a scale": ("llama", {"attention.scale": 0.5}, "attention.scale is 0.5; it is not read"),
    "a cap": ("gemma3", {"attn_logit_softcapping": 5.0}, "attn_logit_softcapping is 5.0"),
    "parts": ("llama", {"split.count": 3}, "is one of 3 parts; join them"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_header_that_cannot_be_followed_is_refused_by_field(case, tmp_path):
    arch, changes, message = REFUSED[case]
    path = write(tmp_path / "a.gguf", arch, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        model_config(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_factors_beside_another_scaling_are_refused(tmp_path):
    both = ("token_embd.weight", FACTORS)
    path = write(tmp_path / "a.gguf", tensors=both, **scaling(type="linear", factor=2.0))
    with pytest.raises(
        ValueError, match=r"holds rope_freqs.weight, which are supported only for a Llama"
    ):
        model_config(path)
    with pytest.raises(
        ValueError, match=r"holds rope_freqs.weight, which are supported only for a Llama"
    ):
        model_config(write(tmp_path / "b.gguf", "qwen2", tensors=both))


def test_a_header_without_embeddings_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"lacks the tensor token_embd.weight"):
        model_config(write(tmp_path / "a.gguf", tensors=("output.weight",)))


SAME = {  # what changes nothing
    "rope of whole heads": {"rope.dimension_count": 8, "attention.value_length": 8},
    "scaling of none": scaling(type="none", factor=1.0, finetuned=False),
    "no experts": {"expert_count": 0, "expert_used_count": 0},
    "causal": {"attention.causal": True, "tensor_data_layout": "Meta AI original pth"},
    "old factor": {"rope.scale_linear": 1.0},
    "a window over all": {"attention.sliding_window": 128, "vocab_size": 61},
}


@pytest.mark.parametrize("case", SAME)
def test_what_changes_nothing_is_let_through(case, tmp_path):
    plain = model_config(write(tmp_path / "plain.gguf"))
    assert model_config(write(tmp_path / "a.gguf", **SAME[case])) == plain


def test_absent_fields_are_those_of_llama_cpp(tmp_path):
    absent = {"attention.head_count_kv": ..., "attention.key_length": ..., "rope.freq_base": ...}
    found = model_config(write(tmp_path / "a.gguf", "qwen2", **absent))
    assert (found.kv_heads, found.head_dim, found.rope_base) == (4, 8, 10_000.0)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"original_length": 128}),
        (scaling(original_context_length=16), {"original_length": 16}),
        (
            scaling(yarn_beta_fast=8.0, yarn_beta_slow=0.5, yarn_ext_factor=1.0),
            {"original_length": 128, "beta_fast": 8.0, "beta_slow": 0.5},
        ),
        # llama.cpp multiplies by 1 + 0.1 ln 4 = 1.1386294 besides
        (scaling(attn_factor=0.5), {"original_length": 128, "attention_factor": 0.5693147}),
        (scaling(attn_factor=1.0), {"original_length": 128, "attention_factor": 1.1386294}),
    ],
)
@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_yarn_is_read(arch, fields, expected, tmp_path):
    found = model_config(write(tmp_path / "a.gguf", arch, **YARN, **fields)).rope_scaling
    wanted = RopeScaling(kind="yarn", factor=4.0, **expected)
    assert found is not None
    assert found.magnitude == pytest.approx(wanted.magnitude, rel=1e-6)
    assert replace(found, attention_factor=None) == replace(wanted, attention_factor=None)


def test_linear_scaling_and_a_local_base_of_gemma_3(tmp_path):
    fields = scaling(type="linear", factor=8.0) | {"attention.sliding_window": 5}
    path = write(tmp_path / "a.gguf", "gemma3", **fields, **{"rope.freq_base_swa": 50.0})
    found = model_config(path)
    assert found.rope_scaling == RopeScaling(kind="linear", factor=8.0)
    assert (found.rope_base, found.rope_local_base, found.window) == (500.0, 50.0, 5)
