"""The figures of a comparison, each as SVG and as PNG."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from score_jax.report.comparison import CURVES, all_scalings

MOST_LINES = 8  # in one figure, the method that all are compared with among them
SMOOTHED = 5  # updates in a curve's running mean
VOTES = {  # lines by the key of report.scaling
    "parallel": ("vote of first attempts", "--"),
    "sequential": ("vote of half as many, each corrected once", "-"),
    "pass_parallel": ("any first attempt right (pass@K)", ":"),
}
TITLES = {
    "accuracy/turn1": "Accuracy, first attempt",
    "accuracy/turn2": "Accuracy, second attempt",
    "answer_changed": "Share of changed answers",
    "edit_distance": "Edit distance ratio",
    "kl/turn1": "KL to the base model, turn 1 (nats)",
    "kl/turn2": "KL to the base model, turn 2 (nats)",
}


def draw(record: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Draws what the record has.

    Returns:
      What each figure shows, by the name of its files in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, tuple[Figure | None, str]] = {}
    groups = grouped(record)
    for number, methods in enumerate(groups, 1):
        end = str(number) if number > 1 else ""
        part = f", {number} of {len(groups)}" if len(groups) > 1 else ""
        made |= {
            f"curves{end}": (learning_curves(methods), f"Training, mean over seeds{part}"),
            f"histograms{end}": (
                histograms(methods),
                f"Edit distance between the two greedy attempts{part}",
            ),
        }
    made |= {
        "votes": (votes(record), "Accuracy by samples per problem"),
        "attempts": (attempts(record), "Accuracy over attempts in a row, greedy"),
    }
    drawn = {}
    for name, (figure, caption) in made.items():
        if figure is None:
            continue
        for end in ("svg", "png"):
            figure.savefig(folder / f"{name}.{end}", dpi=150, bbox_inches="tight")
        drawn[name] = caption
    for kind in ("curves", "histograms"):  # of a time when the methods were grouped otherwise
        for path in folder.glob(f"{kind}[0-9]*.*"):
            if path.stem not in drawn:
                path.unlink()
    return drawn


def grouped(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The methods that were run, as many together as a figure shows, those with most runs first.

    What all are compared with is the first of every group.
    """
    against, methods = record["against"], record["methods"]
    having = {name: own for name, own in methods.items() if own["seeds"] and name != against}
    groups: list[list[str]] = []
    for runs in sorted(set(map(runs_of, having.values())), reverse=True):
        alike = [name for name, own in having.items() if runs_of(own) == runs]
        groups += [alike[i : i + MOST_LINES - 1] for i in range(0, len(alike), MOST_LINES - 1)]
    shown = [against] if methods[against]["seeds"] else []
    return [{name: methods[name] for name in [*shown, *group]} for group in groups or [[]]]


def runs_of(own: Mapping[str, Any]) -> int:
    """How many runs a method has had, those that could not be trained too."""
    return len(own["seeds"]) + len(own["failed"])


def colours(names: Iterable[str]) -> dict[str, Any]:
    """A colour for each of a figure's methods; what all are compared with has the first."""
    return {name: colormaps["tab10"](place) for place, name in enumerate(names)}


def learning_curves(methods: Mapping[str, Any]) -> Figure | None:
    """Accuracies, changed answers, edit distance and KL over the updates of each method."""
    tints = colours(methods)
    methods = {name: own for name, own in methods.items() if own.get("curves")}
    names = [n for n in CURVES if any(n in own["curves"] for own in methods.values())]
    if not names:
        return None
    figure, places = grid(len(names), columns=3)
    for place, name in zip(places, names, strict=True):
        for method, own in methods.items():
            if name in own["curves"]:
                curve = own["curves"][name]
                values = running_mean(curve["values"])
                place.plot(curve["steps"], values, color=tints[method], label=own["title"])
        finish(place, TITLES[name], "update")
    legend(figure, places)
    return figure


def running_mean(values: Sequence[float]) -> np.ndarray:
    """The mean of each value and those before it, at most SMOOTHED together."""
    return np.array([np.mean(values[max(0, i + 1 - SMOOTHED) : i + 1]) for i in range(len(values))])


def histograms(methods: Mapping[str, Any]) -> Figure | None:
    """How much the second attempt differs from the first, a panel for each method."""
    tints = colours(methods)
    methods = {n: own for n, own in methods.items() if own.get("histogram") and own["updates"]}
    if not methods:
        return None
    figure, places = grid(len(methods), columns=3)
    for place, (name, own) in zip(places, methods.items(), strict=True):
        edges, counts = own["histogram"]["edges"], np.array(own["histogram"]["counts"])
        shares = counts / max(1, counts.sum())
        place.bar(edges[:-1], shares, width=np.diff(edges), align="edge", color=tints[name])
        place.set_ylim(0, 1)
        finish(place, own["title"], "edit distance ratio")
    return figure


def votes(record: Mapping[str, Any]) -> Figure | None:
    """Votes of parallel first attempts beside those of corrected ones, at equal samples."""
    found = {
        title: set_["votes"]
        for _, title, sets in all_scalings(record)
        for set_ in sets.values()
        if set_["votes"]
    }
    if not found:
        return None
    figure, places = grid(len(found), columns=3)
    for place, (title, by_budget) in zip(places, found.items(), strict=True):
        for key, (label, style) in VOTES.items():
            points = {int(k): v[key] for k, v in by_budget.items() if key in v}
            if points:
                ks = sorted(points)
                place.plot(ks, [points[k]["value"] for k in ks], style, marker="o", label=label)
                if key != "pass_parallel":
                    low, high = ([points[k][end] for k in ks] for end in ("low", "high"))
                    place.fill_between(ks, low, high, alpha=0.15)
        place.set_xscale("log", base=2)
        finish(place, title, "samples per problem")
    legend(figure, places)
    return figure


def attempts(record: Mapping[str, Any]) -> Figure | None:
    """Accuracy at each of many attempts in a row."""
    figure, (place,) = grid(1, columns=1)
    drawn = False
    found = all_scalings(record)
    measured = [method for method, _, sets in found if method and sets]
    tints = colours(sorted(measured, key=lambda name: name != record["against"])) | {"": "black"}
    for method, title, sets in found:
        for set_ in (sets[name] for name in record["sets"] if name in sets):
            values = [one["value"] for one in set_["accuracy"]]
            if len(values) > 2:
                place.plot(
                    range(1, len(values) + 1), values, "o-", color=tints[method], label=title
                )
                drawn = True
    finish(place, "", "attempt")
    legend(figure, [place])
    return figure if drawn else None


def grid(count: int, *, columns: int) -> tuple[Figure, list[Axes]]:
    """A figure with this many places."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows), layout="constrained")
    places = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for place in places[count:]:
        place.set_axis_off()
    return figure, places[:count]


def finish(place: Axes, title: str, along: str) -> None:
    """Titles and labels of a place."""
    place.set_title(title, fontsize=10)
    place.set_xlabel(along, fontsize=9)
    place.tick_params(labelsize=8)
    place.grid(alpha=0.25)


def handles(place: Axes) -> list[tuple[Any, Any]]:
    """Lines and labels of a place."""
    lines, labels = place.get_legend_handles_labels()
    return list(zip(lines, labels, strict=True))


def legend(figure: Figure, places: Sequence[Axes]) -> None:
    """One legend below all places."""
    entries = {label: line for place in places for line, label in handles(place)}
    if entries:
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(4, len(entries)),
            fontsize=8,
        )
