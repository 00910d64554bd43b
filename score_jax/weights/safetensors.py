"""Safetensors files as named, lazily read tensors; and their writing, tensor by tensor.

Only headers are read at first. Each tensor is mapped into memory when asked for
and unmapped when dropped, so that pages of the file do not pile up in this
process, and a slice of a tensor costs the reading of that slice.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

DTYPES: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
INDEX_FILE = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"


class Place(NamedTuple):
    """Where a tensor's bytes are."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: str  # as the header spells it
    shape: tuple[int, ...]


class SafetensorsFolder:
    """Tensors of one `model.safetensors`, or of the shards that an index lists."""

    def __init__(self, folder: Path):
        """Args: folder: holds the files; their headers are read and checked here."""
        self.places: dict[str, Place] = {}
        for path in weight_files(folder):
            self.places.update(read_header(path))
        self.shapes = {name: place.shape for name, place in self.places.items()}

    def read(self, name: str) -> np.ndarray:
        """A read-only view of one tensor's bytes, in the file's own type."""
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise ValueError(
                f"{place.path}: {name} is of type {place.dtype}; supported are {', '.join(DTYPES)}"
            )
        dtype = np.dtype(DTYPES[place.dtype])
        return np.memmap(place.path, dtype, "r", place.offset, place.shape)


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights.

    Raises:
      ValueError: there are none, or some that the index names are missing.
    """
    index = folder / INDEX_FILE
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(f"{folder} lacks {', '.join(missing)}, which its index names")
        return [folder / name for name in names]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    raise ValueError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; point at one that does"
    )


def read_header(path: Path) -> dict[str, Place]:
    """Names and places of a file's tensors, checked against the file's length.

    Raises:
      ValueError: the file is cut short or is no safetensors file.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or length < 2:
            raise ValueError(f"{path} is cut short or no safetensors file; fetch it again")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    ends = [entry["data_offsets"][1] for entry in header.values()]
    if size < 8 + length + max(ends, default=0):
        raise ValueError(
            f"{path} is cut short: {size} bytes of {8 + length + max(ends)}; fetch it again"
        )
    return {
        name: Place(
            path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"])
        )
        for name, entry in header.items()
    }


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]  # brings it to the host, in C order

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def write_file(path: Path, pieces: Sequence[Piece]) -> None:
    """Writes a safetensors file, one tensor in memory at a time.

    Every host fetches, since a tensor may be spread over all; the first one writes.
    """
    spelt = {np.dtype(kind): name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    at = 0
    for piece in pieces:
        place = {"dtype": spelt[piece.dtype], "data_offsets": [at, at + piece.size]}
        header[piece.name] = place | {"shape": piece.shape}
        at += piece.size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    if jax.process_index() > 0:
        for piece in pieces:
            piece.fetch()
        return
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in pieces:
            file.write(piece.fetch().view(np.uint8).data)
