"""Fingerprints of a run's inputs: reference weights, model shape, tokenizer, problems.

A path does not identify its contents: the files may be replaced, or moved elsewhere. So a
stage's folder stores fingerprints of the contents in `identity.json`, and a run that
resumes in that folder or loads its policy must have equal ones.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from score_jax.data import parquet
from score_jax.distributed import processes
from score_jax.model.config import ModelConfig
from score_jax.model.shape import shape
from score_jax.model.weights.load import ADAPTER, resolve
from score_jax.records import Problem
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.build import StagePrograms
from score_jax.stages.settings import Settings
from score_jax.types import Params

FILE = "identity.json"
PART_SOURCES = {  # part: (config field that names its source, the part in error messages)
    "weights": ("weights.source", "weights"),
    "shape": ("weights.source", "shape by config.model or config.json"),
    "tokenizer": ("tokenizer.source", "tokenizer"),
    "stops": ("weights.source", "stop ids"),
    "data": ("data", "problems"),
}
POLICY_PARTS = ("weights", "shape", "tokenizer", "stops")  # what a trained policy depends on
EXPORT = "export"  # in a stage's folder: its whole model
EXPORTED = "export.json"  # beside that: which checkpoint it holds
SALTS = (0, 0x9E3779B9)  # of two 32-bit checksums, which together give 64 bits


def fingerprints(
    programs: StagePrograms, reference: Params, problems: Sequence[Problem]
) -> dict[str, str]:
    """Fingerprints of all parts in PART_SOURCES; all hosts must call.

    Raises:
      ValueError: hosts have different contents under the same names.
    """
    return policy_fingerprints(programs, reference) | check_hosts_agree(
        {"data": fingerprint_problems(problems, worked=learns_answers(programs.settings))}
    )


def policy_fingerprints(programs: StagePrograms, reference: Params) -> dict[str, str]:
    """Fingerprints of POLICY_PARTS, which is all parts but the problems; all hosts must call.

    Raises:
      ValueError: hosts have different contents under the same names.
    """
    return check_hosts_agree(
        {
            "weights": fingerprint_weights(programs.settings, reference),
            "shape": fingerprint_shape(programs.decoder.config),
            "tokenizer": digest(programs.chat.tokenizer.contents()),
            "stops": ", ".join(map(str, programs.chat.stops)),
        }
    )


def check_hosts_agree(fingerprints: dict[str, str]) -> dict[str, str]:
    """Returns this host's fingerprints after comparing them with those of all other hosts.

    Raises:
      ValueError: a host's fingerprint differs from host 0's.
    """
    first, *others = processes.all_gather_objects(fingerprints)
    for number, other in enumerate(others, 1):
        for part, value in other.items():
            if value != first[part]:
                field, what = PART_SOURCES[part]
                raise ValueError(
                    f"config.{field} gives host {number} other contents than host 0 ({what}: "
                    f"{value}, not {first[part]}); give all hosts the same files"
                )
    return fingerprints


def fingerprint_weights(settings: Settings, reference: Params) -> str:
    """64 bits in hexadecimal over all parameters; for random weights their seed."""
    if settings.weights.source == "random":
        return f"random by seed {settings.seed}"
    return "".join(f"{int(checksum(reference, jnp.uint32(salt))):08x}" for salt in SALTS)


def fingerprint_shape(config: ModelConfig) -> str:
    """Fingerprint of the fields that decide what the model computes."""
    # Defaults are left out, so that a field added later does not change old fingerprints.
    defaults = {field.name: field.default for field in dataclasses.fields(ModelConfig)}
    values = {name: value for name, value in shape(config).items() if value != defaults[name]}
    return digest(json.dumps(values, sort_keys=True).encode())


def learns_answers(settings: Settings) -> bool:
    """Whether a stage is trained on the answers that come with its problems."""
    return settings.program == "supervised" and dict(settings.examples).get("source") == "answers"


def fingerprint_problems(problems: Sequence[Problem], *, worked: bool = False) -> str:
    """Count and fingerprint of problems: prompts, answers, tests and ids, in their order.

    Args:
      worked: worked answers count too.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(Problem)}
    hasher = hashlib.sha256()
    for problem in problems:
        contents = problem.contents().items()
        values = {name: value for name, value in contents if value != defaults[name]}
        if worked:
            values["worked"] = problem.worked
        hasher.update(json.dumps(values, sort_keys=True).encode() + b"\n")
    return f"{len(problems)} by {hasher.hexdigest()[:32]}"


