"""Adapters in the folders that PEFT writes and opens.

    adapter_config.json           rank, scale and targets
    adapter_model.safetensors     A [rank, in] and B [out, rank] of each adapted matrix

A folder's adapter is added to the base weights while they are read, W + scale * B @ A, so
that nothing else knows of it. What an adapter_config.json may say is read, or has no effect
on the merged weights, or is refused; a key that is unknown is refused unless it is empty.

Source: arXiv:2106.09685, section 4.1; scale by the root of the rank, arXiv:2312.03732.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from score_jax.model.config import ModelConfig
from score_jax.model.lora import LoraConfig
from score_jax.model.weights.names import Entry, Tensors, descend, entries, plain_name
from score_jax.model.weights.safetensors import (
    Piece,
    Stored,
    read_header,
    read_stored,
    to_host,
    write_file,
)
from score_jax.text import hub
from score_jax.text.files import read_json, write_json
from score_jax.types import Params

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PREFIX, WEIGHT = "base_model.model.", ".weight"
HALVES = re.compile(r"(.+)\.lora_([AB])(\.\w+)?\.weight")  # older files name the adapter
READ = ("peft_type", "r", "lora_alpha", "use_rslora", "alpha_pattern", "init_lora_weights", "bias")
HARMLESS = (  # the tensors tell what is adapted, and with which rank
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "inference_mode", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "rank_pattern", "megatron_config", "megatron_core", "runtime_config",
    "qalora_group_size", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
)  # fmt: skip
# Other ways to begin change the base weights too, and the folder does not hold those.
KEEPS_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


class Product(NamedTuple):
    """What is added to one matrix: scale * b @ a."""

    a: Stored
    b: Stored
    scale: float


class WithAdapter:
    """Base tensors with a folder's adapter added."""

    def __init__(self, base: Tensors, folder: Path, wanted: Sequence[Entry]):
        """Args: wanted: the model's parameters; the headers are read and checked here.

        Raises:
          ValueError: the folder is incomplete, or its adapter does something else or does not
            fit the model.
        """
        self.base, self.shapes = base, base.shapes
        matrices = {
            name: entry.stored for entry in wanted if len(entry.stored) == 2 for name in entry.names
        }
        self.products = products(folder, matrices)

    def read(self, name: str) -> np.ndarray:
        """Reads one tensor; an adapted one in float32."""
        tensor = self.base.read(name)
        product = self.products.get(plain_name(name))
        if product is None:
            return tensor
        # In float64, so that all machines round to the same weights, whose bits are compared.
        a, b = (read_stored(name, half).astype(np.float64) for half in product[:2])
        return (tensor.astype(np.float64) + product.scale * (b @ a)).astype(np.float32)


def products(folder: Path, matrices: Mapping[str, tuple[int, ...]]) -> dict[str, Product]:
    """What a folder's adapter adds, by the matrix's plain name.

    Args:
      matrices: shapes of what the model has.
    """
    config = read_config(folder)
    halves: dict[str, dict[str, Stored]] = {}  # by the module's name in the folder
    for name, stored in read_header(folder / WEIGHTS_FILE).items():
        found = HALVES.fullmatch(name.removeprefix(PREFIX))
        if not found or plain_name(found[1] + WEIGHT) not in matrices:
            raise ValueError(
                f"{folder}: {name} adapts nothing that can be adapted here; merge the adapter with "
                "PEFT and name that folder as weights.source"
            )
        halves.setdefault(found[1], {})[found[2]] = stored
    if not halves:
        raise ValueError(f"{folder / WEIGHTS_FILE} holds no adapter; train one or name another")
    added = {}
    for module, pair in halves.items():
        name = plain_name(module + WEIGHT)
        out, into = matrices[name]
        if set(pair) != {"A", "B"}:
            raise ValueError(f"{folder}: {name} has lora_{'/'.join(pair)} alone; fetch it again")
        rank = pair["A"].shape[0]
        if (pair["A"].shape, pair["B"].shape) != ((rank, into), (out, rank)):
            raise ValueError(
                f"{folder}: {name} is {(out, into)}, but its lora_A is {pair['A'].shape} and "
                f"lora_B {pair['B'].shape}; name an adapter of this model"
            )
        scale = scale_of(config, module, rank)
        added[name] = Product(pair["A"], pair["B"], scale)
    return added


