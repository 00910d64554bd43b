"""Exports a model as a Hugging Face folder that transformers and vLLM load.

    config.json              the architecture
    generation_config.json   sampling settings as in training, and stop tokens
    model*.safetensors       weights, one tensor in memory at a time
    tokenizer files          with the chat format as a template

The template formats dialogues as in training: it opens every turn of the policy and
strips nothing from earlier turns. The folder is read back before it is moved into place.
A model that no family's config.json can describe is refused.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.model.config import Dtype, ModelConfig
from score_jax.model.shape import differences
from score_jax.model.weights.families import from_hf, to_hf
from score_jax.model.weights.load import (
    CONFIG_FILE,
    load_tokenizer,
    match_names,
    model_config,
    open_tensors,
)
from score_jax.model.weights.names import Entry, descend, entries
from score_jax.model.weights.safetensors import INDEX_FILE, SINGLE_FILE, Piece, to_host, write_file
from score_jax.model.weights.stops import GENERATION_FILE, load_stops
from score_jax.text.chat import Chat, ChatFormat
from score_jax.text.files import write_json
from score_jax.text.tokenizer import JsonTokenizer
from score_jax.types import Params

SHARD_BYTES = 4_000_000_000
# As in training: all tokens, at temperature 1. The default of transformers is top_k = 50.
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def export(
    params: Params,
    config: ModelConfig,
    chat: Chat,
    folder: Path,
    *,
    dtype: Dtype = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a folder that transformers loads; every host calls it, only host 0 writes.

    Args:
      params: the "params" collection, with adapters merged.
      dtype: of the stored weights; float32 is lossless.
      shard_bytes: maximum size of a file; a larger tensor gets a file of its own.

    Raises:
      ValueError: no Hugging Face architecture matches this model, or reading the folder
        back gives something else.
    """
    described = to_hf(config) | {"torch_dtype": dtype, "dtype": dtype}
    check_shape(config, described)
    marks = special_ids(chat)
    partial = folder.with_name(f"{folder.name}.partial")
    if jax.process_index() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_json(partial / CONFIG_FILE, described | marks)
        write_json(partial / GENERATION_FILE, marks | SAMPLING)
        chat.tokenizer.save(partial)
        write_json(partial / "tokenizer_config.json", tokenizer_config(chat, described))
    write_weights(params, config, partial, dtype, shard_bytes)
    if jax.process_index() == 0:
        read_back(partial, config, chat)
        put_in_place(partial, folder)


def check_shape(config: ModelConfig, described: dict[str, Any]) -> None:
    """Checks that a config.json describes the model completely.

    Raises:
      ValueError: reading it back gives another value for a field, or fails.
    """
    family = described["model_type"]
    try:
        found = from_hf(json.loads(json.dumps(described)))
    except ValueError as error:
        raise ValueError(f"config.model cannot be exported as {family} ({error})") from error
    if faults := differences(config, found):
        listed = "; ".join(
            f"model.{name} is {a}, read back as {b}" for name, (a, b) in faults.items()
        )
        raise ValueError(f"{listed}: a config.json of {family} cannot express it; train without it")


def read_back(folder: Path, config: ModelConfig, chat: Chat) -> None:
    """Loads an exported folder and compares it with the model.

    Raises:
      ValueError: config, stop tokens, tokenizer or tensor shapes differ.
    """
    source = str(folder)
    match_names(entries(config), open_tensors(source), source)
    loaded = Chat(load_tokenizer(source), chat.format, load_stops(source))
    prompt = "What is 7 + 5?"
    if (
        differences(config, model_config(source))
        or loaded.stops != chat.stops
        or loaded.encode_prompt(prompt) != chat.encode_prompt(prompt)
    ):
        raise ValueError(f"{folder} differs from the exported model; export it again")


def put_in_place(partial: Path, folder: Path) -> None:
    """Replaces the files of an earlier export by the new ones; config.json comes last."""
    folder.mkdir(exist_ok=True)
    for old in (CONFIG_FILE, INDEX_FILE, "model*.safetensors", "tokenizer.*"):
        for path in folder.glob(old):
            path.unlink()
    for path in sorted(partial.iterdir(), key=lambda path: path.name == CONFIG_FILE):
        path.replace(folder / path.name)
    partial.rmdir()


