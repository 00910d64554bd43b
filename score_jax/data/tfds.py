"""Reads TFDS folders with random access and without TensorFlow."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from score_jax.data import rows
from score_jax.records import Problem

INFO = "dataset_info.json"
OWN = ("score_math", "score_gsm8k", "score_mbpp", "score_humaneval")
OWN_VERSION = "1.0.0"
CATALOGUE = {"gsm8k": rows.gsm8k}


def _plain(value: object) -> object:
    """Turns the bytes and arrays of TFDS into text and lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    return value


class Prepared(Sequence[Problem]):
    """Problems read from array_record files as they are asked for."""

    def __init__(self, source: Sequence[Mapping], name: str, split: str):
        """Takes an opened data source."""
        self._source, self._name, self._split = source, name, split

    def __len__(self) -> int:
        """All of the split."""
        return len(self._source)

    def __getitem__(self, index):
        """Returns the problem at a place; slices are lists."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"place {index} of {len(self)} problems")
        index %= len(self)
        row = {name: _plain(value) for name, value in self._source[index].items()}
        if self._name in CATALOGUE:
            return CATALOGUE[self._name](row, f"{self._name}/{self._split}/{index}")
        return Problem(**{**row, "tests": tuple(row["tests"])})


def _folder(path: str, name: str) -> Path:
    """Finds the one prepared version at or under a path."""
    root = Path(path) / name if name else Path(path)
    if (root / INFO).is_file():
        return root
    found = sorted(info.parent for info in root.glob(f"*/{INFO}"))
    if len(found) != 1:
        names = ", ".join(folder.name for folder in found) or "none"
        raise ValueError(
            f"data.path {str(root)!r} must be or hold one prepared TFDS version; it holds {names}"
        )
    return found[0]


def problems(*, path: str, split: str, name: str = "") -> Prepared:
    """Opens a prepared data set.

    Args:
      path: folder of a version (it holds dataset_info.json), of a data set, or of several.
      split: one of the data set's, slices such as "train[:100]" included.
      name: the data set under `path`, if that holds several.

    Raises:
      ValueError: there is no such folder or split, its version or format is another, or it
        is of a data set that we cannot read.
    """
    if find_spec("tensorflow_datasets") is None:
        raise ValueError("data.source is 'tfds'; install tensorflow-datasets, array-record")
    folder = _folder(path, name)
    try:
        info = json.loads((folder / INFO).read_text())
        found, version, form = info["name"], info["version"], info["fileFormat"]
        splits = [entry["name"] for entry in info["splits"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / INFO} is damaged: {error}") from error
    if found not in (*OWN, *CATALOGUE):
        raise ValueError(
            f"{folder} holds {found!r}; only {', '.join((*OWN, *CATALOGUE))} can be read as they "
            "are: prepare others as JSONL"
        )
    if found in OWN and version != OWN_VERSION:
        raise ValueError(
            f"{folder} is version {version} of {found}; this release reads {OWN_VERSION}: "
            "prepare it again with python -m score_jax.data --prepare"
        )
    if form != "array_record":
        raise ValueError(f"{folder} has the format {form}; prepare it with array_record")
    if split.partition("[")[0] not in splits:
        raise ValueError(f"data.split is {split!r}; {folder} has {', '.join(splits)}")
    import tensorflow_datasets

    builder = tensorflow_datasets.builder_from_directory(str(folder))
    return Prepared(builder.as_data_source(split=split), found, split)
