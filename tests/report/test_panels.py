"""Tables and charts of a run: the right numbers in the right place."""

import math
import re
from dataclasses import replace

import pytest

from score_jax.report import panels
from score_jax.report.charts import LEFT, RIGHT, WIDTH
from score_jax.report.workdir import Run, StageRecord


def triple(value, low, high):
    return {"value": value, "low": low, "high": high}


EVALUATION = {
    "models": {
        "base": {"greedy": {"accuracy/turn1": triple(0.5, 0.45, 0.55), "fix_rate": None}},
        "stage2": {
            "greedy": {
                "accuracy/turn1": triple(0.5, 0.45, 0.55),
                "accuracy/turn2": triple(0.6, 0.55, 0.65),
                "delta": triple(0.1, 0.05, 0.15),
                "length/turn1": triple(123.4, 120.0, 126.0),
                "fix_rate": triple(0.25, 0.2, 0.3),
            }
        },
    },
    "histogram": {
        "base": {"edges": [0, 0.25, 0.5, 0.75, 1], "counts": [9, 1, 0, 0]},
        "stage2": {"edges": [0, 0.25, 0.5, 0.75, 1], "counts": [4, 4, 2, 0]},
    },
}


def run_of(*stages) -> Run:
    return Run(stages=stages, chain={}, missing=(), written=0.0)


def stage_of(name, rows) -> StageRecord:
    return StageRecord(
        name=name, rows=tuple({"step": float(n + 1), **row} for n, row in enumerate(rows))
    )


def test_five_metrics_are_points_with_bounds_and_absent_ones_a_dash():
    ((title, rows),) = panels.results(EVALUATION)
    assert title == "Greedy"
    (base, base_cells), (trained, cells) = rows
    assert (base, trained) == ("Base model", "Stage II")
    assert [cell["text"] for cell in base_cells] == ["50.0", "–", "–", "–", "–"]
    assert cells[1] == {"text": "60.0", "bounds": "[55.0, 65.0]", "tone": ""}
    assert cells[2] == {"text": "+10.0", "bounds": "[5.0, 15.0]", "tone": "good"}


@pytest.mark.parametrize(("low", "high", "tone"), [(-0.1, 0.1, ""), (-0.2, -0.1, "bad")])
def test_a_gain_is_coloured_only_when_its_interval_leaves_out_zero(low, high, tone):
    assert panels.cell(triple((low + high) / 2, low, high), "delta")["tone"] == tone


def test_details_hold_what_the_five_do_not_and_undefined_rates_are_dashes():
    ((_, models, rows),) = panels.details(EVALUATION)
    assert models == ["Base model", "Stage II"]
    table = {key: [cell["text"] for cell in cells] for key, cells in rows}
    assert table == {"fix_rate": ["–", "25.0"], "length/turn1": ["–", "123"]}


def test_only_models_with_both_accuracies_get_a_change_row():
    ((_, svg),) = panels.change_charts(EVALUATION)
    assert "Stage II" in svg and "Base model" not in svg and "+10.0" in svg


def test_attempts_in_a_row_are_drawn_from_three_on():
    assert panels.attempts_chart(EVALUATION) is None
    measured = {f"accuracy/turn{t}": triple(t / 10, 0, 1) for t in range(1, 6)}
    chart = panels.attempts_chart({"models": {"stage2": {"greedy": measured}}})
    assert chart is not None and chart.legend == (("Stage II", 9, "50.0%"),)


def test_curves_join_stages_and_name_every_unknown_metric():
    one = stage_of("stage1", [{"accuracy/turn1": 0.2, "accuracy/turn2": 0.3, "odd/thing": 1.0}] * 3)
    two = stage_of("stage2", [{"accuracy/turn1": 0.4, "accuracy/turn2": 0.6, "step_size": 2.0}] * 2)
    main, more = panels.curves(run_of(one, two))
    assert [chart.title for chart in main] == ["Accuracy"]
    assert main[0].legend == (("turn 1", 1, "40.0%"), ("turn 2", 2, "60.0%"))
    assert "Stage I<" in main[0].svg and "Stage II step 2" in main[0].svg
    assert [chart.title for chart in more] == ["Odd", "Step size"]


def test_a_metric_that_is_never_a_number_is_not_drawn():
    main, more = panels.curves(run_of(stage_of("s", [{"entropy/turn1": math.nan}] * 3)))
    assert (main, more) == ([], [])


def test_turns_keep_their_colours_in_every_chart():
    rows = [{"kl/turn2": 1.0, "length/turn1": 3.0, "length/turn10": 4.0}]
    main, _ = panels.curves(run_of(stage_of("s", rows)))
    assert {c.title: [colour for _, colour, _ in c.legend] for c in main} == {
        "KL to the base model": [2],
        "Length": [1, 2],
    }


def test_histograms_share_one_axis_cut_behind_the_last_used_bin():
    base, trained = panels.histograms(EVALUATION)
    assert base.note.startswith("90% below 0.25")
    assert base.svg.count("<rect") == trained.svg.count("<rect") == 3
    assert panels.histograms({"histogram": {"base": None}}) == []


def test_timing_gives_medians_shares_and_first_steps():
    rows = [{"time/sample": 9.0, "time/update": 3.0, "tokens_per_second/sample": 10.0}]
    rows += [{"time/sample": 1.0, "time/update": 3.0, "tokens_per_second/sample": 5000.0}] * 2
    table, total = panels.timing(stage_of("s", rows))
    assert table == [
        ("sample", "1 s", "25%", "9 s", "5,000", "–"),
        ("update", "3 s", "75%", "3 s", "–", "–"),
    ]
    assert total == "3 logged steps, 0.3 minutes"


