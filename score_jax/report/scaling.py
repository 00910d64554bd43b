"""What more samples of a problem are worth, drawn in parallel or in sequence.

A budget is K samples of a problem. In parallel they are K first attempts. In sequence they are
K / R dialogues of R attempts each, of which the last one counts, so that both cost K samples.
Either way the samples at hand are used in as many ways as they allow, and every number has a
value per problem, over which its interval is drawn.

Source: arXiv:2409.12917, section 6 (inference-compute scaling).
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from score_jax.report.intervals import Interval, Rate, bound
from score_jax.report.metrics import Attempts

MOST_SAMPLES = 32  # of the largest budget


def budgets(samples: int, drawn: int) -> list[int]:
    """The budgets K: `drawn`, doubled as often as the samples allow; 2, 4, 8, ... of one turn.

    Args:
      samples: dialogues per problem.
      drawn: R, attempts that the policy draws in a dialogue.
    """
    found, budget = [], max(drawn, 2)
    while budget <= min(samples, MOST_SAMPLES):
        found.append(budget)
        budget *= 2
    return found


def measure_scaling(
    attempts: Attempts,
    *,
    seed: int,
    answers: Sequence[int] = (),
    drawn: int = 0,
    resamples: int = 2000,
) -> dict[int, dict[str, Interval]]:
    """Measures votes and passes for every budget that the samples suffice for.

    Keys, for every K: `parallel`, accuracy of the majority vote of K first attempts, and
    `pass_parallel`, the share of problems that one of K first attempts solves. Where a dialogue
    has several attempts: `sequential` and `pass_sequential`, the same of the last attempts of
    K / R dialogues; `sequential_all`, the vote of all their attempts (the source does not say
    which it counts); `gain`, sequential minus parallel.

    Args:
      answers: turns that answer the problem, from 1; (): all. The first one is drawn.
      drawn: R, turns up to the last answer that the policy draws; 0: as many as answer.

    Returns:
      Intervals from a bootstrap over problems, by budget; empty with fewer samples than
      `drawn`, or than 2.
    """
    turns = [turn - 1 for turn in answers] or list(range(attempts.correct.shape[2]))
    drawn = drawn or len(turns)
    return {
        budget: bound(_rates(attempts, budget, turns, drawn), seed=seed, resamples=resamples)
        for budget in budgets(attempts.correct.shape[1], drawn)
    }


def _rates(attempts: Attempts, budget: int, turns: Sequence[int], drawn: int) -> dict[str, Rate]:
    """The numbers of one budget, a value for every problem; turns count from 0."""

    def vote(ballots: Sequence[int], k: int) -> Float[np.ndarray, "N"]:
        return maj_at_k(attempts.extracted[..., ballots], attempts.correct[..., ballots], k)

    first, last, dialogues = turns[0], turns[-1], budget // drawn
    values = {
        "parallel": vote([first], budget),
        "pass_parallel": pass_at_k(attempts.correct[..., first], budget),
    }
    if first != last:
        values |= {
            "sequential": vote([last], dialogues),
            "sequential_all": vote(turns, dialogues),
            "pass_sequential": pass_at_k(attempts.correct[..., last], dialogues),
        }
        values["gain"] = values["sequential"] - values["parallel"]
    return {
        name: Rate(value, np.ones(len(value)), (-1, 1) if name == "gain" else (0, 1))
        for name, value in values.items()
    }


def pass_at_k(correct: Bool[np.ndarray, "N S"], k: int) -> Float[np.ndarray, "N"]:
    """The chance, per problem, that one of k samples is right; unbiased from S >= k samples.

    Source: arXiv:2107.03374, section 2.1: 1 - C(S - c, k) / C(S, k).
    """
    samples = correct.shape[1]
    _check_samples(k, samples)
    wrong = samples - np.sum(correct, axis=1)
    drawn = np.arange(k)
    all_wrong = np.maximum(wrong[:, None] - drawn, 0) / (samples - drawn)
    return 1 - np.prod(all_wrong, axis=1)


def maj_at_k(
    extracted: np.ndarray, correct: Bool[np.ndarray, "N S V"], k: int
) -> Float[np.ndarray, "N"]:
    """The share, per problem, of votes of k samples whose majority answer is right.

    The samples are split into as many disjoint votes as they fill. An attempt without a final
    answer does not vote; a tie goes to the answer given first. Answers are compared as strings:
    `evaluate.with_one_spelling` first maps equal answers to one spelling.

    Args:
      extracted: str | None [N S V], V ballots of each sample.

    Source: arXiv:2203.11171, section 2.
    """
    samples = correct.shape[1]
    _check_samples(k, samples)
    votes = samples // k
    shares = np.zeros(len(correct))
    for start in range(0, votes * k, k):
        shares += [
            elects_right(answers[start : start + k], right[start : start + k])
            for answers, right in zip(extracted, correct, strict=True)
        ]
    return shares / votes


def elects_right(answers: np.ndarray, correct: np.ndarray) -> bool:
    """Whether the most frequent answer of one vote is right; without an answer it is not."""
    is_right = {a: bool(c) for a, c in zip(answers.flat, correct.flat, strict=True) if a}
    if not is_right:
        return False
    tally = Counter(a for a in answers.flat if a)
    return is_right[tally.most_common(1)[0][0]]  # most_common keeps the first of equals


def _check_samples(k: int, samples: int) -> None:
    if not 1 <= k <= samples:
        raise ValueError(f"k is {k}; set a value in 1..{samples}, the samples per problem")
