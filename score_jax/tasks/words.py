"""Arithmetic in words for very small models: two worked problems show how an answer looks.

Asked without them, a model of 135 million parameters talks on and seldom ends in a number.
"""

from dataclasses import replace

from score_jax.records import Problem, Verdict
from score_jax.tasks import numeric

SHOTS = """Problem: Tom has 3 pens and buys 5 more. How many pens does Tom have now?
Solution: 3 + 5 = 8. Final Answer: 8

Problem: Lucy has 9 cups and gives 4 to Max. How many cups does Lucy have now?
Solution: 9 - 4 = 5. Final Answer: 5

"""


def prompt(problem: Problem) -> str:
    """The worked problems, then the problem."""
    return f"{SHOTS}Problem: {problem.prompt.strip()}\nSolution:"


SUM = Problem(id="words/known", prompt="How many?", answer="13")
KNOWN: tuple[tuple[Problem, str, Verdict], ...] = (
    (SUM, "8 + 5 = 13. Final Answer: 13", "correct"),
    (SUM, "8 + 5 = 13. Final Answer: 3", "wrong"),
    (SUM, "8 + 5 = 13", "unparsable"),
)
TASK = replace(numeric.TASK, name="words", prompt=prompt, known=KNOWN)
