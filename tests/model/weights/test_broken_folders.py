"""A broken model folder is told in one line: the file, what is wrong, the remedy."""

import json
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from score_jax.model.weights import gguf, load
from score_jax.model.weights.safetensors import SafetensorsFolder
from tests.reference_models import PINNED, fill

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path):
    """A small tied Llama."""
    pinned = json.loads(PINNED.read_text())["smollm2"]
    (tmp_path / CONFIG).write_text(json.dumps(pinned["config"]))
    tensors = {name: fill(name, tuple(shape)) for name, shape in pinned["shapes"].items()}
    save_file(tensors, tmp_path / SINGLE)
    return tmp_path


def shard(folder):
    """The same in two files and an index."""
    whole = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    where = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(whole)}
    for part in set(where.values()):
        save_file({n: v for n, v in whole.items() if where[n] == part}, folder / part)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def with_header(header):
    """A file with eight bytes of data behind a header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * 8


def entry(**changes):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


BROKEN = {  # a file's name, what it holds, what is said
    "config a pointer": (CONFIG, POINTER, "config.json is a git-lfs pointer, not the file"),
    "config empty": (CONFIG, b"", "config.json is empty; fetch it again"),
    "config cut": (CONFIG, b'{"model_type": "lla', "config.json is cut short or no JSON"),
    "config with a mark": (CONFIG, b"\xef\xbb\xbf{}", "config.json begins with a byte-order mark"),
    "config a list": (CONFIG, b"[]", "config.json holds a list"),
    "config without all": (CONFIG, b"{}", "config.json: model_type is 'None'"),
    "weights a pointer": (SINGLE, POINTER, "model.safetensors is a git-lfs pointer"),
    "weights empty": (SINGLE, b"", "model.safetensors is empty"),
    "weights of a few bytes": (SINGLE, b"abc", "model.safetensors is cut short or no safetensors"),
    "weights of pickle": (SINGLE, b"PK\x03\x04" + b"x" * 99, "is cut short or no safetensors file"),
    "header no JSON": (SINGLE, with_header(b"{'a': 1}"), "has a bad header .*; fetch it again"),
    "header no text": (SINGLE, with_header(b"\xff\xfe{}"), "has a bad header .*; fetch it again"),
    "header a list": (SINGLE, with_header([1]), "has a bad header .*; fetch it again"),
    "entry a list": (SINGLE, with_header({"a": [1]}), "has a bad header"),
    "entry lacks offsets": (SINGLE, with_header({"a": {"dtype": "F32"}}), "bad header"),
    "offsets of text": (SINGLE, with_header(entry(data_offsets=["0", "8"])), "bad header"),
    "one offset": (SINGLE, with_header(entry(data_offsets=[0])), "bad header"),
    "offsets backwards": (SINGLE, with_header(entry(data_offsets=[8, 0])), "bad header"),
    "shape too large": (SINGLE, with_header(entry(shape=[3])), "bad header"),
    "shape of text": (SINGLE, with_header(entry(shape="2")), "bad header"),
    "negative shape": (SINGLE, with_header(entry(shape=[-2])), "bad header"),
    "unknown type": (SINGLE, with_header(entry(dtype="F33")), "bad header"),
    "data missing": (SINGLE, with_header(entry())[:-4], r"is cut short: \d+ bytes of \d+; fetch"),
    "data left over": (SINGLE, with_header(entry()) + b"1234", "bad header"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_told_by_its_path(case, folder):
    name, content, message = BROKEN[case]
    config = load.model_config(str(folder))
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load.model_config(str(folder))
        load.load_params(str(folder), config)
    told = str(caught.value)
    assert told.startswith(str(folder)) and "\n" not in told


INDICES = {
    "pointer": (POINTER, "index.json is a git-lfs pointer"),
    "cut": (b'{"weight_map": {"a"', "index.json is cut short or no JSON"),
    "no map": (b'{"metadata": {}}', "index.json has no weight_map of tensors to files; fetch"),
    "an empty map": (b'{"weight_map": {}}', "index.json has no weight_map"),
    "a list": (b'{"weight_map": ["a"]}', "index.json has no weight_map"),
    "numbers": (b'{"weight_map": {"a": 1}}', "weight_map has values that are not text"),
    "absent file": (b'{"weight_map": {"a": "b.safetensors"}}', "lacks b.safetensors, which its in"),
}


@pytest.mark.parametrize("case", INDICES)
def test_a_broken_index_is_told(case, folder):
    shard(folder)
    content, message = INDICES[case]
    (folder / INDEX).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        SafetensorsFolder(folder)


def test_a_shard_that_is_a_pointer_is_told(folder):
    shard(folder)
    (folder / "part-1.safetensors").write_bytes(POINTER)
    with pytest.raises(ValueError, match=r"part-1.safetensors is a git-lfs pointer"):
        SafetensorsFolder(folder)


@pytest.mark.parametrize("index", [b'{"weight_map": {"a": "gone.safetensors"}}', b"", b"{}"])
def test_a_single_file_goes_before_a_stale_index_and_that_is_said(index, folder, capsys):
    config = load.model_config(str(folder))
    expected = load.load_params(str(folder), config)
    assert capsys.readouterr().out == ""
    (folder / INDEX).write_bytes(index)
    found = load.load_params(str(folder), config)
    np.testing.assert_array_equal(found["embedding"], expected["embedding"])
    told = f"{folder}: {SINGLE} is read, and {INDEX} is ignored\n"
    assert capsys.readouterr().out == told


def test_shards_without_a_single_file_are_read_in_silence(folder, capsys):
    config = load.model_config(str(folder))
    expected = load.load_params(str(folder), config)
    shard(folder)
    found = load.load_params(str(folder), load.model_config(str(folder)))
    np.testing.assert_array_equal(found["embedding"], expected["embedding"])
    assert capsys.readouterr().out == ""


def store_head(folder, change, name="lm_head.weight"):
    tensors = load_file(folder / SINGLE)
    head = tensors["model.embed_tokens.weight"].copy()
    change(head)
    save_file(tensors | {name: head}, folder / SINGLE)
    return head


def last_value(head):
    head[-1, -1] += 1


@pytest.mark.parametrize("name", ["lm_head.weight", "language_model.lm_head.weight"])
def test_an_output_table_that_differs_is_used_and_that_is_said(name, folder, capsys, monkeypatch):
    monkeypatch.setattr(load, "COMPARED_ROWS", 10)
    tied = load.model_config(str(folder))
    head = store_head(folder, last_value, name)
    config = load.model_config(str(folder))
    assert (tied.tied_embeddings, config.tied_embeddings) == (True, False)
    assert re.search(
        "lm_head.weight differs from the embeddings and is used", capsys.readouterr().out
    )
    load.model_config(str(folder))
    assert not capsys.readouterr().out  # said once, however often a run reads its config
    np.testing.assert_array_equal(load.load_params(str(folder), config)["unembedding"], head)
    with pytest.raises(ValueError, match=r"tied_embeddings is True, but the lm_head.weight of"):
        load.load_params(str(folder), tied)


def test_an_output_table_that_repeats_the_embeddings_is_not(folder, capsys):
    config = load.model_config(str(folder))
    store_head(folder, lambda head: None)
    assert load.model_config(str(folder)) == config
    assert "unembedding" not in load.load_params(str(folder), config)
    assert capsys.readouterr().out == ""


def test_an_output_table_of_an_untied_model_is_no_news(folder, capsys):
    raw = json.loads((folder / CONFIG).read_text()) | {"tie_word_embeddings": False}
    (folder / CONFIG).write_text(json.dumps(raw))
    store_head(folder, last_value)
    assert not load.model_config(str(folder)).tied_embeddings
    assert capsys.readouterr().out == ""


GGUF = {
    "pointer": (POINTER, "a.gguf is a git-lfs pointer"),
    "empty": (b"", "a.gguf is empty; fetch it again"),
    "another kind": (b"PK\x03\x04" + b"x" * 40, "a.gguf is no GGUF file"),
    "three bytes": (b"GGU", "a.gguf is no GGUF file"),
    "magic only": (b"GGUF", "a.gguf is cut short within its header"),
    "old version": (b"GGUF\x01\0\0\0" + b"\0" * 16, "a.gguf is GGUF version 1; versions 2 and 3"),
    "many fields": (b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\xff" * 8, "is cut short within its header"),
    "long name": (
        b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\1" + b"\0" * 7 + b"\xff" * 8 + b"x" * 9,
        "is cut short within its header",
    ),
    "unknown type": (
        b"GGUF\x03\0\0\0" + b"\0" * 8 + b"\1" + b"\0" * 7 + b"\1" + b"\0" * 7 + b"a\x63\0\0\0",
        "or damaged .a value has the unknown type 99",
    ),
    "nothing inside": (b"GGUF\x03\0\0\0" + b"\0" * 16, "a.gguf: general.architecture is None"),
}


@pytest.mark.parametrize("case", GGUF)
def test_a_broken_gguf_file_is_told(case, tmp_path):
    content, message = GGUF[case]
    path = tmp_path / "a.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        load.model_config(str(path))
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        gguf.GgufFile(path)
