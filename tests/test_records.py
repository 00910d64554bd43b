"""The contents and the label of a problem."""

import pytest

from score_jax.records import Problem


@pytest.mark.parametrize(
    ("id", "location", "label"),
    [
        ("q7", "a.jsonl:3", "a.jsonl:3 (q7)"),
        ("a.jsonl:3", "a.jsonl:3", "a.jsonl:3"),
        ("mbpp/11", "", "mbpp/11"),
    ],
)
def test_a_problem_is_labelled_by_its_file_and_line_where_it_has_one(id, location, label):
    assert Problem(id=id, prompt="?", location=location).label == label


def test_contents_do_not_depend_on_where_a_file_lies():
    here, there = (
        Problem(id=f"{folder}/p:1", prompt="?", location=f"{folder}/p:1") for folder in "ab"
    )
    assert here != there and here.contents() == there.contents()
    named = [Problem(id="q", prompt="?", location=location) for location in ("a:1", "b:9", "")]
    assert named[0].contents() == named[1].contents() == named[2].contents()
    assert named[0].contents() != Problem(id="r", prompt="?", location="a:1").contents()
    again = [Problem(id=f"{f}/p:1#2", prompt="?", location=f"{f}/p:1") for f in "ab"]
    assert again[0].contents() == again[1].contents() != here.contents()
