"""Attempts that come with problems: one problem for each, in the order of problems and file."""

import json

import numpy as np
import pytest

from score_jax.data import sources, store
from tests.data.test_store import dialogue

ROWS = [{"id": name, "prompt": f"{name}?", "answer": name} for name in "abcd"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(tmp_path, attempts, rows=ROWS, **settings):
    path = write(tmp_path / "problems.jsonl", rows)
    given = write(tmp_path / "attempts.jsonl", attempts)
    return sources.load(source="jsonl", path=path, first_attempts=given, **settings)


def test_each_attempt_is_a_problem_of_its_own_and_the_rest_are_left_out(tmp_path):
    found = load(
        tmp_path,
        [
            {"id": "c", "attempt": "C1"},
            {"id": "a", "tokens": [5, 0, 7]},
            {"id": "c", "attempt": ""},
            {"id": "c", "tokens": [9], "model": "another"},
        ],
    )
    assert [(p.id, p.prompt, p.answer, p.given) for p in found] == [
        ("a", "a?", "a", ((5, 0, 7),)),
        ("c", "c?", "c", ("C1",)),
        ("c#2", "c?", "c", ("",)),
        ("c#3", "c?", "c", ((9,),)),
    ]


def test_rows_without_ids_are_named_by_their_lines_and_ids_may_be_numbers(tmp_path):
    rows = [{"prompt": "x", "answer": "1"}, {"id": 7, "prompt": "y", "answer": "2"}]
    place = f"{tmp_path / 'problems.jsonl'}:1"
    attempts = [
        {"id": place, "attempt": "X"},
        {"id": 7, "attempt": "Y"},
        {"id": "7", "attempt": "Z"},
    ]
    found = load(tmp_path, attempts, rows)
    assert [(p.id, p.given) for p in found] == [(place, ("X",)), ("7", ("Y",)), ("7#2", ("Z",))]


def test_problems_are_filtered_and_counted_before_their_attempts_are(tmp_path):
    attempts = [{"id": name, "attempt": f"{name}{n}"} for n in range(2) for name in "abcd"]
    rates = [{"id": name, "pass_rate": 0.0 if name == "b" else 0.5} for name in "abcd"]
    rates = write(tmp_path / "rates", rates)
    found = load(tmp_path, attempts, pass_rates=rates, pass_rate_range=(0.1, 0.9), count=2)
    assert [p.id for p in found] == ["a", "a#2", "c", "c#2"]
    assert [p.given for p in found] == [("a0",), ("a1",), ("c0",), ("c1",)]


def test_a_part_of_a_mixture_may_have_attempts_or_the_whole(tmp_path):
    path = write(tmp_path / "problems.jsonl", ROWS[:1])
    own = write(tmp_path / "own", [{"id": "a", "attempt": "A"}, {"id": "a", "attempt": "B"}])
    part = {"source": "jsonl", "path": path}
    parts = [part | {"first_attempts": own}, part]
    found = sources.load(source="mixture", parts=parts)
    assert sorted((p.id, p.given) for p in found) == [
        ("0.0/a", ("A",)),
        ("0.0/a#2", ("B",)),
        ("1.0/a", ()),
        ("1.1/a", ()),
    ]
    whole = write(tmp_path / "whole", [{"id": "1.0/a", "attempt": "C"}])
    found = sources.load(source="mixture", parts=[part, part], first_attempts=whole)
    assert [(p.id, p.given) for p in found] == [("1.0/a", ("C",))]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"id": "z", "attempt": "Z"},
            r"jsonl:2: data.first_attempts has an attempt at 'z', and no",
        ),
        ({"attempt": "Z"}, "jsonl:2: 'id' must be text or a number"),
        ({"id": ["a"], "attempt": "Z"}, "jsonl:2: 'id' must be text or a number"),
        ({"id": "b"}, "jsonl:2 needs either 'attempt', a text, or 'tokens', a list of ids"),
        ({"id": "b", "attempt": "B", "tokens": [1]}, "jsonl:2 needs either 'attempt', a text, or"),
        ({"id": "b", "attempt": 3}, "jsonl:2: 'attempt' must be text"),
        ({"id": "b", "tokens": "1 2"}, "jsonl:2: 'tokens' must be a list of token ids"),
        ({"id": "b", "tokens": [1, -2]}, "jsonl:2: 'tokens' must be a list of token ids"),
        ({"id": "b", "tokens": [1, 2.0]}, "jsonl:2: 'tokens' must be a list of token ids"),
        ({"id": "b", "tokens": [True]}, "jsonl:2: 'tokens' must be a list of token ids"),
        (["b", "B"], "jsonl:2 is a list"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, row, told):
    with pytest.raises(ValueError, match=told):
        load(tmp_path, [{"id": "a", "attempt": "A"}, row])


