"""Writes report.html: a run's results on one self-contained page.

The page needs no network and no script library. `findings` writes its sentences,
`panels` its tables and charts, `dialogues` its transcripts; this module collects them
and fills the template page.html.j2. For an unfinished run the page lists what is missing.
"""

import json
import os
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from score_jax.report import panels, sets
from score_jax.report.charts import show
from score_jax.report.dialogues import OUTCOMES, Card, column_of, make_cards
from score_jax.report.findings import (
    find_alarms,
    headline,
    last_attempts,
    last_turn,
    stage_label,
    trained_model,
)
from score_jax.report.workdir import Run, read_run, transcript_of

CARDS_PER_OUTCOME = 12
TRAINING_CARDS = 8


def write_report(workdir: Path) -> Path:
    """Writes WORKDIR/report.html from what the run has written so far.

    Raises:
      ValueError: the workdir holds nothing to report.
    """
    page = Path(workdir) / "report.html"
    html = render(read_run(Path(workdir)), title=Path(workdir).resolve().name)
    partial = page.with_suffix(".html.partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, page)  # atomic: a browser never loads half a page
    return page


def template(name: str) -> jinja2.Template:
    """A template of this folder; those of HTML escape all text."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(run: Run, *, title: str) -> str:
    """Returns the page's HTML."""
    evaluation = run.evaluated.evaluation if run.evaluated else {}
    main, more = panels.curves(run)
    cards = _evaluated_cards(evaluation)
    return template("page.html.j2").render(
        title=title,
        run=run,
        label=stage_label,
        written=datetime.fromtimestamp(run.written, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=headline(run),
        alarms=find_alarms(run),
        evaluation=evaluation,
        headings=panels.main_metrics(evaluation),
        last=last_attempts(last_turn(evaluation)).split()[0],
        results=panels.results(evaluation),
        changes=panels.change_charts(evaluation),
        details=panels.details(evaluation) + sets.vote_tables(evaluation),
        by_task=panels.by_task(evaluation),
        steps=panels.steps(evaluation),
        attempts_chart=panels.attempts_chart(evaluation),
        vote_charts=sets.vote_charts(evaluation),
        sets=_further_sets(run),
        main_charts=main,
        more_charts=more,
        histograms=panels.histograms(evaluation),
        cards=cards,
        counts=Counter(card.outcome for card in cards),
        outcomes=OUTCOMES,
        training=_training_dialogues(run),
        timings=[(stage.name, panels.timing(stage)) for stage in run.stages if stage.rows],
        handoffs=[stage for stage in run.stages if stage.handoff],
        config=_config_table(run),
        versions=_flatten(run.chain.get("versions", {})),
        show=show,
    )


def _further_sets(run: Run) -> list[dict[str, Any]]:
    """What is shown of each evaluation_NAME.json of the stage that was evaluated last."""
    stage = run.evaluated
    if stage is None:
        return []
    return [
        {
            "name": name,
            "differs": sets.differences(stage.evaluation, own),
            "lost": own.get("lost_characters", {}),
            "tables": sets.set_tables(own),
            "charts": [*filter(None, [panels.attempts_chart(own)]), *sets.vote_charts(own)],
        }
        for name, own in stage.sets.items()
        if own.get("models")
    ]


def _evaluated_cards(evaluation: Mapping[str, Any]) -> list[Card]:
    stored = {
        model: [t for t in map(transcript_of, rows) if t is not None]
        for model, rows in evaluation.get("transcripts", {}).items()
    }
    trained = trained_model(evaluation)
    if trained in stored:  # the last one decides a card's outcome
        stored[trained] = stored.pop(trained)
    return make_cards(stored, per_outcome=CARDS_PER_OUTCOME)


def _training_dialogues(run: Run) -> list[tuple[str, list[Card]]]:
    """The latest training dialogues of each stage, on cards with one column."""
    shown = []
    for stage in run.stages:
        cards = [
            Card(
                problem=f"step {t.step}, {t.problem}",
                prompt=t.prompt,
                answer=t.answer,
                outcome=column.outcome,
                columns=(column,),
            )
            for t in stage.transcripts[-TRAINING_CARDS:]
            if t.attempts
            for column in [column_of(stage.name, t)]
        ]
        shown += [(stage_label(stage.name), cards)] if cards else []
    return shown


def _config_table(run: Run) -> tuple[list[str], list[tuple[str, list[str], bool]]]:
    """Names of the stages; per field its path, its value in each, and whether they differ."""
    configs = {stage_label(s.name): _flatten(s.config) for s in run.stages if s.config}
    rows = []
    for path in dict.fromkeys(path for config in configs.values() for path in config):
        values = [config.get(path, "–") for config in configs.values()]
        rows.append((path, values, len(set(values)) > 1))
    return list(configs), rows


def _flatten(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flattens nested fields to dotted paths with JSON values; strings are left unquoted."""
    flat: dict[str, str] = {}
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + str(name)] = value if isinstance(value, str) else json.dumps(value)
    return flat
