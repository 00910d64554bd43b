"""Orbax checkpoints of a stage, saved in the background; the latest and the best are kept.

One folder per step holds the train state as arrays and, as JSON, the rest of what a run
needs to resume (the stream's position, the rewards of the window) and a checksum of the
arrays. If the newest checkpoint can't be read, it is moved away with a message and the
run resumes from the one before it.
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

READ_ERRORS = (OSError, ValueError, RuntimeError, KeyError)
COMMIT_FILE = "_CHECKPOINT_METADATA"  # Orbax writes it last


class StorageError(RuntimeError):
    """A checkpoint could not be written or read, or the disk is too small; says what to do."""


class HostReadError(StorageError):
    """This host can't read its part of a checkpoint; the other hosts may have read theirs."""


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """A uint32 checksum over all bits of a tree of arrays; independent of their sharding."""
    bits = [
        jnp.sum(
            jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32), dtype=jnp.uint32
        )
        for leaf in jax.tree.leaves(tree)
    ]
    return sum(bits, jnp.zeros((), jnp.uint32))


def first_line(error: BaseException) -> str:
    """The cause of a storage error in one line of at most 305 characters."""
    if type(error) is Exception and error.__cause__ is not None:
        error = error.__cause__  # Orbax wraps it in a text with the array's whole specification
    lines = str(error).strip().splitlines() or [type(error).__name__]
    line = re.sub(r" \[source locations=.*", "", lines[0])
    if len(line) <= 300:
        return line
    return f"{line[:150]} ... {line[-150:]}"  # the reason stands at the end, after long paths


class SaveErrorFilter(logging.Filter):
    """Log filter that stores the error of a background save and drops Orbax's error logs.

    With several hosts Orbax raises the error only behind a barrier that the other hosts
    never reach, because they wait for this host's part of the checkpoint. The log record
    comes at once.
    """

    def __init__(self):
        super().__init__()
        self.error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        """Stores the error of a failed background save; returns whether to log the record."""
        if "orbax" not in record.pathname or record.levelno < logging.ERROR:
            return True
        if record.exc_info and "background save" in record.getMessage():
            self.error = self.error or record.exc_info[1]
        return False


