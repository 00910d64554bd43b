"""Compares finished runs in a Markdown table: one row per run, and their mean.

    python -m score_jax.report.compare runs/stage2/seed* runs/multi_turn/seed*

Runs that end in the same stage are grouped, with their mean below; a second table has the
differences of each two stages on the same problems. Runs that were
measured under different protocols are refused, as their numbers can't be compared.
"""

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.report.findings import last_turn
from score_jax.report.intervals import Interval, mcnemar, mean_over_runs, paired_difference
from score_jax.report.json_files import read_json
from score_jax.text import terminal

CHANGES = {"Delta": "delta", "i->c": "delta_i_to_c", "c->i": "delta_c_to_i"}  # heading: metric
DECODINGS = {"greedy": "greedy", "T=1": "sampled"}  # heading: key in evaluation.json
CAPTION = (
    "In percent. Brackets are 95% intervals: over problems in the row of a run, over runs and "
    "problems together in the row of a mean."
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


def columns_of(runs: Iterable[dict[str, Any]]) -> dict[str, str]:
    """The columns by heading: as many accuracies as the runs have turns, then the changes."""
    turns = range(1, max(last_turn(run) for run in runs) + 1)
    return {f"@t{t}": f"accuracy/turn{t}" for t in turns} | (CHANGES if len(turns) > 1 else {})


def check_protocols(runs: dict[Path, dict[str, Any]]) -> None:
    """Checks that all runs were measured in the same way.

    Raises:
      ValueError: two runs differ; the message names the fields that differ.
    """
    (first, one), *others = runs.items()
    for path, other in others:
        a, b = one.get("protocol", {}), other.get("protocol", {})
        names = sorted(name for name in a.keys() | b.keys() if name != "hash")
        differences = [
            f"{name} {a.get(name)!r} / {b.get(name)!r}"
            for name in names
            if a.get(name) != b.get(name)
        ]
        if one.get("reference") != other.get("reference"):
            differences.append("another base model")
        if differences:
            raise ValueError(
                f"{first} and {path} were measured in different ways: {', '.join(differences)}; "
                "evaluate both with the same settings with --mode=evaluate"
            )


def percent(value: float) -> str:
    """Formats a share in percent with one decimal; a value that rounds to zero has no sign."""
    return f"{100 * value:.1f}".replace("-0.0", "0.0")


def cell(metric: dict[str, float] | None, *, interval: bool) -> str:
    """Formats one measurement in percent, with its interval if asked; "-" for None."""
    if metric is None:
        return "-"
    value = percent(metric["value"])
    return f"{value} [{percent(metric['low'])}, {percent(metric['high'])}]" if interval else value


def row(label: str, seed: str, model: dict[str, Any], columns: dict[str, str]) -> str:
    """The table row of one model of one run; last accuracy and gain have their intervals."""
    last = [name for name in columns.values() if name.startswith("accuracy/")][-1]
    cells = [
        cell(model.get(decoding, {}).get(metric), interval=metric in (last, "delta"))
        for decoding in DECODINGS.values()
        for metric in columns.values()
    ]
    return f"| {' | '.join([label, seed, *cells])} |"


def by_problem(outcomes: list[str]) -> dict[str, np.ndarray]:
    """Each column's value for every problem, from the strings of `metrics.outcomes`."""
    correct = np.array([[[digit == "1" for digit in s] for s in o.split()] for o in outcomes])
    first, last = correct[..., 0], correct[..., -1]
    values = {f"@t{turn}": right for turn, right in enumerate(np.moveaxis(correct, -1, 0), 1)}
    values |= {
        "Delta": last.astype(int) - first,
        "i->c": last & ~first,
        "c->i": first & ~last,
    }
    return {heading: value.mean(1) for heading, value in values.items()}


def bounds_of(heading: str) -> tuple[float, float]:
    """Between what a heading's value of a problem lies."""
    return (-1.0 if heading == "Delta" else 0.0, 1.0)


def difference_of(
    a: Sequence[Mapping[str, np.ndarray]], b: Sequence[Mapping[str, np.ndarray]], heading: str
) -> Interval:
    """What the runs `a` have of a heading less what the runs `b` have, on the same problems."""
    low, high = bounds_of(heading)
    first, second = (np.stack([run[heading] for run in runs]) for runs in (a, b))
    return paired_difference(first, second, bounds=(low - high, high - low))


def mean_row(label: str, outcomes: list[dict[str, list[str]]], columns: Iterable[str]) -> str:
    """The table row of the mean over runs."""
    cells = []
    for decoding in DECODINGS.values():
        runs = [by_problem(run[decoding]) for run in outcomes if decoding in run]
        for heading in columns:
            found: Interval | None = None
            if len(runs) == len(outcomes):
                values = np.stack([run[heading] for run in runs])
                found = mean_over_runs(values, bounds=bounds_of(heading))
            cells.append(cell(None if found is None else vars(found), interval=True))
    return f"| {' | '.join([f'**{label}**', f'mean of {len(outcomes)}', *cells])} |"


def difference_rows(groups: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """Compares each two stages problem by problem, greedily, in rows of a table."""
    found = {
        stage: [by_problem(run["outcomes"][stage]["greedy"]) for run in members]
        for stage, members in groups.items()
    }
    rows = []
    for one, other in combinations(found, 2):
        a, b = found[one], found[other]
        last = [name for name in a[0] if name.startswith("@t")][-1]
        cells = [
            cell(vars(difference_of(a, b, heading)), interval=True)
            for heading in ("@t1", last, "Delta")
        ]
        single = len(a) == len(b) == 1
        p = f"{mcnemar(a[0][last] == 1, b[0][last] == 1):.2g}" if single else "-"
        rows.append(f"| {' | '.join([f'{one} - {other}', *cells, p])} |")
    return rows


def table(workdirs: list[Path]) -> str:
    """The Markdown table of all runs, the base model first.

    Raises:
      ValueError: a run has no evaluation, or two were measured in different ways.
    """
    read = {workdir: read_run(workdir) for workdir in workdirs}
    check_protocols(read)
    runs = list(read.values())
    columns = columns_of(runs)
    headings = ["model", "seed", *(f"{name} {c}" for name in DECODINGS for c in columns)]
    lines = [CAPTION, "", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    lines += [row("base", "", runs[0]["models"]["base"], columns)]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["stage"]].append(run)
    for stage, members in groups.items():
        for run in members:
            lines.append(row(stage, str(run["training_seed"]), run["models"][stage], columns))
        if len(members) > 1:
            lines.append(mean_row(stage, [run["outcomes"][stage] for run in members], columns))
    if differences := difference_rows(groups):
        headings = ["greedy, problem by problem", "@t1", "last", "Delta", "p of last (McNemar)"]
        lines += ["", f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}", *differences]
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
