"""Converts rows of public data sets, in their published format, to problems."""

import re
from collections.abc import Mapping

from score_jax.records import Problem
from score_jax.tasks.grading.extract import last_boxed

CALCULATIONS = re.compile(r"<<[^>]*>>")  # GSM8K's notes for a calculator


def math(row: Mapping, identifier: str) -> Problem:
    r"""Converts a MATH row: fields problem, solution.

    The gold answer is the last \boxed{} of the solution; published `answer` columns
    are damaged in hundreds of rows.

    Raises:
      ValueError: the solution has no box.
    """
    answer = last_boxed(row["solution"])
    if not answer:
        raise ValueError(f"MATH row {identifier} has no \\boxed answer in its solution")
    return Problem(
        id=identifier, prompt=row["problem"], answer=answer, worked=row["solution"], task="math"
    )


def gsm8k(row: Mapping, identifier: str) -> Problem:
    """Converts a GSM8K row: fields question, answer; the gold answer follows ####.

    Raises:
      ValueError: nothing follows ####.
    """
    worked, mark, answer = row["answer"].rpartition("####")
    if not mark or not answer.strip():
        raise ValueError(f"GSM8K row {identifier} has no answer after ####")
    return Problem(
        id=identifier,
        prompt=row["question"],
        answer=answer.strip(),
        worked=CALCULATIONS.sub("", worked).strip(),
        task="math",
    )


def mbpp(row: Mapping, identifier: str) -> Problem:
    """Converts an MBPP row: text (or prompt), code, test_list, test_setup_code (or test_imports).

    The set-up code precedes each test, as each runs in a fresh namespace. The published
    prompt shows test_list; challenge_test_list is not used.
    """
    setup = row.get("test_setup_code") or "\n".join(row.get("test_imports") or ())
    tests = tuple(f"{setup}\n{test}" if setup else test for test in row["test_list"])
    return Problem(
        id=identifier,
        prompt=row.get("text") or row["prompt"],
        answer=row["code"].replace("\r\n", "\n"),
        tests=tests,
        shown=tests,
        task="code",
    )


def humaneval(row: Mapping, identifier: str) -> Problem:
    """Converts a HumanEval row: fields prompt, canonical_solution, test, entry_point.

    What the prompt defines before the requested function (imports, and in three problems a
    helper that the tests call) becomes part of the test, so that the program under test
    can't replace it. No prompt may show the test.
    """
    entry = row["entry_point"]
    preamble = row["prompt"].rpartition(f"def {entry}(")[0]
    return Problem(
        id=identifier,
        prompt=row["prompt"],
        answer=row["prompt"] + row["canonical_solution"],
        tests=(f"{preamble}\n{row['test']}\n\ncheck({entry})\n",),
        task="humaneval",
    )


MAKERS = {"math": math, "gsm8k": gsm8k, "mbpp": mbpp, "humaneval": humaneval}
