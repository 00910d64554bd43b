"""Metrics of self-correction, each with a 95% interval.

Every metric is a ratio of two sums over problems. A ratio whose denominator is 0 (such as
the fix rate where no first attempt is wrong) is None, not 0.

Source: arXiv:2409.12917, section 3 (the five metrics) and section 4 (edit distance).
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from score_jax.records import VERDICTS, Transcript
from score_jax.report.intervals import Interval, Rate, bound
from score_jax.text.edit_distance import edit_distance_ratio


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempts:
    """Graded attempts: N problems x S samples x R turns. Nested lists become arrays."""

    correct: Bool[np.ndarray, "N S R"]
    rewards: Float[np.ndarray, "N S R"]  # 0..1
    texts: Any  # str[N S R]
    # str | None [N S R]; the final answer, None: none was found. Answers are compared as
    # strings: evaluate.with_one_spelling first maps equal answers to one spelling.
    extracted: Any
    lengths: Int[np.ndarray, "N S R"]  # tokens, the stop token included
    truncated: Bool[np.ndarray, "N S R"]
    verdicts: Any  # records.Verdict[N S R]

    def __post_init__(self):
        kinds = {"correct": bool, "rewards": np.float32, "lengths": np.int64, "truncated": bool}
        shape = np.shape(self.correct)
        if len(shape) != 3 or 0 in shape:
            raise ValueError(f"attempts.correct has shape {shape}; give [problems, samples, turns]")
        for name in (field.name for field in fields(self)):
            array = np.asarray(getattr(self, name), dtype=kinds.get(name, object))
            if array.shape != shape:
                raise ValueError(f"attempts.{name} has shape {array.shape}; correct has {shape}")
            object.__setattr__(self, name, array)

    def select(self, problems: Sequence[int]) -> "Attempts":
        """The attempts at some of the problems."""
        return Attempts(**{f.name: getattr(self, f.name)[problems] for f in fields(self)})


def group_attempts(transcripts: Sequence[Transcript]) -> Attempts:
    """Groups transcripts by problem; the k-th transcript of a problem is its sample k.

    Raises:
      ValueError: problems differ in samples, or transcripts in turns.
    """
    by_problem: dict[str, list[Transcript]] = {}
    for transcript in transcripts:
        by_problem.setdefault(transcript.problem, []).append(transcript)
    samples = sorted({len(group) for group in by_problem.values()})
    turns = sorted({len(transcript.attempts) for transcript in transcripts})
    if len(samples) != 1 or len(turns) != 1:
        raise ValueError(
            f"transcripts hold {samples} samples per problem and {turns} turns; give one of each"
        )

    def column(name: str) -> list[list[tuple]]:
        return [[getattr(sample, name) for sample in group] for group in by_problem.values()]

    verdicts = np.asarray(column("verdicts"), dtype=object)
    return Attempts(
        correct=verdicts == "correct",
        rewards=np.asarray(column("rewards"), np.float32),
        texts=column("attempts"),
        extracted=column("extracted"),
        lengths=np.asarray(column("lengths")),
        truncated=np.asarray(column("truncated")),
        verdicts=verdicts,
    )


def measure(attempts: Attempts, *, seed: int, resamples: int = 2000) -> dict[str, Interval | None]:
    """Measures a model's attempts.

    Keys, for every turn t: `accuracy reward length truncated verdict/<verdict>`, each
    followed by `/turn<t>`. From the first turn to the last: `delta delta_i_to_c
    delta_c_to_i` (shares of all attempts), `fix_rate` P(right at last | wrong at first),
    `break_rate` P(wrong at last | right at first), `answer_changed`,
    `edit_distance_ratio`. With more than two turns the same from turn t - 1 to turn t, as
    `step_<key>/turn<t>`.

    Intervals are Wilson's where a problem has one sample and the measurement is a
    proportion, otherwise percentiles of a bootstrap over problems.

    Source: arXiv:2409.12917, section 3.
    """
    rates = metric_rates(attempts)
    return dict.fromkeys(rates) | bound(rates, seed=seed, resamples=resamples)


def outcomes(attempts: Attempts) -> list[str]:
    """Encodes correctness per problem: one word per sample, one digit per turn, 1 for right.

    "01 11": two samples, the first wrong and then right, the second right twice.
    """
    return [
        " ".join("".join("01"[right] for right in sample) for sample in samples)
        for samples in attempts.correct.astype(int).tolist()
    ]


def edit_distance_ratios(texts: Any, before: int = 1, after: int = 2) -> Float[np.ndarray, "N S"]:
    """Computes `edit_distance_ratio` from one turn's attempt to another's, turns from 1."""
    texts = np.asarray(texts, dtype=object)
    pairs = zip(texts[..., before - 1].flat, texts[..., after - 1].flat, strict=True)
    return np.array([edit_distance_ratio(*pair) for pair in pairs]).reshape(texts.shape[:-1])


def edit_distance_histogram(
    texts: Any, *, bins: int = 20
) -> tuple[Float[np.ndarray, "E"], Int[np.ndarray, "C"]]:
    """Counts first-to-second edit distance ratios in equal bins of 0..1.

    Args:
      texts: str[N S R], R >= 2.
    """
    counts, edges = np.histogram(edit_distance_ratios(texts), bins=bins, range=(0.0, 1.0))
    return edges, counts


def share_rate(flags: np.ndarray, among: np.ndarray | None = None) -> Rate:
    """The share of attempts with a flag, of all or of some, as sums per problem."""
    whole = np.ones_like(flags) if among is None else among
    counts = whole.sum(axis=1, dtype=float)
    return Rate(flags.sum(axis=1, dtype=float), counts, (0, 1), proportion=True)


def mean_rate(values: np.ndarray, bounds: tuple[float, float] | None = None) -> Rate:
    """The mean over attempts, as sums per problem."""
    return Rate(
        values.sum(axis=1, dtype=float), np.full(len(values), float(values.shape[1])), bounds
    )


def metric_rates(attempts: Attempts) -> dict[str, Rate]:
    """Every metric of `measure` as sums and counts per problem; a new metric is added here."""
    turns = attempts.correct.shape[2]
    rates = {}
    for turn in range(1, turns + 1):
        index = (..., turn - 1)
        rates[f"accuracy/turn{turn}"] = share_rate(attempts.correct[index])
        rates[f"reward/turn{turn}"] = mean_rate(attempts.rewards[index])
        rates[f"length/turn{turn}"] = mean_rate(attempts.lengths[index])
        rates[f"truncated/turn{turn}"] = share_rate(attempts.truncated[index])
        for verdict in VERDICTS:
            rates[f"verdict/{verdict}/turn{turn}"] = share_rate(attempts.verdicts[index] == verdict)
    if turns > 1:
        rates |= change_rates(attempts, 1, turns, "{}")
    for turn in range(2, turns + 1) if turns > 2 else ():
        rates |= change_rates(attempts, turn - 1, turn, f"step_{{}}/turn{turn}")
    return rates


def change_rates(attempts: Attempts, before: int, after: int, name: str) -> dict[str, Rate]:
    """What changed from one turn to another, from 1; `name` formats the metrics' names."""
    old, new = attempts.correct[..., before - 1], attempts.correct[..., after - 1]
    answers = attempts.extracted[..., before - 1], attempts.extracted[..., after - 1]
    rates = {
        "delta": mean_rate(new.astype(int) - old, (-1, 1)),
        "delta_i_to_c": share_rate(~old & new),
        "delta_c_to_i": share_rate(old & ~new),
        "fix_rate": share_rate(~old & new, among=~old),
        "break_rate": share_rate(old & ~new, among=old),
        "answer_changed": share_rate(answers[0] != answers[1]),
        "edit_distance_ratio": mean_rate(
            edit_distance_ratios(attempts.texts, before, after), (0, 1)
        ),
    }
    return {name.format(key): rate for key, rate in rates.items()}
