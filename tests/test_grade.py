import io
import json

import pytest

from score_jax import grade


def run(monkeypatch, capsys, lines, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    code = grade.main([*arguments, "--workers=1"])
    captured = capsys.readouterr()
    return code, [json.loads(line) for line in captured.out.splitlines()], captured.err


def test_verdicts_come_in_order(monkeypatch, capsys):
    lines = [
        json.dumps({"answer": "1/2", "response": r"\boxed{0.5}"}),
        "",
        json.dumps({"answer": 3, "response": "The answer is 4."}),
        json.dumps({"answer": "3", "response": "?"}),
    ]
    code, out, err = run(monkeypatch, capsys, lines, "--task=math")
    assert code == 0
    assert [(row["verdict"], row["reward"], row["extracted"]) for row in out] == [
        ("correct", 1.0, "0.5"),
        ("wrong", 0.0, "4"),
        ("unparsable", 0.0, None),
    ]
    assert json.loads(err) == {"correct": 1, "wrong": 1, "unparsable": 1}


def test_programs_are_graded_by_their_tests(monkeypatch, capsys):
    line = json.dumps({"tests": ["assert f(2) == 4"], "response": "def f(x): return 2 * x"})
    _, out, _ = run(monkeypatch, capsys, [line], "--task=code")
    assert out[0]["verdict"] == "correct"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 has no text in its field 'response'"),
        ('{"response": "x"}', "line 2 has neither 'answer' nor 'tests'"),
    ],
)
def test_a_broken_line_is_named(monkeypatch, capsys, line, message):
    good = json.dumps({"answer": "1", "response": "The answer is 1."})
    code, _, err = run(monkeypatch, capsys, [good, line], "--task=math")
    assert code == 2 and message in err


def test_an_unknown_task_is_one_line(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, [], "--task=maths")
    assert code == 2 and "choose one of" in err
