"""Rotary settings of a config.json: bases and frequency scaling.

Three formats occur: `rope_theta` with `rope_scaling`; the newer `rope_parameters`; and,
in Gemma 3, `rope_parameters` per layer type. Contradictory values, and fields that a kind
of scaling does not use, are refused.
"""

import math
from collections.abc import Mapping
from typing import Any

from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.weights.config_keys import KINDS, short

Rope = Mapping[str, Any]
GLOBAL, LOCAL = "full_attention", "sliding_attention"
BASES = {GLOBAL: 1_000_000.0, LOCAL: 10_000.0}  # Gemma 3's defaults
BASE = 10_000.0
NAMES = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
ORIGINAL = "original_max_position_embeddings"
FIELDS: dict[str, dict[str, str]] = {  # scaling: its fields, and for each its kind in KINDS
    "default": {},
    "linear": {"factor": "positive"},
    "llama3": {
        "factor": "positive",
        "low_freq_factor": "positive",
        "high_freq_factor": "positive",
        ORIGINAL: "count",
    },
    "yarn": {
        "factor": "positive",
        ORIGINAL: "count",
        "beta_fast": "positive",
        "beta_slow": "positive",
        "attention_factor": "positive",
        "mscale": "positive",
        "mscale_all_dim": "positive",
        "truncate": "flag",
        "finetuned": "flag",  # the weights were trained with it; has no effect
    },
}
NEEDED = ("factor", "low_freq_factor", "high_freq_factor")


def read_rope(family: str, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotary bases and their scaling, as fields of ModelConfig.

    Args:
      values: result of `config_keys.read_keys`.

    Raises:
      ValueError: a scaling is not supported, incomplete or contradictory.
    """
    old, new = values["rope_scaling"], values["rope_parameters"]
    if old and new and old != new:
        raise ValueError(f"{where}: rope_scaling and rope_parameters differ; keep one of them")
    if family == "gemma3_text":
        return read_layer_kinds(values, where)
    name = "rope_scaling" if old else "rope_parameters"
    rope = old or new or {}
    longest = values["max_position_embeddings"]
    return {
        "rope_base": read_base(
            rope, ("rope_theta", values["rope_theta"]), BASE, f"{where}: {name}"
        ),
        "rope_scaling": read_scaling(
            rope, values[ORIGINAL], longest=longest, where=f"{where}: {name}"
        ),
    }


def read_layer_kinds(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Gemma 3's bases and scalings, one for global and one for local layers."""
    old, new = values["rope_scaling"] or {}, values["rope_parameters"] or {}
    if old and "rope_type" not in old:
        raise ValueError(
            f"{where}: rope_scaling has no rope_type, without which Gemma 3 ignores it; add it"
        )
    ropes: dict[str, Rope] = {GLOBAL: old} if old else new
    tops = {GLOBAL: "rope_theta", LOCAL: "rope_local_base_freq"}
    stray = [key for key in ropes if key not in tops]
    if stray:
        raise ValueError(
            f"{where}: rope_parameters.{stray[0]} is {short(ropes[stray[0]])}; Gemma 3 reads "
            f"{GLOBAL} and {LOCAL} only, write it into them"
        )
    bases, scalings = {}, {}
    for kind, top in tops.items():
        name = f"{where}: " + ("rope_scaling" if old else f"rope_parameters.{kind}")
        rope = ropes.get(kind) or {}
        if not isinstance(rope, Mapping):
            raise ValueError(f"{name} is {short(rope)}; set an object")
        if rope.get("truncate") is False:  # transformers reads it one level higher only
            raise ValueError(f"{name}.truncate is False; transformers ignores it here, delete it")
        bases[kind] = read_base(rope, (top, values[top]), BASES[kind], name)
        longest = values["max_position_embeddings"]
        scalings[kind] = read_scaling(rope, None, longest=longest, where=name)
    return {
        "rope_base": bases[GLOBAL],
        "rope_local_base": bases[LOCAL],
        "rope_scaling": scalings[GLOBAL],
        "rope_local_scaling": scalings[LOCAL],
    }


def read_base(rope: Rope, top: tuple[str, float | None], default: float, where: str) -> float:
    """The base, from inside the rotary settings or from the top level of the config."""
    name, outside = top
    inside = rope.get("rope_theta", outside)
    fits, wanted = KINDS["base"]
    if "rope_theta" in rope and not fits(inside):
        raise ValueError(f"{where}.rope_theta is {short(inside)}; {wanted}")
    if outside is not None and inside != outside:
        raise ValueError(f"{where}.rope_theta is {inside}, but {name} is {outside}; keep one")
    return default if inside is None else float(inside)


def read_scaling(
    rope: Rope, original: int | None, *, longest: int, where: str
) -> RopeScaling | None:
    """The frequency scaling, or None.

    Args:
      original: original length in tokens at the config's top level; it has priority.
      longest: default of the original length, as in transformers.
    """
    kind = rope.get("rope_type", rope.get("type", "default"))
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"{where}: rope_type is {kind!r}; supported: {', '.join(FIELDS)}")
    if rope.get("type", kind) != kind:
        raise ValueError(f"{where}.rope_type is {kind!r}, but type is {rope['type']!r}; keep one")
    for name, value in rope.items():
        check_field(kind, name, value, where)
    lacks = [name for name in FIELDS[kind] if name in NEEDED and rope.get(name) is None]
    if lacks:
        raise ValueError(f"{where}: rope_type {kind!r} lacks {', '.join(lacks)}; add it")
    length = original or rope.get(ORIGINAL) or longest
    try:
        return make_scaling(kind, rope, length, where)
    except ValueError as error:  # fields that contradict each other
        raise ValueError(f"{where}: {error}") from error


