"""Runs one stage: rollout, update, log, checkpoint, until all steps are done.

Everything that a step needs follows from its number (problems, keys) or is in the checkpoint
(train state, batches drawn, reward window), so a resumed run equals the uninterrupted one.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data import store
from score_jax.data.stream import Stream
from score_jax.distributed import processes
from score_jax.distributed.processes import any_process
from score_jax.distributed.signals import StopRequest
from score_jax.distributed.watchdog import Watchdog
from score_jax.report import alarms
from score_jax.rl import metrics
from score_jax.rl.keys import run_key
from score_jax.rl.metrics import Metric, Metrics, largest, total
from score_jax.rl.rollout import (
    Clock,
    Grader,
    Rollout,
    RolloutPrograms,
    collect_rollout,
    grading_metrics,
    sampling_metrics,
)
from score_jax.rl.selection import collect_with_signal, paid_turns, selection_metrics
from score_jax.stages import rollouts
from score_jax.stages.build import StagePrograms
from score_jax.stages.checkpoint import Checkpoints, StorageError, fingerprint
from score_jax.stages.compilation import Compilations
from score_jax.stages.examples import Examples
from score_jax.stages.log import Log
from score_jax.stages.profile import Profile
from score_jax.types import Params, TrainState


class TrainingError(RuntimeError):
    """Training cannot continue; the message names the step, the cause and the last checkpoint."""


class DivergenceError(TrainingError):
    """What is trained is at fault, not program or machine: it left the numbers, or an alarm."""


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@dataclass
class Progress:
    """What a stage carries from step to step, and saves, besides the train state."""

    position: int = 0  # steps done
    batches: int = 0  # drawn from the stream: those that were not learnt from count too
    window: int = 1  # steps in the mean training reward that checkpoints are compared by
    rewards: list[float] = field(
        default_factory=list
    )  # of the last steps, at most `window` of them
    candidates: int = 0  # checkpoints so far that can be chosen as the best

    def add(self, reward: float) -> None:
        """Adds a step's training reward."""
        self.rewards = [*self.rewards, reward][-self.window :]

    def reward(self) -> float | None:
        """Mean training reward over the window; None while there are fewer steps than that."""
        full = len(self.rewards) == self.window
        return sum(self.rewards) / self.window if full else None


Fetch = Callable[[], dict[str, float]]  # waits for an update and returns the step's metrics


