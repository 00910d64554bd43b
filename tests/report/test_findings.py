"""Headline and alarms: each on a run built to deserve it, and silent on one that does not."""

import dataclasses
import math

import pytest

from score_jax.report.findings import find_alarms, headline, points
from score_jax.report.workdir import Run, StageRecord


def triple(value, low=None, high=None):
    return {
        "value": value,
        "low": value if low is None else low,
        "high": value if high is None else high,
    }


def evaluation(delta, base=(0.0, -0.01, 0.01), **metrics):
    measured = {"delta": triple(*delta)} | {key: triple(value) for key, value in metrics.items()}
    models = {"base": {"greedy": {"delta": triple(*base)}}, "stage2": {"greedy": measured}}
    return {"stage": "stage2", "problems": 1000, "models": models}


def run_of(rows=(), evaluated=None, name="stage2", config=None) -> Run:
    numbered = tuple({"step": float(n), **row} for n, row in enumerate(rows))
    stage = StageRecord(name=name, rows=numbered, evaluation=evaluated or {}, config=config or {})
    return Run(stages=(stage,), chain={}, missing=(), written=0.0)


def titles(run):
    return [(finding.level, finding.title) for finding in find_alarms(run)]


HEALTHY = {
    "loss": 0.1,
    "answer_changed": 0.3,
    "delta": 0.08,
    "truncated/turn1": 0.01,
    "truncated/turn2": 0.02,
    "mismatch/max": 0.4,  # one token; says nothing
    "mismatch/trimmed/turn1": 0.01,
    "mismatch/trimmed/turn2": 0.012,
    "mismatch/limit": 0.05,
    "verdict/timeout": 0.0,
    "verdict/crashed": 0.0,
}


@pytest.mark.parametrize(
    ("delta", "base", "text", "tone"),
    [
        (
            (0.123, 0.101, 0.146),
            (0.0, -0.01, 0.01),
            "Second attempts gain +12.3 points [10.1, 14.6] on 1,000 held-out problems; "
            "the base model gains 0.0.",
            "good",
        ),
        (
            (0.002, -0.004, 0.008),
            (-0.112, -0.13, -0.09),
            "Second attempts change little: +0.2 points [-0.4, 0.8] on 1,000 held-out problems; "
            "the base model loses 11.2.",
            "flat",
        ),
        (
            (-0.03, -0.05, -0.01),
            (0.01, 0.0, 0.02),
            "Second attempts lose 3.0 points [-5.0, -1.0] on 1,000 held-out problems; "
            "the base model gains +1.0.",
            "bad",
        ),
    ],
)
def test_headline_says_what_second_attempts_do(delta, base, text, tone):
    said = headline(run_of(evaluated=evaluation(delta, base)))
    assert (said.text, said.tone) == (text, tone)


def test_the_second_attempts_accuracy_comes_before_the_gain():
    """A policy that gives up its first attempt gains more and is no better for it."""
    measured = evaluation((0.3, 0.27, 0.33), **{"accuracy/turn2": 0.911, "accuracy/turn1": 0.611})
    said = headline(run_of(evaluated=measured))
    assert said.text.startswith(
        "Second attempts are right in 91.1% [91.1, 91.1] of 1,000 held-out problems; "
        "they gain +30.0 points [27.0, 33.0]"
    )


def test_headline_falls_back_to_sampled_numbers():
    evaluated = {"models": {"stage2": {"sampled": {"delta": triple(0.1, 0.05, 0.15)}}}}
    said = headline(run_of(evaluated=evaluated))
    assert said.text.startswith("Second attempts gain +10.0 points") and "base" not in said.text
    assert "sampled" in said.context


def test_headline_of_a_run_under_way_claims_nothing_held_out():
    rows = [{"accuracy/turn1": 0.4, "accuracy/turn2": 0.5}] * 8
    said = headline(run_of(rows))
    assert said.text == "No held-out measurement yet: Stage II is at step 7."
    assert "40.0%" in said.context and "50.0%" in said.context


