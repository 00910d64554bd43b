"""Measurements of self-correction: by hand on five dialogues, by naive loops on random ones."""

import itertools
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from score_jax.records import Transcript
from score_jax.report.intervals import wilson
from score_jax.report.metrics import (
    Attempts,
    edit_distance_histogram,
    edit_distance_ratios,
    group_attempts,
    measure,
)


def attempts_of(correct, extracted=None, **fields) -> Attempts:
    correct = np.asarray(correct, bool)
    blank = np.full(correct.shape, "", object)
    defaults = {
        "rewards": correct.astype(np.float32),
        "texts": blank,
        "extracted": blank if extracted is None else extracted,
        "lengths": np.ones(correct.shape, int),
        "truncated": np.zeros(correct.shape, bool),
        "verdicts": np.where(correct, "correct", "wrong"),
    }
    return Attempts(correct=correct, **(defaults | fields))


def random_attempts(problems=30, samples=3, turns=2, seed=0) -> Attempts:
    random = np.random.default_rng(seed)
    answers = random.choice(np.array(["1", "2", "3", None], object), (problems, samples, turns))
    return attempts_of(answers == "1", answers)


BY_HAND = Attempts(  # five problems, one sample each: 10, 01, 11, 00, 01
    correct=[[[True, False]], [[False, True]], [[True, True]], [[False, False]], [[False, True]]],
    rewards=[[[1, 0]], [[0.5, 1]], [[1, 1]], [[0, 0]], [[0, 1]]],
    texts=[[["abcd", "abXd"]], [["ab", "abcd"]], [["abc", "abc"]], [["", ""]], [["ab", "cd"]]],
    extracted=[[["4", "5"]], [["3", "4"]], [["4", "4"]], [[None, None]], [[None, "4"]]],
    lengths=[[[4, 8]], [[2, 4]], [[3, 3]], [[1, 1]], [[5, 4]]],
    truncated=np.reshape([0, 0, 0, 0, 0, 0, 0, 1, 1, 0], (5, 1, 2)),
    verdicts=[
        [["correct", "wrong"]],
        [["timeout", "correct"]],
        [["correct", "correct"]],
        [["unparsable", "unparsable"]],
        [["crashed", "correct"]],
    ],
)


def test_every_measurement_by_hand():
    values = {key: m and m.value for key, m in measure(BY_HAND, seed=0).items()}
    expected = {
        "accuracy/turn1": 2 / 5,
        "accuracy/turn2": 3 / 5,
        "reward/turn1": 0.5,
        "reward/turn2": 0.6,
        "length/turn1": 3,
        "length/turn2": 4,
        "truncated/turn1": 1 / 5,
        "truncated/turn2": 1 / 5,
        "delta": 1 / 5,
        "delta_i_to_c": 2 / 5,
        "delta_c_to_i": 1 / 5,
        "fix_rate": 2 / 3,
        "break_rate": 1 / 2,
        "answer_changed": 3 / 5,  # None -> None is no change, None -> 4 is
        # abcd -> abXd: 1/8; ab -> abcd: 2/6; copies: 0; ab -> cd: 2/4
        "edit_distance_ratio": (1 / 8 + 2 / 6 + 0 + 0 + 2 / 4) / 5,
        "verdict/correct/turn1": 2 / 5,
        "verdict/wrong/turn1": 0,
        "verdict/timeout/turn1": 1 / 5,
        "verdict/unparsable/turn1": 1 / 5,
        "verdict/crashed/turn1": 1 / 5,
        "verdict/correct/turn2": 3 / 5,
        "verdict/wrong/turn2": 1 / 5,
        "verdict/unparsable/turn2": 1 / 5,
        "verdict/timeout/turn2": 0,
        "verdict/crashed/turn2": 0,
    }
    assert values.keys() == expected.keys()
    assert values == pytest.approx(expected)


def test_single_samples_get_wilson_and_delta_does_not():
    measured = measure(BY_HAND, seed=0)
    assert measured["accuracy/turn1"] == wilson(2, 5)
    assert measured["fix_rate"] == wilson(2, 3)
    assert measured["delta"].low < 0 < measured["delta"].high


def test_undefined_rates_are_none():
    measured = measure(attempts_of([[[True, True]], [[True, False]]]), seed=0)
    assert measured["fix_rate"] is None
    assert measured["break_rate"].value == 0.5


def test_measurements_agree_with_a_loop_over_samples():
    attempts = random_attempts(turns=4)
    measured = measure(attempts, seed=0, resamples=100)
    rows = attempts.correct.reshape(-1, 4).tolist()
    answers = attempts.extracted.reshape(-1, 4).tolist()
    steps = [(turn - 1, turn, f"step_{{}}/turn{turn}") for turn in (2, 3, 4)]
    for before, turn, name in [(1, 4, "{}"), *steps]:
        counts = Counter((row[before - 1], row[turn - 1]) for row in rows)
        i_to_c, c_to_i = counts[False, True], counts[True, False]
        changed = sum(row[before - 1] != row[turn - 1] for row in answers)
        expected = {
            "delta": (i_to_c - c_to_i) / 90,
            "delta_i_to_c": i_to_c / 90,
            "delta_c_to_i": c_to_i / 90,
            "fix_rate": i_to_c / (i_to_c + counts[False, False]),
            "break_rate": c_to_i / (c_to_i + counts[True, True]),
            "answer_changed": changed / 90,
        }
        got = {key: measured[name.format(key)].value for key in expected}
        assert got == pytest.approx(expected)


