"""Loads problems from any source; the arguments are the config's data section."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from score_jax.checks import Natural, Seed, unmet
from score_jax.data import attempts, jsonl, mixture, packaged, parquet
from score_jax.data.lazy import Lazy
from score_jax.records import Problem

SOURCES = (
    "procedural",
    "words",
    "subtraction",
    "jsonl",
    "tfds",
    "reasoning_gym",
    "packaged",
    "parquet",
    "hub",
    "mixture",
)


def load(
    *,
    source: str,
    name: str = "",
    path: str = "",
    split: str = "train",
    subset: str = "",
    task: str = "",
    count: int = 0,
    seed: int = 0,
    digits: int = 5,
    fields: Mapping[str, str] | None = None,
    parts: Sequence[Mapping] = (),
    pass_rates: str = "",
    pass_rate_range: tuple[float, float] = (0.0, 1.0),
    first_attempts: str = "",
    skip_long: bool = False,
    skip_bad: bool = False,
) -> Sequence[Problem]:
    """Returns problems with random access.

    Args:
      source: one of SOURCES.
      name: the data set of packaged, reasoning_gym or tfds (a catalogue name); of parquet and
        hub a published format, instead of `fields`.
      path: the JSONL file, the prepared folder of tfds, a Parquet file or a folder of them, or of
        hub hub:org/name@revision.
      split: of procedural, words, subtraction, tfds, packaged, reasoning_gym, parquet and hub.
      subset: of parquet and hub, where files of several lie in folders of their own.
      task: the task of all problems, instead of the source's; in a JSONL file or a mixture
        only of rows or parts without a task.
      count: number of generated problems (procedural, words, subtraction, reasoning_gym), or of
        problems taken from the start (other sources); 0: all.
      seed: of generated problems, and of a mixture's order.
      digits: of subtraction: of both numbers.
      fields: the field names of JSONL and Parquet files where they differ:
        {"prompt": "question"}.
      parts: of a mixture: each has the arguments of `load` and a `weight`.
      pass_rates: a JSONL file (id, pass_rate) for the filter by difficulty.
      pass_rate_range: smallest and largest rate kept.
      first_attempts: a JSONL file (id, and attempt or tokens) or a folder of rollouts: attempts
        that come with the problems; those without one are left out, those with several occur
        as often.
      skip_long: not used here: `problem_sets`, which has the tokenizer, leaves out problems
        whose prompts exceed the limit.
      skip_bad: not used here: `problem_sets` leaves out problems whose gold answer the
        grader rejects.

    Raises:
      ValueError: a setting or the data is invalid; the message names field, file and line.
    """
    for field, hint, value in (("count", Natural, count), ("seed", Seed, seed)):
        if requirement := unmet(hint, value):
            raise ValueError(f"data.{field} is {value!r}; set {requirement}")
    problems: Sequence[Problem]
    if source == "mixture":
        problems = _mix(parts, task=task, seed=seed)
    elif source == "jsonl":
        problems = jsonl.problems(path, fields=dict(fields or {}), task=task)
    elif source in ("parquet", "hub"):
        problems = parquet.problems(
            parquet.checked(path, source),
            split=split, subset=subset, fields=dict(fields or {}), task=task, name=name,
        )  # fmt: skip
    elif source == "packaged":
        problems = packaged.problems(name, split)
    elif source == "procedural":
        from score_jax.data import procedural

        made = procedural.find(task or procedural.USUAL, "data.task")
        problems = made.problems(task, split, count, seed)
    elif source == "words":
        from score_jax.data import word_problems

        problems = word_problems.problems(split, count, seed)
    elif source == "subtraction":
        from score_jax.data import subtraction

        problems = subtraction.problems(split, count, seed, digits)
    elif source == "reasoning_gym":
        from score_jax.data import reasoning

        problems = reasoning.problems(name, split=split, count=count, seed=seed)
    elif source == "tfds":
        from score_jax.data import tfds

        problems = tfds.problems(path=path, name=name, split=split)
    else:
        raise ValueError(f"data.source is {source!r}; choose one of {', '.join(SOURCES)}")
    if task and source not in ("mixture", "procedural", "jsonl", "parquet", "hub"):
        problems = _assigned(problems, task)
    given = attempts.read(first_attempts, problems) if first_attempts else {}
    if pass_rates:
        rates = jsonl.column(pass_rates, "pass_rate", field="data.pass_rates")
        lowest, highest = pass_rate_range
        problems = mixture.keep_by_pass_rate(problems, rates, lowest=lowest, highest=highest)
    if 0 < count < len(problems):
        problems = problems[:count]
    if first_attempts:
        problems = attempts.attach(problems, given, first_attempts)
    if not len(problems):
        raise ValueError(f"data.source {source!r} holds no problems")
    return problems


def _mix(parts: Sequence[Mapping], *, task: str, seed: int) -> Sequence[Problem]:
    loaded, weights = [], []
    for number, part in enumerate(parts):
        settings = {"task": task, **dict(part)}
        weights.append(float(settings.pop("weight", 1.0)))
        if misplaced := settings.keys() & {"skip_long", "skip_bad"}:
            raise ValueError(
                f"data.parts[{number}] has {sorted(misplaced)[0]}; set it in config.data, for all "
                "parts"
            )
        try:
            loaded.append(load(**settings))
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.parts[{number}]: {error}") from error
    return mixture.mix(loaded, weights, seed=seed)


def _assigned(problems: Sequence[Problem], task: str) -> Sequence[Problem]:
    """Sets the task of all problems."""
    return Lazy(len(problems), lambda index: replace(problems[index], task=task))