def test_a_whole_step_time_is_the_total_and_no_share():
    table, total = panels.timing(stage_of("s", [{"time/sample": 30.0, "time/step": 60.0}] * 2))
    assert table[1][:3] == ("step", "60 s", "–")
    assert total == "2 logged steps, 2.0 minutes"


def of_three_turns(**more):
    values = {"accuracy/turn1": 0.5, "accuracy/turn2": 0.45, "accuracy/turn3": 0.7, "delta": 0.2}
    values |= {"step_delta/turn2": -0.05, "step_delta/turn3": 0.25, "step_fix_rate/turn3": 0.5}
    greedy = {key: triple(value, value - 0.01, value + 0.01) for key, value in values.items()}
    return {"models": {"base": {"greedy": {}}, "stage2": {"greedy": greedy, **more}}}


def test_there_are_as_many_accuracies_as_turns():
    assert list(panels.main_metrics(EVALUATION).values()) == [
        "Acc@t1", "Acc@t2", "Δ", "Δ i→c", "Δ c→i",
    ]  # fmt: skip
    assert list(panels.main_metrics(of_three_turns()).values())[:4] == [
        "Acc@t1", "Acc@t2", "Acc@t3", "Δ",
    ]  # fmt: skip
    one = {"models": {"base": {"sampled": {"accuracy/turn1": triple(0.5, 0.4, 0.6)}}}}
    assert list(panels.main_metrics(one)) == ["accuracy/turn1"]
    ((_, ((_, cells),)),) = panels.results(of_three_turns())
    assert [cell["text"] for cell in cells] == ["50.0", "45.0", "70.0", "+20.0", "–", "–"]


def test_steps_between_more_than_two_attempts_have_a_table_of_their_own():
    headings, ((title, ((model, cells),)),) = panels.steps(of_three_turns())
    assert headings == ["Δ 1→2", "Δ 2→3"] and (title, model) == ("Greedy", "Stage II")
    assert [(cell["text"], cell["tone"]) for cell in cells] == [("-5.0", "bad"), ("+25.0", "good")]
    assert panels.steps(EVALUATION) == ([], [])
    ((_, _, rows),) = panels.details(of_three_turns())
    assert ("step_fix_rate/turn3", "50.0") in [(key, cells[0]["text"]) for key, cells in rows]


def test_the_arrow_of_more_attempts_ends_at_the_last():
    ((_, svg),) = panels.change_charts(of_three_turns())
    assert "last attempt: 70.0%" in svg and "+20.0" in svg and "45.0%" not in svg
    ((_, svg),) = panels.change_charts(EVALUATION)
    assert "second attempt: 60.0%" in svg
    one = {"models": {"base": {"greedy": {"accuracy/turn1": triple(0.5, 0.4, 0.6)}}}}
    assert panels.change_charts(one) == []


def test_each_task_of_a_mixture_has_its_tables():
    own = {"accuracy/turn1": triple(0.25, 0.2, 0.3), "accuracy/turn3": triple(0.75, 0.7, 0.8)}
    other = {"accuracy/turn1": triple(0.5, 0.4, 0.6), "delta": triple(0.1, 0.0, 0.2)}
    mixed = of_three_turns(by_task={"greedy": {"words": own, "math": other}})
    (first, ((title, ((model, cells),)),)), (second, _) = panels.by_task(mixed)
    assert (first, second, title, model) == ("math", "words", "Greedy", "Stage II")
    assert [cell["text"] for cell in cells] == ["50.0", "–", "–", "+10.0", "–", "–"]
    assert panels.by_task(EVALUATION) == []


def test_each_tasks_accuracies_and_rewards_are_charts_in_training():
    names = [f"task/{task}/{what}/turn{turn}" for task in ("math", "tests.short_answers")
             for what in ("accuracy", "reward") for turn in (1, 2)]  # fmt: skip
    _, more = panels.curves(run_of(stage_of("s", [dict.fromkeys(names, 0.25)] * 2)))
    assert [chart.title for chart in more] == [
        "Accuracy on math",
        "Reward on math",
        "Accuracy on tests.short_answers",
        "Reward on tests.short_answers",
    ]
    assert more[0].legend == (("turn 1", 1, "25.0%"), ("turn 2", 2, "25.0%"))


def test_an_alarm_is_marked_at_its_step_on_its_own_curve_behind_the_stage_before():
    raised = {"step": 3, "metric": "answer_changed", "event": "raised", "text": "copies <now>"}
    cleared = raised | {"step": 4, "event": "cleared"}
    rows = [{"answer_changed": 0.1, "delta": 0.2}] * 4
    second = replace(stage_of("stage2", rows), alarms=(raised, cleared))
    main, _ = panels.curves(run_of(stage_of("stage1", rows), second))
    marked = {chart.title: re.findall(r'class="mark" x1="([\d.]+)"', chart.svg) for chart in main}
    place = LEFT + (4 + 3) / 8 * (WIDTH - LEFT - RIGHT)
    assert [float(x) for x in marked["Answer changed"]] == [pytest.approx(place, abs=0.1)]
    assert marked["Gain"] == []
    assert sum("<title>step 3: copies &lt;now&gt;</title>" in chart.svg for chart in main) == 1
