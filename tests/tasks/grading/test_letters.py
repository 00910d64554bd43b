import pytest

from score_jax.records import Problem
from score_jax.tasks.grading import letters


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. Battery", "B"),
        ("(B) Battery", "B"),
        ("B) Battery", "B"),
        ("**B**", "B"),
        (r"\text{(B)}", "B"),
        ("Option C", "C"),
        ("A or B", None),
        ("Both", None),
        ("A man", None),
        ("", None),
        ("7", None),
    ],
)
def test_the_letter_is_read(answer, letter):
    assert letters.letter(answer) == letter


def test_verdicts():
    problem = Problem(id="1", prompt="", answer="B")
    for response, verdict in (
        ("Final Answer: B", "correct"),
        ("B", "correct"),
        ("(C)", "wrong"),
        ("I think A, but B is possible", "unparsable"),
        ("The answer is A.\nNo, the answer is (B).", "correct"),
    ):
        assert letters.grade(problem, response).verdict == verdict
    with pytest.raises(ValueError, match="no letter"):
        letters.grade(Problem(id="1", prompt="", answer="42"), "B")
