import pytest

from score_jax.tasks.grading.extract import final_answer, last_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Final Answer: The final answer is $5$. I hope it is correct.", "5"),
        (r"Final Answer: The final answer is $\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}"),
        ("final answer: 5", "5"),
        ("**Final Answer:** 5", "5"),
        ("Final Answer: $\\boxed{5}$", "5"),
        ("Final Answer:\n5", "5"),
        ("The answer is 5.", "5"),
        ("The answer is: 5\nThanks!", "5"),
        ("The final answer is $x = 5$.", "x = 5"),
        ("#### 18", "18"),
        (r"so \boxed{5}", "5"),
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\text{a}\}b}", r"\text{a}\}b"),
        (r"first \boxed{1} then \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{unclosed", "1"),
        (r"\boxed 7", "7"),
        ("The answer is 3. Wait. The answer is 4.", "4"),
        (r"\boxed{3} Final Answer: The final answer is $4$. I hope it is correct.", "4"),
        (r"Final Answer: The final answer is $4$. I hope it is correct. Or \boxed{5}", "5"),
        (r"\boxed{3}. The answer is positive because the product of two negatives is", "3"),
        ("Final Answer: $$5$$", "5"),
        (r"Final Answer: \(5\)", "5"),
        (r"Final Answer: \[5\]", "5"),
        ("Final Answer: $1$ and $2$", "$1$ and $2$"),
        ("no answer here", None),
        ("", None),
        ("Final Answer:", None),
        (r"\boxed{}", None),
        ("5", None),
        ("Final Answer: " + "9" * 3000, None),
    ],
)
def test_the_last_statement_counts(text, answer):
    assert final_answer(text) == answer


def test_braces_need_not_end():
    assert last_boxed(r"\boxed{" * 3000) is None
    assert last_boxed(r"\boxed{" + "{" * 5000 + "}" * 5000 + "}") == "{" * 5000 + "}" * 5000
