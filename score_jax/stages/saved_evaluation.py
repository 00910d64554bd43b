"""Dialogues of an evaluation under way, kept on disk so that one that was killed goes on.

A line holds all dialogues of one problem. They depend on the problem's place, the model
and the protocol alone, so it does not matter in which batches the rest is drawn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from score_jax.distributed import processes
from score_jax.records import Transcript

SavedDialogues = dict[int, list[Transcript]]  # by the problem's place in the data set


def read(path: Path) -> SavedDialogues:
    """What was measured before, on all hosts; nothing where there is no file."""
    return processes.broadcast_from_first(_read(path) if processes.is_first() else None)


def _read(path: Path) -> SavedDialogues:
    if not path.exists():
        return {}
    found: SavedDialogues = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):  # half-written when the run was killed
            break
        row = json.loads(line)
        found[row["place"]] = [_transcript(record) for record in row["dialogues"]]
    return found


def _transcript(record: Mapping[str, Any]) -> Transcript:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return Transcript(**fields)


def write(path: Path, found: SavedDialogues) -> None:
    """Replaces what is there by what was read of it, a half-written line left out."""
    if processes.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(*entry) for entry in found.items()), encoding="utf-8")


def add(path: Path, indices: Sequence[int], dialogues: Sequence[Sequence[Transcript]]) -> None:
    """Appends what a batch has given."""
    if processes.is_first():
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, indices, dialogues))


def _line(place: int, dialogues: Sequence[Transcript]) -> str:
    return json.dumps({"place": place, "dialogues": [asdict(one) for one in dialogues]}) + "\n"
