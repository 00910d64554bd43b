"""A handle on one grading worker: starts it, sends answers, reads grades, kills it."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from score_jax.records import VERDICTS, Grade, Verdict

START_SECONDS = 60.0  # for a worker to start and to load a grader, on a busy machine
GATHER_SECONDS = 0.0005  # delay before a read, so that it returns many short verdicts
ROOT = Path(__file__).resolve().parents[3]


class WorkerLost(Exception):
    """The worker died or was killed while it graded an answer."""

    def __init__(self, verdict: Verdict, detail: str):
        """Args: verdict: of the answer that it was grading; detail: the cause."""
        super().__init__(detail)
        self.verdict: Verdict = verdict


class GraderBroken(Exception):
    """No worker can grade this task: the worker does not start, or the grader fails to load."""


def environment() -> dict[str, str]:
    """Returns a worker's environment: only what it needs to import modules.

    Accelerator settings (JAX_*, XLA_*, TPU_*) and secrets are left out.
    """
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    paths = [str(ROOT), *(path for path in sys.path if path and os.path.isdir(path))]
    return kept | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


class WorkerProcess:
    """A handle on one worker."""

    def __init__(self):
        """Starts the process without waiting; it is ready when `send` returns."""
        self.graded = 0
        self.lost = False
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "score_jax.tasks.grading.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(),
            start_new_session=True,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self._output = self._process.stdout.fileno()
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._ready = False

    def alive(self) -> bool:
        """Whether the process still runs."""
        return not self.lost and self._process.poll() is None

    def send(self, task: str, payloads: Sequence[str]) -> None:
        """Sends answers of one task and waits until its grader is loaded.

        Args:
          task: its name, or the dotted name of its module.
          payloads: each is JSON: a problem's fields, a response, and whether it was truncated.

        Raises:
          GraderBroken: the worker does not start or cannot load the grader.
        """
        end = time.monotonic() + START_SECONDS
        request = f'{{"task": {json.dumps(task)}, "items": [{", ".join(payloads)}]}}\n'
        try:
            if not self._ready:
                self._read_line(end)
                self._ready = True
            self._requests.write(request.encode("ascii"))
            self._requests.flush()
            message = json.loads(self._read_line(end))
        except (WorkerLost, OSError) as error:
            self.kill()
            raise GraderBroken(f"the grading worker does not start: {error}") from error
        if "failed" in message:
            raise GraderBroken(message["failed"])

    def receive(self, end: float) -> list[Grade]:
        """Waits for the next grades; returns at least one, in the order of the answers.

        Args:
          end: deadline of the first grade, in seconds of the monotonic clock.

        Raises:
          WorkerLost: the first grade was late, or the worker died.
        """
        if not self._lines:
            self._fill(end)
        grades = [_grade(line) for line in self._lines]
        self._lines.clear()
        self.graded += len(grades)
        return grades

    def kill(self) -> None:
        """Kills the process without waiting; its sandboxes die with it."""
        self.lost = True
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)

    def reap(self) -> None:
        """Kills the process, waits for its end and closes its pipes."""
        self.kill()
        self._process.communicate()

    def _read_line(self, end: float) -> bytes:
        if not self._lines:
            self._fill(end)
        return self._lines.popleft()

    def _fill(self, end: float) -> None:
        """Reads until there is a complete line."""
        while not self._lines:
            poll = select.poll()
            poll.register(self._output, select.POLLIN)
            if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
                self.kill()
                raise WorkerLost("timeout", "killed at the deadline")
            time.sleep(GATHER_SECONDS)
            data = os.read(self._output, 1 << 20)
            if not data:
                self.lost = True
                code = self._process.wait()
                raise WorkerLost("crashed", f"the grading worker died (exit status {code})")
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)


def _grade(line: bytes) -> Grade:
    verdict, reward, extracted, detail = json.loads(line)
    if (
        verdict not in VERDICTS
        or not 0.0 <= reward <= 1.0
        or (reward == 1.0) != (verdict == "correct")
    ):
        fault = f"the grader returned verdict {verdict!r} with reward {reward}"
        return Grade(verdict="crashed", reward=0.0, extracted=extracted, detail=fault)
    return Grade(verdict=verdict, reward=reward, extracted=extracted, detail=detail)