def digest(data: bytes) -> str:
    """The first 128 bits of SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()[:32]


@jax.jit
def checksum(tree: Any, salt: jax.Array) -> jax.Array:
    """A uint32 checksum of a tree: numbers are hashed, weighted by their index and summed.

    Integer addition is associative even when it overflows, so the result does not depend
    on the number of devices or hosts.
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
    """Hashes 32-bit words one to one.

    Source: the finaliser of MurmurHash3.
    """
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return x ^ (x >> 16)


def sources(settings: Settings) -> dict[str, Any]:
    """The config fields that name sources, with hub names resolved to a commit."""
    weights = resolve(settings.weights.source)
    tokenizer = settings.tokenizer.source
    adapter, step = settings.weights.adapter, exported_step(settings.weights.source)
    return {
        "weights.source": weights,
        **({"weights.adapter": resolve(adapter, ADAPTER)} if adapter else {}),
        **({} if step is None else {"weights.step": step}),
        "tokenizer.source": resolve(tokenizer) if tokenizer else weights,
        "data": data_source(dict(settings.data)),
    }


def exported_step(source: str) -> int | None:
    """The step of a run's checkpoint that was exported to a folder of weights; None: of none."""
    folder = Path(source)
    record = read_json(folder.parent / EXPORTED) if folder.name == EXPORT else None
    return None if record is None else record.get("step")


def data_source(data: Mapping[str, Any]) -> str:
    """Where problems come from, a hub's data set with the commit that was fetched."""
    if data.get("source") == "mixture":
        parts = [data_source(dict(part)) for part in data.get("parts", ())]
        return f"mixture of {', '.join(parts)}"
    if data.get("source") == "hub":
        where = {key: data[key] for key in ("split", "subset") if key in data}
        return parquet.resolve(data["path"], **where)
    return data.get("path") or data.get("name") or data.get("source", "")


def read_recorded(folder: Path) -> dict[str, Any] | None:
    """Reads the first host's identity.json of a stage; None: there is none yet."""
    return processes.broadcast_from_first(read_json(folder / FILE))


def record(folder: Path, fingerprints: dict[str, str], settings: Settings) -> None:
    """Writes identity.json of a stage, on the first host."""
    found = sources(settings)
    if processes.is_first():
        write_json(folder / FILE, {"fingerprints": fingerprints, "sources": found})


def named(found: Mapping[str, Any], field: str) -> str:
    """A source of `sources` for messages, weights with the adapter that is added to them."""
    adapter = found.get(ADAPTER) if field == "weights.source" else None
    return f"{found[field]!r}" + (f" with {ADAPTER} {adapter!r}" if adapter else "")


def check_fingerprints(fingerprints: dict[str, str], folder: Path, settings: Settings) -> None:
    """Compares fingerprints with the identity.json of a stage, if it has one.

    Args:
      fingerprints: of the parts to compare.

    Raises:
      ValueError: a part differs; the message gives both fingerprints and the old source.
    """
    recorded = read_recorded(folder)
    if recorded is None:
        return
    for part, current in fingerprints.items():
        expected = recorded["fingerprints"].get(part, current)
        if expected == current:
            continue
        field, what = PART_SOURCES[part]
        raise ValueError(
            f"config.{field} is {named(sources(settings), field)}, but its {what} ({current}) are "
            f"not what {folder} was begun with ({expected}, from "
            f"{named(recorded['sources'], field)}); set it to a path with those contents, or "
            "choose another --workdir"
        )