def test_a_healthy_run_raises_nothing():
    good = evaluation((0.12, 0.1, 0.14), answer_changed=0.3)
    assert titles(run_of([HEALTHY] * 50, good)) == []


def test_collapse_needs_copies_and_a_flat_gain():
    copied = [HEALTHY] * 40 + [HEALTHY | {"answer_changed": 0.003, "delta": 0.001}] * 20
    assert titles(run_of(copied)) == [("alarm", "Stage II: second attempts collapsed into copies")]
    (finding,) = find_alarms(run_of(copied))
    assert "fell from 30.0% to 0.3%" in finding.text
    gaining = [HEALTHY | {"answer_changed": 0.04, "delta": 0.03}] * 60
    assert titles(run_of(gaining)) == []


def test_a_policy_that_is_never_right_has_no_signal_rather_than_collapsed():
    lost = {"accuracy/turn1": 0.0, "accuracy/turn2": 0.001, "verdict/unparsable": 0.9}
    rows = [HEALTHY | lost | {"answer_changed": 0.0, "delta": 0.0}] * 20
    assert titles(run_of(rows)) == [("alarm", "Stage II: almost no attempt is right")]
    assert "90%" in find_alarms(run_of(rows))[0].text


def test_a_dip_that_recovered_is_no_collapse():
    dip = [HEALTHY] * 20 + [HEALTHY | {"answer_changed": 0.0, "delta": 0.0}] * 20 + [HEALTHY] * 20
    assert titles(run_of(dip)) == []


def test_held_out_copies_and_harm_are_alarms():
    copies = evaluation((0.002, -0.004, 0.008), answer_changed=0.01)
    assert titles(run_of(evaluated=copies)) == [
        ("alarm", "Stage II: held-out second attempts are copies")
    ]
    harm = evaluation((-0.05, -0.08, -0.02), answer_changed=0.4)
    assert titles(run_of(evaluated=harm)) == [
        ("alarm", "Stage II: correcting does harm on held-out problems")
    ]


def test_each_turns_mean_gap_is_held_against_the_runs_own_limit():
    def seen(**mismatch):
        last = {f"mismatch/{name}": value for name, value in mismatch.items()}
        return titles(run_of([HEALTHY] * 9 + [HEALTHY | last]))

    close = "Stage II: sampler and learner disagree by 0.03 nats a token in turn 2"
    assert seen() == [] == seen(max=7.0)
    assert seen(**{"trimmed/turn2": 0.03}) == [("note", close)]
    assert seen(**{"trimmed/turn2": 0.03, "limit": 0.1}) == []
    assert seen(**{"trimmed/turn2": 0.03, "limit": 0.02}) == [("alarm", close)]
    assert seen(**{"trimmed/turn1": 0.06})[0][1].endswith("by 0.06 nats a token in turn 1")


def test_truncation_above_a_tenth_is_an_alarm_for_its_turn():
    rows = [HEALTHY | {"truncated/turn2": 0.14}] * 10
    assert titles(run_of(rows)) == [("alarm", "Stage II: 14% of attempts at turn 2 are cut off")]
    held_out = evaluation((0.1, 0.05, 0.15), **{"truncated/turn1": 0.2})
    assert titles(run_of(evaluated=held_out)) == [
        ("alarm", "Stage II: 20% of held-out attempts at turn 1 are cut off")
    ]


def test_truncation_on_a_further_set_is_an_alarm_that_names_it():
    whole, cut = ({"truncated/turn2": share} for share in (0.05, 0.25))
    run = run_of(evaluated=evaluation((0.1, 0.05, 0.15), **whole))
    sets = {"gsm8k": evaluation((0.1, 0.05, 0.15), **whole)}
    sets["math500"] = evaluation((0.1, 0.05, 0.15), **cut)
    last = dataclasses.replace(run.stages[-1], sets=sets)
    assert titles(dataclasses.replace(run, stages=(*run.stages[:-1], last))) == [
        ("alarm", "Stage II: 25% of held-out attempts of math500 at turn 2 are cut off")
    ]


