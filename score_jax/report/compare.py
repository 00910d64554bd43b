"""Puts finished runs side by side: one Markdown row per run, and their mean.

    python -m score_jax.report.compare runs/stage2/seed* runs/multi_turn/seed*

Rows of runs that end in the same stage stand together, with their mean below. Runs that
were measured in different ways are refused: their numbers can't be compared.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.report.intervals import Interval, mean_over_runs
from score_jax.report.json_files import read_json
from score_jax.text import terminal

COLUMNS = {  # heading: metric
    "@t1": "accuracy/turn1",
    "@t2": "accuracy/turn2",
    "Delta": "delta",
    "i->c": "delta_i_to_c",
    "c->i": "delta_c_to_i",
}
BOUNDED = ("@t2", "Delta")  # shown with their intervals in a run's own row
WAYS = {"greedy": "greedy", "T=1": "sampled"}
CAPTION = (
    "In percent. Brackets are 95% intervals: over problems in the row of a run, over runs and "
    "problems together in that of a mean."
)


def read_run(workdir: Path) -> dict[str, Any]:
    """The evaluation of the last stage of a run.

    Raises:
      ValueError: the folder holds no evaluated stage.
    """
    run = read_json(workdir / "run.json")
    stages = run["stages"] if run else []
    for stage in reversed(stages):
        found = read_json(workdir / stage / "evaluation.json")
        if found is not None:
            return found
    raise ValueError(f"{workdir} holds no evaluation.json; train it, or run --mode=evaluate")


def check_protocols(runs: dict[Path, dict[str, Any]]) -> None:
    """Checks that all runs were measured in the same way.

    Raises:
      ValueError: two were not; the message names what differs.
    """
    (first, one), *others = runs.items()
    for path, other in others:
        mine, theirs = one.get("protocol", {}), other.get("protocol", {})
        names = sorted(name for name in mine.keys() | theirs.keys() if name != "hash")
        unlike = [name for name in names if mine.get(name) != theirs.get(name)]
        told = ", ".join(f"{name} {mine.get(name)!r} / {theirs.get(name)!r}" for name in unlike)
        if one.get("reference") != other.get("reference"):
            told += ", another base model" if told else "another base model"
        if told:
            raise ValueError(
                f"{first} and {path} were measured in different ways: {told}; measure both alike "
                "with --mode=evaluate"
            )


def percent(value: float) -> str:
    """One number; what rounds to zero has no sign."""
    return f"{100 * value:.1f}".replace("-0.0", "0.0")


def cell(metric: dict[str, float] | None, *, interval: bool) -> str:
    """One number in percent, with its interval where asked for."""
    if metric is None:
        return "-"
    value = percent(metric["value"])
    return f"{value} [{percent(metric['low'])}, {percent(metric['high'])}]" if interval else value


def row(label: str, seed: str, model: dict[str, Any]) -> str:
    """One model of one run."""
    cells = [
        cell(model.get(way, {}).get(metric), interval=heading in BOUNDED)
        for way in WAYS.values()
        for heading, metric in COLUMNS.items()
    ]
    return f"| {' | '.join([label, seed, *cells])} |"


def by_problem(outcomes: list[str]) -> dict[str, np.ndarray]:
    """Each column's value for every problem, from the words of `metrics.outcomes`."""
    right = np.array([[[digit == "1" for digit in s] for s in o.split()] for o in outcomes])
    first, last = right[..., 0], right[..., min(1, right.shape[-1] - 1)]
    values = {
        "@t1": first,
        "@t2": last,
        "Delta": last.astype(int) - first,
        "i->c": last & ~first,
        "c->i": first & ~last,
    }
    return {heading: value.mean(1) for heading, value in values.items()}


def mean_row(label: str, outcomes: list[dict[str, list[str]]]) -> str:
    """The mean over runs."""
    cells = []
    for way in WAYS.values():
        runs = [by_problem(run[way]) for run in outcomes if way in run]
        for heading in COLUMNS:
            found: Interval | None = None
            if len(runs) == len(outcomes):
                found = mean_over_runs(np.stack([run[heading] for run in runs]))
            cells.append(cell(None if found is None else vars(found), interval=True))
    return f"| {' | '.join([f'**{label}**', f'mean of {len(outcomes)}', *cells])} |"


def table(workdirs: list[Path]) -> str:
    """The Markdown table of all runs, the base model first.

    Raises:
      ValueError: a run has no evaluation, or two were measured in different ways.
    """
    read = {workdir: read_run(workdir) for workdir in workdirs}
    check_protocols(read)
    runs = list(read.values())
    headings = ["model", "seed", *(f"{way} {c}" for way in WAYS for c in COLUMNS)]
    lines = [CAPTION, "", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    lines += [row("base", "", runs[0]["models"]["base"])]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["stage"]].append(run)
    for stage, members in groups.items():
        for run in members:
            lines.append(row(stage, str(run["training_seed"]), run["models"][stage]))
        if len(members) > 1:
            lines.append(mean_row(stage, [run["outcomes"][stage] for run in members]))
    return "\n".join(lines)


def main() -> None:
    """Prints the table of the folders named on the command line."""
    terminal.open_to_all_text()
    if len(sys.argv) < 2:
        sys.exit("usage: python -m score_jax.report.compare WORKDIR [WORKDIR ...]")
    try:
        print(table([Path(name) for name in sys.argv[1:]]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
