"""Lays out the dialogues of all models on a problem side by side, with changes marked.

Model text is HTML-escaped here; only the <ins> and <del> around it are markup.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from markupsafe import Markup, escape

from score_jax.records import Transcript
from score_jax.report.findings import stage_label

OUTCOMES = {  # in the order of the page
    "fixed": "wrong \N{RIGHTWARDS ARROW} right",
    "broken": "right \N{RIGHTWARDS ARROW} wrong",
    "missed": "wrong \N{RIGHTWARDS ARROW} wrong",
    "kept": "right \N{RIGHTWARDS ARROW} right",
}
ALIKE = 0.35  # similarity below which a word-by-word diff is too cluttered to read
LONG = 1500  # words above which texts are compared line by line, as the diff takes O(n^2)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One attempt as shown on the page."""

    turn: int
    text: Markup
    verdict: str
    reward: float
    length: int  # tokens
    truncated: bool
    extracted: str | None
    change: str  # "", "copy", "edited" or "rewritten", against the attempt before


@dataclass(frozen=True, kw_only=True)
class Column:
    """One model's dialogue."""

    model: str
    outcome: str  # a key of OUTCOMES
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """One problem with the dialogues of all models; the outcome is the last model's."""

    problem: str
    prompt: str
    answer: str
    outcome: str
    columns: tuple[Column, ...]


def outcome_of(transcript: Transcript) -> str:
    """Classifies a dialogue, as a key of OUTCOMES, by its first and its last verdict."""
    before, after = (transcript.verdicts[turn] == "correct" for turn in (0, -1))
    return {(0, 1): "fixed", (1, 0): "broken", (0, 0): "missed", (1, 1): "kept"}[before, after]


def mark_changes(before: str, after: str) -> tuple[Markup, str]:
    """Marks insertions and deletions from `before` to `after`.

    Returns:
      The marked text, and "copy", "edited" or "rewritten" (too different to mark).
    """
    if before == after:
        return escape(after), "copy"
    old, new = _pieces(before), _pieces(after)
    if len(old) + len(new) > LONG:
        old, new = before.splitlines(keepends=True), after.splitlines(keepends=True)
    matcher = SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < ALIKE:
        return escape(after), "rewritten"
    marked = Markup("")
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        deleted, inserted = "".join(old[a0:a1]), "".join(new[b0:b1])
        if kind == "equal":
            marked += escape(inserted)
            continue
        if deleted:
            marked += Markup("<del>{}</del>").format(deleted)
        if inserted:
            marked += Markup("<ins>{}</ins>").format(inserted)
    return marked, "edited"


def _pieces(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def column_of(model: str, transcript: Transcript) -> Column:
    """Turns one transcript into a column of a card."""
    attempts, before = [], ""
    for index, text in enumerate(transcript.attempts):
        shown, change = mark_changes(before, text) if index else (escape(text), "")
        before = text
        attempts.append(
            Attempt(
                turn=index + 1,
                text=shown,
                change=change,
                verdict=transcript.verdicts[index],
                reward=transcript.rewards[index],
                length=transcript.lengths[index],
                truncated=transcript.truncated[index],
                extracted=transcript.extracted[index],
            )
        )
    return Column(
        model=stage_label(model), outcome=outcome_of(transcript), attempts=tuple(attempts)
    )


def make_cards(dialogues: Mapping[str, Sequence[Transcript]], *, per_outcome: int) -> list[Card]:
    """Puts the models' dialogues on the same problem side by side.

    Args:
      dialogues: per model; the last model decides a card's outcome. Only the first sample
        of a problem is used.
      per_outcome: maximum number of cards per outcome.

    Returns:
      Cards, ordered by outcome.
    """
    by_model = {model: _first_of_each(rows) for model, rows in dialogues.items()}
    by_model = {model: rows for model, rows in by_model.items() if rows}
    if not by_model:
        return []
    decisive = list(by_model.values())[-1]
    groups: dict[str, list[str]] = {outcome: [] for outcome in OUTCOMES}
    for problem, transcript in decisive.items():
        groups[outcome_of(transcript)].append(problem)
    cards = []
    for outcome, problems in groups.items():
        for problem in problems[:per_outcome]:
            columns = [
                column_of(model, rows[problem])
                for model, rows in by_model.items()
                if problem in rows
            ]
            shown = decisive[problem]
            cards.append(
                Card(
                    problem=problem,
                    prompt=shown.prompt,
                    answer=shown.answer,
                    outcome=outcome,
                    columns=tuple(columns),
                )
            )
    return cards


def _first_of_each(transcripts: Iterable[Transcript]) -> dict[str, Transcript]:
    first: dict[str, Transcript] = {}
    for transcript in transcripts:
        if transcript.attempts:
            first.setdefault(transcript.problem, transcript)
    return first
