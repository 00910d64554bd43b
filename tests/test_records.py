"""What a problem is by contents, and by what people find it."""

import pytest

from score_jax.records import Problem


@pytest.mark.parametrize(
    ("id", "place", "named"),
    [
        ("q7", "a.jsonl:3", "a.jsonl:3 (q7)"),
        ("a.jsonl:3", "a.jsonl:3", "a.jsonl:3"),
        ("mbpp/11", "", "mbpp/11"),
    ],
)
def test_a_problem_is_named_by_its_file_and_line_where_it_has_one(id, place, named):
    assert Problem(id=id, prompt="?", place=place).named == named


def test_contents_do_not_depend_on_where_a_file_lies():
    here, there = (
        Problem(id=f"{folder}/p:1", prompt="?", place=f"{folder}/p:1") for folder in "ab"
    )
    assert here != there and here.contents() == there.contents()
    named = [Problem(id="q", prompt="?", place=place) for place in ("a:1", "b:9", "")]
    assert named[0].contents() == named[1].contents() == named[2].contents()
    assert named[0].contents() != Problem(id="r", prompt="?", place="a:1").contents()
