"""In a locale that knows ASCII alone, files are UTF-8 and what is printed does not crash."""

import json
import os
import subprocess
import sys

import pytest

from score_jax.text import terminal

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
CONFIG = """
from ml_collections import ConfigDict

def get_config():  # π
    return ConfigDict({{"task": "exact", "data": {{"source": "jsonl", "path": {path!r}}}}})
"""
WRITE = """
from pathlib import Path
from score_jax.report.json_files import read_json, write_json
write_json(Path("a.json"), "\\u03c0")
assert read_json(Path("a.json")) == "\\u03c0"
"""


def run(folder, *arguments):
    told = {"capture_output": True, "cwd": folder, "check": False}
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    environment = os.environ | ASCII | {"PYTHONPATH": path}
    return subprocess.run([sys.executable, *arguments], env=environment, **told)


def test_problems_beyond_ascii_are_shown(tmp_path):
    row = {"id": "é", "prompt": "2 × 3 ≥ π?", "answer": "日本"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    text = CONFIG.format(path=str(tmp_path / "p.jsonl"))
    (tmp_path / "config.py").write_text(text, encoding="utf-8")
    done = run(tmp_path, "-m", "score_jax.data", "--config=config.py")
    assert done.returncode == 0, done.stderr
    assert rb"2 \xd7 3 \u2265 \u03c0?" in done.stdout


def test_files_are_read_as_they_were_written(tmp_path):
    done = run(tmp_path, "-c", WRITE)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == "π"


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("plain", "plain"),
        ("é", "é"),
        ("\udcc3\udca9", "é"),  # how an ASCII locale hands on the two bytes of é
        ("\udce2\udc89\udca5 1", "≥ 1"),
        ("\udcff", "\ufffd"),
    ],
)
def test_arguments_are_read_as_utf8(argument, text):
    assert terminal.as_text(argument) == text
