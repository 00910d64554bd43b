"""The mesh, the tables from logical to mesh axes, and moves between host and devices.

Nothing else in the package makes a mesh or a global array. Training and sampling share
the mesh and differ by table:

    axis      training                     sampling
    slice     rows                         rows             slowest: between slices, DCN
    data      rows                         rows             parameters whole on each
    fsdp      rows, parameters             rows             parameters whole on each
    swing     rows, parameters (fsdp)      heads, MLP, vocabulary (tensor)
    tensor    heads, MLP, vocabulary       heads, MLP, vocabulary

Decoding reads every parameter for every token. Gathering them over fsdp each time would
send them all over the links, so they are gathered once per rollout, and `sampling_tensor` says
over how many of the devices they stay split while the rows' keys and values do, too.
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
from jax.experimental import mesh_utils, multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from score_jax.checks import Count, Devices, check_fields

MESH_AXES = ("slice", "data", "fsdp", "sampling_tensor", "tensor")
ROW_AXES = ("slice", "data", "fsdp", "sampling_tensor")
SAMPLE_ROW_AXES = ("slice", "data", "fsdp")

Rules = tuple[tuple[str, str | tuple[str, ...] | None], ...]

TRAIN_RULES: Rules = (
    ("batch", ROW_AXES),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", ("sampling_tensor", "fsdp")),  # in this order fsdp can be gathered without the other
    ("embed_out", None),  # width of activations: whole on every device
    # A token's embedding is looked up where its columns are, for all rows of the group.
    ("lookup_batch", ("slice", "data")),
    # Logits are split by vocabulary instead of by row: the hidden states of a chunk are
    # far smaller than the table that would be gathered otherwise.
    ("logit_batch", ("slice", "data")),
    ("vocab_out", ("fsdp", "sampling_tensor", "tensor")),
    ("length", None),
    ("head_dim", None),
    ("layers", None),
)
SAMPLE_RULES: Rules = (
    ("batch", SAMPLE_ROW_AXES),
    ("vocab", ("sampling_tensor", "tensor")),
    ("heads", ("sampling_tensor", "tensor")),
    ("kv_heads", ("sampling_tensor", "tensor")),
    ("mlp", ("sampling_tensor", "tensor")),
    ("embed", None),
    ("embed_out", None),
    ("lookup_batch", SAMPLE_ROW_AXES),
    ("logit_batch", SAMPLE_ROW_AXES),
    ("vocab_out", ("sampling_tensor", "tensor")),
    ("length", None),
    ("head_dim", None),
    ("layers", None),
)
# Between the two: gathered over fsdp. The partitioner takes the rest of the way, from one
# axis of a matrix to another over the same devices, in one exchange.
# Of two entries with one logical axis the first counts.
GATHERED_RULES: Rules = (("embed", "sampling_tensor"), *TRAIN_RULES)


@dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Devices along each mesh axis."""

    slices: Devices = -1  # groups of devices joined by the slower network; -1: as the devices say
    data: Devices = -1  # copies of the model in a slice; -1: all devices that the other axes leave
    fsdp: Count = 1  # parameters, optimiser and rows are split
    sampling_tensor: Count = 1  # as fsdp in training, as tensor in sampling
    tensor: Count = 1  # heads, feed-forward and vocabulary are split

    def __post_init__(self):
        check_fields(self, "mesh")
        for name in ("slices", "data"):
            if getattr(self, name) == 0:
                raise ValueError(f"mesh.{name} is 0; set at least 1, or -1")

    def shape(self, devices: int, slices: int = 1) -> tuple[int, int, int, int, int]:
        """The mesh's shape over a number of devices.

        Args:
          slices: that the devices form.

        Raises:
          ValueError: the axes do not multiply to the number of devices.
        """
        if self.slices not in (-1, slices) and slices != 1:
            raise ValueError(
                f"mesh.slices is {self.slices}; the devices form {slices} slices: set that, or -1"
            )
        slices = slices if self.slices == -1 else self.slices
        rest = slices * self.fsdp * self.sampling_tensor * self.tensor
        sizes = (slices, self.fsdp, self.sampling_tensor, self.tensor)
        if min(sizes) < 1 or devices % rest or self.data not in (-1, devices // rest):
            raise ValueError(
                f"mesh is slices={slices} data={self.data} fsdp={self.fsdp} "
                f"sampling_tensor={self.sampling_tensor} tensor={self.tensor}; the product must "
                f"be the number of devices, {devices} (data=-1 takes what is left)"
            )
        return (slices, devices // rest, self.fsdp, self.sampling_tensor, self.tensor)


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh over all devices of all hosts, or over those given."""
    devices = jax.devices() if devices is None else devices
    # Only TPUs know of slices; a device of another kind has no such field.
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    shape = config.shape(len(devices), slices)
    # An axis of two may have to take half of a torus dimension: 64 x 2 of 4 x 4 x 8 chips.
    options: dict[str, Any] = {"devices": devices, "allow_split_physical_axes": True}
    if slices == 1:
        grid = mesh_utils.create_device_mesh(shape, **options)
    else:
        across = (slices, *(1 for _ in shape[1:]))
        grid = mesh_utils.create_hybrid_device_mesh((1, *shape[1:]), across, **options)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def warm_up_collectives(mesh: Mesh) -> None:
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
    """Into how many parts rows are split in training, and wherever hosts give or take them."""
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
    indices = rows(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[place] for place in indices]))


def rows_to_global(mesh: Mesh, local: Any) -> Any:
    """Makes global arrays of which each host gives its `own_rows`."""
    shards = own_rows(mesh, row_shards(mesh))

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        size = len(x) // len(shards)

        def part(index: Any) -> np.ndarray:
            at = np.searchsorted(shards, (index[0].start or 0) // size) * size
            return x[at : at + size]

        shape = (size * row_shards(mesh), *x.shape[1:])
        places = rows(mesh).addressable_devices_indices_map(shape)
        parts = [jax.device_put(part(index), device) for device, index in places.items()]
        return jax.make_array_from_single_device_arrays(shape, rows(mesh), parts)

    return jax.tree.map(one, local)


def local_rows(tree: Any) -> Any:
    """This host's rows of arrays that are split along the first dimension, as numpy."""

    def one(array: jax.Array) -> np.ndarray:
        parts: Mapping[int, Any] = {
            shard.index[0].start or 0: shard.data for shard in array.addressable_shards
        }
        return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))

    return jax.tree.map(one, tree)


def whole(tree: Any) -> Any:
    """All numbers of global arrays as numpy, on every host; all hosts must ask."""

    def one(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(one, tree)
