"""Answers that must be equal character by character, except for outer white space."""

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.grading import plain
from score_jax.tasks.grading.extract import spellings, spellings_of_lines

INSTRUCTION = (
    "There might be an error in the answer above. Please correct the error, if any, and rewrite "
    'the answer. End with "Final Answer: " and the answer alone.'
)


def prompt(problem: Problem) -> str:
    """The question, and the form of the answer."""
    return f'{problem.prompt.strip()}\n\nEnd with "Final Answer: " and the answer alone.'


def grade(problem: Problem, response: str) -> Grade:
    """Compares the last stated answer with the gold answer.

    Quotes, emphasis and the like are removed layer by layer, and any layer may equal the
    gold answer: "**blue**." matches `blue` and `**blue**`. A gold answer of several lines
    is compared with all text after the marker.
    """
    gold = problem.answer.strip()
    found = spellings_of_lines(response) if "\n" in gold else spellings(response)
    if not found:
        return Grade(verdict="unparsable", reward=0.0, detail="no final answer")
    normalised = plain.characters(gold)
    # A gold answer with full-width characters must occur as such in the response.
    right = normalised in found and (normalised == gold or gold in response)
    answer = gold if right else found[-1]
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=answer)


def gold_response(problem: Problem) -> str:
    """A response that states the gold answer."""
    return f"Final Answer: {problem.answer}"


EXAMPLE = Problem(id="exact/known", prompt="Reverse abc.", answer="cba")
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (EXAMPLE, "Final Answer: cba", "correct"),
    (EXAMPLE, "Final Answer: CBA", "wrong"),
    (EXAMPLE, "cba", "unparsable"),
)
TASK = Task(
    name="exact",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=grade,
    gold_response=gold_response,
    self_test_cases=SELF_TEST_CASES,
)
