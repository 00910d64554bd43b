"""The part of a first contact that opens the devices: what they are, and whether they are right.

    python -m score_jax.planning.contact_probe --config=FILE:preset --out=FILE.json [OVERRIDES]

A process of its own, since only one at a time may hold a TPU.
"""

import dataclasses
import importlib.metadata
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int
from ml_collections import config_flags

from score_jax.distributed import sharding
from score_jax.model.decoder import Decoder, forward
from score_jax.report.json_files import write_json
from score_jax.stages import memory
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.program import Program
from score_jax.stages.resolve import planned, resolve_stages
from score_jax.stages.settings import Settings
from score_jax.types import Params

ROWS, TOKENS = 2, 64  # prompts that are scored for each part, and their tokens at most


def prompts(programs: StagePrograms) -> Int[np.ndarray, "B T"]:
    """The beginnings of training prompts, cut to one length; as many for each part of the rows."""
    tasks, problems = read(training_spec(programs.settings))
    encoder = programs.encoder(programs.settings.plan, 2**20, tasks)
    count = ROWS * sharding.row_shards(programs.mesh)
    rows = [encoder.opening(problems[i % len(problems)])[0] for i in range(count)]
    length = min(TOKENS, *map(len, rows))
    return np.asarray([row[:length] for row in rows], np.int32)


def token_logprobs(
    decoder: Decoder, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B T-1"]:
    """Log-probabilities of each token given those before it, in nats."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = forward(decoder, params, tokens, positions)
    logits: Any = decoder.apply({"params": params}, hidden[:, :-1], method="logits")
    scores = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(scores, tokens[:, 1:, None], -1)[..., 0]


def on_devices(programs: StagePrograms, dtype: str, params: Params, tokens: Any) -> np.ndarray:
    """`token_logprobs` where the programs run, with activations of a type."""
    decoder = Decoder(dataclasses.replace(programs.decoder.config, dtype=dtype, attention="plain"))
    run = Program(jax.jit(lambda p, t: token_logprobs(decoder, p, t)), programs.mesh)
    return np.asarray(run(params, tokens))


def on_cpu(programs: StagePrograms, params: Params, tokens: Any) -> np.ndarray:
    """`token_logprobs` on the host, in float32."""
    decoder = Decoder(
        dataclasses.replace(programs.decoder.config, dtype="float32", attention="plain")
    )
    cpu = jax.local_devices(backend="cpu")[0]
    params, tokens = jax.device_put((jax.device_get(params), tokens), cpu)
    with jax.default_device(cpu), jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda p, t: token_logprobs(decoder, p, t))(params, tokens))


def difference(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """Mean and largest absolute difference, in nats per token."""
    gap = np.abs(found.astype(np.float64) - expected)
    return {"mean": float(gap.mean()), "max": float(gap.max())}


def parse_flags(argv: Sequence[str]) -> tuple[Settings, Path]:
    """The stage of --config with its overrides, and --out.

    Raises:
      flags.Error: a flag is unknown or missing.
      ValueError: the config is invalid.
    """
    known = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=known, sys_argv=list(argv))
    out = flags.DEFINE_string("out", None, "where the result is written", flag_values=known)
    flags.mark_flags_as_required(["config", "out"], flag_values=known)
    known(argv)
    overrides = config_flags.get_override_values(known["config"])
    return planned(resolve_stages(config.value, overrides)), Path(str(out.value))


def probe(settings: Settings) -> dict[str, Any]:
    """What is told of the devices, and of the model's numbers on them."""
    programs = build(settings)
    params, tokens = load_reference(programs), prompts(programs)
    expected = on_cpu(programs, params, tokens)
    devices = jax.local_devices()
    return {
        "devices": len(jax.devices()),
        "kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "memory_limit_bytes": memory.limit_bytes(devices),
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")},
        "weights": settings.weights.source,
        "scored_tokens": int(expected.size),
        "mean_logprob_cpu_float32": float(expected.mean()),
        "logprobs_against_cpu": {
            dtype: difference(on_devices(programs, dtype, params, tokens), expected)
            for dtype in ("float32", "bfloat16")
        },
    }


if __name__ == "__main__":
    memory.reserve()  # as a run does, so that the memory told is what a run may take
    given, file = parse_flags(sys.argv)
    write_json(file, probe(given))
