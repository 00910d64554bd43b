"""Attention whose scores never leave the chip: cuDNN's kernel on GPUs, splash attention on TPUs.

Both compute what the plain path in `attention` does for a block without a cache, to the
rounding of bfloat16. The backward pass computes the scores again. What each can do:

|                    | plain            | cudnn                         | splash                 |
| ------------------ | ---------------- | ----------------------------- | ---------------------- |
| devices            | all              | NVIDIA GPUs from Ampere on    | TPUs                   |
| dtype              | all              | bfloat16                      | bfloat16               |
| head_dim           | all              | multiples of 8 up to 128      | all                    |
|                    |                  | (from Hopper on 256)          |                        |
| attention_cap      | yes              | no                            | yes                    |
| window             | masked           | blocks outside are skipped    | blocks outside skipped |
| segments           | masked           | a mask [B T T] in bfloat16    | compared in the kernel |
| bytes per row,     | 4 heads T^2      | segments: 2 T^2 for all heads | none                   |
| beyond O(T)        | (float32 scores) | and layers; else none         |                        |

Masks go by a token's index in its row, so positions must be consecutive within a segment,
or within the row without segments. XLA cannot split a Pallas kernel over devices: both run
under shard_map, rows and heads split as the logical axes "batch" and "kv_heads" are.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_axes
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from score_jax.model.config import ModelConfig

LANES = 128  # a block of the splash kernel is a multiple of a TPU register's width
BLOCKS = (4 * LANES, 3 * LANES, 2 * LANES)  # larger ones are faster, but rows are padded to them
ALIGNED = 8  # tokens: rows of cuDNN's mask begin at multiples of 16 bytes

Attend = Callable[..., Array]  # (query, key, value, segments) -> mixed values


def obstacle(name: str, config: ModelConfig, device: Any) -> str:
    """Why a kernel cannot serve a model on a device; "" if it can."""
    # CUDA's compute capability is a number; other makes of GPU have a name.
    capability = str(getattr(device, "compute_capability", ""))
    number = float(capability) if capability.replace(".", "").isdigit() else 0.0
    widest = 256 if number >= 9.0 else 128
    if name == "splash" and device.platform != "tpu":
        return f"the devices are of the platform {device.platform!r}"
    if name == "cudnn" and (device.platform != "gpu" or number < 8.0):
        return f"the devices are no NVIDIA GPUs from Ampere on ({device.device_kind})"
    if config.dtype != "bfloat16":
        return f"compute.dtype is {config.dtype!r} and the kernel computes in bfloat16"
    if name == "cudnn" and config.attention_cap is not None:
        return f"model.attention_cap is {config.attention_cap}"
    if name == "cudnn" and (config.head_dim % 8 or config.head_dim > widest):
        return f"model.head_dim is {config.head_dim}, not a multiple of 8 up to {widest}"
    return ""


def resolve_attention(config: ModelConfig, device: Any) -> ModelConfig:
    """Replaces attention "auto" by the best implementation that a device has for a model.

    Raises:
      ValueError: the implementation that the config asks for cannot serve it.
    """
    name = config.attention
    if name == "auto":
        fit = (kind for kind in ("splash", "cudnn") if not obstacle(kind, config, device))
        return dataclasses.replace(config, attention=next(fit, "plain"))
    if name != "plain" and (why := obstacle(name, config, device)):
        raise ValueError(f"model.attention is {name!r}, but {why}; set 'auto' or 'plain'")
    return config


def fused_attention(
    config: ModelConfig,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T H"],
    window: Int[Array, ""],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """Mixes values by the kernel that config.attention names.

    Args:
      window: of this layer. Kernels need it as a constant: where layers differ, both kinds
        are compiled and each layer runs its own.
    """
    length = query.shape[1]
    near = config.window if config.window is not None and config.window < length else None
    kernel = {"splash": splash, "cudnn": cudnn}[config.attention]
    whole, local = (sharded(partial(kernel, config, size)) for size in (None, near))
    if near is None or not any(config.is_local):
        return whole(query, key, value, segments)
    if all(config.is_local):
        return local(query, key, value, segments)
    return jax.lax.cond(window < length, local, whole, query, key, value, segments)


def sharded(attend: Attend) -> Attend:
    """Runs a function of whole rows and whole groups of heads on each device's share of them."""

    def share(axes: Any, size: int) -> Any:
        parts = math.prod(jax.sharding.get_abstract_mesh().shape[a] for a in jax.tree.leaves(axes))
        return axes if size % parts == 0 else None

    def split(query: Array, key: Array, value: Array, segments: Array | None) -> Array:
        if jax.sharding.get_abstract_mesh().empty:
            return attend(query, key, value, segments)
        axes = logical_to_mesh_axes(("batch", "kv_heads")) or (None, None)
        rows, heads = share(axes[0], key.shape[0]), share(axes[1], key.shape[1])
        spec, heads_first = P(rows, None, heads, None), P(rows, heads, None, None)
        ins = (spec, heads_first, heads_first, P(rows, None))
        # A kernel does not say over which axes its results vary, so that is not checked.
        over = jax.shard_map(attend, in_specs=ins, out_specs=spec, check_vma=False)
        return over(query, key, value, segments)

    return split


