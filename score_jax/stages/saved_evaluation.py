"""Stores the dialogues of an unfinished evaluation, so that it can be resumed.

A line holds all dialogues of one problem. They depend on the problem's index, the model
and the protocol only, so a resumed evaluation may batch the other problems differently.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from score_jax.distributed import processes
from score_jax.records import Transcript

SavedDialogues = dict[int, list[Transcript]]  # by the problem's index in the data set


def read(path: Path) -> SavedDialogues:
    """Reads the first host's file for all hosts; empty if there is no file."""
    return processes.broadcast_from_first(_read(path) if processes.is_first() else None)


def _read(path: Path) -> SavedDialogues:
    if not path.exists():
        return {}
    dialogues: SavedDialogues = {}
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n"):  # incomplete: the run was killed while writing it
            break
        row = json.loads(line)
        dialogues[row["place"]] = [_transcript(record) for record in row["dialogues"]]
    return dialogues


def _transcript(record: Mapping[str, Any]) -> Transcript:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record.items()}
    return Transcript(**fields)


def write(path: Path, dialogues: SavedDialogues) -> None:
    """Rewrites the file, on the first host; this removes an incomplete last line."""
    if processes.is_first():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(*entry) for entry in dialogues.items()), encoding="utf-8")


def add(path: Path, indices: Sequence[int], dialogues: Sequence[Sequence[Transcript]]) -> None:
    """Appends the dialogues of a batch of problems, on the first host."""
    if processes.is_first():
        with path.open("a", encoding="utf-8") as file:
            file.writelines(map(_line, indices, dialogues))


def _line(index: int, dialogues: Sequence[Transcript]) -> str:
    return json.dumps({"place": index, "dialogues": [asdict(one) for one in dialogues]}) + "\n"
