"""Runs a program that a model wrote against its tests, and lets nothing out but the verdict.

A fresh process in its own session for each program, with an empty environment:
`runner.py`, which shuts itself in before the program's first line. On Linux:

- own namespaces: no network, no other processes in sight, no host files but
  Python's library and the system's shared libraries, read-only; a private `/tmp`
  in memory that vanishes; another user when started by root, no capabilities;
- a system-call filter: no new processes, no programs started, no signals to
  others, no sockets, no tracing, no further namespaces;
- limits on CPU time, wall time, address space, file size, threads, open files;
- output goes to /dev/null; the whole session is killed at the end.

Where the kernel refuses namespaces (some containers), the filter also refuses
every change of a file, and `Outcome.missing` says what is not in force. Then a
program can read what its user can read. Without Linux only the limits hold.

What it does not stop: bugs in the kernel; reading the processor's timing; using
its share of memory and CPU until a limit ends it; a program that knows the tests
from the problem's text. Asserts see exact built-in values, so tests that need the
program's own `__eq__`, or that expect their arguments to be changed, fail.
"""

import ast
import builtins
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from score_jax.tasks.grading import blocks

ROOT = Path(__file__).resolve().parents[3]
START = (
    "import sys; sys.path.append({root!r}); from score_jax.tasks.sandbox.runner import main; main()"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one program may use."""

    wall_seconds: float = 8.0  # from start to verdict; more than the CPU's, for busy machines
    cpu_seconds: int = 4  # whole seconds
    memory_bytes: int = 1 << 29  # address space
    file_bytes: int = 1 << 22  # of the private folder in all, and of a file
    threads: int = 16


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one program."""

    passed: tuple[bool, ...]  # per test; empty if it was stopped
    timed_out: bool = False
    detail: str = ""  # the first failure
    missing: tuple[str, ...] = ()  # protections that this machine does not offer


def _block(message: dict) -> bytes:
    data = json.dumps(message).encode("ascii")
    return f"{len(data):010d}".encode("ascii") + data


@lru_cache(maxsize=10_000)
def free_names(test: str, shadowed: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Returns the names that a test takes from the program: neither its own nor built in.

    Args:
      test: its source.
      shadowed: built-in names that the program is asked to define.

    Raises:
      SyntaxError: it is not Python.
    """
    return tuple(sorted(blocks.free(ast.parse(test)) - (set(dir(builtins)) - shadowed)))


def _end(process: subprocess.Popen) -> None:
    """Kills the whole session and collects it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with suppress(ChildProcessError):  # orphans come to a subreaper; elsewhere to init
        while True:
            os.waitpid(-process.pid, 0)


def run(
    program: str,
    tests: tuple[str, ...],
    limits: Limits,
    *,
    shadowed: frozenset[str] = frozenset(),
    namespaces: bool = True,
) -> Outcome:
    """Runs a program and its tests in a process of their own.

    Args:
      program: Python source.
      tests: Python sources; each runs in a fresh namespace and passes if it raises nothing.
        Names that a test neither defines nor finds built in are the program's.
      limits: what it may use.
      shadowed: built-in names that tests take from the program none the less.
      namespaces: False leaves them out, to test what holds without.

    Raises:
      SyntaxError: a test is not Python.
    """
    sources = [(test, free_names(test, shadowed)) for test in tests]
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", START.format(root=str(ROOT))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={},
        cwd="/",
        start_new_session=True,
    )
    setup = {"program": program, "limits": asdict(limits), "namespaces": namespaces}
    try:
        output, _ = process.communicate(
            _block(setup) + _block({"tests": sources}), timeout=limits.wall_seconds
        )
    except subprocess.TimeoutExpired:
        detail = f"stopped after {limits.wall_seconds:g} s"
        return Outcome(passed=(), timed_out=True, detail=detail)
    finally:
        _end(process)
    try:
        verdict = json.loads(output)
        if verdict["stopped"]:
            detail = f"stopped after {limits.cpu_seconds} s of CPU time"
            return Outcome(passed=(), timed_out=True, detail=detail)
        return Outcome(
            passed=tuple(verdict["passed"]),
            detail=verdict["detail"],
            missing=tuple(verdict["missing"]),
        )
    except (ValueError, LookupError, TypeError):
        code = process.returncode
        return Outcome(passed=(), detail=f"the sandbox gave no verdict (exit status {code})")
