"""A stage's rollouts in the store: what is kept of each step, and what a resumed run reads.

A run that is interrupted before an update keeps the whole rollout, marked by a checksum of the
policy that drew it; the resumed run learns from it instead of drawing again.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from score_jax.data import store
from score_jax.data.store import StoredDialogue
from score_jax.data.stream import Stream
from score_jax.distributed import processes
from score_jax.distributed.processes import any_process
from score_jax.records import Grade, Problem, Transcript
from score_jax.rl.dialogue import Encoder
from score_jax.rl.rollout import (
    Graded,
    Rollout,
    RolloutPrograms,
    graded_columns,
    problems_of_rows,
    reward_array,
)
from score_jax.stages.build import StagePrograms
from score_jax.stages.checkpoint import StorageError, fingerprint
from score_jax.stages.settings import Settings
from score_jax.types import Episodes, Ids, Params

NAME = "rollouts"  # folder in that of a stage


def write(
    folder: Path,
    programs: StagePrograms,
    encoder: Encoder,
    rollout: Rollout,
    step: int,
    *,
    count: int = -1,
    mark: str = "",
) -> None:
    """Writes this host's rows of a step.

    Args:
      count: dialogues to keep, evenly spread over the batch of all hosts; -1: all.

    Raises:
      StorageError: the file could not be written.
    """
    whole = len(rollout.episodes.tokens)
    count = whole if count < 0 else min(count, whole)
    chosen = {i * whole // count for i in range(count)}
    rows = programs.own_rows(np.arange(whole)).tolist()
    name, problems = programs.settings.name, rollout.problems
    found = dialogues(encoder, problems, rollout.local, rollout.graded, name, step, rows)
    kept = [dialogue for dialogue in found if dialogue.row in chosen]
    try:
        if kept or mark:
            store.write(folder / NAME, kept, step=step, host=processes.process_index(), mark=mark)
    except OSError as error:
        raise StorageError(f"{folder / NAME} could not be written ({error}); make room") from error


def dialogues(
    encoder: Encoder,
    problems: Sequence[Problem],
    episodes: Episodes,
    graded: Graded,
    stage: str,
    step: int,
    rows: Sequence[int],
) -> list[StoredDialogue]:
    """Graded rows as the store keeps them.

    Args:
      problems: one per row.
      episodes: numpy arrays.
      rows: their numbers in the batch of all hosts.
    """
    tasks = [encoder.task(problem) for problem in problems]
    return store.from_rows(
        episodes.replace(rewards=reward_array(graded.grades)),
        stage=stage,
        step=step,
        rows=rows,
        problems=problems,
        tasks=[task.name for task in tasks],
        prompts=[task.ask(problem) for task, problem in zip(tasks, problems, strict=True)],
        attempts=graded.attempts,
        grades=graded.grades,
    )


def samples(
    encoder: Encoder, rollout: Rollout, stage: str, step: int, count: int
) -> list[Transcript]:
    """Some of this host's dialogues of a step, evenly spread over its rows."""
    whole = len(rollout.local.tokens)
    rows = [i * whole // min(count, whole) for i in range(min(count, whole))]
    graded = Graded(
        attempts=[rollout.graded.attempts[row] for row in rows],
        grades=[rollout.graded.grades[row] for row in rows],
        seconds={},
    )
    local = jax.tree.map(lambda column: column[rows], rollout.local)
    problems = [rollout.problems[row] for row in rows]
    found = dialogues(encoder, problems, local, graded, stage, step, rows)
    return [store.transcript(dialogue) for dialogue in found]


def checksum(params: Params) -> str:
    """Identifies the policy that drew a rollout."""
    return str(int(fingerprint(params)))


def read_whole(
    folder: Path, settings: Settings, step: int, mark: str | None = None
) -> list[StoredDialogue] | None:
    """The dialogues of a step by row.

    Returns:
      None if a row is missing, a file is damaged, or has another mark than that given: the
      caller samples again, with the same keys.
    """
    try:
        found = store.read_step(folder / NAME, step, mark)
    except ValueError:
        return None
    rows = settings.batch * settings.sampling.group_size
    return found if found is not None and len(found) == rows else None


def resume(
    folder: Path,
    programs: StagePrograms,
    rollouts: RolloutPrograms,
    stream: Stream,
    step: int,
    params: Params,
    reference: Params,
) -> Rollout | None:
    """The rollout of this step that this policy has drawn; deletes it and those of later steps.

    All hosts must call.

    Returns:
      None if there is none, or it is damaged, of another policy or only a part of it was kept.
    """
    start, settings = time.monotonic(), programs.settings
    found = read_whole(folder, settings, step, checksum(params))
    drawn = not any_process(found is None)  # all hosts have read by now
    store.drop_from(folder / NAME, step)  # of this step the caller keeps what a config says
    processes.barrier()  # no host may write before the first has deleted
    if not drawn:
        return None
    assert found is not None, "any_process covers this host"
    own = [found[row] for row in programs.own_rows(np.arange(len(found))).tolist()]
    local = as_episodes(own, rollouts.encoder.row_length(settings.sampling.row_limit))
    grades = [grades_of(dialogue) for dialogue in own]
    roles = rollouts.encoder.plan.roles
    local = local.replace(**graded_columns(grades, roles, rollouts.repeat_penalty))
    draws, _, problems = stream.next()
    episodes = programs.to_global(local)
    return Rollout(
        episodes=episodes,
        scores=rollouts.score(reference, episodes),
        local=local,
        problems=problems_of_rows(draws, problems, local),
        graded=Graded(
            attempts=[dialogue.attempts for dialogue in own],
            grades=grades,
            seconds={"sample": time.monotonic() - start, "grade": 0.0},
        ),
    )


def as_episodes(dialogues: Sequence[StoredDialogue], length: int) -> Episodes:
    """Rows of numpy arrays."""
    columns: dict[str, Any] = store.padded(dialogues, length, len(dialogues[0].present))
    columns["ids"] = Ids(**columns["ids"])
    return Episodes(**columns)


def grades_of(dialogue: StoredDialogue) -> tuple[Grade | None, ...]:
    """The grades of a dialogue's turns."""
    turns = zip(
        dialogue.verdicts,
        dialogue.rewards.tolist(),
        dialogue.extracted,
        dialogue.details,
        strict=True,
    )
    return tuple(
        verdict and Grade(verdict=verdict, reward=reward, extracted=extracted, detail=detail or "")
        for verdict, reward, extracted, detail in turns
    )


def learn_turns(rows: Episodes, trained: Sequence[bool]) -> Episodes:
    """Stored rows for supervised learning: only these turns' tokens carry loss."""
    mask = np.asarray([False, *trained])[np.asarray(rows.turn)]
    return replace(rows, trained=mask)
