"""Rebuilds tokenizers from the pieces, merges, scores and types in a GGUF header.

Two kinds occur. "gpt2" is byte-level BPE, rebuilt as a `tokenizer.json`; the header
names its pre-tokenizer, which `SPLITS` defines. "llama" is SentencePiece BPE, rebuilt as
a `tokenizer.model`.
"""

import json
from collections.abc import Mapping
from typing import Any

from score_jax.text.tokenizer import JsonTokenizer, SentencePieceTokenizer, Tokenizer

CONTROL, USER_DEFINED = 3, 4  # piece types; the same numbers as in SentencePiece

# How text is split before merging; `{}` is the number pattern.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(pattern: str) -> list[dict[str, Any]]:
    """Pre-tokenizers that split by a regular expression, then map bytes to characters."""
    by_regex = {"pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [{"type": "Split", **by_regex}, byte_level(use_regex=False)]


def byte_level(*, use_regex: bool) -> dict[str, Any]:
    """The pre-tokenizer or decoder that maps between bytes and printable characters."""
    options = {"add_prefix_space": False, "trim_offsets": False, "use_regex": use_regex}
    return {"type": "ByteLevel", **options}


SPLITS: dict[str, list[dict[str, Any]]] = {
    "smollm": [{"type": "Digits", "individual_digits": True}, byte_level(use_regex=True)],
    "llama-bpe": split(PATTERN.format(r"\p{N}{1,3}")),
    "qwen2": split(PATTERN.format(r"\p{N}")),
}


def from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer inside a GGUF file.

    Raises:
      ValueError: there is none, or its kind is not supported.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return byte_level_bpe(metadata)
    if kind == "llama":
        return sentencepiece_bpe(metadata)
    raise ValueError(f"tokenizer.ggml.model is {kind!r}; supported are 'gpt2' and 'llama'")


def byte_level_bpe(metadata: Mapping[str, Any]) -> JsonTokenizer:
    """A byte-level BPE tokenizer as `tokenizer.json`."""
    name = metadata.get("tokenizer.ggml.pre", "")
    if name not in SPLITS:
        raise ValueError(f"tokenizer.ggml.pre is {name!r}; supported are {', '.join(SPLITS)}")
    pieces = metadata["tokenizer.ggml.tokens"]
    kinds = metadata["tokenizer.ggml.token_type"]
    added = [
        {"id": i, "content": piece, "special": int(kind) == CONTROL, "normalized": False}
        | {"single_word": False, "lstrip": False, "rstrip": False}
        for i, (piece, kind) in enumerate(zip(pieces, kinds, strict=True))
        if int(kind) in (CONTROL, USER_DEFINED)
    ]
    model = {
        "type": "BPE",
        "vocab": {piece: i for i, piece in enumerate(pieces)},
        "merges": [pair.split(" ", 1) for pair in metadata["tokenizer.ggml.merges"]],
        "ignore_merges": name == "llama-bpe",
    }
    content = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if name == "qwen2" else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": SPLITS[name]},
        "decoder": byte_level(use_regex=False),
        "model": model,
    }
    return JsonTokenizer(json.dumps(content, ensure_ascii=False))


def sentencepiece_bpe(metadata: Mapping[str, Any]) -> SentencePieceTokenizer:
    """A SentencePiece BPE tokenizer as `tokenizer.model`."""
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2  # Any: its classes are created at import
    model = proto.ModelProto()
    columns = [metadata[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type")]
    for piece, score, kind in zip(*columns, strict=True):
        # The header stores spaces unescaped; SentencePiece matches them as U+2581.
        model.pieces.add(piece=piece.replace(" ", "\u2581"), score=float(score), type=int(kind))
    spec = model.trainer_spec
    spec.model_type = proto.TrainerSpec.BPE
    spec.vocab_size = len(columns[0])
    spec.byte_fallback = True
    for name, key in (("unk", "unknown"), ("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        setattr(spec, f"{name}_id", int(metadata.get(f"tokenizer.ggml.{key}_token_id", -1)))
    model.normalizer_spec.name = "identity"
    prefix = bool(metadata.get("tokenizer.ggml.add_space_prefix", True))
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    return SentencePieceTokenizer(model.SerializeToString())
