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
        tmp_path, GOOD, "", {"prompt": "f", "tests": ["assert f() == 1"], "first_attempt": None}
    )
    first, second = jsonl.problems(path, task="numeric")
    assert (first.id, first.answer, first.task, first.tests) == ("a", "2", "numeric", ())
    assert second.id == f"{path}:3"
    assert second.tests == ("assert f() == 1",)


def test_other_field_names_are_mapped(tmp_path):
    path = write(tmp_path, {"question": "q", "gold": "B"})
    problem = jsonl.problems(path, fields={"prompt": "question", "answer": "gold"})[0]
    assert (problem.prompt, problem.answer) == ("q", "B")


def test_tests_are_hidden_unless_the_row_or_the_config_shows_them(tmp_path):
    row = {"prompt": "f", "tests": ["assert f(1)", "assert f(2)"]}
    path = write(tmp_path, row, row | {"shown": ["assert f(2)"]})
    assert [p.shown for p in jsonl.problems(path)] == [(), ("assert f(2)",)]
    shown = jsonl.problems(path, fields={"shown": "tests"})
    assert [p.shown for p in shown] == [("assert f(1)", "assert f(2)")] * 2


@pytest.mark.parametrize("mark", ["\ufeff", "\ufeff\ufeff", " \ufeff"])
def test_a_byte_order_mark_is_passed_over_wherever_files_were_joined(tmp_path, mark):
    second = json.dumps({"id": "b", "prompt": "\ufeffé", "answer": "π"}, ensure_ascii=False)
    path = tmp_path / "problems.jsonl"
    path.write_text(f"{mark}{json.dumps(GOOD)}\r\n{mark}{second}\n{mark}", encoding="utf-8")
    problems = jsonl.problems(path)
    assert [(p.id, p.prompt, p.answer) for p in problems] == [
        ("a", "1 + 1?", "2"),
        ("b", "\ufeffé", "π"),
    ]


def test_surrogate_pairs_are_text(tmp_path):
    path = write(tmp_path, '{"prompt": "\\ud83d\\ude00", "answer": "\\\\ud83d"}')
    assert (jsonl.problems(path)[0].prompt, jsonl.problems(path)[0].answer) == ("😀", "\\ud83d")


def test_the_line_with_bytes_that_are_no_utf8_is_named(tmp_path):
    path = tmp_path / "problems.jsonl"
    good = "".join(json.dumps(GOOD | {"id": n}) + "\n" for n in range(500))
    path.write_bytes(good.encode() + '{"prompt": "é", "answer": 1}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"problems.jsonl:501 is not UTF-8"):
        jsonl.problems(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"prompt": "a \\ud800", "answer": 1}',
            r"jsonl:2 holds half of a .* pair, \\ud800",
        ),
        (
            '{"prompt": "p", "answer": "\\udfff"}',
            r"jsonl:2 holds half of a .* pair, \\udfff",
        ),
        ('{"prompt": "p", "tests": ["\\udc80"]}', "jsonl:2 holds half of a surrogate pair"),
        ('{"prompt": "p", "answer": 1, "\\ud83d": 1}', "jsonl:2 holds half of a surrogate pair"),
        ('{"prompt": "p", "answer": NaN}', "jsonl:2 is not JSON: NaN"),
        ('{"prompt": "p", "answer": 1e999}', "jsonl:2: 'answer' is too large a number"),
        ('{"prompt": "p", "answer": ""}', "jsonl:2 has neither 'answer' nor 'tests'"),
        ({"prompt": " ", "answer": "1"}, "jsonl:2 has no text in its field 'prompt'"),
        ({"prompt": "p", "tests": {"a": 1}}, "jsonl:2: 'tests' must be a list of texts"),
        ({"prompt": "p", "tests": 5}, "jsonl:2: 'tests' must be a list of texts"),
        ({"prompt": "p", "tests": False, "answer": 1}, "jsonl:2: 'tests' must be a list of texts"),
        ({"prompt": "p", "tests": ["assert 1", 2]}, "jsonl:2: 'tests' must be a list of texts"),
        ({"prompt": "p", "tests": [["assert 1"]]}, "jsonl:2: 'tests' must be a list of texts"),
        ({"prompt": "p", "tests": [" "]}, "jsonl:2: 'tests' must be .* none of them blank"),
        ({"prompt": "p", "tests": ["a"], "shown": ["b"]}, "jsonl:2: 'shown' must be some of"),
        ({"prompt": "p", "tests": ["a"], "shown": "a"}, "jsonl:2: 'shown' must be a list"),
        ({"prompt": "p", "answer": 1, "id": ["x"]}, "jsonl:2: 'id' must be text or a number"),
        ({"prompt": "p", "answer": 1, "task": 3}, "jsonl:2: 'task' must be text"),
        ({"prompt": "p", "answer": 1, "first_attempt": 3}, "jsonl:2 has a first attempt"),
        ("{broken", "problems.jsonl:2 is not JSON"),
        ("[" * 100_000, "problems.jsonl:2 is not JSON"),
        ("[1]", "problems.jsonl:2 is a list"),
        ({"id": "b", "answer": "1"}, "problems.jsonl:2 has no text in its field 'prompt'"),
        ({"id": "b", "prompt": "p"}, "problems.jsonl:2 has neither 'answer' nor 'tests'"),
        ({"id": "b", "prompt": "p", "tests": "x"}, "problems.jsonl:2: 'tests' must be a list"),
        ({"id": "b", "prompt": "p", "answer": []}, "problems.jsonl:2: 'answer' must be text"),
        (GOOD, r"problems.jsonl:2 has the id 'a', as .*problems.jsonl:1;"),
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
