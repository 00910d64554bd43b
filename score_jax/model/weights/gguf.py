"""Reads a GGUF file: its metadata, and its tensors under their Hugging Face names.

The header is parsed from a memory map (a vocabulary of 262,144 pieces takes a
fraction of a second); the gguf library dequantises a tensor to float32 when it is read.
Two changes of llama.cpp's converter are undone: it interleaves query and key rows for its
rotary embedding, and adds 1 to Gemma's norms.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from score_jax.text.files import check_fetched

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
FAMILIES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma2": "gemma2",
    "gemma3": "gemma3_text",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_norm": "post_attention_layernorm",  # Gemma: pre_feedforward_layernorm
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's scaling, one factor per frequency


class Stored(NamedTuple):
    """A tensor's location in the file, its quantisation and its shape."""

    offset: int  # bytes from the start of the file
    quantisation: int  # GGML type number
    shape: tuple[int, ...]  # (out, in)


class Header(NamedTuple):
    """The metadata and the tensor table of a GGUF file."""

    metadata: dict[str, Any]
    tensors: dict[str, Stored]


class Cursor:
    """A reading position in mapped bytes."""

    def __init__(self, data: mmap.mmap):
        """Args: data: the file's bytes."""
        self.data, self.offset = data, 0

    def skip(self, length: int) -> int:
        """Advances by `length` bytes and returns the old offset; struct.error past the end."""
        start, self.offset = self.offset, self.offset + length
        if self.offset > len(self.data):
            raise struct.error("the file ends here")
        return start

    def scalar(self, code: str) -> Any:
        """Reads one little-endian number."""
        start = self.skip(struct.calcsize("<" + code))
        return struct.unpack_from("<" + code, self.data, start)[0]

    def text(self) -> str:
        """Reads a string with its length in front."""
        start = self.skip(self.scalar("Q"))
        return self.data[start : self.offset].decode("utf-8", "replace")

    def value(self, kind: int) -> Any:
        """Reads a metadata value of a GGUF type number."""
        if kind in SCALARS:
            return self.scalar(SCALARS[kind])
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            raise struct.error(f"a value has the unknown type {kind}")
        inner, count = self.scalar("I"), self.scalar("Q")
        if inner not in SCALARS:
            return [self.value(inner) for _ in range(count)]
        code = "<" + SCALARS[inner]
        start = self.skip(count * struct.calcsize(code))
        return np.frombuffer(self.data, code, count, start).copy()


