"""Scripted metrics raise exactly the alarms that they should, at the steps counted by hand."""

from dataclasses import replace

import pytest

from score_jax.report.alarms import AlarmsConfig, Watched, replay

TWO_TURNS = Watched(turns=(1, 2), last=2, answers=2, grouped=True)
ONE_TURN = Watched(turns=(1,), last=1, answers=1, grouped=True)
CONFIG = AlarmsConfig(window=2)
HEALTHY = {
    "accuracy/turn1": 0.5, "delta": 0.2, "edit_distance": 0.3, "answer_changed": 0.4,
    "kl/turn1": 0.1, "kl/turn2": 2.0, "truncated/turn1": 0.0, "truncated/turn2": 0.0,
    "no_signal/turn1": 0.3, "no_signal/turn2": 0.3,
}  # fmt: skip
# The metric, ten times its values of steps 1 to 10, and the steps at which its alarm is raised
# and cleared. Means of two steps; cleared two steps after it last held.
SCRIPTS = {
    "answer_changed": ("answer_changed", [4, 1, 0.1, 0.1, 0, 4, 4, 4, 0, 0], [4, 7, 10]),
    "accuracy_fall": ("accuracy/turn1", [5, 4, 4, 3.6, 3, 2, 6, 5, 5, 5], [5, 8]),
    "kl": ("kl/turn2", [0, 190, 190, 0, 0, 0, 0, 0, 0, 0], [3, 5]),
    "no_signal": ("no_signal/turn2", [8, 9, 10, 10, 10, 10, 10, 10, 10, 10], [3]),
    "truncated_growth": ("truncated/turn1", [2, 2, 3, 4, 4, 4, 0, 0, 0, 0], [4, 8]),
}  # fmt: skip


def script(metric, values):
    return [HEALTHY | {"step": n, metric: value} for n, value in enumerate(values, 1)]


def told(rows, config=CONFIG, watched=TWO_TURNS):
    events = replay(config, watched, rows)[1]
    return [(event.alarm.name, event.kind, event.alarm.step) for event in events]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_raises_and_clears_its_alarm_alone(name):
    metric, tenths, steps = SCRIPTS[name]
    values = [value / 10 for value in tenths]
    kinds = ["raised", "cleared"] * 2
    assert told(script(metric, values)) == [
        (name, k, s) for k, s in zip(kinds, steps, strict=False)
    ]
    assert told(script(metric, values), replace(CONFIG, **{name: None})) == []


@pytest.mark.parametrize("name", ["accuracy_fall", "no_signal"])
def test_where_groups_are_chosen_alarms_judge_all_that_was_drawn(name):
    metric, tenths, steps = SCRIPTS[name]
    drawn = {"accuracy_fall": "drawn/accuracy/turn1", "no_signal": "drawn/no_signal"}
    chosen = {"drawn/accuracy/turn1": 0.5, "drawn/no_signal": 0.3}
    falls = [row | chosen for row in script(metric, [value / 10 for value in tenths])]
    assert told(falls) == []
    falls = [chosen | row for row in script(drawn[name], [value / 10 for value in tenths])]
    assert [step for _, _, step in told(falls)] == steps


def gain(distances):
    deltas = [0.2, 0.2, 0.2, 0.1, 0.1, 0.1]
    pairs = zip(deltas, distances, strict=True)
    return [HEALTHY | {"step": n, "delta": d, "edit_distance": e}
            for n, (d, e) in enumerate(pairs, 1)]  # fmt: skip


def test_a_gain_that_falls_is_an_alarm_only_while_the_attempts_grow_alike():
    """Means of steps 4 and 5 are 0.1, of 2 and 3 before them 0.2; at step 4 half of that fell."""
    alike, apart = [0.3, 0.3, 0.3, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.4, 0.4, 0.4]
    config = replace(CONFIG, delta_fall=0.06)
    assert told(gain(alike), config) == [("delta_fall", "raised", 5)]
    assert told(gain(apart), config) == []
    assert told(gain(alike), replace(config, delta_fall=None)) == []


def test_a_single_turn_has_no_answer_that_could_change():
    rows = script("answer_changed", [0.0] * 6)
    assert told(rows, watched=ONE_TURN) == []
    assert told(rows) == [("answer_changed", "raised", 2)]


def test_a_longer_window_judges_later():
    rows = script("answer_changed", [0.0] * 6)
    assert told(rows, replace(CONFIG, window=5)) == [("answer_changed", "raised", 5)]


def test_a_metric_that_is_absent_or_not_finite_raises_nothing():
    for lost in (None, float("nan")):
        assert told(script("kl/turn2", [99, lost] * 5)) == []
    assert told([{"step": n} for n in range(1, 6)]) == []


@pytest.mark.parametrize("cut", range(11))
def test_rows_read_again_leave_the_state_that_they_left(cut):
    metric, tenths, _ = SCRIPTS["answer_changed"]
    rows = script(metric, [value / 10 for value in tenths])
    whole, events = replay(CONFIG, TWO_TURNS, rows)
    begun, earlier = replay(CONFIG, TWO_TURNS, rows[:cut])
    assert events[: len(earlier)] == earlier
    assert all(event.alarm.step > cut for event in events[len(earlier) :])
    assert len(whole.rows) == 6 and begun.rows == tuple(rows[:2] + rows[2:cut][-4:])[:cut]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stop": ("klx",)}, r"alarms\.stop is \('klx',\); choose from answer_changed"),
        ({"stop": ("kl",), "kl": None}, r"alarms\.stop .* alarms\.kl is None; set it"),
        ({"window": 0}, r"alarms\.window is 0; set at least 1"),
        ({"no_signal": 1.5}, r"alarms\.no_signal is 1\.5; set a value in 0\.\.1"),
    ],
)
def test_a_wrong_field_is_told(fields, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        AlarmsConfig(**fields)
