"""A rollout that was graded when the run had to end, kept so that it is not sampled again.

One file of a stage holds the rows of all hosts in the order of the batch, so that another
number of hosts can take it up. It belongs to one policy: a checksum says which.
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np

from score_jax.distributed import processes
from score_jax.distributed.processes import any_process
from score_jax.records import Grade
from score_jax.rl.rollout import Graded, Rollout
from score_jax.stages.build import StagePrograms
from score_jax.stages.checkpoint import StorageError, fingerprint
from score_jax.types import Episodes, Params

NAME = "rollout.npz"
UNREADABLE = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


def mark(step: int, params: Params) -> list[int]:
    """What a rollout is recognised by."""
    return [step, int(fingerprint(params))]


def write(
    folder: Path, programs: StagePrograms, rollout: Rollout, step: int, params: Params
) -> None:
    """Writes the rollout of a step; all hosts must call.

    Raises:
      StorageError: there is no room.
    """
    own = programs.own_rows(np.arange(len(rollout.episodes.tokens)))
    graded = rollout.graded
    texts = [
        {"attempts": attempts, "grades": [asdict(grade) for grade in grades]}
        for attempts, grades in zip(graded.attempts, graded.grades, strict=True)
    ]
    arrays = {field.name: getattr(rollout.local, field.name) for field in fields(Episodes)}
    parts = processes.all_gather_objects((own, arrays, texts))
    belongs = mark(step, params)
    fault = None
    if processes.is_first():
        rows = np.concatenate([part[0] for part in parts])
        _, order = np.unique(rows, return_index=True)  # hosts may share rows
        whole: dict[str, Any] = {
            name: np.concatenate([part[1][name] for part in parts])[order] for name in arrays
        }
        lines = [line for part in parts for line in part[2]]
        words = {
            "mark": belongs,
            "seconds": graded.seconds,
            "rows": [lines[place] for place in order],
        }
        whole["words"] = np.frombuffer(json.dumps(words).encode(), np.uint8)
        try:
            partial = folder / f"{NAME}.partial"
            with partial.open("wb") as file:
                np.savez(file, **whole)
            partial.replace(folder / NAME)
        except OSError as error:
            fault = f"{folder / NAME} could not be written ({error}); make room"
    fault = processes.broadcast_from_first(fault)
    if fault:
        raise StorageError(fault)


def read(
    folder: Path,
    programs: StagePrograms,
    score: Callable,
    step: int,
    params: Params,
    reference: Params,
) -> Rollout | None:
    """The rollout kept for this step of this policy, scored anew; None if there is none.

    All hosts must call; one that is damaged or of another policy is none.
    """
    path = folder / NAME
    if not processes.broadcast_from_first(path.exists()):
        return None
    found: tuple[dict[str, Any], dict[str, Any]] | None = None  # words, arrays
    try:
        with np.load(path) as data:
            words = json.loads(data["words"].tobytes())
            found = words, {field.name: data[field.name] for field in fields(Episodes)}
    except UNREADABLE:
        pass  # it will be sampled again, with the same keys
    current = mark(step, params)
    if any_process(found is None or found[0]["mark"] != current):
        return None
    assert found is not None, "agreed upon"
    words, arrays = found
    local = programs.own_rows(Episodes(**arrays))
    lines = [words["rows"][row] for row in programs.own_rows(np.arange(len(words["rows"])))]
    episodes = programs.to_global(local)
    return Rollout(
        episodes=episodes,
        scores=score(reference, episodes),
        local=local,
        graded=Graded(
            attempts=[tuple(line["attempts"]) for line in lines],
            grades=[tuple(Grade(**grade) for grade in line["grades"]) for line in lines],
            seconds=words["seconds"],
        ),
    )


def drop(folder: Path) -> None:
    """Removes what a later checkpoint makes useless."""
    if processes.is_first():
        (folder / NAME).unlink(missing_ok=True)
