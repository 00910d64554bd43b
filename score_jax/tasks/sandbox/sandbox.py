"""Runs a model's program against its tests in a sandbox; only the verdict leaves it.

Each program gets a new process in a new session with an empty environment: `runner.py`,
which isolates itself before it runs the program. On Linux:

- new namespaces: no network, no other processes visible, no host files except
  Python's library and the system's shared libraries, read-only; a private `/tmp`
  in memory; another user when started by root, no capabilities;
- a system-call filter: no new processes, no programs started, no signals to
  others, no sockets, no tracing, no further namespaces;
- limits on CPU time, wall time, address space, file size, threads, open files;
- output goes to /dev/null; the whole session is killed at the end.

Where the kernel refuses namespaces (some containers), the filter also refuses
every change of a file, and `Outcome.missing` lists the missing protections. A
program can then read what its user can read. On other systems only the limits apply.

Not prevented: exploits of kernel bugs; timing side channels; use of memory and CPU up to
the limits; programs written to the tests that the prompt shows. Asserts get exact built-in
values, so tests that need the program's `__eq__`, or that expect their arguments to be
modified, fail.
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
    """Resource limits of one program."""

    wall_seconds: float = 8.0  # from start to verdict; above cpu_seconds, for busy machines
    cpu_seconds: int = 4  # whole seconds
    memory_bytes: int = 1 << 29  # address space
    file_bytes: int = 1 << 22  # of the private /tmp in all, and of each file
    threads: int = 16


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of running one program."""

    passed: tuple[bool, ...]  # per test; empty if the program was stopped or gave no verdict
    timed_out: bool = False
    detail: str = ""  # the first failure
    missing: tuple[str, ...] = ()  # protections that the machine does not offer


def _block(message: dict) -> bytes:
    data = json.dumps(message).encode("ascii")
    return f"{len(data):010d}".encode("ascii") + data


@lru_cache(maxsize=10_000)
def free_names(test: str, shadowed: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """Returns the names that a test uses from the program: its free names, not built in.

    Args:
      test: source.
      shadowed: built-in names that the program is asked to define.

    Raises:
      SyntaxError: the test is not Python.
    """
    return tuple(sorted(blocks.free(ast.parse(test)) - (set(dir(builtins)) - shadowed)))


def _end(process: subprocess.Popen) -> None:
    """Kills all processes of the session and reaps them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    with suppress(ChildProcessError):  # orphans are reaped here only in a subreaper
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
    """Runs a program and its tests in a sandbox.

    Args:
      program: Python source.
      tests: Python sources; each runs in a fresh namespace and passes if it raises nothing.
        Free names of a test that are not built in are looked up in the program.
      limits: resource limits.
      shadowed: built-in names that tests take from the program instead.
      namespaces: False leaves namespaces out, to test the other protections.

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
