"""Reads parameters from an Orbax checkpoint: of a run of this package, or a params tree.

A run's checkpoint holds the full train state; only its parameters are read, each device's
shard separately. A checkpoint contains no model config, so config.model must be set.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import traverse_util
from jax.sharding import SingleDeviceSharding

from score_jax.model.config import Dtype, ModelConfig
from score_jax.model.weights.names import entries
from score_jax.types import Params

MARKS = ("_METADATA", "manifest.ocdbt")  # a folder of arrays contains one of them
STATE = "state"  # the folder of arrays in a run's checkpoint of one step


def find_arrays(path: Path) -> Path | None:
    """The folder of arrays at or directly below a path; None: not an Orbax checkpoint."""
    for folder in (path, path / STATE):
        if any((folder / mark).exists() for mark in MARKS):
            return folder.absolute()
    return None


def load_params(folder: Path, config: ModelConfig, shardings: Any, dtype: Dtype) -> Params:
    """Reads the parameters into their shardings.

    Raises:
      ValueError: the stored tree is not that of the model's config.
    """
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored: Any = reader.metadata(folder).item_metadata.tree
        inside = "params" in stored
        found = traverse_util.flatten_dict(stored["params"] if inside else stored)
        check_shapes(folder, found, config)
        abstract = abstract_params(config, shardings, dtype)
        item = {"params": abstract} if inside else abstract
        arguments = ocp.args.PyTreeRestore(
            item=item,
            restore_args=ocp.checkpoint_utils.construct_restore_args(item),
            partial_restore=True,
        )
        restored = reader.restore(folder, args=arguments)
    return restored["params"] if inside else restored


def check_shapes(folder: Path, found: dict[tuple[str, ...], Any], config: ModelConfig) -> None:
    """Raises ValueError where parameters are missing, unexpected or have a wrong shape."""
    wanted = {entry.path: entry.shape for entry in entries(config)}
    faults = [f"{'/'.join(path)} is missing" for path in wanted if path not in found]
    faults += [f"{'/'.join(path)} is left over" for path in found if path not in wanted]
    faults += [
        f"{'/'.join(path)} is {tuple(found[path].shape)}, not {shape}"
        for path, shape in wanted.items()
        if path in found and tuple(found[path].shape) != shape
    ]
    if faults:
        raise ValueError(f"{folder} does not fit config.model: {'; '.join(faults[:12])}")


def abstract_params(config: ModelConfig, shardings: Any, dtype: Dtype) -> Params:
    """Shapes, dtypes and shardings of the parameters."""
    default = SingleDeviceSharding(jax.devices()[0])
    by_path = {} if shardings is None else traverse_util.flatten_dict(shardings)
    shapes = {
        entry.path: jax.ShapeDtypeStruct(
            entry.shape, jnp.dtype(dtype), sharding=by_path.get(entry.path, default)
        )
        for entry in entries(config)
    }
    return traverse_util.unflatten_dict(shapes)
