"""Responses as models write them: which program counts, and that it is found whole."""

import time

import pytest

from score_jax.records import Problem
from score_jax.tasks import code, humaneval
from score_jax.tasks.grading import blocks

TESTS = ("assert double(4) == 8", "assert double(-1) == -2")
PROBLEM = Problem(id="1", prompt="Double x.", tests=TESTS)
GOOD = "def double(x):\n    return 2 * x"
BAD = "def double(x):\n    return 3 * x"
INDENTED = GOOD.replace("\n", "\n    ")
HELPER = "import math\n\ndef twice(x):\n    return math.fsum([x, x])"
USES = "def double(x):\n    return twice(x)"
IN_DOCSTRING = (
    'def double(x):\n    """Doubles.\n\n'
    '    ```python\n    double(2)\n    ```\n    """\n    return 2 * x'
)

FOUND = {
    "alone": GOOD,
    "a fence": f"```\n{GOOD}\n```",
    "text around": f"Here it is:\n\n```python\n{GOOD}\n```\n\nIt doubles.",
    # a stray fence
    "closed only": f"{GOOD}\n```",
    "closed only, text behind": f"{GOOD}\n```\nIt doubles.",
    "closed only, usage behind": f"{GOOD}\n```\nUsage:\n```python\nprint(double(4))\n```",
    "closed only, then again": f"{BAD}\n```\nBetter:\n```python\n{GOOD}\n```",
    "closed only, text before": f"Here it is:\n{GOOD}\n```",
    "closed twice": f"```python\n{GOOD}\n```\n```",
    "opened twice": f"```\n```python\n{GOOD}\n```",
    "never closed": f"Here:\n```python\n{GOOD}",
    "closed behind the last line": f"```python\n{GOOD}```",
    "closed with tildes": f"```python\n{GOOD}\n~~~",
    # blocks behind the program
    "output": f"```python\n{GOOD}\n```\nOutput:\n```\n8\n```",
    "output in brackets": f"```python\n{GOOD}\n```\n```text\n[8, -2]\n```",
    "usage": f"```python\n{GOOD}\n```\nUsage:\n```python\nprint(double(4))\n```",
    "usage with an import": f"```\n{GOOD}\n```\n```\nfrom solution import double\ndouble(4)\n```",
    "tests": f"```python\n{GOOD}\n```\n```python\nassert double(4) == 7\n```",
    "a test function": f"```\n{GOOD}\n```\n```\ndef test_double():\n    assert double(4) == 7\n```",
    "unittest": f"```\n{GOOD}\n```\n```\nimport unittest\nclass T(unittest.TestCase): ...\n```",
    "doctest": f"```python\n{GOOD}\n```\n```\n>>> double(4)\n8\n```",
    "shell": f"```python\n{GOOD}\n```\n```bash\npip install numpy\n```",
    "another function": f"```python\n{GOOD}\n```\n```python\ndef halve(x):\n    return x / 2\n```",
    "a wrong one before": f"```python\n{BAD}\n```\nNo:\n```python\n{GOOD}\n```",
    "a broken one behind": f"```python\n{GOOD}\n```\n```python\ndef double(x:\n```",
    # tags
    "Python": f"```Python\n{GOOD}\n```",
    "py3": f"```py3\n{GOOD}\n```",
    "Python3": f"```Python3\n{GOOD}\n```",
    "python3.11": f"```python3.11\n{GOOD}\n```",
    "ipython": f"```ipython\n{GOOD}\n```",
    "space before": f"``` python\n{GOOD}\n```",
    "space behind": f"```python  \n{GOOD}\n```  ",
    "pandoc": f"``` {{.python}}\n{GOOD}\n```",
    "attributes": f"```python {{linenos=true}}\n{GOOD}\n```",
    "title": f'```python title="a.py"\n{GOOD}\n```',
    "a file's name": f"```python:a.py\n{GOOD}\n```",
    "another language's": f"```text\n{GOOD}\n```",
    "tag without a fence": f"python\n{GOOD}",
    "program beside the fence": f"```{GOOD}\n```",
    "program beside the tag": f"```python {GOOD}\n```",
    # other fences
    "tildes": f"~~~python\n{GOOD}\n~~~",
    "four backticks": f"````python\n{GOOD}\n````",
    "nested": f"````markdown\n```python\n{GOOD}\n```\n````",
    "a docstring with fences": f"```python\n{IN_DOCSTRING}\n```",
    "a docstring with fences, unfenced": IN_DOCSTRING,
    "a docstring with tildes": "```python\n" + IN_DOCSTRING.replace("```", "~~~") + "\n```",
    "a docstring with its fence behind": "```\n"
    + IN_DOCSTRING.replace("\n    ```\n", "\n    x ```\n")
    + "\n```",
    "a comment with fences": f"```python\n# opens ```\n{GOOD}  # not ```\n```",
    "BEGIN and DONE": f"[BEGIN]\n{GOOD}\n[DONE]",
    "DONE alone": f"{GOOD}\n[DONE]\n\nYou are an expert Python programmer",
    "DONE beside": f"{GOOD} [DONE]",
    "the next shot invented": f"{GOOD}\n[DONE]\nYour task: halve.\n[BEGIN]\ndef h(x): ...\n[DONE]",
    "BEGIN and a fence": f"[BEGIN]\n```python\n{GOOD}\n```\n[DONE]",
    # indentation
    "numbered": f"1. Program:\n    ```python\n    {INDENTED}\n    ```",
    "in a list": f"- ```python\n  {GOOD.replace(chr(10), chr(10) + '  ')}\n  ```",
    "in a quotation": f"> ```python\n> {GOOD.replace(chr(10), chr(10) + '> ')}\n> ```",
    "tabs": "1. Program:\n\t```python\n\tdef double(x):\n\t\treturn 2 * x\n\t```",
    "fence indented, program not": f"  ```python\n{GOOD}\n  ```",
    "an indented program": f"So:\n\n    {INDENTED}\n\nThat is all.",
    # bytes
    "byte-order mark": f"\ufeff{GOOD}",
    "byte-order mark and fence": f"\ufeff```python\n\ufeff{GOOD}\n```",
    "carriage returns": f"```python\r\n{GOOD}\r\n```\r\n".replace("x):\n", "x):\r\n"),
    "carriage returns alone": f"```python\n{GOOD}\n```".replace("\n", "\r"),
    # no fence
    "prose before": f"Here is the program:\n\n{GOOD}",
    "prose behind": f"{GOOD}\n\nIt's what you asked for.",
    "prose around": f"Sure! Here's how:\n\n{GOOD}\n\nThis (simply) doubles.",
    "a word behind": f"{GOOD}\n\nDone",
    "imports in prose": f"From this it follows.\n\nimport math\n{GOOD}\n\nThanks, bye",
    "constant in prose": f"See:\n\nTWO = 2\n{GOOD.replace('2', 'TWO')}\n\nThis isn't hard.",
    "formulas in prose": f"{GOOD}\n\nIt's this:\ndouble = 2 * x\n\nDon't you think?",
    "decorated in prose": f"See:\nfrom functools import cache\n@cache\n{GOOD}\nIs that fine?",
    # several blocks
    "helper before": f"```python\n{HELPER}\n```\nand\n```python\n{USES}\n```",
    "helper behind": f"```python\n{USES}\n```\nwith\n```python\n{HELPER}\n```",
    "import before": "```\nimport math\n```\n```\ndef double(x): return math.fsum([x, x])\n```",
    "chain of three": f"```\nN = 2\n```\n```\ndef twice(x): return N * x\n```\n```\n{USES}\n```",
    "helper with a failing test": f"```\n{HELPER}\nassert twice(1) == 3\n```\n```\n{USES}\n```",
    "helper beside a wrong one": f"```\n{HELPER}\n{BAD}\n```\nFixed:\n```\n{USES}\n```",
}
LOST = {  # and what stays as it was
    "a wrong one last": (f"```python\n{GOOD}\n```\nBetter:\n```python\n{BAD}\n```", "wrong"),
    "a wrong one last, unfenced": (f"```python\n{GOOD}\n```\nBetter:\n\n{BAD}\n\nYes.", "wrong"),
    "a wrong one behind DONE": (f"{GOOD}\n[DONE]\n[BEGIN]\n{BAD}\n[DONE]", "wrong"),
    "wrong with right words": (f"```python\n{BAD}\n```\nIt returns `2 * x`.", "wrong"),
    "another name": (f"```python\n{GOOD.replace('double', 'twice')}\n```", "wrong"),
    "inside a class": (f"class Solution:\n    {INDENTED}", "wrong"),
    "a helper that is nowhere": (f"```python\n{USES}\n```", "wrong"),
    "an import of it": ("```python\nfrom solution import double\nprint(double(4))\n```", "wrong"),
    "prose": ("I would double the number, as 2 * x.", "unparsable"),
    "a word": ("Sorry", "unparsable"),
    "output alone": ("```\n8\n```", "unparsable"),
    "broken": ("```python\ndef double(x:\n    return 2 * x\n```", "unparsable"),
    "a signature in prose": ("Write def double(x): and so on.\ndef double(x):", "unparsable"),
    "nothing": ("```python\n```", "unparsable"),
}


