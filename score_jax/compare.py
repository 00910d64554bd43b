"""Puts finished runs side by side: one Markdown row per run, and their mean.

    python -m score_jax.compare runs/stage2/seed* runs/multi_turn/seed*

Rows of runs that end in the same stage stand together; below them their mean over
runs with the standard error of that mean. Brackets are 95% intervals over problems.
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from score_jax import terminal
from score_jax.files import read_json

COLUMNS = {  # heading: metric
    "@t1": "accuracy/turn1",
    "@t2": "accuracy/turn2",
    "Delta": "delta",
    "i->c": "delta_i_to_c",
    "c->i": "delta_c_to_i",
}
WAYS = {"greedy": "greedy", "T=1": "sampled"}


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


def cell(metric: dict[str, float] | None, *, interval: bool) -> str:
    """One number in percent, with its interval where asked for."""
    if metric is None:
        return "-"
    value = f"{100 * metric['value']:.1f}"
    return f"{value} [{100 * metric['low']:.1f}, {100 * metric['high']:.1f}]" if interval else value


def row(label: str, seed: str, model: dict[str, Any]) -> str:
    """One model of one run."""
    cells = [
        cell(model.get(way, {}).get(metric), interval=heading == "Delta")
        for way in WAYS.values()
        for heading, metric in COLUMNS.items()
    ]
    return f"| {' | '.join([label, seed, *cells])} |"


def mean_row(label: str, models: list[dict[str, Any]]) -> str:
    """The mean over runs, with its standard error."""
    cells = []
    for way in WAYS.values():
        for metric in COLUMNS.values():
            found = [m[way][metric]["value"] for m in models if m.get(way, {}).get(metric)]
            error = np.std(found, ddof=1) / len(found) ** 0.5 if len(found) > 1 else 0.0
            cells.append(f"{100 * np.mean(found):.1f} ± {100 * error:.1f}" if found else "-")
    return f"| {' | '.join([f'**{label}**', 'mean', *cells])} |"


def table(workdirs: list[Path]) -> str:
    """The Markdown table of all runs, the base model first."""
    runs = [read_run(workdir) for workdir in workdirs]
    headings = ["model", "seed", *(f"{way} {c}" for way in WAYS for c in COLUMNS)]
    lines = [f"| {' | '.join(headings)} |", f"|{' --- |' * len(headings)}"]
    lines += [row("base", "", runs[0]["models"]["base"])]
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["stage"]].append(run)
    for stage, members in groups.items():
        models = [run["models"][stage] for run in members]
        for run, model in zip(members, models, strict=True):
            lines.append(row(stage, str(run["training_seed"]), model))
        if len(models) > 1:
            lines.append(mean_row(stage, models))
    return "\n".join(lines)


def main() -> None:
    """Prints the table of the folders named on the command line."""
    terminal.open_to_all_text()
    if len(sys.argv) < 2:
        sys.exit("usage: python -m score_jax.compare WORKDIR [WORKDIR ...]")
    try:
        print(table([Path(name) for name in sys.argv[1:]]))
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
