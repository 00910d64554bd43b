"""The model config: sizes, and the options by which model families differ."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from score_jax.checks import Count, Positive, check_fields

Activation = Literal["silu", "gelu_tanh", "gelu"]  # gelu: the exact form, by erf
RopeKind = Literal["linear", "llama3", "yarn"]
Remat = Literal["none", "dots", "full"]
Dtype = Literal["float32", "bfloat16"]
AttentionKind = Literal["auto", "plain", "cudnn", "splash"]


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How the rotary frequencies of long-context models are scaled."""

    kind: RopeKind
    factor: float
    low_frequency_factor: float = 1.0  # llama3 only
    high_frequency_factor: float = 4.0  # llama3 only
    original_length: int = 8192  # llama3 and yarn; tokens
    beta_fast: float = 32.0  # yarn only; rotations in original_length: unscaled above this
    beta_slow: float = 1.0  # yarn only; likewise: divided by the factor below this
    truncate: bool = True  # yarn only; rounds the ends of the ramp between them to whole channels
    attention_factor: float | None = None  # yarn only; None: 0.1 ln(factor) + 1

    def __post_init__(self):
        check_fields(self, "model.rope_scaling")
        if self.kind not in get_args(RopeKind):
            raise ValueError(
                f"model.rope_scaling.kind is {self.kind!r}; "
                f"choose one of {', '.join(get_args(RopeKind))}"
            )
        for name in ("factor", "original_length", "beta_fast", "beta_slow", "attention_factor"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"model.rope_scaling.{name} is {value}; set a finite value above 0"
                )
        for low, high in (
            ("low_frequency_factor", "high_frequency_factor"),
            ("beta_slow", "beta_fast"),
        ):
            if getattr(self, low) >= getattr(self, high):
                raise ValueError(
                    f"model.rope_scaling.{low} is {getattr(self, low)}; "
                    f"set less than {high} {getattr(self, high)}"
                )

    @property
    def magnitude(self) -> float:
        """The factor of rotated queries and keys."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        return max(1.0, 0.1 * math.log(self.factor) + 1.0)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A decoder-only transformer of the Llama, Qwen 2.5/3 or Gemma 2/3 family."""

    vocab_size: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    activation: Activation = "silu"
    norm_eps: Positive = 1e-6
    norm_plus_one: bool = False  # Gemma stores scale - 1
    post_norms: bool = False  # Gemma 2/3: a norm after attention and MLP as well
    qk_norm: bool = False  # Qwen 3, Gemma 3
    qkv_bias: bool = False  # Qwen 2.5
    tied_embeddings: bool = True
    embedding_scale: bool = False  # Gemma: embeddings times sqrt(width)
    query_scale: Positive | None = None  # None: head_dim ** -0.5
    attention_cap: Positive | None = None  # soft cap of attention logits; Gemma 2: 50
    logit_cap: Positive | None = None  # soft cap of output logits; Gemma 2: 30
    window: Count | None = None  # tokens that a local layer attends to, the query's included
    local_layers: tuple[bool, ...] | None = None  # which layers are local; None: all, if window
    rope_base: Positive = 10_000.0
    rope_local_base: Positive | None = None  # Gemma 3's local layers; None: rope_base
    rope_scaling: RopeScaling | None = None  # global layers; all layers if no rope_local_base
    rope_local_scaling: RopeScaling | None = None  # local layers, with rope_local_base
    max_length: Count | None = None  # tokens the model was trained for; None: unlimited
    dtype: Dtype = "float32"  # of activations; parameters are float32
    unroll: int = 1  # layers per scan iteration; = layers is fastest for tiny models
    remat: Remat = "none"  # backward pass recomputes: nothing, all but matmuls, everything
    # Without a cache (model.fused_attention). auto: stages.build takes what the devices have; a
    # decoder of its own computes plain.
    attention: AttentionKind = "auto"

    def __post_init__(self):
        check_fields(self, "model")
        for name in (
            "vocab_size",
            "layers",
            "width",
            "heads",
            "kv_heads",
            "head_dim",
            "mlp_dim",
            "unroll",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; set a positive integer")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads is {self.heads}; set a multiple of model.kv_heads {self.kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"model.head_dim is {self.head_dim}; RoPE needs an even number")
        if self.rope_local_scaling is not None and self.rope_local_base is None:
            raise ValueError(
                "model.rope_local_scaling is set without model.rope_local_base; set both"
            )
        if self.local_layers is not None and len(self.local_layers) != self.layers:
            raise ValueError(
                f"model.local_layers has {len(self.local_layers)} entries; "
                f"give one per layer, {self.layers}"
            )
        for name, choices in (
            ("activation", Activation),
            ("remat", Remat),
            ("dtype", Dtype),
            ("attention", AttentionKind),
        ):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"model.{name} is {getattr(self, name)!r}; "
                    f"choose one of {', '.join(get_args(choices))}"
                )

    @property
    def is_local(self) -> tuple[bool, ...]:
        """For each layer, whether it attends within the window only."""
        if self.window is None:
            return (False,) * self.layers
        return self.local_layers or (True,) * self.layers