@dataclass(kw_only=True)
class StageRun:
    """A stage that is being trained: its programs, files and state."""

    programs: StagePrograms
    checkpoints: Checkpoints
    log: Log
    stream: Stream
    grader: Grader
    reference: Params
    state: TrainState
    progress: Progress
    request: StopRequest = field(default_factory=StopRequest)
    watchdog: Watchdog = field(default_factory=Watchdog)
    compilations: Compilations = field(default_factory=Compilations)
    # (trained parameters, step) -> accuracies on validation problems; None: training does not
    # validate
    measure: Callable[[Params, int], dict[str, float]] | None = None
    validation: float | None = None  # accuracy of the last turn after the latest step, if measured
    # The step whose update was started last, and what fetches its metrics; None: they are logged.
    unfinished: tuple[int, Fetch] | None = None
    clock: Clock = field(default_factory=Clock)
    watch: alarms.State = field(default_factory=alarms.State)  # of alarms

    def __post_init__(self):
        self.folder = self.checkpoints.folder.parent
        self.first_step = self.progress.position
        self.profile = Profile(self.programs.settings.profile, self.folder / "profile")

    def run(self, learn: "StepFunction") -> None:
        """Trains up to the last step; `learn` runs one step.

        Raises:
          TrainingError: a number is not finite, or sampler and learner disagree.
          Interrupted: a signal was received; a checkpoint is written.
        """
        self.request.after_save = True
        try:
            self.take_steps(learn)
        finally:
            self.profile.close()
            self.request.after_save = False
        self.checkpoints.wait()
        if size := store.size_bytes(self.folder / rollouts.NAME):
            self.log.message(f"rollouts kept: {size / 1e6:.1f} MB in {self.folder / rollouts.NAME}")
        if any_process(bool(self.request.number)):
            raise self.request.interrupted(
                f" at step {self.progress.position} of {self.programs.settings.steps}: saved; the "
                "same command goes on from here"
            )

    def take_steps(self, learn: "StepFunction") -> None:
        """Takes the steps that are left, up to a signal."""
        settings = self.programs.settings
        base = int(fingerprint(self.reference))
        self.recall_alarms()
        stop = False
        while not stop and (step := self.progress.position) < settings.steps:
            self.checkpoints.check()
            self.profile.begin_step(step, self.finish_step)
            fetch = learn(self, step)
            if fetch is None:
                break
            done = step + 1
            self.unfinished = (done, fetch)
            stop = any_process(bool(self.request.number))
            save = done % settings.checkpoint.every == 0 or done == settings.steps or stop
            if save or self.validation_due(done):
                self.finish_step()
            if save:
                if int(fingerprint(self.reference)) != base:
                    raise TrainingError(f"step {done}: the reference parameters have changed")
                self.save(done)

    def enter_phase(self, phase: str, step: int) -> None:
        """Begins a phase of a step; says what the one before has compiled, unless it was new."""
        if late := self.compilations.enter_phase(phase):
            self.log.message(
                f"{self.watchdog.phase}: compiled {', '.join(late)}, not needed in earlier steps; "
                "does an array change its shape or type?"
            )
        self.watchdog.enter_phase(f"{phase} of step {step}")

    def count_compiled(self, step: int) -> dict[str, float]:
        """Metrics of what was compiled since the last step; says it after the first of a start."""
        compiled = self.compilations.take()
        if step == self.first_step + 1:
            self.log.message(compiled.describe())
            self.log.units({"compile/seconds": "s"})
        return compiled.metrics()

    def finish_step(self) -> None:
        """Waits for the update that was started last; checks and logs its metrics.

        While nothing has to be measured or saved, that is put off until the devices draw the next
        rollout, so that they do not wait for the host.
        """
        if self.unfinished is None:
            return
        (step, fetch), self.unfinished = self.unfinished, None
        values = fetch()
        self.check(step, values)
        values |= self.validate_if_due(step)
        self.log.metrics(step, values | self.count_compiled(step))
        self.add_reward(values)
        self.raise_alarms(step, values)

    def recall_alarms(self) -> None:
        """Brings alarms to where the steps done before leave them; all hosts must call."""
        settings = self.programs.settings
        if not settings.watched.turns:
            return
        rows = processes.broadcast_from_first(self.log.rows())
        self.watch, events = alarms.replay(settings.alarms, settings.watched, rows)
        self.log.rewrite_alarms(events)

    def raise_alarms(self, step: int, values: dict[str, float]) -> None:
        """Says which alarms a step raises and clears.

        The metrics are those of all hosts, so all of them raise the same and stop together.

        Raises:
          DivergenceError: an alarm of `alarms.stop` holds.
        """
        settings = self.programs.settings
        row = {"step": step, **values}
        self.watch, events = alarms.advance(settings.alarms, settings.watched, self.watch, row)
        self.log.alarms(events)
        for alarm in self.watch.holding:
            if alarm.name in settings.alarms.stop:
                raise DivergenceError(
                    f"step {step}: alarm {alarm.text()}; {self.last_saved()}. To train on "
                    f"regardless, take {alarm.name!r} out of alarms.stop or move its bound"
                )

    def validation_due(self, step: int) -> bool:
        """Whether a step is measured: every `evaluation.every` steps, and the last one."""
        settings = self.programs.settings
        if self.measure is None:
            return False
        return step % settings.evaluation.every == 0 or step == settings.steps

    def validate_if_due(self, step: int) -> dict[str, float]:
        """Accuracies on validation problems by name; empty at steps that are not measured."""
        self.validation = None
        if self.measure is None or not self.validation_due(step):
            return {}
        self.enter_phase("validation", step)
        found = self.measure(self.state.params, step)
        self.validation = list(found.values())[-1]
        return found

    def check(self, step: int, values: dict[str, float]) -> None:
        """Stops on metrics that show a fault, before a checkpoint is written.

        Raises:
          TrainingError: loss or gradient is not finite, or the mismatch is above its limit.
        """
        moved = step > 1 or self.programs.settings.learner.minibatches > 1
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise self.diverged(step, f"{name} is {values[name]}", moved=moved)
        limit = self.programs.mismatch_limit
        for turn in range(1, self.programs.settings.objective.turns + 1):
            mismatch = values.get(f"mismatch/trimmed/turn{turn}", 0.0)
            if not mismatch <= limit:
                raise TrainingError(
                    f"step {step}: sampler and scorer differ by {mismatch:.3g} nats a token in "
                    f"turn {turn}, more than config.mismatch_limit {limit}; {self.last_saved()}. "
                    f"{self.mismatch_remedy()}"
                )

    def mismatch_remedy(self) -> str:
        """What to do when sampler and learner compute different log-probabilities."""
        if self.programs.decoder.config.dtype == "float32":
            return (
                "In float32 this is a fault: they compute two policies. Raise the limit to train "
                "anyway"
            )
        return (
            "Use compute.dtype='float32': a mismatch that stays is a fault; one that disappears is "
            "rounding, for which the limit may be raised"
        )

    def diverged(self, step: int, cause: str, *, moved: bool = True) -> TrainingError:
        """The error for numbers that are not finite.

        Args:
          moved: whether the parameters had been updated before; else the learning rate is not
            the cause.
        """
        settings = self.programs.settings
        rate = settings.optimizer.learning_rate
        remedy = (
            f"Lower optimizer.learning_rate ({rate}) or set optimizer.clip_norm, and begin again "
            "in another --workdir"
        )
        if not moved:
            remedy = (
                "No update was made before it, so the learning rate is not at fault: look at the "
                f"weights of {settings.weights.source!r} and at compute.dtype"
            )
        kind = DivergenceError if moved else TrainingError
        return kind(f"step {step}: {cause}; {self.last_saved()}. {remedy}")

    def last_saved(self) -> str:
        """Says which checkpoint is the last one on disk."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        return f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"

    def add_reward(self, values: dict[str, float]) -> None:
        """Adds a step's training reward: the unshaped rewards, weighted and summed over turns.

        Of all that was drawn: groups that were chosen for their signal are neither solved nor
        beyond the policy, so their reward would say little of it.
        """
        settings = self.programs.settings
        name = "drawn/reward" if settings.sampling.redraws else "reward"
        self.progress.add(
            sum(
                weight * values.get(f"{name}/turn{turn}", 0.0)
                for turn, weight in enumerate(settings.objective.reward_weights, 1)
            )
        )

    def save(self, step: int) -> None:
        """Starts to save a checkpoint.

        A checkpoint written because of a signal gets no score, so that a resumed run chooses the
        best among the same checkpoints as an uninterrupted one.

        Raises:
          TrainingError: the state is not finite.
        """
        self.enter_phase("save", step)
        if not all_finite(self.state):
            raise self.diverged(step, "parameters or optimiser state are not finite")
        settings, progress = self.programs.settings, self.progress
        due = step > 0 and step % settings.checkpoint.every == 0
        score = None
        if due or step == settings.steps:
            by_validation = settings.checkpoint.select == "validation"
            score = self.validation if by_validation else progress.reward()
        progress.candidates += score is not None
        self.log.sync()
        self.checkpoints.save(step, self.state, asdict(progress), score)


# Starts one step's update; None: a signal was received before it, and the state and the rollout
# are saved.
StepFunction = Callable[[StageRun, int], Fetch | None]


def draw_rollout(stage: StageRun, devices: RolloutPrograms, step: int) -> Rollout:
    """Samples, grades and scores the dialogues of a step."""
    settings, programs = stage.programs.settings, stage.programs
    params = programs.policy(stage.state.params, stage.reference)

    def begin(phase: str) -> None:
        stage.enter_phase(phase, step + 1)

    def draw(devices: RolloutPrograms) -> Rollout:
        draws, indices, problems = stage.stream.next()
        return collect_rollout(
            devices,
            stage.grader,
            params=params,
            reference=stage.reference,
            key=run_key(settings.seed, "train", stage=settings.name),
            draws=draws,
            problems=problems,
            indices=indices,
            policy_step=step,
            begin=begin,
            meanwhile=stage.finish_step,
            clock=stage.clock,
        )

    if not settings.sampling.redraws:
        return draw(devices)
    paid = paid_turns(settings.objective, settings.plan.roles)
    return collect_with_signal(
        devices,
        draw,
        stage.reference,
        settings.sampling,
        paid=paid,
        begin=begin,
        clock=stage.clock,
    )


def rl_step(devices: RolloutPrograms) -> StepFunction:
    """The training step of RL: one rollout, then its update."""

    def learn(stage: StageRun, step: int) -> Fetch | None:
        settings, programs = stage.programs.settings, stage.programs
        params = stage.state.params
        stage.stream.position = stage.progress.batches
        resumed = None
        if step == stage.first_step:
            resumed = rollouts.resume(
                stage.folder, programs, devices, stage.stream, step, params, stage.reference
            )
        if stage.unfinished is None:
            stage.clock.lap()
        rollout = resumed or draw_rollout(stage, devices, step)
        if resumed:
            stage.log.message(f"uses the saved rollout of step {step + 1}")
            stage.clock.lap()
        keep = partial(rollouts.write, stage.folder, programs, devices.encoder, rollout, step)
        stage.enter_phase("update", step + 1)
        if any_process(bool(stage.request.number)):
            stage.save(step)
            stage.checkpoints.wait()  # first, since the rollout can be sampled again
            if rollout.choice is None:  # else it has to be: what was not chosen is not kept
                keep(mark=rollouts.checksum(params))
            return None
        stage.state, found = programs.update(
            stage.state, stage.reference, rollout.episodes, rollout.scores
        )
        stage.progress.position, stage.progress.batches = step + 1, stage.stream.position
        # The devices are busy from here on.
        if step % settings.log.rollouts_every == 0:
            keep(count=settings.log.rollouts)
        if step % settings.log.samples_every == 0 and settings.log.samples and stage.log.has_board:
            shown = rollouts.samples(
                devices.encoder, rollout, settings.name, step, settings.log.samples
            )
            stage.log.dialogues(step + 1, shown)
        graded = grading_metrics(devices.encoder, rollout.problems, rollout.graded)
        drafts = settings.sampling.draft_tokens
        graded |= metrics.merge(sampling_metrics(rows, drafts) for rows in rollout.drawn)
        graded |= selection_metrics(rollout)
        clock = timings(rollout)
        units = metrics.units(found) | metrics.units(clock) | {"time/update": "s"}
        stage.log.units(units | dict.fromkeys(SPEEDS, "tokens/s"))
        told = {"mismatch/limit": programs.mismatch_limit, **over_hosts(graded)}
        times = over_hosts(clock)

        def fetch() -> dict[str, float]:
            values = metrics.flat(jax.device_get(found))
            return values | told | speeds(rollout, times | {"time/update": stage.clock.lap()})

        return fetch

    return learn


def sft_step(examples: Examples) -> StepFunction:
    """The training step of supervised learning, on the rows of each step."""

    def learn(stage: StageRun, step: int) -> Fetch:
        programs = stage.programs
        stage.enter_phase("update", step + 1)
        rows = programs.to_global(programs.own_rows(examples(step)))
        if stage.unfinished is None:
            stage.clock.lap()
        stage.state, found = programs.sft_update(stage.state, stage.reference, rows)
        stage.progress.position = step + 1
        stage.finish_step()  # the one before, while the devices are busy
        stage.log.units(metrics.units(found) | {"time/update": "s"})

        def fetch() -> dict[str, float]:
            return metrics.flat(jax.device_get(found)) | {"time/update": stage.clock.lap()}

        return fetch

    return learn


def over_hosts(local: Metrics) -> dict[str, float]:
    """The numbers of all hosts' parts; none of what no row of this step has, such as a task."""
    merged = metrics.merge(processes.all_gather_objects(dict(local)))
    return metrics.flat({n: m for n, m in merged.items() if m.count is None or np.any(m.count)})


