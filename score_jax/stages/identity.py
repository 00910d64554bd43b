"""What a run is made of, by contents: the reference model, its tokenizer, the problems.

A folder under the same name may hold other weights tomorrow, and the same weights may lie
in another folder. So a stage's folder keeps fingerprints of contents in `identity.json`: a
run that goes on there, or uses what was trained there, must have equal ones.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_jax.distributed import processes
from score_jax.model.config import ModelConfig
from score_jax.model.shape import shape
from score_jax.model.weights.load import resolve
from score_jax.records import Problem
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.build import StagePrograms
from score_jax.stages.settings import Settings
from score_jax.types import Params

FILE = "identity.json"
PART_SOURCES = {  # part: the field that names its source, and what the part is
    "weights": ("weights.source", "weights"),
    "shape": ("weights.source", "shape by config.model or config.json"),
    "tokenizer": ("tokenizer.source", "tokenizer"),
    "stops": ("weights.source", "stop ids"),
    "data": ("data", "problems"),
}
POLICY_PARTS = ("weights", "shape", "tokenizer", "stops")  # what a trained policy depends on
SALTS = (0, 0x9E3779B9)  # of two independent sums: 64 bits


def fingerprints(
    programs: StagePrograms, reference: Params, problems: Sequence[Problem]
) -> dict[str, str]:
    """One fingerprint a part; equal ones mean equal contents. All hosts must call.

    Raises:
      ValueError: hosts have different contents under the same names.
    """
    return policy_fingerprints(programs, reference) | check_hosts_agree(
        {"data": of_problems(problems)}
    )


def policy_fingerprints(programs: StagePrograms, reference: Params) -> dict[str, str]:
    """The fingerprints of POLICY, for what asks no problems of the run. All hosts must call.

    Raises:
      ValueError: hosts have different contents under the same names.
    """
    return check_hosts_agree(
        {
            "weights": of_weights(programs.settings, reference),
            "shape": of_shape(programs.decoder.config),
            "tokenizer": digest(programs.chat.tokenizer.contents()),
            "stops": ", ".join(map(str, programs.chat.stops)),
        }
    )


def check_hosts_agree(found: dict[str, str]) -> dict[str, str]:
    """What this host has found, which must be what the others have.

    Raises:
      ValueError: it isn't.
    """
    first, *others = processes.all_gather_objects(found)
    for number, other in enumerate(others, 1):
        for part, value in other.items():
            if value != first[part]:
                field, what = PART_SOURCES[part]
                raise ValueError(
                    f"config.{field} gives host {number} other contents than host 0 ({what}: "
                    f"{value}, not {first[part]}); give all hosts the same files"
                )
    return found


def of_weights(settings: Settings, reference: Params) -> str:
    """Every bit of every parameter; of random ones the seed, which gives them again anywhere."""
    if settings.weights.source == "random":
        return f"random by seed {settings.seed}"
    return "".join(f"{int(checksum(reference, jnp.uint32(salt))):08x}" for salt in SALTS)


def of_shape(config: ModelConfig) -> str:
    """What the model computes; a field that has its default value says nothing."""
    usual = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    told = {name: value for name, value in shape(config).items() if value != usual[name]}
    return digest(json.dumps(told, sort_keys=True).encode())


def of_problems(problems: Sequence[Problem]) -> str:
    """Everything that is asked and graded, problem by problem in their order."""
    usual = {field.name: field.default for field in dataclasses.fields(Problem)}
    seen = hashlib.sha256()
    for problem in problems:
        told = {name: value for name, value in problem.contents().items() if value != usual[name]}
        seen.update(json.dumps(told, sort_keys=True).encode() + b"\n")
    return f"{len(problems)} by {seen.hexdigest()[:32]}"


def digest(data: bytes) -> str:
    """A fingerprint of bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


@jax.jit
def checksum(tree: Any, salt: jax.Array) -> jax.Array:
    """A sum over all numbers of a tree, each scrambled and weighed by its place.

    A sum of integers depends on no order, so neither on devices nor on hosts.
    """
    total = jnp.zeros((), jnp.uint32)
    for leaf in jax.tree.leaves(tree):
        words = scramble(salt ^ jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32))
        for axis, size in enumerate(leaf.shape):
            weights = scramble(salt + jnp.uint32(axis) + 8 * jnp.arange(size, dtype=jnp.uint32)) | 1
            words = words * jax.lax.broadcast_in_dim(weights, leaf.shape, [axis])
        total = scramble(total + 1) + jnp.sum(words, dtype=jnp.uint32)
    return total


def scramble(x: jax.Array) -> jax.Array:
    """Maps 32-bit words one to one onto words that look random.

    Source: the finaliser of MurmurHash3.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def sources(settings: Settings) -> dict[str, Any]:
    """Where the parts come from; a hub's name with the commit that it stands for."""
    weights = resolve(settings.weights.source)
    tokenizer = settings.tokenizer.source
    data = dict(settings.data)
    return {
        "weights.source": weights,
        "tokenizer.source": resolve(tokenizer) if tokenizer else weights,
        "data": data.get("path") or data.get("name") or data.get("source", ""),
    }


def recorded(folder: Path) -> dict[str, Any] | None:
    """What a stage's folder says of its contents; None: nothing yet."""
    return processes.broadcast_from_first(read_json(folder / FILE))


def record(folder: Path, found: dict[str, str], settings: Settings) -> None:
    """Writes a stage's fingerprints down, on the first host."""
    where = sources(settings)
    if processes.is_first():
        write_json(folder / FILE, {"fingerprints": found, "sources": where})


def check_fingerprints(found: dict[str, str], folder: Path, settings: Settings) -> None:
    """Checks that contents are those that a stage's folder was begun with.

    Args:
      found: the fingerprints that matter here.

    Raises:
      ValueError: a part is another one; the message says which and where it came from.
    """
    before = recorded(folder)
    if before is None:
        return
    for part, now in found.items():
        then = before["fingerprints"].get(part, now)
        if then == now:
            continue
        field, what = PART_SOURCES[part]
        raise ValueError(
            f"config.{field} is {sources(settings)[field]!r}, but its {what} ({now}) are not what "
            f"{folder} was begun with ({then}, from {before['sources'][field]!r}); set it to those "
            "contents, wherever they lie, or choose another --workdir"
        )
