"""Writes comparison.html, .md and .json: the answer of a comparison on one page."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from score_jax.report import comparison
from score_jax.report.compare import cell, percent
from score_jax.report.page import template

PAGE, TABLES = "comparison.html", "comparison.md"
HEADINGS = ("@t1", "@t2", "Delta", "i->c", "c->i")
VOTED = ("parallel", "sequential", "gain")  # of report.scaling
NAMES = {"greedy": "Greedy", "sampled": "At temperature 1"}


def write(workdir: Path) -> Path:
    """Writes the page, its figures, its tables as Markdown and comparison.json of what is there.

    Raises:
      ValueError: the folder holds no comparison, or its runs can't be compared.
    """
    from score_jax.report import figures  # matplotlib takes a second to import

    record = comparison.write(workdir)
    drawn = figures.draw(record, workdir / "figures")
    for name in (TABLES, PAGE):
        partial = workdir / f"{name}.partial"
        partial.write_text(render(f"{name}.j2", record, workdir, drawn), encoding="utf-8")
        partial.replace(workdir / name)
    return workdir / PAGE


def render(name: str, record: Mapping[str, Any], workdir: Path, drawn: Mapping[str, str]) -> str:
    """The page's text.

    Args:
      name: of the template.
      drawn: captions of the figures in WORKDIR/figures, by name.
    """
    return template(name).render(
        record=record,
        title=workdir.resolve().name,
        tables={NAMES[d]: result_rows(record, d) for d in NAMES if d in record["base"]},
        headings=HEADINGS,
        paper=paper_tables(record),
        tuning=tuning_rows(record),
        against=record["methods"][record["against"]]["title"],
        figures=[
            (name, caption, data_uri(workdir / "figures" / f"{name}.svg"))
            for name, caption in drawn.items()
        ],
        sets=set_rows(record),
        votes=vote_rows(record),
        alarms=alarm_rows(record),
    )


def result_rows(record: Mapping[str, Any], decoding: str) -> list[dict[str, Any]]:
    """A row for the base model and each measured method, in the order of the config."""
    rows = [row_of("base model", "–", record["base"][decoding], None)]
    for name, own in record["methods"].items():
        if decoding in own:
            other = None if name == record["against"] else own.get("against", {}).get(decoding)
            rows.append(row_of(own["title"], seeds_of(own), own[decoding], other))
    return rows


def row_of(
    title: str, seeds: str, values: Mapping[str, Any], against: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The cells of one row, in percent with intervals."""
    return {
        "title": title,
        "seeds": seeds,
        "cells": [cell(values[heading], interval=True) for heading in HEADINGS],
        "against": [
            cell(against[heading], interval=True) if against else "–"
            for heading in ("@t2", "Delta")
        ],
        "differs": [
            bool(against) and not against[heading]["low"] <= 0 <= against[heading]["high"]
            for heading in ("@t2", "Delta")
        ],
    }


def seeds_of(own: Mapping[str, Any]) -> str:
    """How many runs a method's row is the mean of, and how many could not be trained."""
    failed = f", {len(own['failed'])} failed" if own["failed"] else ""
    return f"{len(own['seeds'])}{failed}"


def paper_tables(record: Mapping[str, Any]) -> dict[str, list[tuple[str, list[str], list[str]]]]:
    """The paper's rows, each with ours beside it where we have the method."""
    found = {own["title"]: own.get("greedy") for own in record["methods"].values()}
    found["base model"] = record["base"].get("greedy")

    def ours(title: str) -> list[str]:
        values = found.get(title)
        return [percent(values[heading]["value"]) if values else "–" for heading in HEADINGS]

    return {
        table: [
            (
                title,
                ["–" if value is None else f"{value:.1f}" for value in values],
                ours(title),
            )
            for title, values in rows.items()
        ]
        for table, rows in record["paper"].items()
    }


def tuning_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each method's variants gave on validation problems, and what training spent."""
    return [
        {
            "title": own["title"],
            "variants": [
                {
                    "fields": ", ".join(f"{k} {v}" for k, v in variant["fields"].items()),
                    "accuracies": accuracies(variant),
                    "error": variant["failed"],
                    "taken": own["taken"] == number,
                }
                for number, variant in enumerate(own["variants"], 1)
            ],
            "validation": own["validation_dialogues"],
            "dialogues": own["dialogues"],
            "updates": own["updates"],
        }
        for own in record["methods"].values()
    ]


def alarm_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Methods in whose runs alarms were raised: title, the alarms and in how many runs."""
    return [
        (own["title"], ", ".join(f"{name} in {n}" for name, n in own["alarms"].items()))
        for own in record["methods"].values()
        if own.get("alarms")
    ]


def accuracies(variant: Mapping[str, Any]) -> str:
    """A variant's accuracies at both turns on validation problems, or what became of it."""
    if variant["failed"]:
        return "failed"
    if variant["turn1"] is None:
        return "–"
    return f"{percent(variant['turn1'])} / {percent(variant['turn2'])}"


def set_rows(record: Mapping[str, Any]) -> list[tuple[str, str, str, list[str], str]]:
    """Further measurements: title, set, instruction, accuracy by turn, gain."""
    rows = []
    for _, title, sets in comparison.all_scalings(record):
        for name, found in sets.items():
            place = f"{name}, {found['problems']} problems", found["instruction"]
            if name not in record["sets"]:  # a method's own; the base model was asked alike
                values = [percent(one["value"]) for one in found["base"]]
                rows.append(("base model", *place, values, "–"))
            values = [percent(one["value"]) for one in found["accuracy"]]
            rows.append((title, *place, values, cell(found["delta"], interval=True)))
    return rows


def vote_rows(record: Mapping[str, Any]) -> list[tuple[str, str, list[str]]]:
    """Votes at equal samples: title, samples a problem, in parallel, in sequence, the gain."""
    return [
        (title, samples, [cell(found[key], interval=True) for key in VOTED])
        for _, title, sets in comparison.all_scalings(record)
        for measured in sets.values()
        for samples, found in measured["votes"].items()
        if all(key in found for key in VOTED)
    ]


def data_uri(path: Path) -> str:
    """An image as text, so that the page is one file."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
