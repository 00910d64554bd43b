"""Norm, rotary positions, gated MLP, and the functions that create parameters."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from score_jax.model.config import ModelConfig, RopeScaling

Axes = tuple[str | None, ...]
LORA_A, LORA_B = "_lora_a", "_lora_b"  # suffixes of an attached adapter's two factors


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_over_axes(matrix: Array, axes: Axes) -> Array:
    """All-gathers a matrix along its "embed" axis for one use; its gradient is sharded again.

    Without this constraint the TPU compiler splits the product into one step per shard, each
    of which reads and writes the full result.
    """
    gathered = tuple("embed_out" if axis == "embed" else axis for axis in axes)
    return with_logical_constraint(matrix, gathered)


def gather_over_axes_forward(matrix: Array, axes: Axes) -> tuple[Array, None]:
    """The forward pass of `gather_over_axes`; saves no residuals."""
    return gather_over_axes(matrix, axes), None


def gather_over_axes_backward(axes: Axes, _: None, gradient: Array) -> tuple[Array]:
    """The backward pass: one reduce-scatter instead of an all-reduce and a slice."""
    return (with_logical_constraint(gradient, axes),)


gather_over_axes.defvjp(gather_over_axes_forward, gather_over_axes_backward)


def product(equation: str, x: Array, y: Array) -> Array:
    """An einsum of activations with parameters or with each other.

    By default a TPU rounds float32 factors to bfloat16 and a GPU to TF32; here float32
    products are exact to float32. Products of bfloat16 are accumulated in float32 on every
    backend and rounded once.
    """
    exact = x.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=x.dtype)


def wide_product(equation: str, x: Array, y: Array) -> Array:
    """A `product` whose result is float32, not rounded to the factors' type.

    Its gradient is rounded to that type before it is multiplied with the factors. Otherwise both
    products of the backward pass would be of float32, which GPUs and TPUs compute at a fraction
    of their speed.
    """
    if x.dtype == jnp.float32:
        return product(equation, x, y)
    return cast(Array, widened(equation, x, y))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def widened(equation: str, x: Array, y: Array) -> Array:
    """The forward pass of `wide_product`."""
    options: dict[str, Any] = {"preferred_element_type": jnp.float32}
    return jnp.einsum(equation, x, y, precision=jax.lax.Precision.DEFAULT, **options)


def widened_forward(equation: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    """Keeps both factors for the backward pass."""
    return cast(Array, widened(equation, x, y)), (x, y)


def widened_backward(
    equation: str, factors: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    """The backward pass of `product`."""
    _, pull = jax.vjp(partial(product, equation), *factors)
    return pull(gradient.astype(factors[0].dtype))


widened.defvjp(widened_forward, widened_backward)


def linear(x: Array, matrix: Array, axes: int = 1) -> Array:
    """Activations times a parameter: the last axes of x with the first of the matrix.

    As a product of two matrices. With several axes of rows the gradient of the matrix would be a
    sum over all of them, for which the CPU's compiler writes a transposed copy of x first.

    Args:
      axes: that are summed over.
    """
    rows, columns = x.shape[:-axes], matrix.shape[axes:]
    size = math.prod(matrix.shape[:axes])
    flat = product("ND,DF->NF", x.reshape(-1, size), matrix.reshape(size, -1))
    return flat.reshape(*rows, *columns)


def adapter_product(a: Array, b: Array) -> Array:
    """The product a @ b of an adapter, in float32 on every backend."""
    return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    fan_in: int,
    dtype: Any = None,
) -> Array:
    """Creates a float32 matrix parameter with logical axes.

    Initial values are normal with variance 1 / fan_in, truncated at two standard
    deviations. An adapter that `lora.attach` attached to the parameter is added to it.

    Args:
      dtype: the matrix is cast to it and then gathered for use; None: neither.
    """
    assert len(shape) == len(axes), f"{name}: shape {shape} against axes {axes}"
    init = nn.initializers.truncated_normal(1 / math.sqrt(fan_in))
    boxed: Any = nn.with_logical_partitioning(init, axes)
    value = module.param(name, boxed, shape, jnp.float32)
    if module.has_variable("params", name + LORA_A):
        down = module.get_variable("params", name + LORA_A)
        value += adapter_product(down, module.get_variable("params", name + LORA_B))
    return value if dtype is None else gather_over_axes(value.astype(dtype), axes)


def vector(module: nn.Module, name: str, size: int, axes: Axes, value: float) -> Array:
    """Creates a float32 vector parameter with a constant initial value."""
    init: Any = nn.with_logical_partitioning(nn.initializers.constant(value), axes)
    return module.param(name, init, (size,), jnp.float32)


class RmsNorm(nn.Module):
    """Root-mean-square norm over the last axis, in float32.

    Source: arXiv:1910.07467.
    """

    config: ModelConfig
    axis: str | None = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Normalises x to unit root mean square, then multiplies by the learned scale."""
        offset = 1.0 if self.config.norm_plus_one else 0.0
        scale = vector(self, "scale", x.shape[-1], (self.axis,), 1.0 - offset)
        # Rows and positions as one axis: over two, of which one may be 1 long, the CPU's compiler
        # sums the gradient of the scale at a tenth of the speed.
        wide = x.reshape(-1, *x.shape[2:]).astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        normed = wide * jax.lax.rsqrt(power + self.config.norm_eps) * (scale + offset)
        return normed.astype(x.dtype).reshape(x.shape)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "gelu": partial(nn.gelu, approximate=False),
}