def test_one_timeout_is_a_note_and_many_are_an_alarm():
    once = [HEALTHY] * 99 + [HEALTHY | {"verdict/timeout": 0.01}]
    assert titles(run_of(once)) == [("note", "Stage II: the grader returned 'timeout'")]
    often = [HEALTHY | {"verdict/crashed": 0.05}] * 10
    assert titles(run_of(often)) == [("alarm", "Stage II: the grader returned 'crashed'")]


def test_a_nan_loss_is_an_alarm_with_its_step():
    (finding,) = find_alarms(run_of([HEALTHY, HEALTHY | {"loss": math.nan}]))
    assert finding.title == "Stage II: the loss is not a number"
    assert "step 1" in finding.text


def test_alarms_come_before_notes():
    rows = [HEALTHY | {"verdict/timeout": 0.001, "truncated/turn1": 0.5}] * 10
    assert [level for level, _ in titles(run_of(rows))] == ["alarm", "note"]


def test_nan_metrics_do_not_hide_or_raise_alarms():
    rows = [HEALTHY | {"mismatch/trimmed/turn1": math.nan, "answer_changed": math.nan}] * 10
    assert titles(run_of(rows)) == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "+12.3"), (-0.0001, "0.0"), (0.5 - 0.4985, "+0.1"), (0.0, "0.0")]
)
def test_points_never_show_a_signed_zero(value, text):
    assert points(value) == text


def three_turns(**metrics):
    """An evaluation of three attempts, whose second is no better than the first."""
    accuracies = {"accuracy/turn1": 0.5, "accuracy/turn2": 0.5, "accuracy/turn3": 0.7}
    found = evaluation((0.2, 0.17, 0.23), **accuracies | metrics)
    base = found["models"]["base"]["greedy"]
    base |= {name: triple(0.4) for name in accuracies}
    return found


def test_of_more_than_two_attempts_the_last_is_spoken_of():
    said = headline(run_of(evaluated=three_turns()))
    assert said.text == (
        "Last attempts are right in 70.0% [70.0, 70.0] of 1,000 held-out problems; "
        "they gain +20.0 points [17.0, 23.0]; the base model gains 0.0."
    )
    assert "accuracy from 50.0% to 70.0%" in said.context
    assert "last attempts are 30.0 points above the base model's" in said.context
    rows = [{f"accuracy/turn{turn}": turn / 10 for turn in (1, 2, 3)}] * 8
    assert "10.0%, last attempts in 30.0%." in headline(run_of(rows)).context


def test_alarms_look_at_every_turn():
    lost = {f"accuracy/turn{turn}": 0.0 for turn in (1, 2, 3)}
    rows = [HEALTHY | lost] * 20
    assert titles(run_of(rows)) == [("alarm", "Stage II: almost no attempt is right")]
    assert titles(run_of([HEALTHY | lost | {"accuracy/turn3": 0.4}] * 20)) == []
    copied = HEALTHY | {"accuracy/turn3": 0.4, "answer_changed": 0.0, "delta": 0.0}
    assert titles(run_of([copied] * 20)) == [
        ("alarm", "Stage II: last attempts collapsed into copies")
    ]
    cut = three_turns(**{"truncated/turn3": 0.3})
    assert titles(run_of(evaluated=cut)) == [
        ("alarm", "Stage II: 30% of held-out attempts at turn 3 are cut off")
    ]


def test_single_turn_training_is_judged_by_its_one_turn():
    said = headline(run_of([{"accuracy/turn1": 0.4}] * 8))
    assert said.context == "Held-out numbers appear here when a stage has been evaluated."
    rows = [HEALTHY | {"accuracy/turn1": 0.001}] * 20
    assert titles(run_of(rows)) == [("alarm", "Stage II: almost no attempt is right")]
