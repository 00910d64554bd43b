"""Tables and charts of the report for votes, and for evaluations of further data sets."""

import math
from collections.abc import Mapping
from typing import Any

from score_jax.report.charts import Band, Series, line_chart, show
from score_jax.report.findings import stage_label
from score_jax.report.panels import Chart, cell, main_metrics, results

VOTES = {"parallel": 1, "sequential": 2}  # colours: of first attempts, of later ones
DIGESTS = ("hash", "prompts", "contents", "script")  # of a protocol: they tell a reader nothing


def vote_charts(evaluation: Mapping[str, Any]) -> list[Chart]:
    """Draws each model's accuracy of votes over the samples per problem, from two budgets on."""
    charts = []
    for model, measured in evaluation.get("models", {}).items():
        scaling = measured.get("scaling") or {}
        budgets = sorted(map(int, scaling))
        if len(budgets) < 2:
            continue
        series = []
        for name, colour in VOTES.items():
            known = [k for k in budgets if name in scaling[str(k)]]
            xs = [math.log2(k / budgets[0]) for k in known]
            ys = [float(scaling[str(k)][name]["value"]) for k in known]
            if known:
                series.append(Series(name=name, colour=colour, segments=((xs, ys),)))
        axis = Band(name="", start=0, end=math.log2(budgets[-1] / budgets[0]), doubled=budgets[0])
        title = "Accuracy by samples per problem"
        charts.append(
            Chart(
                title=title,
                note=f"{stage_label(model)}, majority vote",
                svg=line_chart(series, [axis], percent=True, title=f"{title}: {model}"),
                legend=tuple((s.name, s.colour, show(s.segments[0][1][-1], True)) for s in series),
            )
        )
    return charts


def vote_tables(evaluation: Mapping[str, Any]) -> list[tuple[str, list[str], list]]:
    """Per model, a title, the budgets, and one row of cells for each number of `scaling`."""
    tables = []
    for model, measured in evaluation.get("models", {}).items():
        scaling = measured.get("scaling") or {}
        budgets = sorted(scaling, key=int)
        names = dict.fromkeys(name for budget in budgets for name in scaling[budget])
        rows = [
            (name, [cell(scaling[k].get(name), _kind(name)) for k in budgets]) for name in names
        ]
        if rows:
            tables.append((f"{stage_label(model)}, by samples per problem", budgets, rows))
    return tables


def _kind(name: str) -> str:
    return "delta" if name == "gain" else "accuracy"


def set_tables(evaluation: Mapping[str, Any]) -> tuple[list[str], list[tuple[str, list]]]:
    """Headings, and per decoding a title and a row per model: accuracies per turn, and delta."""
    shown = {
        name: heading
        for name, heading in main_metrics(evaluation).items()
        if name == "delta" or name.startswith("accuracy/")
    }
    return list(shown.values()), results(evaluation, shown)


def differences(main: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Says in which fields of the protocol a further evaluation differs from the main one."""
    mine, theirs = main.get("protocol", {}), other.get("protocol", {})
    told = {
        name: f"{name} {value}"
        for name, value in theirs.items()
        if name not in DIGESTS and mine.get(name) != value
    }
    if not told.keys() & {"task", "problems"} and theirs.get("contents") != mine.get("contents"):
        told["contents"] = "other problems"
    if not told and theirs.get("script") != mine.get("script"):
        told["script"] = "another dialogue plan"
    return ", ".join(told.values())
