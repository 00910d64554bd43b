"""The mesh, the tables from logical to mesh axes, and moves between host and devices.

Nothing else in the package makes a mesh or a global array. Rows (problems, samples)
are split over `data` and `fsdp` together; parameters over `fsdp` and `tensor` by the
logical axes that each was made with.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

MESH_AXES = ("data", "fsdp", "tensor")
ROW_AXES = ("data", "fsdp")

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

TRAIN_RULES: Rules = (
    ("batch", ROW_AXES),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("embed_out", None),  # width of activations: whole on every device
    ("length", None),
    ("head_dim", None),
    ("layers", None),
)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis."""

    data: int = -1  # copies of the model; -1: all devices that the other axes leave
    fsdp: int = 1  # parameters, optimiser and rows are split
    tensor: int = 1  # heads, feed-forward and vocabulary are split

    def shape(self, devices: int) -> tuple[int, int, int]:
        """The mesh's shape over a number of devices.

        Raises:
          ValueError: the axes do not multiply to the number of devices.
        """
        rest = self.fsdp * self.tensor
        if rest < 1 or devices % rest or self.data not in (-1, devices // rest):
            raise ValueError(
                f"mesh is data={self.data} fsdp={self.fsdp} tensor={self.tensor}; the product "
                f"must be the number of devices, {devices} (data=-1 takes what is left)"
            )
        return (devices // rest, self.fsdp, self.tensor)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all hosts, or over those given."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh(
        config.shape(len(devices)),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
        devices=devices,
    )


def meet(mesh: Mesh) -> None:
    """Has the CPUs of several hosts open their connections, while no host is behind another.

    gloo does so at the first collective of a group of devices and gives up after 30 s; by
    then the time that programs take to compile may differ by more.
    """
    if jax.process_count() == 1 or jax.default_backend() != "cpu":
        return
    split = P(MESH_AXES)
    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, split), lambda index: np.ones(1, np.float32)
    )
    axes = [axis for axis in MESH_AXES if mesh.shape[axis] > 1]
    for count in range(1, len(axes) + 1):
        for group in combinations(axes, count):
            total = partial(jax.lax.psum, axis_name=group)
            program = jax.jit(jax.shard_map(total, mesh=mesh, in_specs=split, out_specs=split))
            program(ones).block_until_ready()


def row_shards(mesh: Mesh) -> int:
    """Into how many parts rows are split."""
    return math.prod(mesh.shape[axis] for axis in ROW_AXES)


def rows(mesh: Mesh) -> NamedSharding:
    """Split along the first dimension."""
    return NamedSharding(mesh, P(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, P())


def parameter_shardings(
    boxed: Any, mesh: Mesh, rules: Rules = TRAIN_RULES, *, constants: int = 0
) -> Any:
    """The sharding of each leaf of a tree made by `eval_shape` with its axes on it.

    Args:
      constants: most dimensions of a leaf that needs no axes and is replicated: 0 for
        parameters, 1 where an optimiser's state holds coefficients of its own.

    Raises:
      ValueError: an array has no logical axes, or one that does not divide.
    """

    def one(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, nn.LogicallyPartitioned):
            if leaf.ndim <= constants:
                return replicated(mesh)
            raise ValueError(f"parameter {name} of shape {leaf.shape} has no logical axes")
        if not jax.tree.leaves(leaf.value):
            return leaf.value  # a place that an optimiser keeps empty
        spec = logical_to_mesh_axes(leaf.names, rules)
        shape = leaf.value.shape
        assert spec is not None, f"no mesh axes for {name} with logical axes {leaf.names}"
        for size, axes, logical in zip(shape, spec, leaf.names, strict=True):
            parts = math.prod(mesh.shape[a] for a in jax.tree.leaves(axes))
            if size % parts:
                raise ValueError(
                    f"mesh splits {logical!r} of parameter {name} into {parts} parts, but its "
                    f"size is {size}; choose mesh.fsdp and mesh.tensor that divide it"
                )
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(
        one, boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    )


def own_rows(mesh: Mesh, count: int) -> np.ndarray:
    """Which of `count` rows this host holds, ascending; `count` divides by the row shards.

    Hosts that split a model between them (`tensor`) hold the same rows.
    """
    places = rows(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[place] for place in places]))


def rows_to_global(mesh: Mesh, local: Any) -> Any:
    """Makes global arrays of which each host gives its `own_rows`."""
    shards = own_rows(mesh, row_shards(mesh))

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        size = len(x) // len(shards)

        def part(index: tuple) -> np.ndarray:
            at = np.searchsorted(shards, (index[0].start or 0) // size) * size
            return x[at : at + size]

        shape = (size * row_shards(mesh), *x.shape[1:])
        return jax.make_array_from_callback(shape, rows(mesh), part)

    return jax.tree.map(one, local)


def local_rows(tree: Any) -> Any:
    """This host's rows of arrays that are split along the first dimension, as numpy."""

    def one(array: jax.Array) -> np.ndarray:
        parts: Mapping[int, Any] = {
            shard.index[0].start or 0: shard.data for shard in array.addressable_shards
        }
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    return jax.tree.map(one, tree)


def whole(tree: Any) -> Any:
    """All numbers of global arrays as numpy, on every host; all hosts must ask."""

    def one(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(one, tree)


def agree(flag: bool) -> bool:
    """Whether any host says so; every host must ask at the same point of the program."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())
