"""Reads prepared TFDS folders with random access, without TensorFlow."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.data import rows
from score_jax.data.lazy import Lazy
from score_jax.records import Problem

INFO = "dataset_info.json"
OWN = ("score_math", "score_gsm8k", "score_mbpp", "score_humaneval")
OWN_VERSION = "1.1.0"
CATALOGUE = {"gsm8k": rows.gsm8k}


def _plain(value: Any) -> Any:
    """Converts bytes to text and arrays to lists."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(item) for item in value]
    return value


def _folder(path: str, name: str) -> Path:
    """Finds the only prepared version at or directly under a path."""
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


def problems(*, path: str, split: str, name: str = "") -> Lazy:
    """Opens a prepared data set.

    Args:
      path: folder of a version (with dataset_info.json), of a data set, or of several.
      split: a split of the data set, or a slice such as "train[:100]".
      name: the data set in `path`, if there are several.

    Raises:
      ValueError: folder or split does not exist, or data set, version or format is not
        supported.
    """
    if find_spec("tensorflow_datasets") is None:
        raise ValueError("data.source is 'tfds'; install tensorflow-datasets, array-record")
    folder = _folder(path, name)
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        found, version, form = info["name"], info["version"], info["fileFormat"]
        splits = [entry["name"] for entry in info["splits"]]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{folder / INFO} is damaged: {error}") from error
    if found not in (*OWN, *CATALOGUE):
        raise ValueError(
            f"{folder} holds {found!r}; only {', '.join((*OWN, *CATALOGUE))} are supported: "
            "convert others to JSONL"
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

    builder: Any = tensorflow_datasets.builder_from_directory(str(folder))
    source = builder.as_data_source(split=split)

    def read(index: int) -> Problem:
        row = {field: _plain(value) for field, value in source[index].items()}
        if found in CATALOGUE:
            return CATALOGUE[found](row, f"{found}/{split}/{index}")
        return Problem(**{**row, "tests": tuple(row["tests"]), "shown": tuple(row["shown"])})

    return Lazy(len(source), read)
