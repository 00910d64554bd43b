"""Grades a program: finds it in the response, runs it in the sandbox, counts its tests."""

import ast
import builtins
import re
from functools import lru_cache

from score_jax.records import Grade, Problem
from score_jax.rewards import sandbox

LIMITS = sandbox.Limits()
LONGEST_PROGRAM = 100_000  # characters
FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\r?\n(.*?)(?:```|\Z)", re.DOTALL | re.I)


def _parses(source: str) -> bool:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def extract(response: str) -> str | None:
    """Returns the program of a response, or None if there is none that parses.

    In this order: the last fenced block, what stands between [BEGIN] and [DONE], the
    whole. A later attempt in one response replaces an earlier one.
    """
    response = response.replace("\r\n", "\n")
    fenced = FENCE.findall(response)
    marked = response.rpartition("[BEGIN]")[2].partition("[DONE]")[0]
    for text in (*fenced[-1:], marked, response):
        text = text.strip("\n")
        if text.strip() and len(text) <= LONGEST_PROGRAM and _parses(text):
            return text
    return None


def complete(prompt: str, response: str) -> str | None:
    """Returns the program for a HumanEval prompt: a whole one, or the prompt and a body."""
    entry = re.findall(r"^def\s+(\w+)", prompt, re.MULTILINE)[-1:]
    program = extract(response)
    if program is not None and entry and re.search(rf"^\s*def\s+{entry[0]}\b", program, re.M):
        imports = prompt.rpartition("def ")[0]
        return f"{imports}\n{program}" if _parses(imports) else program
    text = (FENCE.findall(response) or [response])[-1]
    first = text.strip("\r\n")
    indented = "    " + first.strip().replace("\n", "\n    ")
    for body in (first,) if first[:1].isspace() else (indented, "    " + first):
        if _parses(prompt + body):
            return prompt + body
    return None


@lru_cache(maxsize=10_000)
def shadowed(reference: str) -> frozenset[str]:
    """Returns the built-in names that a reference program defines anew (MBPP asks for a `sum`).

    Only the reference may say so: a program that redefines `abs` must not reach the tests.
    """
    if not _parses(reference):
        return frozenset()
    body = ast.parse(reference).body
    return frozenset(
        node.name
        for node in body
        if isinstance(node, ast.FunctionDef) and hasattr(builtins, node.name)
    )


def grade(problem: Problem, program: str | None, *, share: bool = False) -> Grade:
    """Runs a program against the problem's tests.

    Args:
      problem: its tests decide.
      program: source, or None for a response without one.
      share: rewards the share of tests passed, instead of all or nothing.

    Raises:
      ValueError: the problem has no tests.
    """
    if not problem.tests:
        raise ValueError(f"problem {problem.id!r} has no tests; give it some in its field tests")
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
