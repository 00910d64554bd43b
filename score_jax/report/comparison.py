"""Reads a comparison of methods into one record: tables, differences, curves, what was tuned.

`stages.comparison` writes plan.json and, for every run, test.json. Nothing is compared that was
measured in different ways; budgets are checked before anything is trained.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.report.compare import bounds_of, by_problem, difference_of
from score_jax.report.intervals import mcnemar, mean_over_runs
from score_jax.report.json_files import read_json, write_json

DECODINGS = ("greedy", "sampled")
CURVES = (  # of metrics.jsonl, as the paper draws them
    "accuracy/turn1", "accuracy/turn2", "answer_changed", "edit_distance", "kl/turn1", "kl/turn2",
)  # fmt: skip
# Of the protocol: what a method that only prompts may change, and the length that follows from it.
PROMPTING = ("hash", "instruction", "script", "row_limit")
ALARMS = "alarms.jsonl"  # in the folder of a stage
FAILED = "failed.json"  # in the folder of a trial that could not be trained
PAPER = {  # arXiv:2409.12917, tables 2 and 3: @t1, @t2, Delta, i->c, c->i in percent
    "MATH500, Gemini 1.5 Flash": {
        "base model": (52.6, 41.4, -11.2, 4.6, 15.8),
        "Self-Refine": (52.8, 51.8, -1.0, 3.2, 4.2),
        "STaR": (55.4, 41.2, -14.2, 5.4, 19.6),
        "STaR, D+": (53.6, 54.0, 0.4, 2.6, 2.2),
        "Pair-SFT": (52.4, 54.2, 1.8, 5.4, 3.6),
        "Pair-SFT, D+": (55.0, 55.0, 0.0, 0.0, 0.0),
        "single-turn RL": (61.8, 59.4, -2.4, None, None),
        "SCoRe without Stage I": (59.2, 61.4, 2.2, None, None),
        "SCoRe, alpha = 0": (60.0, 62.6, 2.6, None, None),
        "STaR in place of RL in Stage II": (56.2, 58.4, 2.2, None, None),
        "SCoRe": (60.0, 64.4, 4.4, 5.8, 1.4),
    },
    "HumanEval, Gemini 1.0 Pro": {
        "base model": (53.7, 56.7, 3.0, 7.9, 4.9),
        "Self-Refine": (53.7, 52.5, -1.2, 9.8, 11.0),
        "Pair-SFT": (56.1, 54.3, -1.8, 4.3, 6.1),
        "SCoRe": (52.4, 64.6, 12.2, 15.2, 3.0),
    },
}


def read(workdir: Path) -> dict[str, Any]:
    """The record of a comparison, of what is there so far.

    Raises:
      ValueError: the folder holds no comparison, or its runs can't be compared.
    """
    plan = read_json(workdir / "plan.json")
    if plan is None:
        raise ValueError(f"{workdir} holds no plan.json; run a comparison first")
    methods = {name: read_method(workdir, own) for name, own in plan["methods"].items()}
    base = read_json(workdir / "base/base/test.json")
    check_alike(base, {name: method["files"] for name, method in methods.items()}, plan)
    check_tuning(methods)
    against = methods.get(plan["against"])
    for method in methods.values():
        if against and against["files"] and method["files"]:
            method["against"] = differences(method["files"], against["files"])
    for method in methods.values():
        del method["files"]
    return {
        **{key: value for key, value in plan.items() if key not in ("methods", "stages")},
        "problems": base["problems"] if base else None,
        "protocol": base["protocol"] if base else None,
        "base": summary([base]) if base else {},
        "base_scaling": scaling_of(base, workdir / "base/base", plan["sets"]) if base else {},
        "methods": methods,
        "paper": PAPER,
    }


def write(workdir: Path) -> dict[str, Any]:
    """Writes comparison.json and returns it."""
    record = read(workdir)
    write_json(workdir / "comparison.json", record)
    return record


def read_method(workdir: Path, own: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of a method, with the files of its measured runs."""
    last = own["stages"][-1]
    folders = [workdir / run for run in own["runs"]]
    measured = [(f, read_json(f / last / "test.json")) for f in folders]
    found = [(folder, file) for folder, file in measured if file is not None]
    files = [file for _, file in found]
    variants = [
        {
            "fields": variant["fields"],
            **validation(workdir / variant["validation"]),
            "failed": failure(workdir / variant["failed"]),
        }
        for variant in own["variants"]
    ]
    method: dict[str, Any] = {
        **{key: own[key] for key in ("title", "budget", "dialogues", "updates", "taken")},
        "variants": variants,
        "validation_dialogues": sum(variant["dialogues"] for variant in variants),
        "seeds": [file["training_seed"] for file in files],
        "failed": [run for run in own["runs"] if failure(workdir / run / FAILED)],
        "runs": [
            {"folder": str(folder.relative_to(workdir)), **values_of(file)}
            for folder, file in found
        ],
        "alarms": alarms_of(folders, own["stages"]),
        "files": files,
    }
    if files:
        method |= summary(files)
        method["histogram"] = histogram(files)
        method["curves"] = curves([folder for folder, _ in found], own["stages"])
        first = found[0][0] / last
        method["scaling"] = scaling_of(files[0], first, own["sets"])
    return method


