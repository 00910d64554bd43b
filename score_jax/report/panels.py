"""Builds the tables and charts of a run's report.

The tables come from evaluations: the accuracy of each attempt and what changed from the first
to the last, per model, each with its interval. The
curves come from the stages' training metrics, one stage after the other on one axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup

from score_jax.report.bars import Change, change_chart, histogram_chart
from score_jax.report.charts import Band, Mark, Series, line_chart, show, smooth
from score_jax.report.findings import (
    interval_of,
    last_attempts,
    last_turn,
    points,
    stage_label,
)
from score_jax.report.workdir import Run, StageRecord

CHANGES = {"delta": "Δ", "delta_i_to_c": "Δ i→c", "delta_c_to_i": "Δ c→i"}
DECODINGS = {"greedy": "Greedy", "sampled": "Sampled"}
SHARES = (
    "accuracy",
    "delta",
    "fix_",
    "break_",
    "answer_",
    "truncated",
    "verdict",
    "no_signal",
    "all_right",
)
CHARTS = {  # title: (what it shows, metrics; a name that ends in "/" is a prefix)
    "Accuracy": ("attempts that are right", ("accuracy/",)),
    "Gain": ("accuracy of the last attempt minus the first", ("delta",)),
    "Fixed and broken": ("share of all attempts", ("delta_i_to_c", "delta_c_to_i")),
    "Answer changed": ("near 0: collapse", ("answer_changed",)),
    "KL to the base model": ("nats per attempt", ("kl/",)),
    "Length": ("tokens per attempt", ("length/",)),
    "Entropy": ("nats per token", ("entropy/",)),
    "Truncated": ("attempts cut at the limit", ("truncated/",)),
    "Reward": ("mean per attempt", ("reward/",)),
}
MODEL_COLOURS = (9, 3, 7, 5, 6, 4, 8)  # base grey; none of the colours of turns 1 and 2
PHASED = ("time/", "tokens_per_second/", "mfu/")
NAMES = {
    "delta_i_to_c": "wrong to right",
    "delta_c_to_i": "right to wrong",
    "delta": "last - first",
    "answer_changed": "answer changed",
    "mfu": "MFU",
}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A drawn chart with its caption and a legend of (name, colour, latest value)."""

    title: str
    note: str
    svg: Markup
    legend: tuple[tuple[str, int, str], ...] = ()


def main_metrics(evaluation: Mapping[str, Any]) -> dict[str, str]:
    """The metrics of the main table with their headings: as many accuracies as there are turns."""
    turns = range(1, (last_turn(evaluation) or 2) + 1)
    return {f"accuracy/turn{t}": f"Acc@t{t}" for t in turns} | (CHANGES if len(turns) > 1 else {})


def metric_of(key: str) -> str:
    """A metric's name without what it is measured on: a task, or one step between two turns."""
    return (key.split("/", 2)[2] if key.startswith("task/") else key).removeprefix("step_")


def cell(interval: Mapping[str, float] | None, key: str) -> dict[str, str]:
    """Formats one measurement for a table: its value, its bounds, and "good", "bad" or ""."""
    if interval is None:
        return {"text": "–", "bounds": "", "tone": ""}
    value, low, high = (float(interval[bound]) for bound in ("value", "low", "high"))
    if metric_of(key).startswith(SHARES):
        signed = metric_of(key).split("/")[0] == "delta"
        texts = [points(value, signed=signed)]
        texts += [points(number, signed=False) for number in (low, high)]
        tone = ("good" if low > 0 else "bad" if high < 0 else "") if signed else ""
    else:
        small = abs(value) < 10
        texts = [f"{n:.3f}" if small else show(n) for n in (value, low, high)]
        tone = ""
    return {"text": texts[0], "bounds": f"[{texts[1]}, {texts[2]}]", "tone": tone}


def results(evaluation: Mapping[str, Any], metrics: Iterable[str] = ()) -> list[tuple[str, list]]:
    """Per decoding, its title and one row per model of the metrics; (): the main ones."""
    tables, metrics = [], list(metrics or main_metrics(evaluation))
    for decoding, title in DECODINGS.items():
        rows = [
            (
                stage_label(model),
                [cell(interval_of(evaluation, model, key, decoding), key) for key in metrics],
            )
            for model, measured in evaluation.get("models", {}).items()
            if measured.get(decoding)
        ]
        if rows:
            tables.append((title, rows))
    return tables


def details(evaluation: Mapping[str, Any]) -> list[tuple[str, list[str], list]]:
    """Per decoding, its title, model names, and one row for each metric not in `results`."""
    tables, main = [], main_metrics(evaluation)
    for decoding, title in DECODINGS.items():
        models = [name for name, m in evaluation.get("models", {}).items() if m.get(decoding)]
        keys = dict.fromkeys(key for m in models for key in evaluation["models"][m][decoding])
        rows = [
            (key, [cell(interval_of(evaluation, model, key, decoding), key) for model in models])
            for key in keys
            if key not in main
        ]
        if rows:
            tables.append((title, [stage_label(model) for model in models], rows))
    return tables


