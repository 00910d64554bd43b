import json

import pytest

from score_jax.data import jsonl


def write(tmp_path, *lines):
    path = tmp_path / "problems.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


GOOD = {"id": "a", "prompt": "1 + 1?", "answer": 2}


def test_rows_become_problems(tmp_path):
    path = write(
        tmp_path, GOOD, "", {"prompt": "f", "tests": ["assert f() == 1"], "first_attempt": "no"}
    )
    first, second = jsonl.problems(path, task="numeric")
    assert (first.id, first.answer, first.task, first.tests) == ("a", "2", "numeric", ())
    assert second.id == f"{path}:3"
    assert (second.tests, second.first_attempt) == (("assert f() == 1",), "no")


def test_other_field_names_are_mapped(tmp_path):
    path = write(tmp_path, {"question": "q", "gold": "B"})
    problem = jsonl.problems(path, fields={"prompt": "question", "answer": "gold"})[0]
    assert (problem.prompt, problem.answer) == ("q", "B")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "problems.jsonl:2 is not JSON"),
        ("[" * 100_000, "problems.jsonl:2 is not JSON"),
        ("[1]", "problems.jsonl:2 is a list"),
        ({"id": "b", "answer": "1"}, "problems.jsonl:2 has no text in its field 'prompt'"),
        ({"id": "b", "prompt": "p"}, "problems.jsonl:2 has neither 'answer' nor 'tests'"),
        ({"id": "b", "prompt": "p", "tests": "x"}, "problems.jsonl:2: 'tests' must be a list"),
        ({"id": "b", "prompt": "p", "answer": []}, "problems.jsonl:2: 'answer' must be text"),
        (GOOD, r"problems.jsonl:2 has the id 'a' of .*problems.jsonl:1"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        jsonl.problems(write(tmp_path, GOOD, line))


def test_an_empty_or_absent_or_binary_file_is_named(tmp_path):
    with pytest.raises(ValueError, match="holds no problems"):
        jsonl.problems(write(tmp_path, "", ""))
    with pytest.raises(ValueError, match="No such file"):
        jsonl.problems(tmp_path / "absent")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary:1 is not UTF-8"):
        jsonl.problems(tmp_path / "binary")


def test_an_unknown_field_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data.fields names \['gold'\]"):
        jsonl.problems(write(tmp_path, GOOD), fields={"gold": "answer"})


def test_a_column_is_read_by_id(tmp_path):
    path = write(tmp_path, {"id": 1, "pass_rate": 0.5})
    assert jsonl.column(path, "pass_rate") == {"1": 0.5}
    with pytest.raises(ValueError, match="needs the fields 'id' and 'rate'"):
        jsonl.column(path, "rate")
    with pytest.raises(ValueError, match="second time"):
        jsonl.column(write(tmp_path, {"id": 1, "x": 1}, {"id": "1", "x": 1}), "x")