def test_the_first_of_several_unknown_ids_is_named(tmp_path):
    lines = [{"id": name, "attempt": "?"} for name in ("a", "y", "x", "y")]
    with pytest.raises(ValueError, match=r"attempts.jsonl:2: .* an attempt at 'y'"):
        load(tmp_path, lines)


def test_attempts_at_problems_that_are_all_filtered_out_are_none(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.first_attempts is '.*attempts.jsonl'; it has an at"
    ):
        load(tmp_path, [{"id": "d", "attempt": "D"}], count=3)
    with pytest.raises(
        ValueError, match=r"data.first_attempts is '.*attempts.jsonl'; it has an at"
    ):
        load(tmp_path, [])


def test_an_absent_file_is_named_by_its_own_field(tmp_path):
    path = write(tmp_path / "problems.jsonl", ROWS)
    for field in ("first_attempts", "pass_rates"):
        with pytest.raises(ValueError, match=rf"data.{field} is 'absent'; No such file"):
            sources.load(source="jsonl", path=path, **{field: "absent"})


def test_an_id_that_looks_like_that_of_a_second_attempt_is_refused(tmp_path):
    rows = [*ROWS, {"id": "a#2", "prompt": "?", "answer": "1"}]
    lines = [{"id": name, "attempt": "?"} for name in ("a", "a", "a#2")]
    with pytest.raises(ValueError, match=r"two problems have the id 'a#2': rename one"):
        load(tmp_path, lines, rows)


def kept(folder, *firsts):
    """Rollouts of two steps: the problem and the tokens of each first attempt, by step and row."""
    for number, (problem, ids) in enumerate(firsts):
        tokens = np.array([7, 7, *ids, 4, 8, 1], np.int32)
        turn = np.array([0, 0, *[1] * len(ids), 0, 2, 2], np.int32)
        columns = {"sampled": turn > 0, "trained": turn > 0, "logprobs": turn * np.float32(-1)}
        step, row = divmod(number, 3)
        own = dialogue(step, row, problem=problem, tokens=tokens, turn=turn, **columns)
        store.write(folder, [own], step=step, host=row)
    return str(folder)


def test_a_folder_of_rollouts_gives_the_tokens_that_were_drawn_first(tmp_path):
    """With the stop token where there was one; those at other problems are left out."""
    path = write(tmp_path / "problems.jsonl", ROWS)
    rollouts = kept(
        tmp_path / "rollouts",
        ("c", [5, 6, 1]),
        ("stranger", [2, 1]),
        ("a", [9, 9, 9]),
        ("c", [1]),
        ("d", []),
        ("c", [5, 6, 1]),
    )
    found = sources.load(source="jsonl", path=path, first_attempts=rollouts)
    assert [(p.id, p.prompt, p.given) for p in found] == [
        ("a", "a?", ((9, 9, 9),)),
        ("c", "c?", ((5, 6, 1),)),
        ("c#2", "c?", ((1,),)),
        ("c#3", "c?", ((5, 6, 1),)),
    ]
    assert all(type(token) is int for p in found for token in p.given[0])


@pytest.mark.parametrize("firsts", [(), (("stranger", [2, 1]),)])
def test_a_folder_without_attempts_at_the_problems_is_named(tmp_path, firsts):
    path = write(tmp_path / "problems.jsonl", ROWS)
    folder = tmp_path / "rollouts"
    folder.mkdir()
    kept(folder, *firsts)
    with pytest.raises(ValueError, match=r"data.first_attempts is '.*rollouts'; it has an attempt"):
        sources.load(source="jsonl", path=path, first_attempts=str(folder))


def test_a_damaged_file_of_rollouts_is_named(tmp_path):
    path = write(tmp_path / "problems.jsonl", ROWS)
    rollouts = kept(tmp_path / "rollouts", ("a", [5, 1]), ("b", [6, 1]))
    (tmp_path / "rollouts/step-00000000.host-001.arrow").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"step-00000000\.host-001\.arrow is damaged .*; move it"):
        sources.load(source="jsonl", path=path, first_attempts=rollouts)
