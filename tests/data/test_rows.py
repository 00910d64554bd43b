import pytest

from score_jax.data import rows


def test_math_takes_the_last_box_of_the_solution():
    row = {"problem": "p", "solution": r"\boxed{1} so $\boxed{\frac{1}{2}}$.", "answer": "damaged"}
    assert rows.math(row, "x").answer == r"\frac{1}{2}"
    assert rows.math(row, "x").worked == row["solution"]
    with pytest.raises(ValueError, match="MATH row x"):
        rows.math({"problem": "p", "solution": "none"}, "x")


def test_gsm8k_takes_what_follows_the_mark():
    row = {"question": "q", "answer": "so 10*100=<<10*100=1000>>1,000\n#### 1,000"}
    assert rows.gsm8k(row, "x").answer == "1,000"
    assert rows.gsm8k(row, "x").worked == "so 10*100=1,000"
    with pytest.raises(ValueError, match="GSM8K row x"):
        rows.gsm8k({"question": "q", "answer": "7"}, "x")


def test_mbpp_puts_its_setup_before_each_test():
    row = {"text": "t", "code": "a\r\nb", "test_list": ["assert f(1)", "assert f(2)"]}
    problem = rows.mbpp(row | {"test_setup_code": "import math"}, "x")
    assert problem.tests == ("import math\nassert f(1)", "import math\nassert f(2)")
    assert problem.answer == "a\nb" and problem.shown == problem.tests
    assert rows.mbpp(row, "x").tests == ("assert f(1)", "assert f(2)")


def test_humaneval_tests_hold_the_prompts_own_helpers():
    row = {
        "prompt": "import math\ndef helper(x):\n    return x\n\ndef f(x):\n    '''doc'''\n",
        "canonical_solution": "    return 1\n",
        "test": "def check(candidate):\n    assert candidate(helper(1)) == 1\n",
        "entry_point": "f",
    }
    problem = rows.humaneval(row, "x")
    assert problem.tests[0].startswith("import math\ndef helper(x):\n    return x\n")
    assert problem.tests[0].endswith("check(f)\n")
    assert problem.answer.endswith("return 1\n") and problem.shown == ()
