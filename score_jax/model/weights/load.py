"""Loads weights from disk or hub into sharded arrays, one parameter at a time.

    source ----> shapes of stored tensors ----> checked against names.entries(config)
                                                        |
    read(name) [slice of a mapped file] ----> this host's part ----> device

A host reads only the parts that its devices hold. The largest parameters are loaded
first, so that the peak of finished parameters plus the read buffer stays low.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from score_jax.distributed import processes
from score_jax.model.config import Dtype, ModelConfig
from score_jax.model.weights import gguf_config, orbax_folder
from score_jax.model.weights.families import from_hf
from score_jax.model.weights.gguf import GgufFile, read_header
from score_jax.model.weights.names import Entry, Tensors, descend, entries, plain_name
from score_jax.model.weights.peft import WithAdapter
from score_jax.model.weights.safetensors import SafetensorsFolder, holds_weights
from score_jax.text import hub
from score_jax.text import tokenizer as tokenizers
from score_jax.text.files import read_json
from score_jax.text.rebuild import from_gguf
from score_jax.text.tokenizer import Tokenizer
from score_jax.types import Params

Index = tuple[slice, ...]
SOURCE, ADAPTER = "model source", "weights.adapter"  # in messages
GGUF = ".gguf"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
COMPARED_ROWS = 4096  # in memory at a time
CONFIG_FILE = "config.json"
SKIPPED = ("rotary_emb.inv_freq",)  # computed, not learned
VISION = ("vision_tower.", "multi_modal_projector.", "vision_model.")  # of multimodal Gemma 3


def locate(source: str, field: str = SOURCE) -> Path:
    """The local path of a source; a hub repository is downloaded first.

    Args:
      field: what the source is, for messages.

    Raises:
      ValueError: the path does not exist, the download fails, or huggingface_hub is not
        installed.
    """
    if not hub.is_hub(source):
        path = Path(source).expanduser()
        if not path.exists():
            raise ValueError(
                f"{field} is {source!r}; no such file or folder ({hub.PREFIX}org/name?)"
            )
        return path
    return hub.fetch(source, field, wanted=("*.json", "*.safetensors", "*.model", "*.jinja"))


def resolve(source: str, field: str = SOURCE) -> str:
    """Pins a hub source to the commit that was downloaded; returns other sources unchanged."""
    return hub.pinned(source, locate(source, field), field) if hub.is_hub(source) else source


def model_config(source: str) -> ModelConfig:
    """The decoder's config, from `config.json` or from a GGUF header.

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
            log_differing_head(path)
            config = replace(config, tied_embeddings=False)
    return config


@cache  # a run reads its config many times; the message is logged once
def log_differing_head(path: Path) -> None:
    """Logs that a folder's unembedding differs from its embedding, despite its config."""
    processes.log(
        f"{path}: its {HEAD} differs from the embeddings and is used, although "
        "tie_word_embeddings is true"
    )


def load_tokenizer(source: str) -> Tokenizer:
    """The tokenizer in the folder of the weights, or inside a GGUF file.

    Raises:
      ValueError: there is none, or its format is unknown.
    """
    path = locate(source)
    if path.suffix == GGUF:
        return from_gguf(read_header(path).metadata)
    return tokenizers.load(path)


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed `config.json` of a folder."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {CONFIG_FILE}; point at a complete model folder")
    return read_json(path)


def load_params(
    source: str,
    config: ModelConfig,
    shardings: Any = None,
    dtype: Dtype = "float32",
    *,
    adapter: str = "",
) -> Params:
    """Reads a model's parameters, each directly into its sharding.

    Args:
      source: a folder of safetensors or an Orbax checkpoint, a .gguf file, or hub:org/name.
      shardings: one Sharding per parameter, in the tree of the unboxed "params"
        collection; None: all on the first device.
      adapter: a PEFT folder whose adapter is added to the weights; "": none.

    Raises:
      ValueError: tensors are missing, unexpected or have a wrong shape, the message lists
        them; or the adapter does not fit.
    """
    arrays = orbax_folder.find_arrays(locate(source))
    if arrays is not None:
        if adapter:
            raise ValueError(
                f"{ADAPTER} is {adapter!r}, but {source} is an Orbax checkpoint; export it first "
                "and name the folder"
            )
        return orbax_folder.load_params(arrays, config, shardings, dtype)
    tensors = open_tensors(source)
    names = match_names(entries(config), tensors, source)
    if config.tied_embeddings and differing_head(tensors):
        raise ValueError(
            f"model.tied_embeddings is True, but the {HEAD} of {source} differs from its "
            "embeddings; set it to False"
        )
    if isinstance(tensors, SafetensorsFolder) and tensors.note:
        processes.log(tensors.note)
    if adapter:
        tensors = WithAdapter(tensors, locate(adapter, ADAPTER), entries(config))
    params: dict[str, Any] = {}
    for entry in sorted(names, key=lambda e: -np.prod(e.shape)):
        sharding = SingleDeviceSharding(jax.devices()[0])
        if shardings is not None:
            sharding = descend(shardings, entry.path)
        put(params, entry.path, read_sharded(entry, names[entry], tensors, sharding, dtype))
    return params


