"""The sandboxed process: runs the program in a child process and its tests in the parent.

`sandbox.py` starts it with an empty environment. It isolates itself, forks, and only then
reads the tests. The child, which runs the program, never has them in memory and cannot
report a verdict. It answers calls with plain data; the parent evaluates the asserts and
writes the verdict.
"""

import importlib
import json
import os
import signal
import sys
from collections import ChainMap
from collections.abc import Callable, Mapping
from functools import partial

from score_jax.tasks.sandbox import jail
from score_jax.tasks.sandbox.remote import Attempt, Channel, Gone, Handle, Session, pack, unpack

RECURSION_LIMIT = 1000
PRELOADED = (  # imported early where another user may not be able to read the library
    *("array", "bisect", "cmath", "collections", "copy", "datetime", "decimal", "fractions"),
    *("functools", "hashlib", "heapq", "itertools", "math", "operator", "random", "re"),
    *("statistics", "string", "struct", "textwrap", "time", "typing"),
)


def _read_block(descriptor: int) -> dict:
    """Reads exactly one length-prefixed JSON object."""

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = os.read(descriptor, count - len(data))
            if not more:
                raise SystemExit("the grader closed the pipe")
            data += more
        return data

    return json.loads(exactly(int(exactly(10))))


def _move_pipes() -> tuple[int, int]:
    """Replaces stdin, stdout and stderr by /dev/null; returns new descriptors of the pipes."""
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return source, sink


def _perform(objects: Mapping, question: list, args: list, named: dict):
    """Executes one request on the program's objects."""
    kind, name = question[0], question[1]
    if name not in objects:
        raise NameError(f"the program defines no {name}")
    target = objects[name]
    if kind == "call":
        return target(*args, **named)
    if kind == "get":
        return getattr(target, question[2])
    if kind == "set":
        return setattr(target, question[2], args[0])
    if kind == "item":
        return target[args[0]]
    return {"list": list, "len": len, "str": str}[kind](target)


def serve(program: str, channel: Channel) -> None:
    """Runs the program, then answers requests until the pipe is closed."""
    objects: dict = {}

    def keep(value: object) -> list:
        objects[len(objects)] = value
        return ["h", len(objects) - 1]

    def reply(action: Callable) -> None:
        value = None
        with Attempt() as attempt:
            value = pack(action(), keep)
        kind = type(attempt.error).__name__ if attempt.error else ""
        channel.send([kind, str(attempt.error)[:300] if kind else "", value])

    space: dict = {"__name__": "program"}
    reply(lambda: exec(compile(program, "program", "exec"), space))
    while True:
        question, args, named = channel.receive()
        known = ChainMap(space, objects)  # keys: names of globals, numbers of kept objects
        arguments = [unpack(value, objects.__getitem__) for value in args]
        keywords = {name: unpack(value, objects.__getitem__) for name, value in named.items()}
        reply(partial(_perform, known, question, arguments, keywords))


def judge(tests: list[tuple[str, list[str]]], session: Session) -> dict:
    """Runs the tests against the program.

    Args:
      tests: each has a source and the names that it uses from the program.
      session: sends requests to the program.

    Returns:
      {"passed": a bool per test, "detail": the first failure, "gone": the program died}.
    """
    passed, detail, gone = [], "", False
    try:
        with Attempt() as attempt:
            session.answer()  # the result of running the program
        detail = _describe(attempt.error)
        for test, names in [] if attempt.error else tests:
            with Attempt() as attempt:
                space = {name: Handle(session, name) for name in names}
                exec(compile(test, "test", "exec"), {"__name__": "test", **space})
            passed.append(attempt.error is None)
            detail = detail or _describe(attempt.error)
    except Gone as error:
        detail, gone = f"the program stopped answering: {error}", True
    passed += [False] * (len(tests) - len(passed))
    return {"passed": passed, "detail": detail, "gone": gone}


def _describe(error: BaseException | None) -> str:
    if error is None:
        return ""
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__


def _isolate(limits: dict, user: int, *, files: bool, cpu_seconds: int) -> list[str]:
    missing = jail.drop_privileges(user)
    jail.die_with_parent()
    jail.limit(
        cpu_seconds=cpu_seconds,
        memory_bytes=limits["memory_bytes"],
        file_bytes=limits["file_bytes"],
        threads=limits["threads"],
    )
    return missing + jail.filter_calls(files=files)


def _run_program(setup: dict, missing: list[str], user: int, source: int, sink: int) -> None:
    """The child process: only the two pipes to the tests are open."""
    os.dup2(source, 3)
    os.dup2(sink, 4)
    os.closerange(5, 256)
    limits = setup["limits"]
    missing += _isolate(limits, user, files=not missing, cpu_seconds=limits["cpu_seconds"])
    channel = Channel(3, 4)
    channel.send(missing)
    sys.setrecursionlimit(RECURSION_LIMIT)
    serve(setup["program"], channel)


def _exceeded_cpu(child: int, cpu_seconds: int) -> bool:
    """Whether the kernel killed the program for its CPU time, and not for another reason."""
    _, status, used = os.wait4(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGXCPU)
    return killed and used.ru_utime + used.ru_stime > 0.9 * cpu_seconds


def main() -> None:
    """Reads the program, forks, reads the tests, writes the verdict."""
    source, sink = _move_pipes()
    setup = _read_block(source)
    limits = setup["limits"]
    missing = jail.enter_namespaces() if setup["namespaces"] else ["namespaces (not asked for)"]
    missing = missing or jail.change_root(limits["file_bytes"])
    for name in PRELOADED if missing else ():
        importlib.import_module(name)
    user = 2_000_000_000 + os.getpid()
    (program_in, tests_out), (tests_in, program_out) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        for descriptor in (source, sink, tests_in, tests_out):
            os.close(descriptor)
        try:
            _run_program(setup, missing, user, program_in, program_out)
        finally:
            os._exit(1)
    os.close(program_in)
    os.close(program_out)
    _isolate(limits, user, files=False, cpu_seconds=2 * limits["cpu_seconds"])
    channel = Channel(tests_in, tests_out)
    tests = _read_block(source)["tests"]
    try:
        missing = channel.receive()
        verdict = judge(tests, Session(channel))
    except Gone as error:
        passed = [False] * len(tests)
        verdict = {"passed": passed, "detail": f"it did not start: {error}", "gone": True}
    os.close(tests_in)
    os.close(tests_out)  # ends a program that waits for a request
    stopped = verdict.pop("gone") and _exceeded_cpu(child, limits["cpu_seconds"])
    os.write(sink, json.dumps(verdict | {"missing": missing, "stopped": stopped}).encode("ascii"))
    os._exit(0)
