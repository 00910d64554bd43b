"""Reads tensors of safetensors files lazily, and writes such files tensor by tensor.

Only headers are read at first. Each tensor is memory-mapped when it is read and unmapped
when it is freed, so that the process does not accumulate pages of the file, and slicing a
tensor reads only that slice.
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
from jax.experimental import multihost_utils
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


class Stored(NamedTuple):
    """A tensor's location, dtype and shape."""

    path: Path
    offset: int  # bytes from the start of the file
    dtype: str  # a key of DTYPES, if supported
    shape: tuple[int, ...]


class SafetensorsFolder:
    """Tensors of one `model.safetensors`, or of the shards that an index lists."""

    def __init__(self, folder: Path):
        """Args: folder: holds the files; their headers are read and checked here."""
        self.stored: dict[str, Stored] = {}
        paths, self.note = weight_files(folder)  # note: a message for the log, or None
        for path in paths:
            self.stored.update(read_header(path))
        self.shapes = {name: stored.shape for name, stored in self.stored.items()}

    def read(self, name: str) -> np.ndarray:
        """Maps one tensor as a read-only array of the file's dtype."""
        return read_stored(name, self.stored[name])


def read_stored(name: str, stored: Stored) -> np.ndarray:
    """Maps a tensor as a read-only array of the file's dtype.

    Args:
      name: for messages.

    Raises:
      ValueError: the dtype is not supported.
    """
    if stored.dtype not in DTYPES:
        raise ValueError(
            f"{stored.path}: {name} is of type {stored.dtype}; supported are "
            f"{', '.join(DTYPES)}, use unquantised weights"
        )
    dtype = np.dtype(DTYPES[stored.dtype])
    return np.memmap(stored.path, dtype, "r", stored.offset, stored.shape)


def holds_weights(folder: Path) -> bool:
    """Whether a folder contains a single weights file or an index of shards."""
    return any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE))


def weight_files(folder: Path) -> tuple[list[Path], str | None]:
    """The files with a folder's weights, and a note if an index is ignored.

    A single file has priority over an index, as in transformers.

    Raises:
      ValueError: there are none, or shards that the index lists are missing.
    """
    index, single = folder / INDEX_FILE, folder / SINGLE_FILE
    if single.is_file():
        note = f"{folder}: {SINGLE_FILE} is read, and {INDEX_FILE} is ignored"
        return [single], note if index.is_file() else None
    if not index.is_file():
        raise ValueError(
            f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}; point at one that does"
        )
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} has no weight_map of tensors to files; fetch it again")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: weight_map has values that are not text; fetch it again")
    names = sorted(set(weight_map.values()))
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {', '.join(missing)}, which its index lists; fetch the missing files"
        )
    return [folder / name for name in names], None


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors that a file's header lists, checked against the file's length.

    Raises:
      ValueError: the file is truncated, damaged or no safetensors file.
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
        with safe_open(path, framework="numpy"):  # safetensors checks the rest
            pass
    except (TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} has a bad header ({reason}); fetch it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
        raise ValueError(f"{path} has a bad header ({error}); fetch it again") from error
    return {
        name: Stored(
            path, 8 + length + entry["data_offsets"][0], entry["dtype"], tuple(entry["shape"])
        )
        for name, entry in header.items()
    }


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    fetch: Callable[[], np.ndarray]  # copies it to the host, in C order

    @property
    def size(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def to_host(array: Any) -> np.ndarray:
    """An array on the host, gathered where other hosts hold parts of it; all hosts call it."""
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def write_file(path: Path, pieces: Sequence[Piece]) -> None:
    """Writes a safetensors file, one tensor in memory at a time.

    Every host fetches, as a tensor may be sharded over all hosts; only host 0 writes.
    """
    dtype_names = {np.dtype(kind): name for name, kind in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers requires it
    offset = 0
    for piece in pieces:
        entry = {
            "dtype": dtype_names[piece.dtype],
            "data_offsets": [offset, offset + piece.size],
            "shape": piece.shape,
        }
        header[piece.name] = entry
        offset += piece.size
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
