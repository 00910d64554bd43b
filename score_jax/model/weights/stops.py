"""Reads the token ids that end a turn from the files of a model.

They come from `generation_config.json`, or from `config.json` if that has none, as in
transformers; in a GGUF file they are the end-of-text, end-of-turn and end-of-message ids.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from score_jax.model.weights.gguf import read_header
from score_jax.model.weights.load import CONFIG_FILE, GGUF, locate
from score_jax.text.files import read_json

GENERATION_FILE = "generation_config.json"
FIELD = "eos_token_id"
GGUF_FIELDS = tuple(f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom"))


def load_stops(source: str) -> tuple[int, ...]:
    """The ids in the file's order; empty if the files have none.

    Raises:
      ValueError: a value is no token id.
    """
    path = locate(source)
    if path.suffix == GGUF:
        metadata = read_header(path).metadata
        found = {name: metadata[name] for name in GGUF_FIELDS if name in metadata}
        for name, value in found.items():
            if type(value) is not int:
                raise ValueError(f"{path}: {name} is {value!r}; convert the model again")
        return tuple(dict.fromkeys(found.values()))
    for name in (GENERATION_FILE, CONFIG_FILE):
        if ids := read_ids(path / name):
            return ids
    return ()


def save_stops(folder: Path, stops: Sequence[int]) -> None:
    """Writes the file that `load_stops` reads."""
    (folder / GENERATION_FILE).write_text(json.dumps({FIELD: list(stops)}) + "\n", encoding="utf-8")


def read_ids(path: Path) -> tuple[int, ...]:
    """The ids in one file; of an image-and-text model those of its text config."""
    if not path.is_file():
        return ()
    data = read_json(path)
    inner = data.get("text_config")
    value = data.get(FIELD)
    if value is None and isinstance(inner, dict):
        value = inner.get(FIELD)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise ValueError(f"{path}: {FIELD} is {value!r}; set a token id, or a list of them")
    return tuple(dict.fromkeys(ids))