@pytest.mark.parametrize("case", FOUND)
def test_the_program_is_found(case):
    grade = code.grade(PROBLEM, FOUND[case])
    assert grade.verdict == "correct", (grade.extracted, grade.detail)


@pytest.mark.parametrize("case", LOST)
def test_what_is_no_right_program_stays_wrong(case):
    response, verdict = LOST[case]
    assert code.grade(PROBLEM, response).verdict == verdict


def test_a_program_comes_out_as_it_went_in():
    """Docstrings, comments and blank lines too: nothing is written anew where nothing is joined."""
    source = f"# ```\n{IN_DOCSTRING}\n\n\nprint(double(1))  # two"
    for response in (source, f"Text.\n```python\n{source}\n```\nText."):
        assert blocks.extract(response, {"double"}) == source


def test_what_a_block_gives_and_takes():
    (block,) = blocks.blocks(
        "import a.b as c, d.e\nif x:\n    f = g\n"
        "def h(i, j=k):\n    m = [p for p in i]\n    return n"
    )
    assert block.defines == {"f", "h"} and block.imports == {"c", "d"}
    assert block.needs == {"x", "g", "k", "n"}


@pytest.mark.parametrize(
    "response",
    ["```\n" * 50_000, "`" * 500_000, "def f(\n" * 50_000, ' """\n```\ndef f(): """\n' * 20_000],
)
def test_odd_responses_end_soon(response):
    """Well within the deadline of an answer; they take about half a second."""
    start = time.process_time()
    blocks.extract(response, {"f"})
    assert time.process_time() - start < 5


