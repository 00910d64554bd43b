"""Saves a graded rollout when a run is interrupted before its update.

One file holds the rows of all hosts in batch order, so that a resumed run may have
another number of hosts. The file stores the step and a checksum of the policy that
sampled it, and is ignored for any other.
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
READ_ERRORS = (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile)


def step_and_checksum(step: int, params: Params) -> list[int]:
    """Identifies a rollout: its step and the checksum of the policy's parameters."""
    return [step, int(fingerprint(params))]


def write(
    folder: Path, programs: StagePrograms, rollout: Rollout, step: int, params: Params
) -> None:
    """Writes the rollout of a step; all hosts must call.

    Raises:
      StorageError: the file could not be written.
    """
    local_rows = programs.own_rows(np.arange(len(rollout.episodes.tokens)))
    graded = rollout.graded
    texts = [
        {"attempts": attempts, "grades": [asdict(grade) for grade in grades]}
        for attempts, grades in zip(graded.attempts, graded.grades, strict=True)
    ]
    arrays = {field.name: getattr(rollout.local, field.name) for field in fields(Episodes)}
    parts = processes.all_gather_objects((local_rows, arrays, texts))
    identifier = step_and_checksum(step, params)
    error_message = None
    if processes.is_first():
        rows = np.concatenate([part[0] for part in parts])
        _, order = np.unique(rows, return_index=True)  # several hosts may hold the same row
        file_arrays: dict[str, Any] = {
            name: np.concatenate([part[1][name] for part in parts])[order] for name in arrays
        }
        lines = [line for part in parts for line in part[2]]
        header = {
            "mark": identifier,
            "seconds": graded.seconds,
            "rows": [lines[index] for index in order],
        }
        file_arrays["words"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
        try:
            partial = folder / f"{NAME}.partial"
            with partial.open("wb") as file:
                np.savez(file, **file_arrays)
            partial.replace(folder / NAME)
        except OSError as error:
            error_message = f"{folder / NAME} could not be written ({error}); make room"
    error_message = processes.broadcast_from_first(error_message)
    if error_message:
        raise StorageError(error_message)


def read(
    folder: Path,
    programs: StagePrograms,
    score: Callable,
    step: int,
    params: Params,
    reference: Params,
) -> Rollout | None:
    """Reads the saved rollout of this step and policy and scores it; all hosts must call.

    Args:
      score: (reference, episodes) -> the reference's scores, which are not saved.

    Returns:
      None if there is no file, or it is damaged, or of another step or policy.
    """
    path = folder / NAME
    if not processes.broadcast_from_first(path.exists()):
        return None
    contents: tuple[dict[str, Any], dict[str, Any]] | None = None  # header, arrays
    try:
        with np.load(path) as data:
            header = json.loads(data["words"].tobytes())
            contents = header, {field.name: data[field.name] for field in fields(Episodes)}
    except READ_ERRORS:
        pass  # the caller samples again, with the same keys
    identifier = step_and_checksum(step, params)
    if any_process(contents is None or contents[0]["mark"] != identifier):
        return None
    assert contents is not None, "any_process covers this host"
    header, arrays = contents
    local = programs.own_rows(Episodes(**arrays))
    lines = [header["rows"][row] for row in programs.own_rows(np.arange(len(header["rows"])))]
    episodes = programs.to_global(local)
    return Rollout(
        episodes=episodes,
        scores=score(reference, episodes),
        local=local,
        graded=Graded(
            attempts=[tuple(line["attempts"]) for line in lines],
            grades=[tuple(Grade(**grade) for grade in line["grades"]) for line in lines],
            seconds=header["seconds"],
        ),
    )


def drop(folder: Path) -> None:
    """Deletes the saved rollout, which a later checkpoint makes obsolete."""
    if processes.is_first():
        (folder / NAME).unlink(missing_ok=True)
