"""Runs one stage: rollout, update, log, checkpoint, until the steps are done.

Everything that a step needs follows from its number (problems, keys) or stands in the
checkpoint (state, stream position, metric sums): a resumed run is the uninterrupted one.
"""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data import equations
from score_jax.data.stream import Stream
from score_jax.distributed import processes
from score_jax.distributed.sharding import agree
from score_jax.distributed.signals import Interrupted, StopRequest
from score_jax.distributed.watchdog import Watchdog
from score_jax.records import Problem, Transcript
from score_jax.rl.keys import run_key
from score_jax.rl.rollout import (
    Grader,
    Rollout,
    Sampler,
    collect_rollout,
    grading_metrics,
    transcripts,
)
from score_jax.rl.sft import encode_dialogues
from score_jax.stages import saved_rollout
from score_jax.stages.build import Built
from score_jax.stages.checkpoint import Checkpoints, StorageError, fingerprint
from score_jax.stages.log import Log
from score_jax.stages.profile import Profile
from score_jax.types import Params, TrainState


class TrainingError(RuntimeError):
    """Training can't go on; the message names step, cause and last checkpoint."""


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """Whether every number of a tree is finite."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)]))


@dataclass
class Progress:
    """What a stage carries from step to step besides the train state."""

    position: int = 0  # of the stream, in batches
    window: int = 1  # steps whose mean training reward a checkpoint is chosen by; all alike
    rewards: list[float] = field(default_factory=list)  # of the last steps, a window at most
    candidates: int = 0  # checkpoints among which the best is chosen

    def add(self, reward: float) -> None:
        """Takes in a step's training reward."""
        self.rewards = [*self.rewards, reward][-self.window :]

    def reward(self) -> float | None:
        """Mean training reward of the last steps; None before there is a window of them."""
        full = len(self.rewards) == self.window
        return sum(self.rewards) / self.window if full else None


