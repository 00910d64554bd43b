"""Logs of a stage: metrics.jsonl, TensorBoard, wandb, a progress bar, the page in the making.

Only the first host writes. On resume, lines of steps that will be run again are deleted,
so that a resumed run ends with the same files as an uninterrupted one.
"""

import importlib
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from score_jax.records import Transcript
from score_jax.report import page
from score_jax.report.alarms import Event
from score_jax.report.json_files import write_json
from score_jax.stages import boards

ALARMS = "alarms.jsonl"
ACCURACY = re.compile(r"accuracy/turn(\d+)")


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


def wandb_identity(folder: Path) -> str:
    """The id of a stage's run at wandb, kept in its folder: what is resumed goes on there."""
    path = folder / "wandb_id"
    if not path.exists():
        path.write_text(secrets.token_hex(8), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def progress(values: Mapping[str, float]) -> dict[str, str]:
    """What stands on the progress bar: each turn's accuracy as t1, t2 and so on, and the loss."""
    turns = {int(m[1]): name for name in values if (m := ACCURACY.fullmatch(name))}
    shown = {f"t{turn}": turns[turn] for turn in sorted(turns)} | {"loss": "loss"}
    return {short: f"{values[name]:.3f}" for short, name in shown.items() if name in values}


def open_bar(label: str, total: int, *, shown: bool, **options: Any) -> tqdm:
    """A progress bar on stderr; a log file gets a line every 20 seconds at most."""
    return tqdm(
        total=total,
        desc=label,
        disable=not shown,
        file=sys.stderr,
        mininterval=0.5 if sys.stderr.isatty() else 20,
        **options,
    )


class LivePage:
    """report.html of a run that is still going on, written every so many minutes.

    It is written beside the training, by a thread of its own, from the files of the run.
    """

    def __init__(self, workdir: Path, minutes: float, say: Callable[[str], None]):
        """Args: minutes: between two; 0: never; say: prints a line."""
        self.workdir, self.seconds, self.say = workdir, 60 * minutes, say
        self.begun = time.monotonic()
        self.writer = ThreadPoolExecutor(1)
        self.writing: Future[Path] | None = None

    def refresh(self) -> None:
        """Begins to write the page, if it is time and the last one is written."""
        if not self.seconds or time.monotonic() < self.begun + self.seconds:
            return
        if self.writing is not None and not self.writing.done():
            return
        self.tell_failure()
        self.begun = time.monotonic()
        self.writing = self.writer.submit(page.write_report, self.workdir)

    def tell_failure(self) -> None:
        """Says why the last page was not written; training goes on without it."""
        if self.writing is not None and (error := self.writing.exception()):
            self.say(f"report.html was not written: {error}")

    def close(self) -> None:
        """Waits for a page that is being written."""
        self.writer.shutdown()
        self.tell_failure()


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
        report_minutes: float = 0.0,
    ):
        """Opens the files and deletes their lines after `step`.

        Args:
          step: steps already done.
          steps: steps of the whole stage.
          wandb: project name; "": no wandb.
          report_minutes: between two writings of report.html; 0: it is not written here.
        """
        self.write = write
        self.folder = folder
        self.known_units: dict[str, str] = {}
        self.stage = stage
        self.file: Any = None
        self.board: Any = None
        self.wandb: Any = None
        self.bar: Any = None
        self.page = LivePage(folder.parent, report_minutes if write else 0.0, self.message)
        if not write:
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        cut_after(path, step)
        self.file = path.open("a", encoding="utf-8")
        if tensorboard:
            from tensorboardX import SummaryWriter

            self.board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        if wandb:
            library = importlib.import_module("wandb")  # not in every install
            name = f"{folder.parent.name}/{stage}"
            identity = wandb_identity(folder)
            self.wandb = library.init(project=wandb, name=name, id=identity, resume="allow")
        self.bar = open_bar(stage, steps, shown=progress, initial=step, unit="step")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one step's metrics to every log and advances the progress bar by one step."""
        if not self.write:
            return
        record = {"step": step, **{k: v if math.isfinite(v) else None for k, v in values.items()}}
        self.append(record)
        if self.board is not None:
            for name, value in values.items():
                self.board.add_scalar(boards.board_name(name), value, step)
        if self.wandb is not None:
            self.wandb.log({boards.board_name(k): v for k, v in values.items()}, step=step)
        self.bar.set_postfix(progress(values), refresh=False)
        self.bar.update(1)
        self.page.refresh()

    @property
    def has_board(self) -> bool:
        """Whether anything shows dialogues."""
        return self.board is not None or self.wandb is not None

    def dialogues(self, step: int, transcripts: Sequence[Transcript]) -> None:
        """Shows some of a step's dialogues on the boards."""
        if self.board is not None:
            self.board.add_text(boards.DIALOGUES, boards.as_markdown(transcripts), step)
        if self.wandb is not None:
            library = importlib.import_module("wandb")
            table = library.Table(columns=list(boards.COLUMNS), data=boards.as_rows(transcripts))
            self.wandb.log({boards.DIALOGUES: table}, step=step)

    def units(self, units: Mapping[str, str]) -> None:
        """Keeps the units of metrics in units.json, for those who draw them."""
        if not self.write or units.items() <= self.known_units.items():
            return
        self.known_units |= units
        write_json(self.folder / "units.json", self.known_units)

    def alarms(self, events: Iterable[Event]) -> None:
        """Appends lines to alarms.jsonl, and prints each."""
        for event in events if self.write else ():
            with (self.folder / ALARMS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(event.record()) + "\n")
            self.message(f"step {event.alarm.step}: alarm {event.kind}: {event.alarm.text()}")

    def rewrite_alarms(self, events: Sequence[Event]) -> None:
        """Makes alarms.jsonl hold these events alone, those of the steps that were done before."""
        if not self.write or not (events or (self.folder / ALARMS).exists()):
            return
        lines = "".join(json.dumps(event.record()) + "\n" for event in events)
        partial = (self.folder / ALARMS).with_suffix(".partial")
        partial.write_text(lines, encoding="utf-8")
        partial.replace(self.folder / ALARMS)

    def rows(self) -> list[dict[str, Any]]:
        """The metrics of the steps done before; none on hosts that do not write."""
        if not self.write:
            return []
        text = (self.folder / "metrics.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends one JSON line to metrics.jsonl and flushes it to the operating system.

        Raises:
          OSError: the line could not be written; the error names the file.
        """
        try:
            self.file.write(json.dumps(record) + "\n")
            self.file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.file.name) from error

    def message(self, message: str) -> None:
        """Prints one line to stderr, above the progress bar."""
        if self.write:
            tqdm.write(f"[{self.stage}] {message}", file=sys.stderr)

    def sync(self) -> None:
        """Forces written lines to disk (fsync); called before a checkpoint is saved."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes files, TensorBoard, wandb and the progress bar."""
        if self.file is not None:
            with suppress(OSError):  # each line was flushed, so `append` has raised it already
                self.file.close()
        if self.board is not None:
            self.board.close()
        if self.wandb is not None:
            self.wandb.finish()
        if self.bar is not None:
            self.bar.close()
        self.page.close()
