"""A tokenizer rebuilt from a GGUF header encodes as the one that it was made from."""

import json

import pytest
from sentencepiece import sentencepiece_model_pb2

from score_jax.text.rebuild import CONTROL, SPLITS, USER_DEFINED, from_gguf
from tests.small_tokenizers import CORPUS, byte_level, gemma

TEXTS = [*CORPUS[:5], "  a   b\n\n\n", "12345 = 6", "🙂 東京", "it's WE'LL"]


def header_of_byte_level(tokenizer, split):
    """The metadata that llama.cpp's converter writes for a tokenizer.json."""
    content = json.loads(tokenizer.content)
    pieces = dict(content["model"]["vocab"])
    special = {token["content"] for token in content["added_tokens"]}
    merges = content["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": split,
        "tokenizer.ggml.tokens": sorted(pieces, key=pieces.__getitem__),
        "tokenizer.ggml.token_type": [
            CONTROL if piece in special else 1 for piece in sorted(pieces, key=pieces.__getitem__)
        ],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
    }


@pytest.mark.parametrize(("family", "split"), [("llama3", "llama-bpe"), ("chatml", "qwen2")])
def test_byte_level_bpe(family, split):
    original = byte_level(family)
    rebuilt = from_gguf(header_of_byte_level(original, split))
    assert [rebuilt.encode(t) for t in TEXTS] == [original.encode(t) for t in TEXTS]
    assert [rebuilt.decode(rebuilt.encode(t)) for t in TEXTS] == TEXTS
    assert rebuilt.vocab_size == original.vocab_size


def test_sentencepiece_with_runs_of_spaces():
    original = gemma()
    proto = sentencepiece_model_pb2.ModelProto.FromString(original.model)
    header = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [
            p.piece.replace("\u2581", " ") if p.type == USER_DEFINED else p.piece
            for p in proto.pieces
        ],
        "tokenizer.ggml.scores": [p.score for p in proto.pieces],
        "tokenizer.ggml.token_type": [p.type for p in proto.pieces],
        "tokenizer.ggml.add_space_prefix": False,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }
    rebuilt = from_gguf(header)
    assert [rebuilt.encode(t) for t in TEXTS] == [original.encode(t) for t in TEXTS]
    assert rebuilt.marker("<start_of_turn>") == original.marker("<start_of_turn>")


def test_smollm_splits_numbers_into_digits():
    header = header_of_byte_level(byte_level("chatml"), "smollm")
    assert [SPLITS["smollm"][0]["type"], len(from_gguf(header).encode("2023"))] == ["Digits", 4]


def test_unknown_kinds_are_named():
    with pytest.raises(ValueError, match=r"tokenizer.ggml.model is 'rwkv'; supported are"):
        from_gguf({"tokenizer.ggml.model": "rwkv"})
    with pytest.raises(ValueError, match=r"tokenizer.ggml.pre is 'gpt-4o'; supported are smollm"):
        from_gguf({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-4o"})