def read_header(path: Path) -> Header:
    """Metadata and tensor table of a GGUF file; offsets count from the file's start.

    Raises:
      ValueError: the file is no GGUF file, has an unknown version, is truncated, or is one of
        several parts.
    """
    check_fetched(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        cursor = Cursor(data)
        if data[:4] != b"GGUF":
            raise ValueError(f"{path} is no GGUF file; convert the model, or fetch it again")
        cursor.offset = 4
        try:
            version = cursor.scalar("I")
            if version not in (2, 3):
                raise ValueError(
                    f"{path} is GGUF version {version}; versions 2 and 3 are read, convert it again"
                )
            tensors, fields = cursor.scalar("Q"), cursor.scalar("Q")
            metadata = {cursor.text(): cursor.value(cursor.scalar("I")) for _ in range(fields)}
            table = dict(read_table_entry(cursor) for _ in range(tensors))
        except (struct.error, RecursionError) as error:
            raise ValueError(
                f"{path} is cut short within its header, or damaged ({error}); fetch it again"
            ) from error
        step = metadata.get("general.alignment", 32)
        if type(step) is not int or step < 1:
            raise ValueError(f"{path}: general.alignment is {step!r}; fetch the file again")
        start = -(-cursor.offset // step) * step
    check_whole(path, metadata)
    return Header(metadata, {k: v._replace(offset=start + v.offset) for k, v in table.items()})


def check_whole(path: Path, metadata: Mapping[str, Any]) -> None:
    """Raises ValueError where a file is only one part of a model."""
    if (parts := metadata.get("split.count", 0)) not in (0, 1):
        raise ValueError(
            f"{path} is one of {parts} parts; join them with 'llama-gguf-split --merge'"
        )


def read_table_entry(cursor: Cursor) -> tuple[str, Stored]:
    """Reads one entry of the tensor table; its dimensions are stored innermost first."""
    name = cursor.text()
    shape = tuple(cursor.scalar("Q") for _ in range(cursor.scalar("I")))[::-1]
    kind, offset = cursor.scalar("I"), cursor.scalar("Q")
    return name, Stored(offset, kind, shape)


class GgufFile:
    """Tensors of a GGUF file, named and laid out as in the Hugging Face model."""

    def __init__(self, path: Path):
        """Args: path: the file; its header is read and checked here."""
        self.path = path
        header = read_header(path)
        self.metadata = header.metadata
        self.family = family_of(header.metadata, path)
        named = {n: s for n, s in header.tensors.items() if n != ROPE_FACTORS}
        self.stored = {huggingface_name(name, self.family): s for name, s in named.items()}
        self.shapes = {name: stored.shape for name, stored in self.stored.items()}
        self.check_length()

    def check_length(self) -> None:
        """Raises ValueError when the file ends before its last tensor does."""
        size = self.path.stat().st_size
        for name, stored in self.stored.items():
            if stored.offset + byte_count(self.path, name, stored) > size:
                raise ValueError(f"{self.path} is cut short: {name} is missing; fetch it again")

    def read(self, name: str) -> np.ndarray:
        """One tensor in float32."""
        import gguf

        stored = self.stored[name]
        count = byte_count(self.path, name, stored)
        raw = np.memmap(self.path, np.uint8, "r", stored.offset, count)
        kind = gguf.GGMLQuantizationType(stored.quantisation)
        rows = raw.reshape(*stored.shape[:-1], -1)
        tensor = gguf.dequantize(rows, kind).reshape(stored.shape)
        if self.family.startswith("gemma") and name.endswith("norm.weight"):
            return tensor - 1
        if self.family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            return halves(tensor, self.heads(keys="k_proj" in name))
        return tensor

    def heads(self, *, keys: bool) -> int:
        """The number of query heads, or of key heads.

        Raises:
          ValueError: the header lacks it.
        """
        names = ("head_count_kv", "head_count") if keys else ("head_count",)
        for name in names:
            value = self.metadata.get(f"llama.attention.{name}")
            if type(value) is int and value > 0:
                return value
        raise ValueError(f"{self.path} lacks llama.attention.head_count; convert the model again")


def byte_count(path: Path, name: str, stored: Stored) -> int:
    """Bytes of a tensor in the file.

    Raises:
      ValueError: the gguf library cannot dequantise it.
    """
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(stored.quantisation)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        raise ValueError(
            f"{path}: {name} has quantisation {stored.quantisation}, which gguf cannot "
            "dequantise; convert the model to Q8_0 or F16"
        ) from error
    return math.prod(stored.shape) // block * size


def halves(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of each head from interleaved pairs to two halves."""
    rows, width = tensor.shape
    pairs = tensor.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def family_of(metadata: Mapping[str, Any], path: Path) -> str:
    """The Hugging Face `model_type` of a GGUF architecture.

    Raises:
      ValueError: it is not supported.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{path}: general.architecture is {name!r}; supported are {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def huggingface_name(name: str, family: str) -> str:
    """A tensor's Hugging Face name; an unknown name is returned unchanged."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in LAYER_NAMES:
        return name
    inner = LAYER_NAMES[parts[2]]
    if parts[2] == "ffn_norm" and family.startswith("gemma"):
        inner = "pre_feedforward_layernorm"
    return f"model.layers.{parts[1]}.{inner}.{parts[3]}"
