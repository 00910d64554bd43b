"""Tries a grader alone: answers in, verdicts out, one JSON object a line.

    python -m score_jax.tasks.__main__ --task=math < answers.jsonl

Each line has `response`, and `answer` or `tests` (and `prompt`, where the grader
reads it; `"truncated": true` where the response was cut at a length limit); out come
`verdict`, `reward`, `extracted`, `detail`, in the same order.
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
    """Yields problems with responses, and whether a response was cut.

    Raises:
      ValueError: a line is not JSON, lacks a field, has one of a wrong type or names another
        task; with its number.
    """
    for number, line in enumerate(lines, 1):
        place = f"line {number}"
        row = json_lines.value(place, line)
        if row is None:
            continue
        if not isinstance(row, dict) or not isinstance(row.get("response"), str):
            raise ValueError(f"{place} has no text in its field 'response'")
        if not isinstance(row.get("prompt", ""), str):
            raise ValueError(f"{place}: 'prompt' must be text")
        answer, tests = json_lines.answer_and_tests(place, row, {})
        problem = Problem(
            id=place,
            prompt=row.get("prompt", ""),
            answer=answer,
            tests=tests,
            task=json_lines.optional_text(place, row, "task") or "",
        )
        registry.of_problems([problem], task, "--task")
        truncated = row.get("truncated", False)
        if not isinstance(truncated, bool):
            raise ValueError(f"{place}: 'truncated' must be true or false")
        yield (problem, row["response"]), truncated


def main(arguments: list[str] | None = None) -> int:
    """Grades standard input; the counts go to standard error."""
    parser = argparse.ArgumentParser(
        prog="python -m score_jax.tasks.__main__",
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
                items, cut = zip(*batch, strict=True)
                for grade in pool.grade(task.name, items, cut):
                    counts[grade.verdict] += 1
                    print(json.dumps(vars(grade)), flush=True)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(counts), file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
