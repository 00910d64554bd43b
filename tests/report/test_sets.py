"""Votes and further evaluations on the page: the right numbers in the right place."""

import json

import pytest

from score_jax.report import sets
from tests.report.test_page import read, write_run
from tests.report.test_panels import EVALUATION, of_three_turns, triple


def voted(*budgets):
    row = {"parallel": 0.5, "sequential": 0.6, "gain": 0.1, "pass_parallel": 0.7}
    cells = {name: triple(value, value - 0.02, value + 0.02) for name, value in row.items()}
    return {
        "models": {"base": {"greedy": {}}, "stage2": {"scaling": dict.fromkeys(budgets, cells)}}
    }


def test_votes_are_drawn_over_doubled_samples():
    (chart,) = sets.vote_charts(voted("2", "4", "16", "8"))
    assert chart.title == "Accuracy by samples per problem"
    assert chart.note == "Stage II, majority vote"
    assert chart.legend == (("parallel", 1, "50.0%"), ("sequential", 2, "60.0%"))
    labels = [f'class="mid">{k}</text>' for k in (2, 4, 8, 16)]
    places = [chart.svg.index(label) for label in labels]
    assert places == sorted(places) and "samples 16" in chart.svg


def test_votes_of_three_turns_are_labelled_by_their_own_budgets():
    (chart,) = sets.vote_charts(voted("3", "6", "12"))
    assert all(f'class="mid">{k}</text>' in chart.svg for k in (3, 6, 12))


def test_one_budget_is_no_curve_but_a_column_of_the_table():
    assert sets.vote_charts(voted("2")) == [] == sets.vote_charts(EVALUATION)
    ((title, budgets, rows),) = sets.vote_tables(voted("2"))
    assert (title, budgets) == ("Stage II, by samples per problem", ["2"])
    table = {name: (cells[0]["text"], cells[0]["tone"]) for name, cells in rows}
    assert table["gain"] == ("+10.0", "good") and table["parallel"] == ("50.0", "")


def test_a_set_shows_its_accuracies_and_delta():
    headings, ((title, rows),) = sets.set_tables(of_three_turns())
    assert headings == ["Acc@t1", "Acc@t2", "Acc@t3", "Δ"] and title == "Greedy"
    assert [cell["text"] for cell in rows[-1][1]] == ["50.0", "45.0", "70.0", "+20.0"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"turns": 10, "script": "b", "hash": "y"}, "turns 10"),
        ({"samples": 32, "temperature": 0.7}, "samples 32, temperature 0.7"),
        ({"contents": "q"}, "other problems"),
        ({"problems": 16, "contents": "q"}, "problems 16"),
        ({"script": "b"}, "another dialogue plan"),
        ({}, ""),
    ],
)
def test_a_set_says_what_differs(other, told):
    protocol = {"hash": "x", "task": "math", "problems": 9, "contents": "p", "script": "a",
                "turns": 2, "samples": 2, "temperature": 1.0}  # fmt: skip
    assert sets.differences({"protocol": protocol}, {"protocol": protocol | other}) == told


def test_the_page_shows_votes_and_each_further_set(tmp_path):
    write_run(tmp_path)
    path = tmp_path / "stage2/evaluation.json"
    main = json.loads(path.read_text())
    main["models"]["stage2"] |= voted("2", "4")["models"]["stage2"]
    path.write_text(json.dumps(main))
    for name, own in (("votes", voted("2", "4")), ("attempts", of_three_turns())):
        own |= {"protocol": {"turns": 3}, "lost_characters": {"dialogue.instructions[1]": "W"}}
        (tmp_path / f"stage2/evaluation_{name}.json").write_text(json.dumps(own))
    (tmp_path / "stage2/evaluation_broken.json").write_text("{")
    _, page = read(tmp_path)
    assert page.text.count("Accuracy by samples per problem") == 2
    for text in (
        "Further evaluations",
        "attempts: Greedy",
        "Differs in: turns 3",
        "+20.0",
        "no piece for W",
    ):
        assert text in page.text
    assert "stage2/evaluation_broken.json cannot be read" in page.text
