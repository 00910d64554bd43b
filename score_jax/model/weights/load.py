"""Weights from disk or hub into sharded arrays, one parameter at a time.

    source ----> shapes of stored tensors ----> checked against names.entries(config)
                                                        |
    read(name) [slice of a mapped file] ----> this host's part ----> device

What a host does not hold it does not read. The largest parameters go first, while
little else is in memory, so that the buffer in flight never tops the finished tree.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from score_jax.distributed import processes
from score_jax.model.config import Dtype, ModelConfig
from score_jax.model.weights import gguf_config, orbax_folder
from score_jax.model.weights.families import from_hf
from score_jax.model.weights.gguf import GgufFile, read_header
from score_jax.model.weights.names import Entry, entries
from score_jax.model.weights.safetensors import SafetensorsFolder, holds_weights
from score_jax.text import tokenizer as tokenizers
from score_jax.text.files import read_json
from score_jax.text.rebuild import from_gguf
from score_jax.text.tokenizer import Tokenizer
from score_jax.types import Params

Index = tuple[slice, ...]
HUB = "hub:"
GGUF = ".gguf"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
COMPARED_ROWS = 4096  # in memory at a time
CONFIG_FILE = "config.json"
SKIPPED = ("rotary_emb.inv_freq",)  # computed, not learnt
VISION = ("vision_tower.", "multi_modal_projector.", "vision_model.")  # of Gemma 3 with images
TEXT_PREFIXES = ("language_model.model.", "model.language_model.")  # its text half


class Tensors(Protocol):
    """Named tensors of a source, read when asked for."""

    shapes: dict[str, tuple[int, ...]]

    def read(self, name: str) -> np.ndarray:
        """One tensor, by its Hugging Face name or that of the file."""
        ...


def locate(source: str) -> Path:
    """The local path of a source; a hub id is fetched first.

    Raises:
      ValueError: nothing is there, the hub cannot be reached or refuses, or its client is
        not installed.
    """
    if not source.startswith(HUB):
        path = Path(source).expanduser()
        if not path.exists():
            raise ValueError(f"model source is {source!r}; no such file or folder ({HUB}org/name?)")
        return path
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ValueError(f"model source is {source!r}; pip install score_jax[hf]") from error
    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja"]
    name, revision = hub_name(source)
    asked: dict[str, Any] = {"revision": revision} if revision else {}
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, **asked))
    except (OSError, ValueError) as error:  # no network, no such name, a gate, no room
        told = " ".join(str(error).split())
        raise ValueError(
            f"model source is {source!r}, but the hub did not give it ({told}); check name, "
            "network and login, or fetch it elsewhere and set the source to its folder"
        ) from error


def hub_name(source: str) -> tuple[str, str]:
    """Name and revision of hub:org/name@revision; "": the newest of the main branch.

    Raises:
      ValueError: there is an @ and nothing behind it.
    """
    name, mark, revision = source.removeprefix(HUB).partition("@")
    if mark and not revision:
        raise ValueError(
            f"model source is {source!r}; write a branch, tag or commit behind the @, or leave it"
        )
    return name, revision


def resolve(source: str) -> str:
    """A source that stays what it is: a hub's name with the commit that was fetched."""
    if not source.startswith(HUB):
        return source
    path = locate(source)  # the client's cache: .../snapshots/COMMIT
    if path.parent.name != "snapshots":
        return source
    return f"{HUB}{hub_name(source)[0]}@{path.name}"


def model_config(source: str) -> ModelConfig:
    """The decoder's fields, from `config.json` or from a GGUF header.

    Raises:
      ValueError: there is no config, or its architecture is not supported.
    """
    path = locate(source)
    if path.suffix == GGUF:
        return gguf_config.model_config(path)
    config = from_hf(read_config(path), str(path / CONFIG_FILE))
    if config.tied_embeddings and holds_weights(path):
        tensors = SafetensorsFolder(path)
        if differing_head(tensors):
            tell_head(path)
            config = replace(config, tied_embeddings=False)
    return config