def by_task(evaluation: Mapping[str, Any]) -> list[tuple[str, list]]:
    """The tables of `results` for each task, where an evaluation mixes several."""
    models = {name: m.get("by_task") or {} for name, m in evaluation.get("models", {}).items()}
    names = {task for modes in models.values() for found in modes.values() for task in found}

    def of(task: str) -> dict[str, Any]:
        return {
            model: {mode: found[task] for mode, found in modes.items() if task in found}
            for model, modes in models.items()
        }

    metrics = main_metrics(evaluation)
    return [(task, results({"models": of(task)}, metrics)) for task in sorted(names)]


def steps(evaluation: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list]]]:
    """What each attempt gained over the one before, where there are more than two.

    Returns:
      The headings; and per decoding, its title and one row of gains per model.
    """
    turns = range(2, last_turn(evaluation) + 1)
    if len(turns) < 2:
        return [], []
    tables = []
    for decoding, title in DECODINGS.items():
        rows = []
        for model, measured in evaluation.get("models", {}).items():
            keys = [f"step_delta/turn{turn}" for turn in turns]
            cells = [cell(interval_of(evaluation, model, key, decoding), key) for key in keys]
            rows += [(stage_label(model), cells)] if measured.get(decoding) else []
        tables += [(title, rows)] if rows else []
    return [f"Δ {turn - 1}→{turn}" for turn in turns], tables