def test_delta_is_fixed_minus_broken_and_accuracy_gained():
    measured = {key: m.value for key, m in measure(random_attempts(), seed=0).items()}
    assert measured["delta"] == pytest.approx(measured["delta_i_to_c"] - measured["delta_c_to_i"])
    assert measured["delta"] == pytest.approx(
        measured["accuracy/turn2"] - measured["accuracy/turn1"]
    )


def test_one_turn_has_no_deltas_and_ten_turns_have_nine_steps_and_a_whole():
    assert not any("delta" in key for key in measure(random_attempts(turns=1), seed=0))
    two = measure(random_attempts(problems=5), seed=0, resamples=50)
    assert "delta" in two and not any("step" in key for key in two)
    ten = measure(random_attempts(problems=5, turns=10), seed=0, resamples=50)
    steps = {key for key in ten if key.startswith("step_delta/")}
    assert steps == {f"step_delta/turn{turn}" for turn in range(2, 11)}
    assert {"delta", "accuracy/turn10"} <= ten.keys()
    whole = sum(ten[key].value for key in steps)
    assert ten["delta"].value == pytest.approx(whole)


def test_a_selection_of_problems_is_measured_as_if_there_were_no_others():
    attempts = random_attempts(turns=3)
    chosen = [4, 0, 17]
    alone = Attempts(
        **{
            name: [getattr(attempts, name)[n] for n in chosen]
            for name in ("correct", "rewards", "texts", "extracted", "lengths", "truncated")
        },
        verdicts=[attempts.verdicts[n] for n in chosen],
    )
    assert measure(attempts.select(chosen), seed=1) == measure(alone, seed=1)


def test_edit_distance_agrees_with_the_textbook_table():
    random = np.random.default_rng(0)
    texts = [["".join(random.choice(list("abc"), random.integers(0, 9)))] for _ in range(60)]
    pairs = np.array(texts, object).reshape(30, 1, 2)
    for before, after, ratio in zip(
        pairs[..., 0].flat, pairs[..., 1].flat, edit_distance_ratios(pairs).flat, strict=True
    ):
        table = np.zeros((len(before) + 1, len(after) + 1), int)
        table[:, 0], table[0, :] = range(len(before) + 1), range(len(after) + 1)
        for i, j in itertools.product(range(len(before)), range(len(after))):
            table[i + 1, j + 1] = min(
                table[i, j + 1] + 1, table[i + 1, j] + 1, table[i, j] + (before[i] != after[j])
            )
        assert ratio == pytest.approx(table[-1, -1] / max(1, len(before) + len(after)))


def test_histogram_counts_every_pair_once():
    edges, counts = edit_distance_histogram(BY_HAND.texts, bins=4)
    assert edges.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert counts.tolist() == [3, 1, 1, 0]  # 1/8, 0, 0 | 1/3 | 1/2


def test_gather_groups_samples_of_a_problem_and_reads_right_from_verdicts():
    def sample(problem, verdicts):
        return Transcript(
            step=0,
            problem=problem,
            prompt="",
            answer="4",
            attempts=("a", "b"),
            verdicts=verdicts,
            rewards=(0.0, 0.5),
            lengths=(1, 2),
            truncated=(False, True),
            extracted=(None, "4"),
        )

    rows = [
        sample("p", ("wrong", "correct")),
        sample("q", ("crashed", "wrong")),
        sample("p", ("correct", "correct")),
        sample("q", ("wrong", "timeout")),
    ]
    attempts = group_attempts(rows)
    assert attempts.correct.tolist() == [
        [[False, True], [True, True]],
        [[False, False], [False, False]],
    ]
    assert attempts.verdicts[1, 1].tolist() == ["wrong", "timeout"]
    assert attempts.texts.shape == attempts.extracted.shape == (2, 2, 2)
    with pytest.raises(ValueError, match="samples per problem"):
        group_attempts(rows[:3])


def test_shapes_that_disagree_are_refused_by_name():
    with pytest.raises(ValueError, match=r"attempts.lengths has shape \(2, 1, 1\)"):
        replace(BY_HAND, lengths=np.ones((2, 1, 1), int))
    with pytest.raises(ValueError, match="give \\[problems, samples, turns\\]"):
        replace(BY_HAND, correct=np.ones((5, 2), bool))


def test_importing_metrics_does_not_import_jax():
    command = "import sys, score_jax.report.metrics; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