class GatedMlp(nn.Module):
    """Gated feed-forward layer.

    Source: arXiv:2002.05202.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies down(activation(gate(x)) * up(x))."""
        width, hidden = self.config.width, self.config.mlp_dim
        gate = weight(self, "gate", (width, hidden), ("embed", "mlp"), width, x.dtype)
        up = weight(self, "up", (width, hidden), ("embed", "mlp"), width, x.dtype)
        down = weight(self, "down", (hidden, width), ("mlp", "embed"), hidden, x.dtype)
        act = ACTIVATIONS[self.config.activation]
        return linear(act(linear(x, gate)) * linear(x, up), down)


def scaled_frequencies(frequencies: Array, scaling: RopeScaling | None) -> Array:
    """Scales rotary frequencies for contexts longer than the original, "linear" or "llama3".

    Source: "linear": arXiv:2306.15595; "llama3": the Llama 3.1 release, which keeps
    high frequencies, divides low ones by the factor and interpolates in between.
    """
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    rotations = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = jnp.clip((rotations - low) / (high - low), 0.0, 1.0)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def yarn_frequencies(frequencies: Array, scaling: RopeScaling, base: float) -> Array:
    """Divides low rotary frequencies by the factor, keeps high ones, interpolates in between.

    Source: arXiv:2309.00071, section 3.2.
    """
    half = len(frequencies)

    def channel(rotations: float) -> float:
        """The channel pair that makes this many rotations over the original length."""
        length = scaling.original_length
        return half * math.log(length / (2 * math.pi * rotations)) / math.log(base)

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * half - 1)
    ramp = (jnp.arange(half) - low) / (high - low or 0.001)
    slow = jnp.clip(ramp, 0.0, 1.0)
    return slow * frequencies / scaling.factor + (1 - slow) * frequencies


def rope_frequencies(
    base: float, head_dim: int, scaling: RopeScaling | None
) -> Float[Array, "Half"]:
    """Radians per token of each channel pair of a layer with this base and scaling."""
    frequencies = base ** -(jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling is not None and scaling.kind == "yarn":
        return yarn_frequencies(frequencies, scaling, base)
    return scaled_frequencies(frequencies, scaling)


def layer_frequencies(config: ModelConfig) -> Float[Array, "L Half"]:
    """Radians per token of each channel pair, for each layer."""
    near = far = rope_frequencies(config.rope_base, config.head_dim, config.rope_scaling)
    if config.rope_local_base is not None:
        local = (config.rope_local_base, config.head_dim, config.rope_local_scaling)
        near = rope_frequencies(*local)
    return jnp.where(jnp.asarray(config.is_local)[:, None], near, far)


def layer_magnitudes(config: ModelConfig) -> Float[Array, "L"] | None:
    """The factor of rotated queries and keys for each layer; None: 1 for all."""
    far = near = config.rope_scaling
    if config.rope_local_base is not None:
        near = config.rope_local_scaling
    by_locality = {True: near, False: far}
    found = [by_locality[local] for local in config.is_local]
    sizes = [1.0 if scaling is None else scaling.magnitude for scaling in found]
    return None if set(sizes) == {1.0} else jnp.asarray(sizes, jnp.float32)


def rotate(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    frequencies: Float[Array, "Half"],
    magnitude: Float[Array, ""] | None = None,
) -> Float[Array, "B T N H"]:
    """Rotates queries or keys by an angle that grows with position (RoPE).

    Channels i and i + H/2 of the token at position p are rotated together by
    p * frequencies[i] radians, so a query-key product depends only on the distance.

    Args:
      positions: index of each token in its row.
      magnitude: factor of the result (YaRN); None: 1.

    Source: arXiv:2104.09864, section 3.4.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies  # B T 1 H/2
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if magnitude is not None:
        sin, cos = sin * magnitude, cos * magnitude
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def soft_cap(logits: Array, cap: float | None) -> Array:
    """Bounds logits smoothly to (-cap, cap)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)


def soft_cap_slope(capped: Array, cap: float | None) -> Array | float:
    """The derivative of `soft_cap`, from its result."""
    return 1.0 if cap is None else 1.0 - jnp.square(capped / cap)
