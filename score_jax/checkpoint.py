"""Orbax checkpoints of a stage: written in the background, kept by recency and reward.

One folder per step holds the train state as arrays and, as JSON, what else a run needs
to go on: the stream's position, the config, sums for the metrics. A checkpoint that can't be
read is passed over for the one before it, and said so.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from score_jax.types import TrainState

Say = Callable[[str], None]
COMMITTED = "_CHECKPOINT_METADATA"  # Orbax writes it last


class StorageError(RuntimeError):
    """A checkpoint could not be written or read; the message says what remains."""


def first_line(error: BaseException) -> str:
    """The start of an error's message; those of the storage layer run over pages."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]


class Checkpoints:
    """The checkpoints of one stage."""

    def __init__(self, folder: Path, *, every: int, keep: int):
        """Opens or makes the folder.

        Args:
          every: steps between checkpoints, for the manager's own bookkeeping.
          keep: latest ones to keep, beside the best by training reward.
        """
        self.folder = folder.absolute()
        self.every = every
        best = managers.BestN(
            get_metric_fn=lambda metrics: metrics["reward"],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        policy = managers.AnyPreservationPolicy([managers.LatestN(keep), best])
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policy,
                best_fn=lambda metrics: metrics["reward"],  # without it no metrics are stored
                enable_async_checkpointing=True,
            ),
        )

    def steps(self) -> list[int]:
        """Steps of which there is a checkpoint, first to last."""
        return sorted(self.manager.all_steps())

    def best(self) -> int | None:
        """The step with the highest training reward, the later of equals."""
        rewards = {step: self.reward(step) for step in self.steps()}
        known = {step: value for step, value in rewards.items() if value is not None}
        return max(known, key=lambda step: (known[step], step)) if known else None

    def reward(self, step: int) -> float | None:
        """The training reward that a checkpoint was saved with."""
        metrics = self.manager.metrics(step)
        return None if not metrics else float(metrics["reward"])

    def save(self, step: int, state: TrainState, extra: dict[str, Any], reward: float) -> None:
        """Starts writing a checkpoint; returns once the arrays are copied.

        Raises:
          StorageError: this or the previous write failed.
        """
        if step in self.steps():
            return
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
        )
        try:
            self.manager.save(step, args=args, metrics={"reward": reward}, force=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise self.failure(error) from error

    def wait(self) -> None:
        """Blocks until what was started is on disk.

        Raises:
          StorageError: it could not be written.
        """
        try:
            self.manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> StorageError:
        """The error of a failed write, with the last step that is safe."""
        steps = [
            s for s in self.steps() if (self.folder / str(s) / "_CHECKPOINT_METADATA").exists()
        ]
        safe = (
            f"the checkpoint of step {steps[-1]} is intact" if steps else "none was written before"
        )
        reason = str(error).strip().splitlines()[0][:300]
        return StorageError(
            f"checkpoint in {self.folder} could not be written ({reason}); {safe}: "
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
        try:
            found = self.manager.restore(step, args=args)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise StorageError(
                f"checkpoint {self.folder / str(step)} can't be read ({first_line(error)})"
            ) from error
        return found["state"], found["extra"]

    def restore_latest(
        self, like: TrainState, say: Say
    ) -> tuple[int, TrainState, dict[str, Any]] | None:
        """The newest checkpoint that can be read; None if there is none at all.

        Raises:
          StorageError: there are checkpoints and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                state, extra = self.restore(step, like)
            except StorageError as error:
                say(f"{error}; falling back to the one before it")
                self.manager.delete(step)
                continue
            return step, state, extra
        if steps:
            raise StorageError(
                f"none of the checkpoints {steps} in {self.folder} can be read; "
                "restore one from a backup, or choose another --workdir"
            )
        return None

    def restore_params(self, step: int, like: TrainState) -> Any:
        """The parameters of one checkpoint."""
        return self.restore(step, like)[0].params

    def close(self) -> None:
        """Waits for writes and frees the manager's threads."""
        self.wait()
        self.manager.close()


def read_json(path: Path) -> Any:
    """A JSON file's value, None if there is no file."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(path.suffix + ".partial")
    partial.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n")
    partial.replace(path)