@dataclass(kw_only=True)
class Stage:
    """A stage under way: its programs, files and state."""

    built: Built
    checkpoints: Checkpoints
    log: Log
    stream: Stream
    grader: Grader
    reference: Params
    state: TrainState
    progress: Progress
    request: StopRequest = field(default_factory=StopRequest)
    watch: Watchdog = field(default_factory=Watchdog)
    # (what is trained, step) -> accuracies on validation problems; None: none are asked for
    measure: Callable[[Params, int], dict[str, float]] | None = None
    validation: float | None = None  # the last turn's accuracy behind the last step, if measured

    def __post_init__(self):
        self.folder = self.checkpoints.folder.parent
        self.began = self.progress.position
        self.profile = Profile(self.built.settings.profile, self.folder / "profile")

    def run(self, learn: "Learn") -> None:
        """Trains up to the last step, each step by `learn`.

        Raises:
          TrainingError: a number is not finite, or sampler and scorer disagree.
          Interrupted: a signal came; a checkpoint was written.
        """
        settings = self.built.settings
        base = int(fingerprint(self.reference))
        self.request.patient = True
        stop = False
        while not stop and (step := self.progress.position) < settings.steps:
            self.checkpoints.check()
            self.profile.at(step)
            values = learn(self, step)
            if values is None:
                break
            done = step + 1
            self.check(done, values)
            values |= self.look(done)
            self.log.metrics(done, values)
            self.count(values)
            stop = agree(bool(self.request.number))
            if done % settings.checkpoint.every == 0 or done == settings.steps or stop:
                if int(fingerprint(self.reference)) != base:
                    raise TrainingError(f"step {done}: the reference parameters have changed")
                self.save(done)
        self.profile.close()
        self.checkpoints.wait()
        self.request.patient = False
        if agree(bool(self.request.number)):
            number = self.request.number or signal.SIGTERM  # none: another host was asked
            raise Interrupted(
                f"{signal.Signals(number).name} at step {self.progress.position} of "
                f"{settings.steps}: saved; the same command goes on from here",
                number,
            )

    def look(self, step: int) -> dict[str, float]:
        """Accuracies on validation problems where a look is due, and behind the last step."""
        settings = self.built.settings
        self.validation = None
        if self.measure is None or (step % settings.evaluation.every and step != settings.steps):
            return {}
        self.watch.at(f"validation of step {step}")
        found = self.measure(self.state.params, step)
        self.validation = list(found.values())[-1]
        return found

    def check(self, step: int, values: dict[str, float]) -> None:
        """Stops on numbers that must not enter a checkpoint."""
        moved = step > 1 or self.built.settings.learner.minibatches > 1
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise self.diverged(step, f"{name} is {values[name]}", moved=moved)
        limit = self.built.gap_limit
        for turn in range(1, self.built.settings.objective.turns + 1):
            gap = values.get(f"logprob_gap/trimmed/turn{turn}", 0.0)
            if not gap <= limit:
                raise TrainingError(
                    f"step {step}: sampler and scorer differ by {gap:.3g} nats a token in turn "
                    f"{turn}, more than config.gap_limit {limit}; {self.last_saved()}. "
                    f"{self.gap_remedy()}"
                )

    def gap_remedy(self) -> str:
        """What to do when sampler and scorer compute two policies."""
        if self.built.decoder.config.dtype == "float32":
            return (
                "They compute two policies, which is a fault; raise the limit to train all the same"
            )
        return (
            "Use compute.dtype='float32': a gap that stays is a fault, one that goes is rounding, "
            "for which the limit may be raised"
        )

    def diverged(self, step: int, cause: str, *, moved: bool = True) -> TrainingError:
        """The error of a step whose numbers are of no use.

        Args:
          moved: whether the stage had made an update when they came about.
        """
        settings = self.built.settings
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
        return TrainingError(f"step {step}: {cause}; {self.last_saved()}. {remedy}")

    def last_saved(self) -> str:
        """Says which checkpoint is on disk."""
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        return f"the last checkpoint is step {steps[-1]}" if steps else "there is no checkpoint yet"

    def count(self, values: dict[str, float]) -> None:
        """Takes in a step's training reward, the unshaped weighted sum over turns."""
        weights = self.built.settings.objective.reward_weights
        self.progress.add(
            sum(
                weight * values.get(f"reward/turn{turn}", 0.0)
                for turn, weight in enumerate(weights, 1)
            )
        )

    def save(self, step: int) -> None:
        """Starts a checkpoint of everything.

        One that a signal asked for is no candidate for the best: the resumed run has the
        candidates of an uninterrupted one.
        """
        if not all_finite(self.state):
            raise self.diverged(step, "parameters or optimiser state are not finite")
        settings, progress = self.built.settings, self.progress
        due = step > 0 and step % settings.checkpoint.every == 0
        score = None
        if due or step == settings.steps:
            by_validation = settings.checkpoint.select == "validation"
            score = self.validation if by_validation else progress.reward()
        progress.candidates += score is not None
        self.watch.at(f"save of step {step}")
        self.log.sync()
        saved_rollout.drop(self.folder)
        self.checkpoints.save(step, self.state, asdict(progress), score)


# A step's metrics; None: a signal came before the update, and rollout and state are saved.
Learn = Callable[[Stage, int], dict[str, float] | None]


def reinforce(sampler: Sampler) -> Learn:
    """The step of reinforcement learning: one rollout and its update."""

    def roll_out(stage: Stage, step: int, draws: np.ndarray, problems: list[Problem]) -> Rollout:
        settings, built = stage.built.settings, stage.built
        return collect_rollout(
            sampler,
            built.chat,
            built.task,
            stage.grader,
            params=built.policy(stage.state.params, stage.reference),
            reference=stage.reference,
            key=run_key(settings.seed, "train", stage=settings.name),
            draws=draws,
            problems=problems,
            prompt_limit=settings.sampling.prompt_limit,
            begin=lambda phase: stage.watch.at(f"{phase} of step {step + 1}"),
        )

    def learn(stage: Stage, step: int) -> dict[str, float] | None:
        settings, built = stage.built.settings, stage.built
        params, reference = stage.state.params, stage.reference
        stage.stream.position = step
        draws, problems = stage.stream.next()
        rollout = None
        if step == stage.began:
            rollout = saved_rollout.read(
                stage.folder, built, sampler.score, step, params, reference
            )
        if rollout is None:
            rollout = roll_out(stage, step, draws, problems)
        else:
            stage.log.say(f"learns from the rollout of step {step + 1} that was kept")
        stage.watch.at(f"update of step {step + 1}")  # who waits for others here is ahead of them
        if agree(bool(stage.request.number)):
            stage.save(step)
            stage.checkpoints.wait()  # of the two this is the one that must not be lost
            saved_rollout.write(stage.folder, built, rollout, step, params)
            return None
        start = time.monotonic()
        stage.state, metrics = built.update(
            stage.state, stage.reference, rollout.episodes, rollout.scores
        )
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        seconds = rollout.graded.seconds | {"update": time.monotonic() - start}
        stage.progress.position = stage.stream.position
        if step % settings.log.transcripts_every == 0:
            record(stage, rollout, problems, step)
        values["logprob_gap/limit"] = built.gap_limit
        return values | over_hosts(grading_metrics(rollout.graded)) | timings(rollout, seconds)

    return learn


