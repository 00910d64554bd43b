import json

import pytest

from score_jax.data import tfds
from score_jax.data.__main__ import main
from score_jax.records import Problem
from score_jax.tasks import registry

CONFIG = """
from ml_collections import ConfigDict

def get_config(argument="jsonl"):
    return ConfigDict({{"task": "numeric", "data": {{"source": argument, "path": {path!r}}}}})
"""


@pytest.fixture
def config(tmp_path):
    rows = [
        {"id": "a", "prompt": "1 + 1?", "answer": 2},
        {"id": "b", "prompt": "Say 3.", "answer": 3, "task": "numeric"},
    ]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "config.py").write_text(CONFIG.format(path=str(tmp_path / "p.jsonl")))
    return str(tmp_path / "config.py")


def test_problems_are_shown_as_a_model_sees_them(config, capsys):
    assert main([f"--config={config}", "--show=2"]) == 0
    shown = capsys.readouterr().out
    assert "2 problems" in shown and "=== a (numeric)\n1 + 1?" in shown
    assert "=== b (numeric)" in shown
    assert "--- gold\n2" in shown


def test_a_row_of_another_task_is_shown_as_that_task_asks_it(config, tmp_path, capsys):
    with (tmp_path / "p.jsonl").open("a") as file:
        file.write('\n{"prompt": "Say 4.", "answer": 4, "task": "exact"}')
    assert main([f"--config={config}", "--show=3"]) == 0
    own = registry.get("exact")
    asked = own.prompt(Problem(id="", prompt="Say 4."))
    shown = capsys.readouterr().out
    assert f"=== {tmp_path / 'p.jsonl'}:3 (exact)\n{asked}\n--- then\n{own.instruction}" in shown


def test_rows_none_of_which_is_of_the_task_are_refused_as_the_run_would(config, tmp_path, capsys):
    place = tmp_path / "p.jsonl"
    place.write_text('{"prompt": "Say 4.", "answer": 4, "task": "exact"}')
    assert main([f"--config={config}"]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert f"only problems of task 'exact' (the first is '{place}:1')" in captured.err


def test_mistakes_are_one_line(config, tmp_path, capsys):
    (tmp_path / "empty.py").write_text("x = 1")
    for argument, message in (
        (config + ":sql", "data.source is 'sql'"),
        (str(tmp_path / "absent.py"), "No such file"),
        (str(tmp_path / "empty.py"), "must define get_config"),
    ):
        assert main([f"--config={argument}"]) == 2
        assert message in capsys.readouterr().err


def test_a_data_set_is_prepared(tmp_path, capsys):
    pytest.importorskip("tensorflow_datasets")
    file = tmp_path / "g.jsonl"
    file.write_text(json.dumps({"question": "q", "answer": "#### 4"}))
    assert main(["--prepare=gsm8k", f"--files=test={file}", f"--path={tmp_path}"]) == 0
    assert (tmp_path / "score_gsm8k" / tfds.OWN_VERSION / tfds.INFO).exists()
    assert main(["--prepare=gsm8k"]) == 2
