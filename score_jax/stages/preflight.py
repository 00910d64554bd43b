"""What is checked before the first step of a chain: problems, limits, graders, room, one row.

A run that would die after days, at its first long prompt or in its closing evaluation,
is told so before anything is trained, with the numbers.
"""

import dataclasses
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np

from score_jax.distributed import processes, sharding
from score_jax.rl.keys import run_key
from score_jax.rl.learner import score_episodes
from score_jax.rl.rollout import Grader, collect_rollout
from score_jax.stages.build import Program, StagePrograms, build
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.problem_sets import ProblemSet, Wanted, measured, select, trained, validated
from score_jax.stages.settings import Settings
from score_jax.types import Params

TRIAL_TOKENS = 8  # of each turn of the trial row
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class CheckedStage:
    """A stage whose problems were found to be in order."""

    programs: StagePrograms
    training: ProblemSet
    validation: ProblemSet | None  # None: training is not interrupted to measure
    evaluation: ProblemSet

    def counts(self) -> dict[str, dict[str, int]]:
        """What run.json says of its problems."""
        sets = (self.training, self.validation, self.evaluation)
        return {found.part: found.counts() for found in sets if found is not None}


def check_stage(settings: Settings, workdir: Path) -> CheckedStage:
    """Builds a stage and looks at all of its problems; all hosts must call.

    Raises:
      ValueError: the stage can't run to its end as it is configured; says what to do.
    """
    programs = build(settings)
    return CheckedStage(
        programs=programs,
        training=select_and_log(programs, trained(settings), workdir),
        validation=select_and_log(programs, validated(settings), workdir)
        if settings.evaluation.every
        else None,
        evaluation=select_and_log(programs, measured(settings), workdir),
    )


def select_and_log(programs: StagePrograms, wanted: Wanted, workdir: Path) -> ProblemSet:
    """A set of a stage's problems, with a line for people."""
    settings = programs.settings
    progress = settings.log.progress and processes.is_first()
    found = select(wanted, programs.chat, settings.grading, workdir, progress=progress)
    processes.log(f"[{settings.name}] {found.describe()}")
    return found


def state_bytes(programs: StagePrograms) -> int:
    """What one checkpoint of a stage takes on the disk."""
    leaves = jax.tree.leaves(programs.abstract_state())
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def check_room(stages: Sequence[StagePrograms], workdir: Path) -> None:
    """Checks that the checkpoints that will be kept at a time have room.

    Raises:
      StorageError: they have not.
    """
    need = 0
    for programs in stages:
        settings = programs.settings
        there = len(list((workdir / settings.name / "checkpoints").glob("[0-9]*")))
        # The latest ones, the best and the one that is being written; never more than there are.
        due = -(-settings.steps // settings.checkpoint.every)
        need += state_bytes(programs) * max(0, min(settings.checkpoint.keep + 2, due) - there)
    free = shutil.disk_usage(workdir).free
    if need > free:
        names = ", ".join(programs.settings.name for programs in stages)
        raise StorageError(
            f"--workdir is {workdir} with {free / GB:.1f} GB free, but the checkpoints of {names} "
            f"take up to {need / GB:.1f} GB at a time; make room, lower config.checkpoint.keep or "
            "choose another --workdir"
        )


def try_row(programs: StagePrograms, asked: ProblemSet, reference: Params, grader: Grader) -> float:
    """Samples, grades and scores a few tokens of a problem, as evaluation asks it.

    Training does the same with its own problems in its first step; evaluation comes last.

    Returns:
      By how many nats sampler and scorer differ, as a mean over the tokens.

    Raises:
      ValueError: log-probabilities are not finite.
    """
    sampling = programs.settings.sampling
    short = dataclasses.replace(
        sampling,
        group_size=1,
        second_attempts=1,
        decode_segments=1,
        temperature=0.0,
        prompt_limit=asked.prompt_limit,
        turn_limit=min(TRIAL_TOKENS, sampling.turn_limit),
        row_limit=0,
    )
    turns = programs.settings.objective.turns
    learner = dataclasses.replace(programs.settings.learner, microbatches=1, minibatches=1)
    max_policy_tokens = turns * short.turn_limit
    score = partial(
        score_episodes,
        programs.decoder,
        max_policy_tokens=max_policy_tokens,
        config=learner,
        keep_hidden=False,
    )
    rows = sharding.rows(programs.mesh)
    scorer = jax.jit(score, in_shardings=(programs.model_shardings, rows), out_shardings=rows)
    sampler = dataclasses.replace(
        programs.sampler(),
        sample=programs.sample(short, turns, asked.task),
        score=Program(scorer, programs.mesh),
    )
    draws = np.asarray(sharding.own_rows(programs.mesh, sharding.row_shards(programs.mesh)))
    rollout = collect_rollout(
        sampler,
        programs.chat,
        asked.task,
        grader,
        params=reference,
        reference=reference,
        key=run_key(programs.settings.evaluation.seed, "evaluate"),
        draws=draws,
        problems=[asked.problems[place % len(asked.problems)] for place in draws],
        prompt_limit=asked.prompt_limit,
    )
    own = rollout.local.turn > 0
    mismatch = rollout.local.logprobs - sharding.local_rows(rollout.scores.logprobs)
    mean = float(processes.all_gather(np.abs(mismatch[own]).mean(keepdims=True)).mean())
    if not math.isfinite(mean):
        raise ValueError(
            f"weights.source is {programs.settings.weights.source!r}; a trial row's "
            "log-probabilities are not finite: the weights are damaged, or not of this model"
        )
    return mean
