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
from score_jax.stages.build import Built, Program, build
from score_jax.stages.checkpoint import StorageError
from score_jax.stages.problem_sets import ProblemSet, Wanted, measured, select, trained, validated
from score_jax.stages.settings import Settings
from score_jax.types import Params

TRIAL_TOKENS = 8  # of each turn of the trial row
GB = 1e9


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A stage whose problems were found to be in order."""

    built: Built
    training: ProblemSet
    validation: ProblemSet | None  # None: training is not interrupted to measure
    evaluation: ProblemSet

    def counts(self) -> dict[str, dict[str, int]]:
        """What run.json says of its problems."""
        sets = (self.training, self.validation, self.evaluation)
        return {found.part: found.counts() for found in sets if found is not None}


def check_stage(settings: Settings, workdir: Path) -> Checked:
    """Builds a stage and looks at all of its problems; all hosts must call.

    Raises:
      ValueError: the stage can't run to its end as it is configured; says what to do.
    """
    built = build(settings)
    return Checked(
        built=built,
        training=select_and_tell(built, trained(settings), workdir),
        validation=select_and_tell(built, validated(settings), workdir)
        if settings.evaluation.every
        else None,
        evaluation=select_and_tell(built, measured(settings), workdir),
    )


def select_and_tell(built: Built, wanted: Wanted, workdir: Path) -> ProblemSet:
    """A set of a stage's problems, with a line for people."""
    settings = built.settings
    progress = settings.log.progress and processes.is_first()
    found = select(wanted, built.chat, settings.grading, workdir, progress=progress)
    processes.say(f"[{settings.name}] {found.describe()}")
    return found


def state_bytes(built: Built) -> int:
    """What one checkpoint of a stage takes on the disk."""
    leaves = jax.tree.leaves(built.abstract_state())
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def check_room(stages: Sequence[Built], workdir: Path) -> None:
    """Checks that the checkpoints that will be kept at a time have room.

    Raises:
      StorageError: they have not.
    """
    need = 0
    for built in stages:
        settings = built.settings
        there = len(list((workdir / settings.name / "checkpoints").glob("[0-9]*")))
        # The latest ones, the best and the one that is being written; never more than there are.
        due = -(-settings.steps // settings.checkpoint.every)
        need += state_bytes(built) * max(0, min(settings.checkpoint.keep + 2, due) - there)
    free = shutil.disk_usage(workdir).free
    if need > free:
        names = ", ".join(built.settings.name for built in stages)
        raise StorageError(
            f"--workdir is {workdir} with {free / GB:.1f} GB free, but the checkpoints of {names} "
            f"take up to {need / GB:.1f} GB at a time; make room, lower config.checkpoint.keep or "
            "choose another --workdir"
        )


def try_row(built: Built, asked: ProblemSet, reference: Params, grader: Grader) -> float:
    """Samples, grades and scores a few tokens of a problem, as evaluation asks it.

    Training does the same with its own problems in its first step; evaluation comes last.

    Returns:
      By how many nats sampler and scorer differ, as a mean over the tokens.

    Raises:
      ValueError: log-probabilities are not finite.
    """
    sampling = built.settings.sampling
    short = dataclasses.replace(
        sampling,
        samples=1,
        branches=1,
        spans=1,
        temperature=0.0,
        prompt_limit=asked.prompt_limit,
        turn_limit=min(TRIAL_TOKENS, sampling.turn_limit),
        row_limit=0,
    )
    turns = built.settings.objective.turns
    learner = dataclasses.replace(built.settings.learner, microbatches=1, minibatches=1)
    most = turns * short.turn_limit
    score = partial(score_episodes, built.decoder, most=most, config=learner, keep_hidden=False)
    rows = sharding.rows(built.mesh)
    scorer = jax.jit(score, in_shardings=(built.model_shardings, rows), out_shardings=rows)
    sampler = dataclasses.replace(
        built.sampler(),
        sample=built.sample(short, turns, asked.task),
        score=Program(scorer, built.mesh),
    )
    draws = np.asarray(sharding.own_rows(built.mesh, sharding.row_shards(built.mesh)))
    rollout = collect_rollout(
        sampler,
        built.chat,
        asked.task,
        grader,
        params=reference,
        reference=reference,
        key=run_key(built.settings.evaluation.seed, "evaluate"),
        draws=draws,
        problems=[asked.problems[place % len(asked.problems)] for place in draws],
        prompt_limit=asked.prompt_limit,
    )
    own = rollout.local.turn > 0
    gap = rollout.local.logprobs - sharding.local_rows(rollout.scores.logprobs)
    mean = float(processes.exchange(np.abs(gap[own]).mean(keepdims=True)).mean())
    if not math.isfinite(mean):
        raise ValueError(
            f"weights.source is {built.settings.weights.source!r}; a trial row's log-probabilities "
            "are not finite: the weights are damaged, or not of this model"
        )
    return mean
