"""Grades responses from standard input, one JSON object per line.

    python -m score_jax.tasks --task=math < answers.jsonl

Each input line has `response`, and `answer` or `tests`; also `prompt`, if the grader
uses it, and `"truncated": true`, if the response was cut at a length limit. Each output
line has `verdict`, `reward`, `extracted` and `detail`, in the order of the input.
`python -m score_jax.grade` is an alias.
"""

import argparse
import itertools
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

from score_jax.records import Problem
from score_jax.tasks import registry
from score_jax.tasks.grading.pool import Pool
from score_jax.text import json_lines, terminal

BATCH = 1000


def read(lines: Iterable[str], *, task: str) -> Iterator[tuple[tuple[Problem, str], bool]]:
    """Yields problems with responses, and whether each response was truncated.

    Raises:
      ValueError: a line is not JSON, lacks a field, has a field of a wrong type or names
        another task; the message has the line's number.
    """
    for number, line in enumerate(lines, 1):
        location = f"line {number}"
        row = json_lines.value(location, line)
        if row is None:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("response"), str):
            raise ValueError(f"{location} has no text in its field 'response'")
        if not isinstance(row.get("prompt", ""), str):
            raise ValueError(f"{location}: 'prompt' must be text")
        answer, tests = json_lines.answer_and_tests(location, row, {})
        problem = Problem(
            id=location,
            prompt=row.get("prompt", ""),
            answer=answer,
            tests=tests,
            task=json_lines.optional_text(location, row, "task") or "",
        )
        if problem.task not in ("", task):
            raise ValueError(
                f"--task is {task!r}, but {location} is of task {problem.task!r}; grade the "
                "answers of each task in a call of its own"
            )
        truncated = row.get("truncated", False)
        if not isinstance(truncated, bool):
            raise ValueError(f"{location}: 'truncated' must be true or false")
        yield (problem, row["response"]), truncated


def main(arguments: list[str] | None = None) -> int:
    """Grades standard input; prints the number of each verdict to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m score_jax.tasks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--task", required=True, help=", ".join(registry.names()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--deadline-seconds", type=float, default=10.0)
    options = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    terminal.open_to_all_text()
    try:
        task = registry.get(options.task)
        rows = read(sys.stdin, task=task.name)
        with Pool(
            options.workers,
            deadline_seconds=options.deadline_seconds,
            batch_deadline_seconds=BATCH * options.deadline_seconds,
        ) as pool:
            while batch := list(itertools.islice(rows, BATCH)):
                items, truncated = zip(*batch, strict=True)
                for grade in pool.grade(task.name, items, truncated):
                    counts[grade.verdict] += 1
                    print(json.dumps(vars(grade)), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