SPEEDS = ("tokens_per_second/sample", "tokens_per_second/update")


def timings(rollout: Rollout) -> dict[str, Metric]:
    """Wall time of a rollout's phases, of the slowest host, and what its rows took it for."""
    return {
        **{f"time/{phase}": largest(value, "s") for phase, value in rollout.graded.seconds.items()},
        "drawn": total(float(sum(np.sum(rows.sampled) for rows in rollout.drawn))),
        "whole": total(float(np.sum(rollout.local.length))),
        "rows": total(float(len(rollout.local.length))),
    }


def speeds(rollout: Rollout, values: dict[str, float]) -> dict[str, float]:
    """The times of all phases over all hosts, with tokens per second of sampling and update."""
    # Hosts that split a model hold the same rows, so their sum counts these more than once.
    copies = values.pop("rows") / len(rollout.episodes.length)
    drawn, whole = values.pop("drawn") / copies, values.pop("whole") / copies
    found = drawn / values["time/sample"], whole / values["time/update"]
    return values | dict(zip(SPEEDS, found, strict=True))


def start_state(
    programs: StagePrograms,
    checkpoints: Checkpoints,
    trained: Callable[[], Params],
    say: Callable[[str], None],
) -> tuple[TrainState, Progress]:
    """The state and progress of the newest readable checkpoint, else of `trained()`.

    Args:
      trained: makes the parameters that training starts from.
      say: prints a line.

    Raises:
      StorageError: the checkpoint is of an earlier version.
    """
    found = checkpoints.restore_latest(programs.abstract_state(), say)
    if found is None:
        settings = programs.settings
        window = min(settings.checkpoint.every, settings.steps)
        return programs.init_state(trained()), Progress(window=window)
    step, state, extra = found
    missing = [entry.name for entry in fields(Progress) if entry.name not in extra]
    if missing:
        raise StorageError(
            f"checkpoint {checkpoints.folder / str(step)} lacks {', '.join(missing)}: it is of an "
            "earlier version of score_jax; choose another --workdir"
        )
    say(f"goes on from the checkpoint of step {step} of {programs.settings.steps}")
    return state, Progress(**{entry.name: extra[entry.name] for entry in fields(Progress)})
