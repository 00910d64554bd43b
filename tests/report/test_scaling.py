"""Votes and passes: by hand on a few samples, by naive loops over subsets on random ones."""

import itertools
from collections import Counter

import numpy as np
import pytest

from score_jax.report.scaling import budgets, maj_at_k, measure_scaling, pass_at_k
from tests.report.test_metrics import attempts_of, random_attempts


def answered(answers, right="1"):
    """Attempts from final answers, of which one is right."""
    answers = np.array(answers, object)
    return attempts_of(answers == right, answers)


def values(attempts, budget, **options):
    found = measure_scaling(attempts, seed=0, resamples=50, **options)[budget]
    return {name: interval.value for name, interval in found.items()}


@pytest.mark.parametrize(
    ("samples", "drawn", "expected"),
    [
        (1, 1, []),
        (2, 1, [2]),
        (9, 1, [2, 4, 8]),
        (1, 2, []),
        (2, 2, [2]),
        (32, 2, [2, 4, 8, 16, 32]),
        (100, 2, [2, 4, 8, 16, 32]),
        (32, 3, [3, 6, 12, 24]),  # whole dialogues only
        (19, 10, [10]),
    ],
)
def test_budgets_are_whole_dialogues_doubled(samples, drawn, expected):
    assert budgets(samples, drawn) == expected


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    correct = np.random.default_rng(0).random((7, 6)) < 0.3
    for k in range(1, 7):
        naive = [
            np.mean([any(row[i] for i in subset) for subset in itertools.combinations(range(6), k)])
            for row in correct
        ]
        assert pass_at_k(correct, k) == pytest.approx(naive)


def test_parallel_samples_against_corrections_by_hand():
    # One problem, four samples, right answer "1": firsts 2 2 1 1, seconds 1 1 1 2.
    attempts = answered([[["2", "1"], ["2", "1"], ["1", "1"], ["1", "2"]]])
    assert values(attempts, 4) == {
        "parallel": 0,  # 2 2 1 1: the tie goes to the first given
        # Two votes of two corrections: {1, 1} and {1, 2}, where the tie goes to 1.
        "sequential": 1,
        "sequential_all": 0.5,  # {2 1 2 1} elects 2, {1 1 1 2} elects 1
        "gain": 1,
        "pass_parallel": 1,
        "pass_sequential": 1,  # of two seconds of 1 1 1 2
    }
    assert values(attempts, 2) == {
        "parallel": 0.5,  # {2, 2} and {1, 1}
        "sequential": 3 / 4,  # votes of one: the accuracy of the second attempt
        "sequential_all": 0.5,  # {2 1} {2 1} {1 1} {1 2}: the tie goes to the first attempt
        "gain": 1 / 4,
        "pass_parallel": 5 / 6,  # all pairs but that of the two wrong ones
        "pass_sequential": 3 / 4,
    }
    assert list(measure_scaling(attempts, seed=0)) == [2, 4]


def test_a_vote_agrees_with_a_loop_over_ballots():
    attempts = random_attempts(problems=40, samples=9)
    for k in (1, 2, 4, 9):
        expected = []
        for answers in attempts.extracted[..., 1].tolist():
            won = []
            for start in range(0, 9 - k + 1, k):
                ballots = [a for a in answers[start : start + k] if a is not None]
                most = max(Counter(ballots).values(), default=0)
                winner = next((a for a in ballots if ballots.count(a) == most), None)
                won.append(winner == "1")
            expected.append(sum(won) / len(won))
        got = maj_at_k(attempts.extracted[..., 1:], attempts.correct[..., 1:], k)
        assert got == pytest.approx(expected)


def test_attempts_without_an_answer_do_not_vote():
    found = values(answered([[[None, None], [None, None], ["1", "1"], [None, None]]]), 4)
    assert found["parallel"] == 1
    assert found["sequential"] == 0.5  # the first vote has no ballot and is lost


def test_one_turn_has_parallel_columns_alone():
    found = measure_scaling(random_attempts(samples=4, turns=1), seed=0)
    assert list(found) == [2, 4]
    assert all(set(row) == {"parallel", "pass_parallel"} for row in found.values())


def test_of_three_turns_the_last_counts_and_a_dialogue_costs_three():
    attempts = random_attempts(problems=20, samples=7, turns=3)
    found = measure_scaling(attempts, seed=0)
    assert list(found) == [3, 6]
    last = attempts.extracted[..., 2:], attempts.correct[..., 2:]
    assert found[6]["sequential"].value == pytest.approx(maj_at_k(*last, 2).mean())
    assert found[3]["sequential"].value == pytest.approx(attempts.correct[:, :, 2].mean())


def test_a_turn_that_judges_costs_a_sample_and_has_no_vote():
    """Of an answer, a judgement and an answer, six samples are two dialogues."""
    right, wrong, judged = "1", "2", "3"
    sample = [[wrong, judged, right], [wrong, judged, wrong]]
    found = values(answered([sample * 3]), 6, answers=(1, 3), drawn=3)
    assert found["parallel"] == 0 and found["pass_sequential"] == pytest.approx(1 - 3 / 15)
    assert found["sequential"] == 1  # {1 2}, the tie to the first
    assert found["sequential_all"] == 0  # 2 1 2 2, without the judgements


def test_intervals_draw_problems():
    """Of 40 problems, half are always solved: as wide as 40 trials, whatever the samples."""
    answers = np.repeat([["1"], ["2"]], 20, axis=0)[:, :, None].repeat(8, 1).repeat(2, 2)
    for row in measure_scaling(answered(answers), seed=0).values():
        for name in ("parallel", "sequential", "pass_parallel", "pass_sequential"):
            half = (row[name].high - row[name].low) / 2
            assert row[name].value == 0.5
            assert half == pytest.approx(1.96 * 0.5 / np.sqrt(40), rel=0.15)
        assert row["gain"].low < 0 == row["gain"].value < row["gain"].high


@pytest.mark.parametrize("k", [0, 4])
def test_votes_and_passes_need_k_samples(k):
    attempts = random_attempts(samples=3)
    with pytest.raises(ValueError, match=f"k is {k}; set a value in 1..3"):
        maj_at_k(attempts.extracted, attempts.correct, k)
    with pytest.raises(ValueError, match=f"k is {k}; set a value in 1..3"):
        pass_at_k(attempts.correct[..., 0], k)