def cudnn(
    config: ModelConfig,
    window: int | None,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T H"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """cuDNN's kernel through `jax.nn`.

    With segments a window is part of the mask: cuDNN takes one or the other.
    """
    length, mask = query.shape[1], None
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    query, key, value = padded(ALIGNED, 1, query, key, value)
    if segments is not None:
        (segments,) = padded(ALIGNED, 1, segments)
        index = jnp.arange(segments.shape[1])
        near = index[:, None] - index < (window or len(index))
        mask = ((segments[:, :, None] == segments[:, None, :]) & near)[:, None]
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=mask,
        scale=config.query_scale,
        is_causal=True,
        local_window_size=(window - 1, 0) if window and mask is None else None,
        implementation="cudnn",
    )
    return mixed[:, :length]


def padded(multiple: int, axis: int, *arrays: Array) -> list[Array]:
    """Adds zeros at the end of the token axis.

    No token attends to them: they come after it. Their own results are cut off.
    """

    def one(array: Array) -> Array:
        missing = -array.shape[axis] % multiple
        return jnp.pad(array, [(0, missing if n == axis else 0) for n in range(array.ndim)])

    return [one(array) for array in arrays]


def splash(
    config: ModelConfig,
    window: int | None,
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T H"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B T N H"]:
    """The Pallas kernel that JAX ships for TPUs, row by row.

    Source: jax.experimental.pallas.ops.tpu.splash_attention; arXiv:2205.14135.
    """
    length = query.shape[1]
    query = jnp.swapaxes(query, 1, 2) * (config.query_scale or config.head_dim**-0.5)
    block = block_size(length)
    query, key, value = padded(block, 2, query, key, value)
    if segments is not None:
        (segments,) = padded(block, 1, segments)
    attend = partial(splash_rows, block, window, config.attention_cap)
    mixed = cast(Array, at_default_precision(attend, query, key, value, segments))
    return jnp.swapaxes(mixed, 1, 2)[:, :length]


def block_size(length: int) -> int:
    """Tokens of a block: all in multiples of 128 in short rows, else what pads the row least."""
    if length <= BLOCKS[0]:
        return -(-length // LANES) * LANES
    return min(BLOCKS, key=lambda block: -(-length // block) * block)


def splash_rows(
    block: int,
    window: int | None,
    cap: float | None,
    query: Float[Array, "B N T H"],
    key: Float[Array, "B K T H"],
    value: Float[Array, "B K T H"],
    segments: Int[Array, "B T"] | None,
) -> Float[Array, "B N T H"]:
    """The kernel over rows of whole blocks; it neither scales nor pads."""
    _, heads, length, _ = query.shape
    shape = (length, length)
    mask = (
        splash_attention.CausalMask(shape)
        if window is None
        else splash_attention.LocalMask(shape, (window - 1, 0), 0)
    )
    # Forward, then backward: of dk and dv, of dq.
    passes = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    sizes: dict[str, Any] = {f"block_{name}": block for name in passes}
    kernel = splash_attention.make_splash_mha_single_device(
        mask=splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        attn_logits_soft_cap=cap,
    )
    ids = None if segments is None else splash_attention.SegmentIds(segments, segments)
    return cast(Array, jax.vmap(kernel)(query, key, value, ids))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def at_default_precision(
    kernel: Attend, query: Array, key: Array, value: Array, segments: Array | None
) -> Array:
    """Traces a kernel and its gradient without jax.default_matmul_precision.

    Programs set it to the highest, for their float32 products; the TPU compiler then refuses
    the kernels' products of bfloat16, in the backward pass too, which is traced later.
    """
    with jax.default_matmul_precision("default"):
        return kernel(query, key, value, segments)


def at_default_precision_forward(
    kernel: Attend, query: Array, key: Array, value: Array, segments: Array | None
) -> tuple[Array, Any]:
    """The forward pass of `at_default_precision`; the residuals are the kernel's own."""
    with jax.default_matmul_precision("default"):
        return jax.vjp(lambda q, k, v: kernel(q, k, v, segments), query, key, value)


def at_default_precision_backward(kernel: Attend, pullback: Any, gradient: Array) -> tuple:
    """The backward pass; segments have no gradient."""
    with jax.default_matmul_precision("default"):
        return (*pullback(gradient), None)


at_default_precision.defvjp(at_default_precision_forward, at_default_precision_backward)
