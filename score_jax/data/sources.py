"""One door to every source of problems: the config's data section as keyword arguments."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from score_jax.checks import Natural, Seed, unmet
from score_jax.data import jsonl, mixture, packaged
from score_jax.data.lazy import Lazy
from score_jax.records import Problem

SOURCES = ("procedural", "words", "jsonl", "tfds", "reasoning_gym", "packaged", "mixture")


def load(
    *,
    source: str,
    name: str = "",
    path: str = "",
    split: str = "train",
    task: str = "",
    count: int = 0,
    seed: int = 0,
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
      name: the data set within packaged, reasoning_gym or tfds (a catalogue name).
      path: the JSONL file, or the prepared folder of tfds.
      split: of procedural, words, tfds, packaged and reasoning_gym.
      task: asks and grades the problems, in place of the source's own. Of a JSONL file: of
        rows that name none; of a mixture: of parts that name none.
      count: problems made (procedural, words, reasoning_gym), or the first so many (else);
        0: all.
      seed: of made problems and of a mixture's order.
      fields: where a JSONL file's names differ: {"prompt": "question"}.
      parts: of a mixture: each the arguments of `load` and a `weight`.
      pass_rates: a JSONL file (id, pass_rate) for the filter by difficulty.
      pass_rate_range: smallest and largest rate kept.
      first_attempts: refused: every attempt is sampled so far.
      skip_long: leave out problems whose prompts pass the limit, which `problem_sets` does: here
        nothing is known of tokens or grades.
      skip_bad: likewise those whose gold answer is not accepted.

    Raises:
      ValueError: a setting or the data is at fault; the message names field, file and line.
    """
    if first_attempts:
        raise ValueError(
            f"data.first_attempts is {first_attempts!r}; every attempt is sampled so far: leave "
            "it out"
        )
    for field, hint, value in (("count", Natural, count), ("seed", Seed, seed)):
        if demand := unmet(hint, value):
            raise ValueError(f"data.{field} is {value!r}; set {demand}")
    problems: Sequence[Problem]
    if source == "mixture":
        problems = _mix(parts, task=task, seed=seed)
    elif source == "jsonl":
        problems = jsonl.problems(path, fields=dict(fields or {}), task=task)
    elif source == "packaged":
        problems = packaged.problems(name, split)
    elif source == "procedural":
        from score_jax.data import equations

        problems = equations.problems(task, split, count, seed)
    elif source == "words":
        from score_jax.data import word_problems

        problems = word_problems.problems(split, count, seed)
    elif source == "reasoning_gym":
        from score_jax.data import reasoning

        problems = reasoning.problems(name, split=split, count=count, seed=seed)
    elif source == "tfds":
        from score_jax.data import tfds

        problems = tfds.problems(path=path, name=name, split=split)
    else:
        raise ValueError(f"data.source is {source!r}; choose one of {', '.join(SOURCES)}")
    if task and source not in ("mixture", "procedural", "jsonl"):
        problems = _assigned(problems, task)
    if pass_rates:
        rates = jsonl.column(pass_rates, "pass_rate")
        lowest, highest = pass_rate_range
        problems = mixture.keep_by_pass_rate(problems, rates, lowest=lowest, highest=highest)
    if 0 < count < len(problems):
        problems = problems[:count]
    if not len(problems):
        raise ValueError(f"data.source {source!r} holds no problems")
    return problems


def _mix(parts: Sequence[Mapping], *, task: str, seed: int) -> Sequence[Problem]:
    loaded, weights = [], []
    for number, part in enumerate(parts):
        settings = {"task": task, **dict(part)}
        weights.append(float(settings.pop("weight", 1.0)))
        if given := settings.keys() & {"skip_long", "skip_bad"}:
            raise ValueError(
                f"data.parts[{number}] has {sorted(given)[0]}; set it in config.data, for all parts"
            )
        try:
            loaded.append(load(**settings))
        except (TypeError, ValueError) as error:
            raise ValueError(f"data.parts[{number}]: {error}") from error
    return mixture.mix(loaded, weights, seed=seed)


def _assigned(problems: Sequence[Problem], task: str) -> Sequence[Problem]:
    """Has a data set graded by another task than its own."""
    return Lazy(len(problems), lambda place: replace(problems[place], task=task))
