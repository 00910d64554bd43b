"""Safetensors folders: what is read, and what is refused."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from score_jax.model.weights.safetensors import SafetensorsFolder


def arrays():
    rng = np.random.default_rng(0)
    return {
        "a": rng.normal(size=(3, 5)).astype(np.float32),
        "b": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c": rng.normal(size=(2, 2, 2)).astype(np.float16),
    }


def test_every_float_type_is_read_as_written(tmp_path):
    save_file(arrays(), tmp_path / "model.safetensors")
    folder = SafetensorsFolder(tmp_path)
    assert folder.shapes == {"a": (3, 5), "b": (7,), "c": (2, 2, 2)}
    for name, expected in arrays().items():
        found = folder.read(name)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(np.asarray(found, np.float32), expected.astype(np.float32))


def test_shards_are_found_by_their_index(tmp_path):
    whole = arrays()
    save_file({"a": whole["a"]}, tmp_path / "model-1.safetensors")
    save_file({"b": whole["b"], "c": whole["c"]}, tmp_path / "model-2.safetensors")
    where = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}))
    assert set(SafetensorsFolder(tmp_path).shapes) == {"a", "b", "c"}
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks model-2.safetensors, which its index lists"):
        SafetensorsFolder(tmp_path)


@pytest.mark.parametrize("kept", [4, 60, -1])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    path = tmp_path / "model.safetensors"
    save_file(arrays(), path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match="is cut short"):
        SafetensorsFolder(tmp_path)


def test_integer_weights_are_refused_by_type(tmp_path):
    save_file({"a": np.zeros(3, np.int8)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="a is of type I8; supported are F64, F32, F16, BF16"):
        SafetensorsFolder(tmp_path).read("a")


def test_a_folder_without_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"holds neither model.safetensors nor"):
        SafetensorsFolder(tmp_path)
