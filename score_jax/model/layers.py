"""Norm, rotary positions, gated MLP, and the one way to make a parameter."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import with_logical_constraint
from jaxtyping import Array, Float, Int

from score_jax.model.config import ModelConfig, RopeScaling

Axes = tuple[str | None, ...]
LORA_A, LORA_B = "_lora_a", "_lora_b"  # suffixes of an attached adapter's halves


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather_over_axes(matrix: Array, axes: Axes) -> Array:
    """A matrix whole along its "embed" axis, for one use; its gradient is split again.

    Said outright, because the TPU compiler otherwise cuts the product itself into as many
    steps as there are parts, each of which reads and writes the whole result.
    """
    whole = tuple("embed_out" if axis == "embed" else axis for axis in axes)
    return with_logical_constraint(matrix, whole)


def gather_forward(matrix: Array, axes: Axes) -> tuple[Array, None]:
    """The forward half; nothing is kept."""
    return gather_over_axes(matrix, axes), None


def gather_backward(axes: Axes, _: None, gradient: Array) -> tuple[Array]:
    """Sums over the devices and splits the sum in one go, rather than one after the other."""
    return (with_logical_constraint(gradient, axes),)


gather_over_axes.defvjp(gather_forward, gather_backward)


def product(equation: str, x: Array, y: Array, out: Any = None) -> Array:
    """A product of activations with parameters or with each other.

    Left alone a TPU rounds float32 factors to bfloat16 and a GPU to TF32: here float32 means
    float32. What multiplies bfloat16 adds up in float32 everywhere, and rounds the sum once.

    Args:
      out: type of the result; None: that of the factors.
    """
    exact = x.dtype == jnp.float32
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT
    return jnp.einsum(equation, x, y, precision=precision, preferred_element_type=out or x.dtype)


def adapter_product(a: Array, b: Array) -> Array:
    """The product of an adapter's halves, in float32 on every backend."""
    return jnp.tensordot(a, b, axes=1, precision=jax.lax.Precision.HIGHEST)


def weight(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    axes: Axes,
    fan_in: int,
    dtype: Any = None,
) -> Array:
    """A float32 matrix parameter: name, shape, logical axes and scale on one line.

    Initial values are normal with variance 1 / fan_in, cut at two deviations. An
    adapter that `lora.attach` put beside the parameter is added to it.

    Args:
      dtype: to cast to before the matrix is gathered for its use; None: neither is done.
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
    """A float32 vector parameter that starts at a constant."""
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
        """Scales x to unit root mean square, then by the learnt scale."""
        offset = 1.0 if self.config.norm_plus_one else 0.0
        scale = vector(self, "scale", x.shape[-1], (self.axis,), 1.0 - offset)
        wide = x.astype(jnp.float32)
        power = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        return (wide * jax.lax.rsqrt(power + self.config.norm_eps) * (scale + offset)).astype(
            x.dtype
        )


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": nn.silu,
    "gelu_tanh": partial(nn.gelu, approximate=True),
    "gelu": partial(nn.gelu, approximate=False),
}


class GatedMlp(nn.Module):
    """Feed-forward layer with a gate.

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
        gated, plain = product("BTD,DF->BTF", x, gate), product("BTD,DF->BTF", x, up)
        return product("BTF,FD->BTD", act(gated) * plain, down)


def scaled_frequencies(frequencies: Array, scaling: RopeScaling | None) -> Array:
    """Stretches rotary frequencies for contexts longer than the original.

    Source: "linear": arXiv:2306.15595; "llama3": the Llama 3.1 release, which leaves
    short wavelengths alone, divides long ones and blends between.
    """
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    turns = scaling.original_length * frequencies / (2 * math.pi)
    low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
    blend = jnp.clip((turns - low) / (high - low), 0.0, 1.0)
    return blend * frequencies + (1 - blend) * frequencies / scaling.factor


def yarn_frequencies(frequencies: Array, scaling: RopeScaling, base: float) -> Array:
    """Divides the frequencies of slow channels, keeps those of fast ones, blends in between.

    Source: arXiv:2309.00071, section 3.2.
    """
    half = len(frequencies)

    def channel(turns: float) -> float:
        """The channel pair that makes so many turns in the original length."""
        return half * math.log(scaling.original_length / (2 * math.pi * turns)) / math.log(base)

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
    """What each layer's rotated queries and keys are multiplied by; None: 1 everywhere."""
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
    """Turns queries or keys by an angle that grows with position (RoPE).

    Channels i and i + H/2 of the token at position p turn together by
    p * frequencies[i] radians, so a query-key product sees only distances.

    Args:
      positions: tokens since the dialogue began.
      magnitude: the result is multiplied by it (YaRN); None: 1.

    Source: arXiv:2104.09864, section 3.4.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies  # B T 1 H/2
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    if magnitude is not None:
        sin, cos = sin * magnitude, cos * magnitude
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def soft_cap(logits: Array, cap: float | None) -> Array:
    """Bounds logits smoothly to (-cap, cap)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)
