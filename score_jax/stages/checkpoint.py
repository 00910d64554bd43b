"""Orbax checkpoints of a stage: written in the background, kept by recency and reward.

One folder per step holds the train state as arrays and, as JSON, what else a run needs
to go on (the stream's position, the sums of the reward window) and a checksum of the
arrays. A checkpoint that can't be read is passed over for the one before it, and said so.
"""

import logging
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl.logging import get_absl_logger
from orbax.checkpoint import checkpoint_managers as managers

from score_jax.distributed import processes
from score_jax.report.json_files import read_json
from score_jax.types import TrainState

Say = Callable[[str], None]
UNREADABLE = (OSError, ValueError, RuntimeError, KeyError)
COMMITTED = "_CHECKPOINT_METADATA"  # Orbax writes it last


class StorageError(RuntimeError):
    """A checkpoint could not be written or read; the message says what remains."""


class UnreadableHere(StorageError):
    """One of several hosts can't read its part of a checkpoint, whatever the others can."""


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A checksum over every bit of a tree of arrays, whatever their sharding."""
    bits = [
        jnp.sum(
            jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32), dtype=jnp.uint32
        )
        for leaf in jax.tree.leaves(tree)
    ]
    return sum(bits, jnp.zeros((), jnp.uint32))


def first_line(error: BaseException) -> str:
    """An error's message in one line; those of the storage layer run over pages."""
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__  # Orbax puts the array's whole specification around it
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r" \[source locations=.*", "", lines[0])
    if len(line) <= 300:
        return line
    return f"{line[:150]} ... {line[-150:]}"  # what failed, and behind long paths why


