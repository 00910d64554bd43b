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
from safetensors import SafetensorError, safe_open

from score_jax.text.files import check_fetched, read_json

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
        paths, self.note = weight_files(folder)  # the latter: what a user should be told
        for path in paths:
            self.places.update(read_header(path))
        self.shapes = {name: place.shape for name, place in self.places.items()}

    def read(self, name: str) -> np.ndarray:
        """A read-only view of one tensor's bytes, in the file's own type."""
        place = self.places[name]
        if place.dtype not in DTYPES:
            raise ValueError(
                f"{place.path}: {name} is of type {place.dtype}; supported are "
                f"{', '.join(DTYPES)}, use unquantised weights"
            )
        dtype = np.dtype(DTYPES[place.dtype])
        return np.memmap(place.path, dtype, "r", place.offset, place.shape)


def holds_weights(folder: Path) -> bool:
    """Whether a folder has a file of weights, or an index of some."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def weight_files(folder: Path) -> tuple[list[Path], str | None]:
    """The files that hold a folder's weights, and a note where others are passed over.

    A single file goes before an index, as in transformers.

    Raises:
      ValueError: there are none, or some that the index names are missing.
    """
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if single.is_file():
        note = f"{folder}: {SINGLE_FILE} is read, and {INDEX_FILE} beside it ignored"
        return [single], note if index.is_file() else None
    if not index.is_file():
        raise ValueError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; point at one that does"
        )
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where:
        raise ValueError(f"{index} has no weight_map of tensors to files; fetch it again")
    if not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index}: weight_map names files by other than text; fetch it again")
    names = sorted(set(where.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}, which its index names; fetch what is missing"
        )
    return [folder / name for name in names], None


def read_header(path: Path) -> dict[str, Place]:
    """Names and places of a file's tensors, checked against the file's length.

    Raises:
      ValueError: the file is cut short, damaged or no safetensors file.
    """
    check_fetched(path)
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length or length < 2:
            raise ValueError(f"{path} is cut short or no safetensors file; fetch it again")
        text = file.read(length)
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        end = 8 + length + max((e["data_offsets"][1] for e in header.values()), default=0)
        if size < end:
            raise ValueError(f"{path} is cut short: {size} bytes of {end}; fetch it again")
        with safe_open(path, framework="numpy"):  # the format's own library checks the rest
            pass
    except (TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        told = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} has a bad header ({told}); fetch it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} has a bad header ({error}); fetch it again") from error
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