def validation(path: Path) -> dict[str, Any]:
    """A variant's greedy accuracies on validation problems, and the dialogues that it took."""
    file = read_json(path)
    if file is None:
        return {"turn1": None, "turn2": None, "dialogues": 0}
    greedy = file["models"][file["stage"]]["greedy"]
    return {
        "turn1": greedy["accuracy/turn1"]["value"],
        "turn2": greedy["accuracy/turn2"]["value"],
        "dialogues": file["problems"],
    }


def failure(path: Path) -> str:
    """Why a trial could not be trained; "": it could."""
    return (read_json(path) or {"error": ""})["error"]


def outcomes(file: Mapping[str, Any], decoding: str) -> dict[str, np.ndarray]:
    """A run's values for every problem, by heading."""
    return by_problem(file["outcomes"][file["stage"]][decoding])


def known(files: Sequence[Mapping[str, Any]]) -> list[str]:
    """The decodings that all files were measured with."""
    return [d for d in DECODINGS if all(d in f["outcomes"][f["stage"]] for f in files)]


STORED = {
    "@t1": "accuracy/turn1", "@t2": "accuracy/turn2", "Delta": "delta", "i->c": "delta_i_to_c",
    "c->i": "delta_c_to_i",
}  # fmt: skip


def check_stored(file: Mapping[str, Any], decoding: str) -> None:
    """Checks that the values of a file are those of its outcomes, and that the gain is what it is.

    Raises:
      ValueError: one is not.
    """
    stored, found = file["models"][file["stage"]][decoding], outcomes(file, decoding)
    means = {heading: float(values.mean()) for heading, values in found.items()}
    told = {h: stored[name]["value"] for h, name in STORED.items() if stored.get(name)}
    if {"Delta", "i->c", "c->i"} <= told.keys():
        told["the gain"], means["the gain"] = told["i->c"] - told["c->i"], told["Delta"]
    for heading, value in told.items():
        if abs(value - means[heading]) > 1e-6:
            raise ValueError(
                f"{file['stage']}, seed {file['training_seed']}, {decoding}: {heading} is {value}, "
                f"but the outcomes give {means[heading]}; the file was changed: measure again"
            )