class WriteFault(logging.Filter):
    """Keeps the error of a background write that Orbax logs, and the log's pages to itself.

    With several hosts Orbax raises it only after the others have come to the same point,
    and they never come: they wait for this host's part.
    """

    def __init__(self):
        super().__init__()
        self.error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Takes a record in; whether it is shown as well."""
        if "orbax" not in record.pathname or record.levelno < logging.ERROR:
            return True
        if record.exc_info and "background save" in record.getMessage():
            self.error = self.error or record.exc_info[1]
        return False


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, folder: Path, *, keep: int, judge: str = "reward"):
        """Opens or makes the folder.

        Args:
          keep: latest ones to keep, beside the best.
          judge: the number by which one is the best.

        One whose reward can't be read is set aside first: the manager would fail on it.
        """
        self.folder = folder.absolute()
        self.judge = judge

        def judged(metrics: dict[str, float]) -> float:
            return metrics.get(judge, -math.inf)  # -inf: it was judged by another number

        self.notes = set_unreadable_rewards_aside(self.folder)  # said where a run goes on
        best = managers.BestN(
            get_metric_fn=judged,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = managers.AnyPreservationPolicy([managers.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=judged,  # without it no metrics are stored
            enable_async_checkpointing=True,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.fault = WriteFault()
        get_absl_logger().addFilter(self.fault)

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, first to last."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest score, the later of equals."""
        scores = {step: self.score(step) for step in self.steps()}
        known = {step: value for step, value in scores.items() if value is not None}
        return max(known, key=lambda step: (known[step], step)) if known else None

    def score(self, step: int) -> float | None:
        """The number that a checkpoint is judged by; None: it is no candidate for the best."""
        metrics = self.manager.metrics(step) or {}
        return None if self.judge not in metrics else float(metrics[self.judge])

    def save(
        self, step: int, state: TrainState, extra: dict[str, Any], score: float | None
    ) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied.

        Args:
          score: what it is judged by, as a candidate for the best; None: it is none.

        Raises:
          StorageError: this or the previous write failed.
        """
        if step in self.steps():
            return
        extra = extra | {"fingerprint": int(fingerprint(state))}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
        )
        metrics = None if score is None else {self.judge: score}
        self.wait()
        try:
            self.manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self.failure(error) from error

    def check(self) -> None:
        """Asks whether this host's part of what was started has failed; blocks on nothing.

        Raises:
          StorageError: it has.
        """
        if self.fault.error is not None:
            raise self.failure(self.fault.error) from self.fault.error

    def wait(self) -> None:
        """Blocks until what was started is on disk.

        Raises:
          StorageError: it could not be written.
        """
        while processes.process_count() > 1 and self.manager.is_saving_in_progress():
            self.check()
            time.sleep(0.02)
        self.check()
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> StorageError:
        """The error of a failed write, with the last step that is safe."""
        steps = [step for step in self.steps() if (self.folder / str(step) / COMMITTED).exists()]
        safe = (
            f"the checkpoint of step {steps[-1]} is intact" if steps else "none was written before"
        )
        return StorageError(
            f"checkpoint in {self.folder} could not be written ({first_line(error)}); {safe}: "
            "make room and run the same command again"
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads one checkpoint into the shardings of `like` (arrays or shape structs).

        Raises:
          StorageError: it can't be read.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
        )
        name = f"checkpoint {self.folder / str(step)}"
        try:
            found = self.manager.restore(step, args=args)
        except Exception as error:
            # Orbax wraps what TensorStore says of a damaged file in a bare Exception.
            if type(error) is not Exception and not isinstance(error, UNREADABLE):
                raise
            told = f"{name} can't be read ({first_line(error)})"
            if (
                processes.process_count() > 1
            ):  # the others may have read their parts, and wait for this one
                told += "; move it elsewhere to go on from the one before it"
                raise UnreadableHere(told) from error
            raise StorageError(told) from error
        if int(fingerprint(found["state"])) != found["extra"]["fingerprint"]:
            raise StorageError(f"{name} is damaged (its arrays do not give its checksum)")
        return found["state"], found["extra"]

    def restore_latest(
        self, like: TrainState, say: Say
    ) -> tuple[int, TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        Raises:
          StorageError: there are checkpoints and none can be read.
        """
        for note in self.notes:
            say(note)
        steps = processes.broadcast_from_first(self.steps())
        damaged: dict[int, StorageError] = {}
        for step in reversed(steps):
            try:
                state, extra = self.restore(step, like)
            except UnreadableHere:
                raise
            except StorageError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                say(f"{error}; set aside as {self.set_aside(bad)}, the one before it is taken")
            return step, state, extra
        if steps:
            raise StorageError(
                f"none of the checkpoints {steps} in {self.folder} can be read "
                f"({damaged[steps[-1]]}); restore one from a backup, or choose another --workdir"
            )
        return None

    def set_aside(self, step: int) -> Path:
        """Moves a checkpoint out of the way, where people can look at it."""
        place = processes.broadcast_from_first(free_place(self.folder, step))
        if processes.is_first():
            move(self.folder / str(step), place)
        processes.barrier()  # all hosts wait for the first
        self.manager.reload()
        return place

    def extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the arrays of a checkpoint, its checksum included."""
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return self.manager.restore(step, args=args)["extra"]

    def restore_params(self, step: int, like: TrainState) -> Any:
        """The parameters of one checkpoint."""
        return self.restore(step, like)[0].params

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        get_absl_logger().removeFilter(self.fault)
        if kind is not None and processes.process_count() > 1:
            return  # what is under way needs hosts that may be gone
        try:
            self.close()
        except StorageError:
            if kind is None:  # else another error is on its way, and it came first
                raise

    def close(self) -> None:
        """Waits for writes and frees the manager's threads."""
        self.wait()
        self.manager.close()


def free_place(folder: Path, step: int) -> Path:
    """Where a checkpoint that can't be read goes."""
    place = folder.with_name("unreadable") / str(step)
    while place.exists():
        place = place.with_name(f"{place.name}+")
    return place


def move(source: Path, place: Path) -> None:
    """Moves a folder to a place whose parent may be missing."""
    place.parent.mkdir(exist_ok=True)
    source.rename(place)


def set_unreadable_rewards_aside(folder: Path) -> list[str]:
    """Moves checkpoints out of the way whose reward is cut or garbled; says what was done."""
    notes = []
    if processes.is_first():
        for path in sorted(folder.glob("[0-9]*/metrics/metrics")):
            try:
                read_json(path)
            except ValueError as error:
                source = path.parent.parent
                place = free_place(folder, int(source.name))
                move(source, place)
                notes.append(
                    f"checkpoint {source} has a damaged metrics file ({error}); set aside as "
                    f"{place}, the one before it is taken"
                )
    processes.barrier()  # all hosts wait for the first
    return notes
