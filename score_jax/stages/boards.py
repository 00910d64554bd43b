"""How a run looks in TensorBoard and Weights & Biases: names in groups, and dialogues to read."""

from collections.abc import Sequence
from typing import Any

from score_jax.records import Transcript

GROUPS = {  # of metrics whose name has no group; the paper's own have one for themselves
    "delta": "correction",  # accuracy of the last turn less that of the first
    "delta_i_to_c": "correction",
    "delta_c_to_i": "correction",
    "answer_changed": "correction",
    "edit_distance": "correction",
}
OTHER = "training"  # the group of all others
DIALOGUES = "dialogues"  # under which they are shown
COLUMNS = ("problem", "answer", "prompt", "attempts", "verdicts", "rewards")


def board_name(metric: str) -> str:
    """A metric's name on a board, where charts stand in groups by what precedes the slash."""
    return metric if "/" in metric else f"{GROUPS.get(metric, OTHER)}/{metric}"


def as_markdown(transcripts: Sequence[Transcript]) -> str:
    """Dialogues as TensorBoard shows text; what was said stands in blocks, as it is."""
    parts = []
    for one in transcripts:
        parts += [
            f"**{plain(one.problem)}**, answer {plain(one.answer) or 'none'}",
            block(one.prompt),
        ]
        for turn, (text, verdict) in enumerate(zip(one.attempts, one.verdicts, strict=True), 1):
            parts += [f"attempt {turn}, {verdict}:", block(text)]
    return "\n\n".join(parts)


def plain(text: str) -> str:
    """Text without what Markdown reads as marks."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~" else c for c in " ".join(text.split()))


def block(text: str) -> str:
    """Text as a block of code, in which nothing is a mark."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def as_rows(transcripts: Sequence[Transcript]) -> list[list[Any]]:
    """Dialogues as rows of a table with COLUMNS."""
    return [
        [
            one.problem,
            one.answer,
            one.prompt,
            "\n\n".join(f"[{turn}] {text}" for turn, text in enumerate(one.attempts, 1)),
            ", ".join(one.verdicts),
            ", ".join(f"{reward:g}" for reward in one.rewards),
        ]
        for one in transcripts
    ]