def summary(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean over runs of each heading, with its interval, by decoding.

    Raises:
      ValueError: a stored value is not what the outcomes give.
    """
    found: dict[str, Any] = {}
    for decoding in known(files):
        for file in files:
            check_stored(file, decoding)
        runs = [outcomes(file, decoding) for file in files]
        found[decoding] = {
            heading: vars(
                mean_over_runs(
                    np.stack([run[heading] for run in runs]),
                    bounds=bounds_of(heading),
                )
            )
            for heading in runs[0]
        }
    return found


def values_of(file: Mapping[str, Any]) -> dict[str, Any]:
    """A run's own means by heading and decoding."""
    return {
        "seed": file["training_seed"],
        "step": file["step"],
        **{
            decoding: {name: float(v.mean()) for name, v in outcomes(file, decoding).items()}
            for decoding in known([file])
        },
    }


def differences(
    files: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """A method less another on the same problems, by decoding and heading.

    `mcnemar` is the exact p-value of the first runs' greedy last attempts.
    """
    found: dict[str, Any] = {}
    for decoding in known([*files, *others]):
        a, b = ([outcomes(file, decoding) for file in part] for part in (files, others))
        found[decoding] = {
            heading: vars(difference_of(a, b, heading)) for heading in ("@t1", "@t2", "Delta")
        }
    first, second = (outcomes(part[0], "greedy")["@t2"] > 0.5 for part in (files, others))
    return found | {"mcnemar": mcnemar(first, second)}


def histogram(files: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Edit distance ratios of greedy dialogues, counted over all runs."""
    found = [file["histogram"][file["stage"]] for file in files]
    counts = np.sum([one["counts"] for one in found], axis=0)
    return {"edges": found[0]["edges"], "counts": counts.tolist()}


def alarms_of(folders: Sequence[Path], stages: Sequence[str]) -> dict[str, int]:
    """In how many of a method's runs each alarm was raised while training."""
    raised = [{row["name"] for row in run_rows(folder, stages, ALARMS)} for folder in folders]
    return dict(sorted(Counter(name for names in raised for name in names).items()))


def curves(folders: Sequence[Path], stages: Sequence[str]) -> dict[str, Any]:
    """Each metric of CURVES over a method's updates, as the mean over its runs.

    The stages follow each other; those that log nothing take no room.
    """
    runs = [run_rows(folder, stages) for folder in folders]
    length = min((len(run) for run in runs), default=0)
    found: dict[str, Any] = {}
    for name in CURVES:
        columns = [[row.get(name) for row in run[:length]] for run in runs]
        steps = [i for i in range(length) if all(c[i] is not None for c in columns)]
        if steps:
            values = np.array([[column[i] for i in steps] for column in columns], float)
            mean = values.mean(axis=0)
            found[name] = {"steps": [i + 1 for i in steps], "values": mean.tolist()}
    return found


def run_rows(
    folder: Path, stages: Sequence[str], file: str = "metrics.jsonl"
) -> list[dict[str, Any]]:
    """The logged rows of a run's stages, one after another."""
    rows: list[dict[str, Any]] = []
    for stage in stages:
        path = folder / stage / file
        if path.is_file():
            rows += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows


def all_scalings(record: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Name, title and further measurements of the base model ("") and of each method."""
    methods = record["methods"].items()
    return [
        ("", "base model", record.get("base_scaling", {})),
        *((name, own["title"], own.get("scaling", {})) for name, own in methods),
    ]


def scaling_of(
    file: Mapping[str, Any], folder: Path, sets: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """What a run's further measurements say: votes by samples, and accuracies by attempt.

    Args:
      folder: of the files of `sets`.
      sets: what each turn is, by the measurement's name.
    """
    found: dict[str, Any] = {}
    for name, roles in sets.items():
        measured = read_json(folder / f"test_{name}.json")
        if measured is None:
            continue
        model = measured["models"][measured["stage"]]
        turns = [turn for turn, role in enumerate(roles, 1) if role == "answer"]
        base = measured["models"].get("base", model)["greedy"]
        found[name] = {
            "problems": measured["problems"],
            "instruction": measured["protocol"]["instruction"],
            "accuracy": [model["greedy"][f"accuracy/turn{turn}"] for turn in turns],
            "base": [base[f"accuracy/turn{turn}"] for turn in turns],
            "delta": model["greedy"].get("delta"),
            "votes": model.get("scaling", {}),
        }
    return found


def check_alike(
    base: Mapping[str, Any] | None, files: Mapping[str, Sequence[Any]], plan: Mapping[str, Any]
) -> None:
    """Checks that all runs were measured on the same problems in the same way.

    Args:
      files: each method's measurements.

    Raises:
      ValueError: two differ; the message names them and what differs.
    """
    for name, file in [(name, file) for name, own in files.items() for file in own]:
        if base is None:
            continue
        free = () if plan["methods"][name]["updates"] else PROMPTING
        a, b = base["protocol"], file["protocol"]
        fields = [f for f in sorted(a.keys() | b.keys()) if f not in ("hash", *free)]
        found = [f"{f} {a.get(f)!r} / {b.get(f)!r}" for f in fields if a.get(f) != b.get(f)]
        if base["reference"] != file["reference"]:
            found.append("another base model")
        if found:
            raise ValueError(
                f"the base model and {name}, seed {file['training_seed']}, were measured in "
                f"different ways: {', '.join(found)}; compare in a new --workdir"
            )


def check_tuning(methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that what has been tuned was tuned with the same effort.

    Raises:
      ValueError: two variants were measured on different numbers of dialogues.
    """
    spent = {
        f"{name}, variant {number}": variant["dialogues"]
        for name, method in methods.items()
        for number, variant in enumerate(method["variants"], 1)
        if method["taken"] and not variant["failed"]
    }
    if len(set(spent.values())) > 1:
        raise ValueError(
            f"variants were measured on different numbers of validation dialogues: {spent}; "
            "compare in a new --workdir"
        )
