"""Run as a program with eight fake devices: kernels over a mesh against the same without one.

    python -m tests.model.split_attention OUT.json

For each kernel, under training's and under sampling's axes: the largest difference of values
and gradients, and the shape of the queries that a device works on.
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

from score_jax.distributed import sharding
from score_jax.model import fused_attention as kernels
from score_jax.model.config import ModelConfig
from score_jax.model.fused_attention import fused_attention

CONFIG = ModelConfig(
    vocab_size=9, layers=2, width=16, heads=4, kv_heads=2, head_dim=8, mlp_dim=8, dtype="bfloat16"
)
PACKED = jnp.array([[0] * 60 + [1] * 90, [0] * 130 + [2] * 20])
CASES = {  # fields of the config, segments, length; the last crosses blocks of 128 tokens twice
    "causal": ({}, None, 150),
    "one key head": ({"kv_heads": 1}, None, 20),
    "scaled": ({"query_scale": 0.7}, None, 128),
    "soft cap": ({"attention_cap": 2.0}, None, 150),
    "window": ({"window": 9}, None, 150),
    "segments": ({}, PACKED, 150),
    "all": ({"window": 40, "attention_cap": 2.0, "query_scale": 0.7}, jnp.tile(PACKED, 2), 300),
}
interpreted = partial(splash_attention.make_splash_mha_single_device, interpret=True)
dot_product_attention = jax.nn.dot_product_attention


def as_xla(*arguments, implementation, **options):
    """What cuDNN is asked for, computed by XLA."""
    assert implementation == "cudnn"
    return dot_product_attention(*arguments, implementation="xla", **options)


def arrays(config, length, rows=2):
    """Query, key, value and a gradient of the result."""
    size, dtype = config.head_dim, jnp.dtype(config.dtype)
    shapes = [
        (rows, length, config.heads, size),
        (rows, config.kv_heads, length, size),
        (rows, config.kv_heads, length, size),
        (rows, length, config.heads, size),
    ]
    keys = jax.random.split(jax.random.key(0), 4)
    return [jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)]


def split(kind, rules, rows):
    """One kernel over a mesh of 2 x 2 x 2 and without it."""
    config = dataclasses.replace(
        CONFIG, heads=8, kv_heads=4, attention=kind, dtype="float32", window=40
    )
    *inputs, gradient = arrays(config, 100, rows)
    segments, shapes, pad = jnp.tile(PACKED, (2, 1))[:rows, :100], [], kernels.padded

    def watched(multiple, axis, *padded):
        shapes.append(padded[0].shape)
        return pad(multiple, axis, *padded)

    def run(*inputs):
        attend = partial(fused_attention, config, window=jnp.asarray(40), segments=segments)
        mixed, back = jax.vjp(attend, *inputs)
        return mixed, *back(gradient)

    expected = jax.jit(run)(*inputs)
    mesh = sharding.make_mesh(sharding.MeshConfig(data=2, sampling_tensor=2, tensor=2))
    kernels.padded = watched
    with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
        found = jax.jit(run)(*inputs)
    kernels.padded = pad
    error = max(float(jnp.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return error, shapes[0]


def main(out):
    """Writes one JSON object."""
    assert len(jax.devices()) == 8, jax.devices()
    splash_attention.make_splash_mha_single_device = interpreted
    jax.nn.dot_product_attention = as_xla
    cases = {
        "splash, training": ("splash", sharding.TRAIN_RULES, 4),
        "cudnn, training": ("cudnn", sharding.TRAIN_RULES, 4),
        "cudnn, sampling": ("cudnn", sharding.SAMPLE_RULES, 4),
        "cudnn, training of three rows": ("cudnn", sharding.TRAIN_RULES, 3),
    }
    found = {name: split(*case) for name, case in cases.items()}
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
