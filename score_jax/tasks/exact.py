"""Answers that must agree letter by letter, but for outer spaces."""

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.grading import plain
from score_jax.tasks.grading.extract import spellings, spellings_of_lines

INSTRUCTION = (
    "There might be an error in the answer above. Please correct the error, if any, and rewrite "
    'the answer. End with "Final Answer: " and the answer alone.'
)


def prompt(problem: Problem) -> str:
    """The question and how to answer it."""
    return f'{problem.prompt.strip()}\n\nEnd with "Final Answer: " and the answer alone.'


def grade(problem: Problem, response: str) -> Grade:
    """Compares the last stated answer; a gold answer of several lines is compared with the rest.

    What is wrapped around the answer comes off layer by layer, and any layer may be the gold
    answer: "**blue**." is `blue`, and also `**blue**`.
    """
    gold = problem.answer.strip()
    found = spellings_of_lines(response) if "\n" in gold else spellings(response)
    if not found:
        return Grade(verdict="unparsable", reward=0.0, detail="no final answer")
    plainly = plain.characters(gold)  # a gold answer in full-width characters asks for them
    right = plainly in found and (plainly == gold or gold in response)
    answer = gold if right else found[-1]
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=answer)


def state(problem: Problem) -> str:
    """A response that gives the gold answer."""
    return f"Final Answer: {problem.answer}"


ONE = Problem(id="exact/known", prompt="Reverse abc.", answer="cba")
KNOWN: tuple[tuple[Problem, str, Verdict], ...] = (
    (ONE, "Final Answer: cba", "correct"),
    (ONE, "Final Answer: CBA", "wrong"),
    (ONE, "cba", "unparsable"),
)
TASK = Task(
    name="exact",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=grade,
    gold_response=state,
    self_test_cases=KNOWN,
)
