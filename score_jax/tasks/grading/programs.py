"""Grades programs: extracts them from responses, runs their tests in the sandbox."""

import ast
import builtins
import re
import textwrap
from collections.abc import Iterator
from functools import lru_cache

from score_jax.records import Grade, Problem
from score_jax.tasks.grading import blocks
from score_jax.tasks.sandbox import sandbox

LIMITS = sandbox.Limits()
RESULTS = (ast.Return, ast.Yield, ast.YieldFrom)


def extract(problem: Problem, response: str) -> str | None:
    """Returns the program of a response, or None if there is none that parses."""
    return blocks.extract(response, wanted(problem))


def wanted(problem: Problem) -> frozenset[str]:
    """The names that a problem's tests use from the program."""
    redefined = shadowed(problem.answer)
    return frozenset(name for test in problem.tests for name in sandbox.free_names(test, redefined))


def complete(prompt: str, response: str) -> str | None:
    """Returns the program for a HumanEval prompt: a complete one, or the prompt with a body."""
    entries = list(re.finditer(r"^(?:async +)?def +(\w+)", prompt, re.MULTILINE))[-1:]
    names = [entry[1] for entry in entries]
    program = blocks.extract(response, names)
    tree = blocks.parse(program or "")
    if isinstance(tree, ast.Module) and names and names[0] in blocks.bindings(tree)[0]:
        preamble = prompt[: entries[0].start()]
        return f"{preamble}\n{program}" if _parses(preamble) else program
    found = [program for body in _bodies(response) if (program := _continued(prompt, body))]
    with_result = [program for program in found if _returns(program, prompt)]
    return next(iter(with_result or found), None)


def _bodies(response: str) -> Iterator[str]:
    """Yields candidates for the function's body, the likeliest first."""
    for piece in reversed(blocks.pieces(response)):
        if piece[:1].isspace():
            yield piece
        yield textwrap.indent(blocks.plain(piece), "    ")
        yield "    " + piece
        if later := re.search(r"^[ \t]+\S", piece, re.MULTILINE):  # after a line of prose
            yield piece[later.start() :]


def _continued(prompt: str, body: str) -> str | None:
    """The longest program that the prompt with the body begins with; None if it has no body."""
    if len(body) > blocks.LONGEST_PROGRAM:
        return None
    lines = (prompt + body).split("\n")
    return blocks.longest_program(lines, least=prompt.count("\n") + 1)


def _returns(program: str, prompt: str) -> bool:
    """Whether the part after the prompt has a return or yield."""
    first = prompt.count("\n") + 1
    return any(
        isinstance(node, RESULTS) and node.lineno >= first for node in ast.walk(ast.parse(program))
    )


def _parses(source: str) -> bool:
    return isinstance(blocks.parse(source), ast.Module)


@lru_cache(maxsize=10_000)
def shadowed(reference: str) -> frozenset[str]:
    """Returns the built-in names that a reference program redefines (MBPP asks for a `sum`).

    Only the reference counts: if the program under test redefines `abs`, tests still use the
    built-in one.
    """
    tree = blocks.parse(reference)
    return frozenset(
        node.name
        for node in (tree.body if isinstance(tree, ast.Module) else ())
        if isinstance(node, ast.FunctionDef) and hasattr(builtins, node.name)
    )


def grade(problem: Problem, program: str | None, *, share: bool = False) -> Grade:
    """Runs a program against the problem's tests.

    Args:
      problem: with tests.
      program: source, or None for a response without one.
      share: the reward is the share of passed tests, instead of 1 or 0.

    Raises:
      ValueError: the problem has no tests.
    """
    if not problem.tests:
        raise ValueError(f"problem {problem.id!r} has no tests; add some in its field tests")
    if program is None:
        return Grade(verdict="unparsable", reward=0.0, detail="no Python program was found")
    outcome = sandbox.run(program, problem.tests, LIMITS, shadowed=shadowed(problem.answer))
    detail = outcome.detail
    if outcome.missing:
        detail = f"{detail}; run without {', '.join(outcome.missing)}".lstrip("; ")
    if outcome.timed_out:
        return Grade(verdict="timeout", reward=0.0, extracted=program, detail=detail)
    if len(outcome.passed) != len(problem.tests):
        return Grade(verdict="crashed", reward=0.0, extracted=program, detail=detail)
    if all(outcome.passed):
        return Grade(verdict="correct", reward=1.0, extracted=program, detail=detail)
    passed = sum(outcome.passed) / len(outcome.passed) if share else 0.0
    return Grade(verdict="wrong", reward=passed, extracted=program, detail=detail)