@cache  # a run reads its config many times
def tell_head(path: Path) -> None:
    """Says once of a folder that its unembedding is not the embedding, whatever its config says."""
    processes.log(
        f"{path}: its {HEAD} differs from the embeddings and is used, although "
        "tie_word_embeddings is true"
    )


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer beside the weights, or inside a GGUF file.

    Raises:
      ValueError: there is none, or it is of an unknown kind.
    """
    path = locate(source)
    if path.suffix == GGUF:
        return from_gguf(read_header(path).metadata)
    return tokenizers.load(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; point at a whole model folder")
    return read_json(path)


def load_params(
    source: str, config: ModelConfig, shardings: Any = None, dtype: Dtype = "float32"
) -> Params:
    """Reads a model's parameters, each straight into its sharded place.

    Args:
      source: a folder of safetensors or an Orbax checkpoint, a .gguf file, or hub:org/name.
      shardings: one Sharding per parameter, in the tree of the unboxed "params"
        collection; None: all on the first device.

    Raises:
      ValueError: tensors are missing, left over or of the wrong shape; all are listed.
    """
    arrays = orbax_folder.find_arrays(locate(source))
    if arrays is not None:
        return orbax_folder.load_params(arrays, config, shardings, dtype)
    tensors = open_tensors(source)
    places = match_names(entries(config), tensors, source)
    if config.tied_embeddings and differing_head(tensors):
        raise ValueError(
            f"model.tied_embeddings is True, but the {HEAD} of {source} differs from its "
            "embeddings; set it to False"
        )
    if isinstance(tensors, SafetensorsFolder) and tensors.note:
        processes.log(tensors.note)
    params: dict[str, Any] = {}
    for entry in sorted(places, key=lambda e: -np.prod(e.shape)):
        sharding = SingleDeviceSharding(jax.devices()[0])
        if shardings is not None:
            sharding = descend(shardings, entry.path)
        put(params, entry.path, read_sharded(entry, places[entry], tensors, sharding, dtype))
    return params


def open_tensors(source: str) -> Tensors:
    """A source's tensors under their Hugging Face names."""
    path = locate(source)
    return GgufFile(path) if path.suffix == GGUF else SafetensorsFolder(path)


def match_names(wanted: list[Entry], tensors: Tensors, source: str) -> dict[Entry, tuple[str, ...]]:
    """Finds each entry's tensors among the stored ones; lists all that do not fit."""
    stored = {plain_name(name): name for name in tensors.shapes}
    missing, misshapen = [], []
    for entry in wanted:
        for name in entry.names:
            if name not in stored:
                missing.append(name)
            elif (shape := tensors.shapes[stored[name]]) != entry.stored:
                misshapen.append(f"{name} {shape}, not {entry.stored}")
    tied = {HEAD}  # some files repeat the tied embedding
    known = {name for entry in wanted for name in entry.names} | tied
    extra = [n for n in stored if n not in known and not n.endswith(SKIPPED) and n not in tied]
    extra = [n for n in extra if not any(mark in n for mark in VISION)]
    faults = {"missing": missing, "left over": extra, "misshapen": misshapen}
    if any(faults.values()):
        lists = "; ".join(f"{kind}: {shorten(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{source} does not fit the model's config; tensors {lists}")
    return {entry: tuple(stored[name] for name in entry.names) for entry in wanted}


def differing_head(tensors: Tensors) -> bool:
    """Whether an output table is stored that is not the embeddings over again."""
    stored = {plain_name(name): name for name in tensors.shapes}
    if HEAD not in stored or EMBEDDING not in stored:
        return False
    head, table = stored[HEAD], stored[EMBEDDING]
    if tensors.shapes[head] != tensors.shapes[table]:
        return True
    mine, theirs = tensors.read(head), tensors.read(table)
    rows = range(0, len(mine), COMPARED_ROWS)
    return any(
        not np.array_equal(mine[i : i + COMPARED_ROWS], theirs[i : i + COMPARED_ROWS]) for i in rows
    )


def plain_name(name: str) -> str:
    """A tensor's name as the text-only model spells it."""
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return "model." + name.removeprefix(prefix)
    return name.removeprefix("language_model.")


def shorten(names: list[str], limit: int = 12) -> str:
    """The first names of a list and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_sharded(
    entry: Entry, names: tuple[str, ...], tensors: Tensors, sharding: Sharding, dtype: Dtype
) -> jax.Array:
    """One parameter, each device's part read by itself."""

    def part(index: Index | None) -> np.ndarray:
        assert index is not None, f"{entry.path}: no index for a shard"
        return read_part(entry, names, tensors, index, jnp.dtype(dtype))

    array = jax.make_array_from_callback(entry.shape, sharding, part)
    return jax.block_until_ready(array)  # frees the buffer before the next is read


def read_part(
    entry: Entry, names: tuple[str, ...], tensors: Tensors, index: Index, dtype: np.dtype
) -> np.ndarray:
    """The part of a parameter at an index, from the tensors that hold it."""
    spans = [range(size)[span] for size, span in zip(entry.shape, index, strict=True)]
    block = np.empty([len(span) for span in spans], dtype)
    if not entry.stacked:
        block[...] = entry.from_stored(tensors.read(names[0]))[index]
        return block
    for row, layer in enumerate(spans[0]):
        block[row] = entry.from_stored(tensors.read(names[layer]))[index[1:]]
    return block


def descend(tree: Any, path: tuple[str, ...]) -> Any:
    """The leaf of a nested dict at a path."""
    for key in path:
        tree = tree[key]
    return tree


def put(tree: dict[str, Any], path: tuple[str, ...], leaf: Any) -> None:
    """Sets a leaf of a nested dict."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
