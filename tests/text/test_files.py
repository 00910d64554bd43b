"""What is no text or JSON is told in one line, with its path and a remedy."""

import json

import pytest

from score_jax.text import tokenizer
from score_jax.text.files import read_json, read_text
from tests.small_tokenizers import make

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 132\n"
WRONG = {
    "pointer": (POINTER, "is a git-lfs pointer, not the file itself; run 'git lfs pull'"),
    "empty": (b"", "is empty; fetch it again"),
    "byte-order mark": (b"\xef\xbb\xbf{}", "begins with a byte-order mark; save it as UTF-8"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not UTF-8 at byte 0;"),
    "latin-1": ('{"a": "é"}'.encode("latin-1"), "is not UTF-8 at byte 7;"),
    "cut": (b'{"a": [1, 2', "is cut short or no JSON .*line 1, column 12.*; fetch it again"),
    "spaces only": (b"  \n", "is cut short or no JSON"),
    "a page": (b"<!doctype html><title>404</title>", "is cut short or no JSON"),
    "list": (b'[{"a": 1}]', "holds a list; a JSON object is needed"),
    "number": (b"12", "holds a int; a JSON object is needed"),
    "null": (b"null", "holds a NoneType; a JSON object is needed"),
    "deep": (b"[" * 100_000, "is nested too deeply"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_json_file_is_told(case, tmp_path):
    content, message = WRONG[case]
    path = tmp_path / "some.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{}, {"a": "é\ufeff"}, {"version": "https://git-lfs"}])
def test_what_is_right_is_read(value, tmp_path):
    path = tmp_path / "some.json"
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    assert read_json(path) == value
    assert json.loads(read_text(path)) == value


TOKENIZERS = {
    "pointer": ("tokenizer.json", POINTER, "tokenizer.json is a git-lfs pointer"),
    "empty": ("tokenizer.json", b"", "tokenizer.json is empty"),
    "cut": ("tokenizer.json", b'{"model": {"vocab": {"a"', "tokenizer.json is cut short"),
    "other": ("tokenizer.json", b'{"a": 1}', "tokenizer.json has no model with a vocab"),
    "list": ("tokenizer.json", b'{"model": []}', "tokenizer.json has no model with a vocab"),
    "no vocabulary": ("tokenizer.json", b'{"model": {"vocab": {}}}', "has no model with a vocab"),
    **{
        name: ("tokenizer.json", json.dumps(content).encode(), "tokenizer.json is damaged")
        for name, content in {
            "no ids": {"model": {"type": "BPE", "vocab": {"a": "0"}, "merges": []}},
            "lost merge": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}},
            "merges of a wrong type": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 7}},
            "unknown model": {"model": {"type": "New", "vocab": {"a": 0}}},
            "unknown splits": {
                "pre_tokenizer": {"type": "New"},
                "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            },
        }.items()
    },
    "pointer to pieces": ("tokenizer.model", POINTER, "tokenizer.model is a git-lfs pointer"),
    "no pieces": ("tokenizer.model", b"", "tokenizer.model is empty"),
    "broken pieces": ("tokenizer.model", b"\n\x05abc", "tokenizer.model is no SentencePiece"),
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_a_broken_tokenizer_is_told_by_its_file(case, tmp_path):
    name, content, message = TOKENIZERS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        tokenizer.load(tmp_path)


def test_a_whole_tokenizer_is_read(tmp_path):
    make("chatml").save(tmp_path)
    assert tokenizer.load(tmp_path).encode("7 + 5") == make("chatml").encode("7 + 5")