class Checkpoints:
    """Saves, restores and selects the checkpoints in one folder."""

    def __init__(self, folder: Path, *, keep: int, best_by: str = "reward"):
        """Opens the folder, or creates it; all hosts must call.

        Args:
          keep: number of latest checkpoints to keep, in addition to the best one.
          best_by: name of the metric that decides which checkpoint is the best.
        """
        self.folder = folder.absolute()
        self.best_by = best_by

        def best_metric(metrics: dict[str, float]) -> float:
            return metrics.get(best_by, -math.inf)  # saved when best_by was another metric

        # Before the manager opens, which fails on unreadable metrics. `restore_latest` logs these.
        self.messages = quarantine_unreadable_metrics(self.folder)
        best = managers.BestN(
            get_metric_fn=best_metric,
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = managers.AnyPreservationPolicy([managers.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            best_fn=best_metric,  # without it Orbax stores no metrics
            enable_async_checkpointing=True,
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        self.error_filter = SaveErrorFilter()
        get_absl_logger().addFilter(self.error_filter)

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, in ascending order."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest score, the later one of a tie; None: no step has a score."""
        scores = {step: self.score(step) for step in self.steps()}
        scored = {step: value for step, value in scores.items() if value is not None}
        return max(scored, key=lambda step: (scored[step], step)) if scored else None

    def score(self, step: int) -> float | None:
        """A checkpoint's `best_by` metric; None: it has none and is no candidate for the best."""
        metrics = self.manager.metrics(step) or {}
        return None if self.best_by not in metrics else float(metrics[self.best_by])

    def save(
        self, step: int, state: TrainState, extra: dict[str, Any], score: float | None
    ) -> None:
        """Starts saving a checkpoint; returns when the arrays are copied. No-op if it exists.

        Args:
          extra: JSON values to save with the arrays.
          score: value of the `best_by` metric; None: no candidate for the best.

        Raises:
          StorageError: this or the previous write failed.
        """
        if step in self.steps():
            return
        extra = extra | {"fingerprint": int(fingerprint(state))}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
        )
        metrics = None if score is None else {self.best_by: score}
        self.wait()
        try:
            self.manager.save(step, args=args, metrics=metrics, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self.write_error(error) from error

    def check(self) -> None:
        """Raises if this host's background save has failed; does not block.

        Raises:
          StorageError: the save failed.
        """
        if self.error_filter.error is not None:
            raise self.write_error(self.error_filter.error) from self.error_filter.error

    def wait(self) -> None:
        """Blocks until the save in progress is on disk.

        Raises:
          StorageError: the save failed.
        """
        # Polled with several hosts: the manager would raise this host's error only behind a
        # barrier (SaveErrorFilter).
        while processes.process_count() > 1 and self.manager.is_saving_in_progress():
            self.check()
            time.sleep(0.02)
        self.check()
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self.write_error(error) from error

    def write_error(self, error: BaseException) -> StorageError:
        """Builds the error of a failed save, which names the last step that is on disk."""
        steps = [step for step in self.steps() if (self.folder / str(step) / COMMIT_FILE).exists()]
        safe = (
            f"the checkpoint of step {steps[-1]} is intact"
            if steps
            else "there is no earlier checkpoint"
        )
        return StorageError(
            f"checkpoint in {self.folder} could not be written ({first_line(error)}); {safe}: "
            "make room and run the same command again"
        )

    def restore(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Reads one checkpoint into the shardings of `like` (arrays or shape structs).

        Returns:
          The train state, and the JSON values that were saved with it.

        Raises:
          HostReadError: with several hosts, this host can't read its part.
          StorageError: the checkpoint can't be read, or its checksum is wrong.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
        )
        name = f"checkpoint {self.folder / str(step)}"
        try:
            restored = self.manager.restore(step, args=args)
        except Exception as error:
            # Orbax wraps TensorStore's error about a damaged file in a bare Exception.
            if type(error) is not Exception and not isinstance(error, READ_ERRORS):
                raise
            message = f"{name} can't be read ({first_line(error)})"
            # Other hosts may have read their parts and wait in a collective: this host must
            # not go on alone to an earlier step.
            if processes.process_count() > 1:
                message += "; move it out of that folder to resume from the one before it"
                raise HostReadError(message) from error
            raise StorageError(message) from error
        if int(fingerprint(restored["state"])) != restored["extra"]["fingerprint"]:
            raise StorageError(f"{name} is damaged (the checksum of its arrays does not match)")
        return restored["state"], restored["extra"]

    def restore_latest(
        self, like: TrainState, log: Callable[[str], None]
    ) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Restores the newest readable checkpoint and moves unreadable newer ones away.

        Args:
          log: receives a line for each checkpoint that was moved away.

        Returns:
          Step, train state and JSON values; None if the folder has no checkpoint.

        Raises:
          StorageError: there are checkpoints, and none can be read.
        """
        for message in self.messages:
            log(message)
        steps = processes.broadcast_from_first(self.steps())
        damaged: dict[int, StorageError] = {}
        for step in reversed(steps):
            try:
                state, extra = self.restore(step, like)
            except HostReadError:
                raise
            except StorageError as error:
                damaged[step] = error
                continue
            for bad, error in damaged.items():
                log(f"{error}; moved to {self.quarantine(bad)}, the one before it is used")
            return step, state, extra
        if steps:
            raise StorageError(
                f"none of the checkpoints {steps} in {self.folder} can be read "
                f"({damaged[steps[-1]]}); restore one from a backup, or choose another --workdir"
            )
        return None

    def quarantine(self, step: int) -> Path:
        """Moves a checkpoint to the folder `unreadable`; all hosts must call."""
        target = processes.broadcast_from_first(quarantine_path(self.folder, step))
        if processes.is_first():
            move(self.folder / str(step), target)
        processes.barrier()  # no host may list the folder before the first has moved it
        self.manager.reload()
        return target

    def extra(self, step: int) -> dict[str, Any]:
        """The JSON values of a checkpoint, with its checksum as `fingerprint`."""
        args = ocp.args.Composite(extra=ocp.args.JsonRestore())
        return self.manager.restore(step, args=args)["extra"]

    def restore_params(self, step: int, like: TrainState) -> Any:
        """Reads the parameters of one checkpoint; raises as `restore` does."""
        return self.restore(step, like)[0].params

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        get_absl_logger().removeFilter(self.error_filter)
        if kind is not None and processes.process_count() > 1:
            return  # a save in progress needs the other hosts, which may have ended
        try:
            self.close()
        except StorageError:
            if kind is None:  # otherwise an earlier error is propagating; keep that one
                raise

    def close(self) -> None:
        """Waits for the save in progress and stops the manager's threads.

        Raises:
          StorageError: the save failed.
        """
        self.wait()
        self.manager.close()


def quarantine_path(folder: Path, step: int) -> Path:
    """An unused path for an unreadable checkpoint: `unreadable/STEP` next to `folder`."""
    path = folder.with_name("unreadable") / str(step)
    while path.exists():
        path = path.with_name(f"{path.name}+")
    return path


def move(source: Path, target: Path) -> None:
    """Moves a folder, and creates the parent of `target` if it is missing."""
    target.parent.mkdir(exist_ok=True)
    source.rename(target)


def quarantine_unreadable_metrics(folder: Path) -> list[str]:
    """Moves checkpoints with an unreadable metrics file away; all hosts must call.

    Returns:
      A message for each, on the first host only.
    """
    messages = []
    if processes.is_first():
        for path in sorted(folder.glob("[0-9]*/metrics/metrics")):
            try:
                read_json(path)
            except ValueError as error:
                source = path.parent.parent
                target = quarantine_path(folder, int(source.name))
                move(source, target)
                messages.append(
                    f"checkpoint {source} has a damaged metrics file ({error}); moved to "
                    f"{target}, the one before it is used"
                )
    processes.barrier()  # no host may list the folder before the first has moved them
    return messages
