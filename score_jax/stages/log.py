"""What a run writes: one JSON line per step, transcripts, TensorBoard, a progress bar.

Only the first host writes. On resume, lines of steps that will be run again are cut,
so the files of a resumed run are those of an uninterrupted one.
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

SHOWN = {"t1": "accuracy/turn1", "t2": "accuracy/turn2", "loss": "loss"}  # on the progress bar


def cut_after(path: Path, step: int) -> None:
    """Drops JSON lines of later steps, and a last line that a crash left half-written."""
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
    """Open log files of one stage."""

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
        """Opens the files, cut back to `step`, the number of steps already done."""
        self.write = write
        self.stage = stage
        self.files = {}
        self.board: Any = None
        self.wandb: Any = None
        self.bar: Any = None
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        # Metrics count the steps done, a transcript the updates before it was sampled.
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
        """Writes one step's metrics everywhere and moves the progress bar."""
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
            for short, name in (
                ("t1", "accuracy/turn1"),
                ("t2", "accuracy/turn2"),
                ("loss", "loss"),
            )
            if name in values
        }
        self.bar.set_postfix(shown, refresh=False)
        self.bar.update(1)

    def transcripts(self, records: Sequence[Transcript]) -> None:
        """Writes dialogues."""
        for record in records if self.write else ():
            self.append("transcripts", asdict(record))

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Writes one line and hands it to the operating system."""
        file = self.files[name]
        try:
            file.write(json.dumps(record) + "\n")
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, file.name) from error

    def message(self, message: str) -> None:
        """Shows one line above the progress bar."""
        if self.write:
            tqdm.write(f"[{self.stage}] {message}", file=sys.stderr)

    def sync(self) -> None:
        """Forces the lines to disk; called before a checkpoint counts on them."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes everything."""
        for file in self.files.values():
            with suppress(OSError):  # every line was flushed, so it has been raised already
                file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.bar is not None:
            self.bar.close()
