"""Norm, rotary positions, gated MLP, and the one way to make a parameter."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from score_jax.model.config import ModelConfig, RopeScaling

Axes = tuple[str | None, ...]
LORA_A, LORA_B = "_lora_a", "_lora_b"  # suffixes of an attached adapter's halves


def weight(module: nn.Module, name: str, shape: tuple[int, ...], axes: Axes, fan_in: int) -> Array:
    """A float32 matrix parameter: name, shape, logical axes and scale on one line.

    Initial values are normal with variance 1 / fan_in, cut at two deviations. An
    adapter that `lora.attach` put beside the parameter is added to it.
    """
    assert len(shape) == len(axes), f"{name}: shape {shape} against axes {axes}"
    init = nn.initializers.truncated_normal(1 / math.sqrt(fan_in))
    boxed: Any = nn.with_logical_partitioning(init, axes)
    value = module.param(name, boxed, shape, jnp.float32)
    if not module.has_variable("params", name + LORA_A):
        return value
    down = module.get_variable("params", name + LORA_A)
    return value + jnp.tensordot(down, module.get_variable("params", name + LORA_B), axes=1)


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


class GatedMlp(nn.Module):
    """Feed-forward layer with a gate.

    Source: arXiv:2002.05202.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Applies down(activation(gate(x)) * up(x))."""
        width, hidden = self.config.width, self.config.mlp_dim
        gate = weight(self, "gate", (width, hidden), ("embed", "mlp"), width)
        up = weight(self, "up", (width, hidden), ("embed", "mlp"), width)
        down = weight(self, "down", (hidden, width), ("mlp", "embed"), hidden)
        act = nn.silu if self.config.activation == "silu" else nn.gelu  # nn.gelu: tanh form
        inner = act(x @ gate.astype(x.dtype)) * (x @ up.astype(x.dtype))  # B T F
        return inner @ down.astype(x.dtype)


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


def layer_frequencies(config: ModelConfig) -> Float[Array, "L Half"]:
    """Radians per token of each channel pair, for each layer."""
    exponents = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32) / config.head_dim
    far = scaled_frequencies(config.rope_base**-exponents, config.rope_scaling)
    near = far if config.rope_local_base is None else config.rope_local_base**-exponents
    return jnp.where(jnp.asarray(config.is_local)[:, None], near, far)


def rotate(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    frequencies: Float[Array, "Half"],
) -> Float[Array, "B T N H"]:
    """Turns queries or keys by an angle that grows with position (RoPE).

    Channels i and i + H/2 of the token at position p turn together by
    p * frequencies[i] radians, so a query-key product sees only distances.

    Args:
      positions: tokens since the dialogue began.

    Source: arXiv:2104.09864, section 3.4.
    """
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies  # B T 1 H/2
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def soft_cap(logits: Array, cap: float | None) -> Array:
    """Bounds logits smoothly to (-cap, cap)."""
    return logits if cap is None else cap * jnp.tanh(logits / cap)
