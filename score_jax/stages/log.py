"""Logs of a stage: metrics.jsonl, transcripts.jsonl, TensorBoard, wandb, a progress bar.

Only the first host writes. On resume, lines of steps that will be run again are deleted,
so that a resumed run ends with the same files as an uninterrupted one.
"""

import importlib
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

from score_jax.records import Transcript

# Metrics on the progress bar, by their label on it.
PROGRESS_METRICS = {"t1": "accuracy/turn1", "t2": "accuracy/turn2", "loss": "loss"}


def cut_after(path: Path, step: int) -> None:
    """Deletes JSON lines of steps after `step`, and a last line that a crash left incomplete."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if not line.endswith("\n") or json.loads(line)["step"] > step:
            break
        kept.append(line)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(kept), encoding="utf-8")
    partial.replace(path)


class Log:
    """The open log files of one stage; with `write=False` nothing is opened or written."""

    def __init__(
        self,
        folder: Path,
        *,
        stage: str,
        step: int,
        steps: int,
        write: bool = True,
        tensorboard: bool = False,
        wandb: str = "",
        progress: bool = True,
    ):
        """Opens the files and deletes their lines after `step`.

        Args:
          step: steps already done.
          steps: steps of the whole stage.
          wandb: project name; "": no wandb.
        """
        self.write = write
        self.stage = stage
        self.files = {}
        self.board: Any = None
        self.wandb: Any = None
        self.bar: Any = None
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # metrics.jsonl counts finished steps; a transcript counts the updates before it was
        # sampled, which is one less.
        for name, last in (("metrics", step), ("transcripts", step - 1)):
            path = folder / f"{name}.jsonl"
            cut_after(path, last)
            self.files[name] = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if wandb:
            library = importlib.import_module("wandb")  # not in every install
            self.wandb = library.init(project=wandb, name=f"{folder.parent.name}/{stage}")
        self.bar = tqdm(
            total=steps,
            initial=step,
            desc=stage,
            unit="step",
            disable=not progress,
            file=sys.stderr,
            mininterval=0.5 if sys.stderr.isatty() else 20,
        )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one step's metrics to every log and advances the progress bar by one step."""
        if not self.write:
            return
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        self.append("metrics", record)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if self.wandb is not None:
            self.wandb.log(dict(values), step=step)
        shown = {
            short: f"{values[name]:.3f}"
            for short, name in PROGRESS_METRICS.items()
            if name in values
        }
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(1)

    def transcripts(self, records: Sequence[Transcript]) -> None:
        """Appends dialogues to transcripts.jsonl."""
        for record in records if self.write else ():
            self.append("transcripts", asdict(record))

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Appends one JSON line to the file `name` and flushes it to the operating system.

        Raises:
          OSError: the line could not be written; the error names the file.
        """
        file = self.files[name]
        try:
            file.write(json.dumps(record) + "\n")
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, file.name) from error

    def message(self, message: str) -> None:
        """Prints one line to stderr, above the progress bar."""
        if self.write:
            tqdm.write(f"[{self.stage}] {message}", file=sys.stderr)

    def sync(self) -> None:
        """Forces written lines to disk (fsync); called before a checkpoint is saved."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes files, TensorBoard, wandb and the progress bar."""
        for file in self.files.values():
            with suppress(OSError):  # each line was flushed, so `append` has raised it already
                file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.bar is not None:
            self.bar.close()