def change_charts(evaluation: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Draws, per decoding, each model's accuracy at the first turn and at the last."""
    charts, last = [], last_turn(evaluation) or 2
    for decoding, title in DECODINGS.items():
        changes = []
        for model in evaluation.get("models", {}):
            found = [
                interval_of(evaluation, model, f"accuracy/turn{turn}", decoding)
                for turn in (1, last)
            ]
            triples = [(i["value"], i["low"], i["high"]) for i in found if i]
            if len(triples) == 2 and last > 1:
                before, after = triples
                gain = points(after[0] - before[0])
                name = stage_label(model)
                word = last_attempts(last).split()[0]
                changes.append(Change(name=name, before=before, after=after, gain=gain, last=word))
        if changes:
            charts.append((title, change_chart(changes, title=f"{title}: accuracy per attempt")))
    return charts


def attempts_chart(evaluation: Mapping[str, Any]) -> Chart | None:
    """Draws accuracy per turn; None where no model was evaluated for more than two turns."""
    series = []
    for index, model in enumerate(evaluation.get("models", {})):
        turns = range(1, last_turn(evaluation) + 1)
        found = [interval_of(evaluation, model, f"accuracy/turn{turn}") for turn in turns]
        curve = [(turn, i["value"]) for turn, i in enumerate(found, start=1) if i]
        if len(curve) > 2:
            xs, ys = [float(turn) for turn, _ in curve], [value for _, value in curve]
            series.append(
                Series(name=stage_label(model), colour=_model_colour(index), segments=((xs, ys),))
            )
    if not series:
        return None
    end = max(xs[-1] for line in series for xs, _ in line.segments)
    return Chart(
        title="Accuracy over attempts in a row",
        note="greedy decoding",
        svg=line_chart(
            series, [Band(name="", start=1, end=end, first=1)], percent=True, title="Attempts"
        ),
        legend=tuple((s.name, s.colour, show(s.segments[0][1][-1], True)) for s in series),
    )


def curves(run: Run) -> tuple[list[Chart], list[Chart]]:
    """Draws the charts of CHARTS, and one for every other group of metrics."""
    keys = sorted({key for stage in run.stages for row in stage.rows for key in row} - {"step"})
    main, shown = [], set()
    for title, (note, names) in CHARTS.items():
        families = tuple(name for name in names if name.endswith("/"))
        chosen = [key for key in keys if key in names or key.startswith(families)]
        shown |= set(chosen)
        main.append(_curve(run, title, note, chosen))
    rest: dict[str, list[str]] = {}
    for key in keys:
        if key not in shown:
            parts = key.split("/")  # a task's accuracies are a group, and its rewards another
            rest.setdefault("/".join(parts[: 3 if parts[0] == "task" else 1]), []).append(key)
    units = {name.split("/")[0]: unit for stage in run.stages for name, unit in stage.units.items()}
    more = [_curve(run, _group_title(n), units.get(n, ""), found) for n, found in rest.items()]
    return [c for c in main if c], [c for c in more if c]


def _curve(run: Run, title: str, note: str, keys: Sequence[str]) -> Chart | None:
    bands, lines, start = [], {key: [] for key in keys}, 0.0
    marks: list[Mark] = []
    for stage in run.stages:
        logged = [row["step"] for row in stage.rows if any(key in row for key in keys)]
        if not logged:
            continue
        bands.append(Band(name=stage_label(stage.name), start=start, end=start + logged[-1]))
        for key in keys:
            steps, values = stage.column(key)
            if np.isfinite(values).any():
                lines[key].append(([start + step for step in steps], values))
        marks += [
            Mark(x=start + event["step"], text=f"step {event['step']}: {event['text']}")
            for event in stage.alarms
            if event["metric"] in keys and event["event"] == "raised"
        ]
        start += logged[-1]
    percent = all(metric_of(key).startswith(SHARES) for key in keys)
    drawn = [(key, segments) for key, segments in lines.items() if segments][:8]
    if not drawn:
        return None
    series = [
        Series(name=_series_name(key), colour=_colour(key, index), segments=tuple(segments))
        for index, (key, segments) in enumerate(drawn)
    ]
    legend = tuple((line.name, line.colour, show(_latest(line), percent)) for line in series)
    svg = line_chart(series, bands, percent=percent, title=title, marks=marks)
    return Chart(title=title, note=note, svg=svg, legend=legend)


def _group_title(name: str) -> str:
    if name.startswith("task/"):
        _, task, metric = name.split("/")
        return f"{metric.capitalize()} on {task}"
    return NAMES.get(name) or name.replace("_", " ").capitalize()


def _series_name(key: str) -> str:
    key = metric_of(key) if key.startswith("task/") else key
    name = NAMES.get(key) or key.split("/", 1)[-1].replace("_", " ").replace("/", " ")
    return name.replace("turn", "turn ") if name.startswith("turn") and name[4:].isdigit() else name


def _colour(key: str, index: int) -> int:
    """The colour of turn t is t; delta_i_to_c has that of turn 2, delta_c_to_i another."""
    turn = key.rsplit("/turn", 1)[-1]
    if turn.isdigit():
        return (int(turn) - 1) % 8 + 1
    return {"delta": 2, "delta_i_to_c": 2, "delta_c_to_i": 8}.get(key, index % 8 + 1)


def _latest(line: Series) -> float:
    values = line.segments[-1][1]
    means = smooth(values, max(1, len(values) // 15))
    return float(means[-1])


def histograms(evaluation: Mapping[str, Any]) -> list[Chart]:
    """Draws each model's edit distance ratios between attempts; all charts share one y axis."""
    found = [
        (index, model, h["edges"], h["counts"])
        for index, (model, h) in enumerate(evaluation.get("histogram", {}).items())
        if h and sum(h.get("counts", ())) > 0
    ]
    top = max((max(counts) / sum(counts) for *_, counts in found), default=1.0)
    used = max((np.flatnonzero(counts)[-1] + 1 for *_, counts in found), default=0)
    charts = []
    for index, model, edges, counts in found:
        bins = max(int(used), len(counts) // 2)  # only an empty text gives a ratio above 0.5
        svg = histogram_chart(
            edges[: bins + 1],
            counts[:bins],
            colour=_model_colour(index),
            top=1.12 * top,
            title=f"Edit distance ratios of {model}",
        )
        note = f"{counts[0] / sum(counts):.0%} below {edges[1]:.2g}: copies or nearly"
        charts.append(Chart(title=stage_label(model), note=note, svg=svg))
    return charts


def _model_colour(index: int) -> int:
    return MODEL_COLOURS[index % len(MODEL_COLOURS)]


def timing(stage: StageRecord) -> tuple[list[tuple[str, ...]], str]:
    """Tabulates a stage's phases: median seconds, share, first step, rates.

    Returns:
      The rows, and a sentence with the number of logged steps and the total minutes.
    """
    last = {key for row in stage.rows for key in row}
    whole = {"time/step", "time/total"} & last
    phases = sorted({key.split("/")[1] for key in last if key.startswith(PHASED)})
    seconds = {phase: _finite(stage, f"time/{phase}") for phase in phases}
    medians = {phase: float(np.median(s)) for phase, s in seconds.items() if s}
    per_step = sum(m for phase, m in medians.items() if f"time/{phase}" not in whole)
    rows = []
    for phase in phases:
        rates = [_finite(stage, f"{name}{phase}") for name in PHASED[1:]]
        median = medians.get(phase)
        share = median / per_step if median is not None and per_step else None
        rows.append(
            (
                phase.replace("_", " "),
                "–" if median is None else f"{median:.3g} s",
                "–" if share is None or f"time/{phase}" in whole else f"{share:.0%}",
                f"{seconds[phase][0]:.3g} s" if seconds[phase] else "–",
                *(show(float(np.median(rate))) if rate else "–" for rate in rates),
            )
        )
    key = next(iter(sorted(whole)), None)
    total = sum(_finite(stage, key)) if key else sum(sum(s) for s in seconds.values())
    return rows, f"{len(stage.rows):,} logged steps, {total / 60:,.1f} minutes"


def _finite(stage: StageRecord, key: str) -> list[float]:
    return [value for value in stage.column(key)[1] if np.isfinite(value)]
