"""The mesh, the tables from logical to mesh axes, and transfers between host and devices.

No other module makes a mesh or a global array. Training and sampling share the mesh and
differ by their table. What is split over which mesh axis:

    axis               training                   sampling
    slice              rows                       rows           between slices, over DCN
    data               rows                       rows           parameters whole on each
    fsdp               rows, parameters           rows           parameters whole on each
    sampling_tensor    rows, parameters           heads, MLP, vocabulary
    tensor             heads, MLP, vocabulary     heads, MLP, vocabulary

Decoding reads every parameter for every token, so sampling does not gather them over fsdp at
each use: they are gathered once per rollout, and `sampling_tensor` says over how many devices
they stay split meanwhile, together with the cache's heads. An example: a matrix [embed 4,
heads 4] and eight rows on fsdp=2 x sampling_tensor=2. Devices 0 and 1 are fsdp 0, devices 0
and 2 are sampling_tensor 0; each entry names the devices that hold it:

                  training       gathered over fsdp      sampling
    embed 0       0  0  0  0     02 02 02 02             02 02 13 13
    embed 1       2  2  2  2     02 02 02 02             02 02 13 13
    embed 2       1  1  1  1     13 13 13 13             02 02 13 13
    embed 3       3  3  3  3     13 13 13 13             02 02 13 13

    rows 0 to 7   0 0 1 1 2 2 3 3                        01 01 01 01 23 23 23 23

The second step moves each device's part from one axis of the matrix to the other within a
pair of devices: one exchange, no further gathering.
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

    slices: Devices = -1  # groups of devices joined by the slower network; -1: read from devices
    data: Devices = -1  # copies of the model in a slice; -1: all devices not used by the other axes
    fsdp: Devices = 1  # splits parameters, optimiser state and rows; -1: as data, which is then 1
    sampling_tensor: Count = 1  # like fsdp in training, like tensor in sampling
    tensor: Count = 1  # splits heads, feed-forward and vocabulary

    def __post_init__(self):
        check_fields(self, "mesh")
        for name in ("slices", "data", "fsdp"):
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
        copies = 1 if (self.data, self.fsdp) == (-1, -1) else self.data
        given = [slices, copies, self.fsdp, self.sampling_tensor, self.tensor]
        left = devices // math.prod(size for size in given if size > 0)
        shape = [left if size == -1 else size for size in given]
        if min(shape) < 1 or math.prod(shape) != devices:
            raise ValueError(
                f"mesh is slices={slices} data={self.data} fsdp={self.fsdp} "
                f"sampling_tensor={self.sampling_tensor} tensor={self.tensor}; the product must "
                f"be the number of devices, {devices} (data=-1 or fsdp=-1 takes what is left)"
            )
        return (slices, shape[1], shape[2], self.sampling_tensor, self.tensor)


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
    """Runs one collective per group of mesh axes, on CPUs of several hosts only.

    gloo opens its connections at the first collective of a group of devices and gives up after
    30 s. Later in a run hosts may be further apart than that, since compile times differ.
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


def row_shards(mesh: Mesh, axes: Sequence[str] = ROW_AXES) -> int:
    """The number of parts that rows are split into, in training and between hosts and devices."""
    return math.prod(mesh.shape[axis] for axis in axes)


def rows(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays whose first dimension is rows."""
    return NamedSharding(mesh, P(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays that every device holds whole."""
    return NamedSharding(mesh, P())


def parameter_shardings(
    boxed: Any, mesh: Mesh, rules: Rules = TRAIN_RULES, *, constants: int = 0
) -> Any:
    """The sharding of each leaf of a tree made by `eval_shape`, from its logical axes.

    Args:
      constants: leaves with at most this many dimensions need no axes and are replicated: 0 for
        parameters, 1 for optimiser states, which hold coefficients of their own.

    Raises:
      ValueError: an array has no logical axes, or an axis does not divide over its devices.
    """

    def one(path: tuple, leaf: Any) -> Any:
        name = jax.tree_util.keystr(path)
        if not isinstance(leaf, nn.LogicallyPartitioned):
            if leaf.ndim <= constants:
                return replicated(mesh)
            raise ValueError(f"parameter {name} of shape {leaf.shape} has no logical axes")
        if not jax.tree.leaves(leaf.value):
            return leaf.value  # an empty node of the optimiser state
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
    """Indices of the rows that this host holds, ascending, of `count` rows in all.

    `count` must be a multiple of `row_shards`. Hosts that split a model between them (`tensor`)
    hold the same rows.
    """
    indices = rows(mesh).addressable_devices_indices_map((count,)).values()
    return np.unique(np.concatenate([np.arange(count)[index] for index in indices]))


def rows_to_global(mesh: Mesh, local: Any) -> Any:
    """Makes global arrays; each host passes the rows that `own_rows` names."""
    shards = own_rows(mesh, row_shards(mesh))

    def one(x: Any) -> jax.Array:
        x = np.asarray(x)
        size = len(x) // len(shards)

        def part(index: Any) -> np.ndarray:
            at = np.searchsorted(shards, (index[0].start or 0) // size) * size
            return x[at : at + size]

        shape = (size * row_shards(mesh), *x.shape[1:])
        indices = rows(mesh).addressable_devices_indices_map(shape)
        parts = [jax.device_put(part(index), device) for device, index in indices.items()]
        return jax.make_array_from_single_device_arrays(shape, rows(mesh), parts)

    return jax.tree.map(one, local)


def local_rows(tree: Any) -> Any:
    """This host's rows of arrays that are split by row, as numpy."""

    def one(array: jax.Array) -> np.ndarray:
        parts: Mapping[int, Any] = {
            shard.index[0].start or 0: shard.data for shard in array.addressable_shards
        }
        return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))

    return jax.tree.map(one, tree)


def whole(tree: Any) -> Any:
    """Global arrays as whole numpy arrays on every host; all hosts must call."""

    def one(array: jax.Array) -> np.ndarray:
        if array.is_fully_addressable or array.is_fully_replicated:
            return np.asarray(array)
        return multihost_utils.process_allgather(array, tiled=True)

    return jax.tree.map(one, tree)
