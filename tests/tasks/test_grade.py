import io
import json
import os
import subprocess
import sys

import pytest

from score_jax.tasks import __main__ as grade


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


def test_a_cut_response_counts_only_with_a_closed_answer(monkeypatch, capsys):
    lines = [
        json.dumps({"answer": "1", "response": response, "truncated": truncated})
        for response, truncated in (
            ("The answer is 1", True),
            ("The answer is 1", False),
            ("The answer is 1.\nSo", True),
        )
    ]
    _, out, _ = run(monkeypatch, capsys, lines, "--task=math")
    assert [row["verdict"] for row in out] == ["unparsable", "correct", "correct"]
    assert out[0]["detail"] == "cut off before its answer was closed"


def test_programs_are_graded_by_their_tests(monkeypatch, capsys):
    line = json.dumps({"tests": ["assert f(2) == 4"], "response": "def f(x): return 2 * x"})
    _, out, _ = run(monkeypatch, capsys, [line], "--task=code")
    assert out[0]["verdict"] == "correct"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[]", "line 2 has no text in its field 'response'"),
        (
            '{"response": "x", "answer": "1", "truncated": 1}',
            "line 2: 'truncated' must be true or false",
        ),
        ('{"response": "x"}', "line 2 has neither 'answer' nor 'tests'"),
        ('{"response": "x", "tests": "assert f()"}', "line 2: 'tests' must be a list of texts"),
        ('{"response": "x", "tests": 7}', "line 2: 'tests' must be a list of texts"),
        ('{"response": "x", "tests": {"a": 1}}', "line 2: 'tests' must be a list of texts"),
        ('{"response": "x", "tests": [1]}', "line 2: 'tests' must be a list of texts"),
        ('{"response": "x", "tests": [""], "answer": "1"}', "line 2: 'tests' must be a list"),
        ('{"response": "x", "answer": [1]}', "line 2: 'answer' must be text or a number"),
        ('{"response": "x", "answer": NaN}', "line 2 is not JSON: NaN"),
        ('{"response": "x", "answer": 1, "prompt": 1}', "line 2: 'prompt' must be text"),
        ('{"response": "\\ud800", "answer": "1"}', "line 2 holds half of a surrogate pair"),
        ('{"response": "x", "answer": "\udce9"}', "line 2 is not UTF-8"),
        (
            '{"response": "x", "answer": 1, "task": "exact"}',
            "--task is 'math', but line 2 is of task 'exact'; grade the answers of each task in a "
            "call of its own",
        ),
    ],
)
def test_a_broken_line_is_named(monkeypatch, capsys, line, message):
    good = json.dumps({"answer": "1", "response": "The answer is 1."})
    code, _, err = run(monkeypatch, capsys, [good, line], "--task=math")
    assert code == 2 and message in err


def test_bytes_are_utf8_in_any_locale(tmp_path):
    """A byte-order mark, letters beyond ASCII, and another byte than UTF-8's, in the C locale."""
    row = {"answer": "é", "response": "Final Answer: é"}
    text = "\ufeff" + json.dumps(row, ensure_ascii=False) + "\n"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def run(data):
        command = [sys.executable, "-m", "score_jax.tasks.__main__", "--task=exact", "--workers=1"]
        told = {"capture_output": True, "env": environment}
        return subprocess.run(command, input=data, check=False, **told)

    done = run(text.encode())
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["verdict"] == "correct"
    refused = run(text.encode() + text.encode("utf-16-le"))
    assert refused.returncode == 2 and b"error: line 2 is not" in refused.stderr


def test_an_unknown_task_is_one_line(monkeypatch, capsys):
    code, _, err = run(monkeypatch, capsys, [], "--task=maths")
    assert code == 2 and "choose one of" in err