ASKED = 'import math\n\n\ndef double(x):\n    """Doubles."""\n'
CHECK = "def check(candidate):\n    assert candidate(4) == 8\n\ncheck(double)\n"
HUMANEVAL = Problem(id="h", prompt=ASKED, tests=(CHECK,))
COMPLETED = {
    "body": "    return 2 * x",
    "body without indentation": "return 2 * x",
    "first line without": "y = 2 * x\n    return y",
    "fenced body": "```python\n    return 2 * x\n```",
    "fenced body in a list": "1. So:\n   ```python\n   return 2 * x\n   ```",
    "body and output": "```python\n    return 2 * x\n```\nOutput:\n```\n8\n```",
    "body and prose": "    return 2 * x\n\nThis doubles x, as asked.",
    "prose and body": "The body is:\n    return 2 * x",
    "body and stray fence": "    return 2 * x\n```\nIt's done.",
    "body and tildes": "~~~\n    return 2 * x\n~~~",
    "body with a mark": "\ufeff    return 2 * x",
    "whole": f"```python\n{GOOD}\n```",
    "whole with a prompt's import": "```\ndef double(x):\n    return math.fsum([x, x])\n```",
    "whole and usage": f"```python\n{ASKED}    return 2 * x\n```\n```python\nprint(double(4))\n```",
    "whole and stray fence": f"{GOOD}\n```\nDone.",
    "whole and helper": f"```\n{HELPER}\n```\n```\n{USES}\n```",
    "whole, wrong before": f"```\n{BAD}\n```\nNo:\n```\n{GOOD}\n```",
}
NOT_COMPLETED = {
    "wrong body": ("    return 3 * x", "wrong"),
    "wrong last": (f"```\n{GOOD}\n```\n```\n{BAD}\n```", "wrong"),
    "prose": ("I can't do that.", "unparsable"),
    "nothing": ("", "unparsable"),
}


@pytest.mark.parametrize("case", COMPLETED)
def test_a_prompt_is_completed(case):
    grade = humaneval.grade(HUMANEVAL, COMPLETED[case])
    assert grade.verdict == "correct", (grade.extracted, grade.detail)


@pytest.mark.parametrize("case", NOT_COMPLETED)
def test_what_completes_no_prompt_stays_wrong(case):
    response, verdict = NOT_COMPLETED[case]
    assert humaneval.grade(HUMANEVAL, response).verdict == verdict