def special_ids(chat: Chat) -> dict[str, Any]:
    """The ids of config.json that mark start of text (if the format has one), stop, padding."""
    first = chat.format.markers[0]
    begins = chat.format.prompt.startswith(first) and first not in chat.format.instruction
    start = {"bos_token_id": chat.tokenizer.marker(first)} if begins else {}
    ends = chat.stop if len(chat.stops) == 1 else list(chat.stops)
    return {**start, "eos_token_id": ends, "pad_token_id": chat.stop}


def tokenizer_config(chat: Chat, described: dict[str, Any]) -> dict[str, Any]:
    """The content of tokenizer_config.json."""
    fast = isinstance(chat.tokenizer, JsonTokenizer)
    gemma = described["model_type"].startswith("gemma")
    kind = "PreTrainedTokenizerFast" if fast else ("GemmaTokenizer" if gemma else "LlamaTokenizer")
    start = {"bos_token": chat.format.markers[0]} if "bos_token_id" in special_ids(chat) else {}
    return {
        "tokenizer_class": kind,
        **start,
        "eos_token": chat.format.stop,
        "pad_token": chat.format.stop,  # padding is recognised by its mask, not by its id
        "add_bos_token": False,  # the template writes it
        "clean_up_tokenization_spaces": False,
        "model_max_length": described["max_position_embeddings"],
        "chat_template": chat_template(chat.format),
    }


def chat_template(format: ChatFormat) -> str:
    """A chat format as a Jinja template over alternating user and assistant messages."""
    trim = " | trim" if format.trim else ""

    def literal(text: str) -> str:
        return "{{- " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""

    def around(template: str) -> str:
        before, after = template.split("{text}")
        end = literal(after)
        if format.heading:  # as `Chat.fill`
            own = json.dumps(format.heading.strip(), ensure_ascii=False)
            end = "{%- if not message['content'].endswith(" + own + ") %}" + end + "{%- endif %}"
        return literal(before) + "{{- message['content']" + trim + " }}" + end

    return (
        "{%- for message in messages %}"
        "{%- if message['role'] == 'assistant' %}"
        "{{- message['content'] }}" + literal(format.stop) + "{%- elif loop.first %}"
        "" + around(format.prompt) + "{%- else %}" + around(format.instruction) + "{%- endif %}"
        "{%- endfor %}"
    )


def write_weights(
    params: Params, config: ModelConfig, folder: Path, dtype: Dtype, shard_bytes: int
) -> None:
    """Writes one file, or shards and their index."""
    kind = jnp.dtype(dtype)
    pieces = list(named_pieces(params, config, kind))
    shards: list[list[Piece]] = [[]]
    for piece in pieces:
        if shards[-1] and sum(p.size for p in shards[-1]) + piece.size > shard_bytes:
            shards.append([])
        shards[-1].append(piece)
    if len(shards) == 1:
        write_file(folder / SINGLE_FILE, shards[0])
        return
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_file(folder / name, shard)
    where = {p.name: n for n, shard in zip(names, shards, strict=True) for p in shard}
    index = {"metadata": {"total_size": sum(p.size for p in pieces)}, "weight_map": where}
    if jax.process_index() == 0:
        write_json(folder / INDEX_FILE, index)


def named_pieces(params: Params, config: ModelConfig, dtype: np.dtype) -> Iterator[Piece]:
    """Every stored tensor, with a function that fetches it when it is written."""
    for entry in entries(config):
        array = descend(params, entry.path)
        for layer, name in enumerate(entry.names):
            fetch = stored_tensor(entry, array, layer, dtype)
            yield Piece(name=name, shape=entry.stored, dtype=dtype, fetch=fetch)


def stored_tensor(entry: Entry, array: jax.Array, layer: int, dtype: np.dtype) -> Any:
    """A function that copies one layer's tensor to the host in the file's axis order."""

    def fetch() -> np.ndarray:
        value = to_host(array[layer] if entry.stacked else array)
        return np.ascontiguousarray(entry.to_stored(value)).astype(dtype)

    return fetch
