"""Prints a config's problems with their prompts, or prepares a data set for TFDS.

python -m score_jax.data --config=configs/stage1.py --show=5
python -m score_jax.data --prepare=mbpp --files=all=mbpp.jsonl --path=/data
"""

import argparse
import runpy
import sys

from score_jax.data import sources
from score_jax.tasks import registry
from score_jax.text import terminal


def show(path: str, count: int) -> None:
    """Prints the first problems of a config, their prompts and gold answers.

    Args:
      path: a config file, followed by a colon and its argument if it takes one.
      count: number of problems.

    Raises:
      ValueError: the file has no get_config, or its data section is invalid.
    """
    file, _, argument = path.partition(":")
    try:
        get_config = runpy.run_path(file).get("get_config")
    except OSError as error:
        raise ValueError(f"--config is {file!r}; {error.strerror}") from error
    if get_config is None:
        raise ValueError(f"--config is {file!r}; it must define get_config")
    config = get_config(argument) if argument else get_config()
    problems = sources.load(**config.data.to_dict())
    tasks = registry.of_problems(problems, config.task)
    print(f"{len(problems)} problems")
    for problem in problems[:count]:
        task = tasks[problem.task]
        print(f"\n=== {problem.id} ({task.name})\n{task.ask(problem)}")
        print(f"--- then\n{task.instruction}")
        print(f"--- gold\n{problem.answer or chr(10).join(problem.tests)}")


def main(arguments: list[str] | None = None) -> int:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m score_jax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="a config file; its data section is read")
    parser.add_argument("--show", type=int, default=5, help="problems to print")
    parser.add_argument("--prepare", help="math, gsm8k, mbpp or humaneval")
    parser.add_argument("--files", default="", help="split=file.jsonl, separated by commas")
    parser.add_argument(
        "--path", default="data", help="folder in which the prepared set is written"
    )
    options = parser.parse_args(arguments)
    terminal.open_to_all_text()
    try:
        if options.prepare:
            from score_jax.data import builders

            pairs = [entry.partition("=") for entry in options.files.split(",") if entry]
            files = {split: file for split, _, file in pairs}
            print(builders.prepare(options.prepare, files, options.path))
        elif options.config:
            show(options.config, options.show)
        else:
            parser.error("give --config or --prepare")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
