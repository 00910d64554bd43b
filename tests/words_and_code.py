"""Stage I of SmolLM2 on word problems and programs at once; the data of test_words_and_code."""

import json
import os
from pathlib import Path

from ml_collections import ConfigDict

from configs import stage1

FOLDER = "SCORE_JAX_TEST_PROGRAMS"  # environment: where `get_config` writes its programs
PROGRAMS = {
    "double": ("Return twice x.", "candidate(2) == 4 and candidate(-1) == -2"),
    "is_even": ("Return whether x is even.", "candidate(4) and not candidate(5)"),
    "negative": ("Return minus x.", "candidate(3) == -3 and candidate(-3) == 3"),
    "successor": ("Return the number after x.", "candidate(3) == 4 and candidate(-1) == 0"),
}


def rows():
    """Programs in HumanEval's form."""
    for name, (text, test) in PROGRAMS.items():
        prompt = f'def {name}(x):\n    """{text}"""\n'
        check = f"def check(candidate):\n    assert {test}\n\ncheck({name})\n"
        yield {"id": name, "prompt": prompt, "tests": [check], "task": "humaneval"}


def get_config():
    """Two steps of four problems, as many of either task."""
    path = Path(os.environ[FOLDER]) / "programs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    config = stage1.get_config("smollm2_135m_brief")
    parts = ({"source": "words", "count": 4}, {"source": "jsonl", "path": str(path)})
    config.data = ConfigDict({"source": "mixture", "parts": parts, "task": "words"})
    config.evaluation.data = ConfigDict({"source": "words", "split": "test", "count": 2})
    config.batch = 4
    config.sampling.prompt_limit = 400
    config.log.rollouts = 8
    return config
