"""A tiny stage whose programs this process compiles once, trained with a grader of its own.

What stands before and behind the steps (preflight, evaluation, workers) is left out.
"""

import signal
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace

import jax
import numpy as np

from score_jax.data.stream import Stream
from score_jax.distributed.signals import Interrupted, StopRequest
from score_jax.report.alarms import USUAL
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import RolloutPrograms, collect_rollout
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.chain import open_log
from score_jax.stages.handoff import open_checkpoints
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.train import StageRun, rl_step, start_state
from tests.short_answers import TASK
from tests.stage_configs import stages

TURNS = 2  # of a dialogue, each of which is handed in by itself


class Judge:
    """Grades at once and in this process; `ask(n)` is called before its n-th rollout, from 0."""

    def __init__(self, ask=lambda number: None, grade=TASK.grade):
        self.ask, self.grade, self.asked = ask, grade, 0

    @property
    def rollouts(self):
        return self.asked // TURNS

    def submit(self, task_name, items, cut):
        assert task_name == TASK.name and len(items) == len(cut)
        if self.asked % TURNS == 0:
            self.ask(self.rollouts)
        self.asked += 1
        grades = [self.grade(problem, text) for problem, text in items]
        return SimpleNamespace(result=lambda: grades)


@dataclass(frozen=True)
class Trial:
    """What runs share."""

    programs: StagePrograms
    devices: RolloutPrograms
    reference: dict
    problems: list

    def having(self, **fields):
        """The programs under other settings, of those that no compiled program depends on."""
        settings = replace(self.programs.settings, **fields)
        return replace(self.programs, settings=settings)

    def stream(self, programs):
        settings = programs.settings
        return Stream(self.problems, batch=settings.batch, seed=settings.seed)


@cache
def open_trial():
    """Six steps of four problems with two dialogues each, a checkpoint after every second."""
    programs = build(stages()[-1].settings, jax.devices()[:1])
    tasks, problems = read(training_spec(programs.settings))
    reference = load_reference(programs)
    table = np.array(reference["embedding"])
    table[programs.chat.stop] *= 8  # of a random policy's attempts hardly any ends by itself
    reference = jax.device_put({**reference, "embedding": table}, programs.model_shardings)
    return Trial(programs, programs.rollout_programs(tasks), reference, problems)


def train(
    folder,
    *,
    judge=None,
    stop=None,
    watch=None,
    sample=None,
    update=None,
    alarms=USUAL,
    redraws=0,
    **log,
):
    """Trains the stage in a folder from its newest checkpoint, or is interrupted on the way.

    Args:
      stop: the rollout, of those drawn here and from 0, during which a signal arrives.
      watch: is called with the parameters and episodes of each update.
      sample: draws in place of the sampling program.
      update: learns in place of the update program.
      alarms: the config's section.
      redraws: of SamplingConfig.
      log: fields of config.log.

    Returns:
      The parameters at the end, None if the run was interrupted; and the number of rollouts
      that were drawn.
    """
    trial, request = open_trial(), StopRequest()
    kept = replace(trial.programs.settings.log, rollouts=-1, rollouts_every=1)
    sampling = replace(trial.programs.settings.sampling, redraws=redraws)
    programs = trial.having(log=replace(kept, **log), alarms=alarms, sampling=sampling)
    if watch is not None:

        def update(state, reference, episodes, scores):
            watch(jax.tree.map(np.array, state.params), episodes)
            return trial.programs.update(state, reference, episodes, scores)

        programs = replace(programs, update=update)

    if update is not None:
        programs = replace(programs, update=update)
    devices = trial.devices if sample is None else replace(trial.devices, sample=sample)

    def arrive(number):
        request.number = signal.SIGTERM if number == stop else request.number

    judge = judge or Judge(arrive)
    with open_checkpoints(programs.settings, folder) as checkpoints:
        state, progress = start_state(
            programs, checkpoints, lambda: programs.fresh(trial.reference), lambda message: None
        )
        with open_log(programs.settings, folder, progress.position) as opened:
            run = StageRun(
                programs=programs,
                checkpoints=checkpoints,
                log=opened,
                stream=trial.stream(programs),
                grader=judge,
                reference=trial.reference,
                state=state,
                progress=progress,
                request=request,
            )
            try:
                run.run(rl_step(devices))
            except Interrupted:
                return None, judge.rollouts
    return jax.tree.map(np.array, run.state.params), judge.rollouts


def draw(trial, step, *, judge=None, score=None):
    """The rollout of a step, drawn from the reference."""
    stream = trial.stream(trial.programs)
    stream.position = step
    draws, indices, problems = stream.next()
    return collect_rollout(
        trial.devices if score is None else replace(trial.devices, score=score),
        judge or Judge(),
        params=trial.reference,
        reference=trial.reference,
        key=run_key(0, "train", stage="stage1"),
        draws=draws,
        problems=problems,
        indices=indices,
        policy_step=step,
    )