def imitate(stage: Stage, step: int) -> dict[str, float]:
    """The step of supervised training on worked dialogues, made anew for every step."""
    settings, built = stage.built.settings, stage.built
    stage.watch.at(f"update of step {step + 1}")
    practice = settings.practice
    settling = step >= settings.steps * (1 - practice.settling)
    rng = np.random.default_rng([settings.seed, step])
    dialogues = equations.dialogues(
        rng,
        settings.batch,
        careful=practice.careful_at_last if settling else practice.careful,
        right=practice.right,
    )
    script = built.script(settings.objective.turns)
    length = script.row_length(settings.sampling)
    rows = encode_dialogues(built.chat, built.task, script, dialogues, length)
    rows = built.own_rows(rows)
    start = time.monotonic()
    stage.state, metrics = built.supervise(stage.state, built.to_global(rows))
    values = {name: float(value) for name, value in jax.device_get(metrics).items()}
    stage.progress.position = step + 1
    return values | {"time/update": time.monotonic() - start}


def record(stage: Stage, rollout: Rollout, problems: list[Problem], step: int) -> None:
    """Writes a few of a step's dialogues, spread over its problems and so over the hosts."""
    rows = len(rollout.episodes.tokens)
    count = min(stage.built.settings.log.transcripts, rows)
    chosen = [i * rows // count for i in range(count)]
    own = stage.built.own_rows(np.arange(rows)).tolist()
    mine = [row for row in chosen if row in own]
    found = transcripts(
        stage.built.task,
        problems,
        rollout.local,
        rollout.graded,
        step=step,
        rows=[own.index(row) for row in mine],
    )
    everyone: dict[int, Transcript] = {}
    for part in processes.gather(dict(zip(mine, found, strict=True))):
        everyone |= part
    stage.log.transcripts([everyone[row] for row in chosen])


def over_hosts(values: dict[str, float]) -> dict[str, float]:
    """Means over hosts, which hold equally many rows; of what a clock says, the slowest host's."""
    table = processes.exchange(np.asarray(list(values.values())))
    return {
        name: float(column.max() if name.startswith("time/") else column.mean())
        for name, column in zip(values, table.T, strict=True)
    }


def timings(rollout: Rollout, seconds: dict[str, float]) -> dict[str, float]:
    """Wall time of each phase and tokens per second of the two that run on devices."""
    local = {f"time/{phase}": value for phase, value in seconds.items()}
    local["policy"] = float(np.sum(rollout.local.turn > 0))
    local["total"] = float(np.sum(rollout.local.length))
    values = over_hosts(local)
    shares = len(rollout.episodes.length) / len(rollout.local.length)
    policy, total = shares * values.pop("policy"), shares * values.pop("total")
    values["tokens_per_second/sample"] = policy / values["time/sample"]
    values["tokens_per_second/update"] = total / values["time/update"]
    return values


def start_state(
    built: Built,
    checkpoints: Checkpoints,
    trained: Callable[[], Params],
    say: Callable[[str], None],
) -> tuple[TrainState, Progress]:
    """The newest readable checkpoint, else a fresh state from `trained()`."""
    found = checkpoints.restore_latest(built.abstract_state(), say)
    if found is None:
        settings = built.settings
        window = min(settings.checkpoint.every, settings.steps)
        return built.init_state(trained()), Progress(window=window)
    step, state, extra = found
    missing = [entry.name for entry in fields(Progress) if entry.name not in extra]
    if missing:
        raise StorageError(
            f"checkpoint {checkpoints.folder / str(step)} lacks {', '.join(missing)}: it is of an "
            "earlier version of score_jax, which drew from other keys; choose another --workdir"
        )
    say(f"goes on from the checkpoint of step {step} of {built.settings.steps}")
    return state, Progress(**{entry.name: extra[entry.name] for entry in fields(Progress)})