def open_tensors(source: str) -> Tensors:
    """A source's tensors under their Hugging Face names."""
    path = locate(source)
    return GgufFile(path) if path.suffix == GGUF else SafetensorsFolder(path)


def match_names(wanted: list[Entry], tensors: Tensors, source: str) -> dict[Entry, tuple[str, ...]]:
    """The stored names of each entry's tensors.

    Raises:
      ValueError: tensors are missing, unexpected or have a wrong shape.
    """
    stored = {plain_name(name): name for name in tensors.shapes}
    missing, misshapen = [], []
    for entry in wanted:
        for name in entry.names:
            if name not in stored:
                missing.append(name)
            elif (shape := tensors.shapes[stored[name]]) != entry.stored:
                misshapen.append(f"{name} {shape}, not {entry.stored}")
    known = {HEAD}  # some files repeat the tied embedding
    known |= {name for entry in wanted for name in entry.names}
    extra = [n for n in stored if n not in known and not n.endswith(SKIPPED)]
    extra = [n for n in extra if not any(mark in n for mark in VISION)]
    faults = {"missing": missing, "left over": extra, "misshapen": misshapen}
    if any(faults.values()):
        lists = "; ".join(f"{kind}: {shorten(names)}" for kind, names in faults.items() if names)
        raise ValueError(f"{source} does not fit the model's config; tensors {lists}")
    return {entry: tuple(stored[name] for name in entry.names) for entry in wanted}


def differing_head(tensors: Tensors) -> bool:
    """Whether the source holds an output table that differs from the embeddings."""
    stored = {plain_name(name): name for name in tensors.shapes}
    if HEAD not in stored or EMBEDDING not in stored:
        return False
    head, table = stored[HEAD], stored[EMBEDDING]
    if tensors.shapes[head] != tensors.shapes[table]:
        return True
    a, b = tensors.read(head), tensors.read(table)
    starts = range(0, len(a), COMPARED_ROWS)
    return any(
        not np.array_equal(a[i : i + COMPARED_ROWS], b[i : i + COMPARED_ROWS]) for i in starts
    )


def shorten(names: list[str], limit: int = 12) -> str:
    """The first `limit` names of a list, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def read_sharded(
    entry: Entry, names: tuple[str, ...], tensors: Tensors, sharding: Sharding, dtype: Dtype
) -> jax.Array:
    """Reads one parameter, each device's shard separately."""

    def part(index: Index | None) -> np.ndarray:
        assert index is not None, f"{entry.path}: no index for a shard"
        return read_part(entry, names, tensors, index, jnp.dtype(dtype))

    array = jax.make_array_from_callback(entry.shape, sharding, part)
    return jax.block_until_ready(array)  # frees the buffer before the next is read


def read_part(
    entry: Entry, names: tuple[str, ...], tensors: Tensors, index: Index, dtype: np.dtype
) -> np.ndarray:
    """Reads the slice of a parameter at an index from its tensors."""
    spans = [range(size)[span] for size, span in zip(entry.shape, index, strict=True)]
    block = np.empty([len(span) for span in spans], dtype)
    if not entry.stacked:
        block[...] = entry.from_stored(tensors.read(names[0]))[index]
        return block
    for row, layer in enumerate(spans[0]):
        block[row] = entry.from_stored(tensors.read(names[layer]))[index[1:]]
    return block


def put(tree: dict[str, Any], path: tuple[str, ...], leaf: Any) -> None:
    """Sets a leaf of a nested dict."""
    for key in path[:-1]:
        tree = tree.setdefault(key, {})
    tree[path[-1]] = leaf