def check_field(kind: str, name: str, value: Any, where: str) -> None:
    """Raises ValueError where a kind of scaling does not use a field, or not this value."""
    if name == "partial_rotary_factor" and value not in (None, 1):
        raise ValueError(
            f"{where}.{name} is {short(value)}; partial rotation is not supported, set 1"
        )
    if name in NAMES or value is None:
        return
    if name not in FIELDS[kind]:
        raise ValueError(
            f"{where}.{name} is {short(value)}, which rope_type {kind!r} does not read; "
            "set the rope_type that does, or delete it"
        )
    fits, wanted = KINDS[FIELDS[kind][name]]
    if not fits(value):
        raise ValueError(f"{where}.{name} is {short(value)}; {wanted}")


def make_scaling(kind: str, rope: Rope, length: int, where: str) -> RopeScaling | None:
    """Builds the RopeScaling from complete fields; None for "default"."""
    if kind == "linear":
        return RopeScaling(kind="linear", factor=rope["factor"])
    if kind == "llama3":
        return RopeScaling(
            kind="llama3",
            factor=rope["factor"],
            low_frequency_factor=rope["low_freq_factor"],
            high_frequency_factor=rope["high_freq_factor"],
            original_length=length,
        )
    if kind == "yarn":
        return RopeScaling(
            kind="yarn",
            factor=rope["factor"],
            original_length=length,
            beta_fast=rope.get("beta_fast") or 32.0,
            beta_slow=rope.get("beta_slow") or 1.0,
            truncate=rope.get("truncate") is not False,
            attention_factor=read_attention_factor(rope, where),
        )
    return None


def read_attention_factor(rope: Rope, where: str) -> float | None:
    """YaRN's attention factor if the file gives one; None: the paper's formula."""
    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    scales = [rope.get(name) for name in ("mscale", "mscale_all_dim")]
    if scales == [None, None]:
        return None
    if None in scales:
        raise ValueError(f"{where} has one of mscale and mscale_all_dim; set both or none")
    over, under = (max(1.0, 0.1 * m * math.log(rope["factor"]) + 1.0) for m in scales if m)
    return over / under


def write_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The `rope_scaling` entry."""
    if scaling is None:
        return None
    entry: dict[str, Any] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        entry |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
        }
    if scaling.kind == "yarn":
        entry |= {"beta_fast": scaling.beta_fast, "beta_slow": scaling.beta_slow}
        entry |= {} if scaling.truncate else {"truncate": False}
        if scaling.attention_factor is not None:
            entry["attention_factor"] = scaling.attention_factor
    if scaling.kind != "linear":
        entry[ORIGINAL] = scaling.original_length
    return entry


def write_rope(family: str, config: ModelConfig) -> dict[str, Any]:
    """The config.json entries of a config's rotary fields; inverse of `read_rope`."""
    base, scaling = config.rope_base, write_scaling(config.rope_scaling)
    if family != "gemma3_text":
        return {"rope_theta": base, "rope_scaling": scaling}
    local_base, local_scaling = config.rope_local_base, config.rope_local_scaling
    if local_base is None:
        local_base, local_scaling = base, config.rope_scaling
    if local_scaling is None:
        return {"rope_theta": base, "rope_scaling": scaling, "rope_local_base_freq": local_base}
    default = {"rope_type": "default"}
    entries = {
        GLOBAL: (scaling or default) | {"rope_theta": base},
        LOCAL: (write_scaling(local_scaling) or default) | {"rope_theta": local_base},
    }
    return {"rope_parameters": entries}