def read_config(folder: Path) -> dict[str, Any]:
    """A folder's adapter_config.json.

    Raises:
      ValueError: a file is missing, or the adapter is of a kind that is not supported.
    """
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise ValueError(
                f"weights.adapter is {str(folder)!r}, which has no {name}; name a "
                "folder that PEFT has saved"
            )
    config = read_json(folder / CONFIG_FILE)
    where = folder / CONFIG_FILE
    faults = {key: config[key] for key in config if key not in READ + HARMLESS and config[key]}
    if config.get("peft_type") != "LORA":
        faults["peft_type"] = config.get("peft_type")
    if config.get("bias", "none") != "none":
        faults["bias"] = config["bias"]
    if config.get("init_lora_weights", True) not in KEEPS_BASE:
        faults["init_lora_weights"] = config["init_lora_weights"]
    if faults:
        listed = ", ".join(f"{key} is {value!r}" for key, value in faults.items())
        raise ValueError(
            f"{where}: {listed}, which is not supported; merge the adapter with PEFT and name "
            "that folder as weights.source"
        )
    if type(config.get("lora_alpha")) not in (int, float):
        raise ValueError(f"{where}: lora_alpha is {config.get('lora_alpha')!r}; set a number")
    return config


def scale_of(config: Mapping[str, Any], module: str, rank: int) -> float:
    """The factor of a module's product: alpha / rank, or alpha / sqrt(rank)."""
    alpha = config["lora_alpha"]
    for pattern, value in (config.get("alpha_pattern") or {}).items():  # the first that fits
        if re.match(rf"(.*\.)?({pattern})$", module):
            alpha = value
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def export_adapter(
    adapter: Params, lora: LoraConfig, config: ModelConfig, folder: Path, *, base: str
) -> None:
    """Writes a folder that PEFT opens; every host calls it, only host 0 writes.

    Args:
      adapter: the tree of `lora.init_lora`.
      base: source of the weights that it was trained beside, as weights.source.
    """
    targets = [entry for entry in entries(config) if entry.path[-1] in lora.targets]
    modules = sorted({name.split(".")[-2] for entry in targets for name in entry.names})
    name, revision = hub.parse(base, "weights.source") if hub.is_hub(base) else (base, "")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": name,
            "revision": revision or None,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "target_modules": modules,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }
        write_json(folder / CONFIG_FILE, described)
    write_file(folder / WEIGHTS_FILE, list(pieces(adapter, targets, lora.rank)))


def pieces(adapter: Params, targets: Sequence[Entry], rank: int) -> Iterator[Piece]:
    """Both halves of every adapted matrix, with functions that fetch them."""
    for entry in targets:
        pair = descend(adapter, entry.path)
        out, into = entry.stored
        for layer, name in enumerate(entry.names):
            module = PREFIX + name.removesuffix(WEIGHT)
            for half, shape in (("a", (rank, into)), ("b", (out, rank))):
                yield Piece(
                    name=f"{module}.lora_{half.upper()}{WEIGHT}",
                    shape=shape,
                    dtype=np.dtype(np.float32),
                    fetch=stored_half(pair[half], layer, shape),
                )


def stored_half(array: jax.Array, layer: int, shape: tuple[int, ...]) -> Any:
    """A function that copies one layer's half to the host, transposed as in PEFT's files."""

    def fetch() -> np.ndarray:
        value = to_host(array[layer]).astype(np.float32)
        return np.ascontiguousarray(value.reshape(shape[::-1]).T)

    return fetch
