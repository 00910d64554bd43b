"""Mathematics with a final answer (MATH, GSM8K).

Source: arXiv:2409.12917, appendix (prompts).
"""

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.grading.extract import final_answer

PROMPT = (
    "You are a math expert. When you respond, respond only with the Solution of the final "
    "Problem, thinking step by step. At the end of the Solution, when you give your final answer, "
    'write it in the form "Final Answer: The final answer is $answer$. I hope it is correct."'
)
INSTRUCTION = (
    "There might be an error in the solution above because of lack of understanding of the "
    "question. Please correct the error, if any, and rewrite the solution. Only output the final "
    "solution! At the end of the Solution, when you give your final answer, write it in the form "
    '"Final Answer: The final answer is $answer$. I hope it is correct."'
)


def prompt(problem: Problem) -> str:
    """The task description, then the problem."""
    return f"{PROMPT}\n\nProblem: {problem.prompt.strip()}\nSolution:"


def grade(problem: Problem, response: str) -> Grade:
    """Compares the final answer with the gold one.

    Raises:
      ValueError: there is no gold answer.
    """
    from score_jax.tasks.grading import algebra  # here, as importing SymPy takes half a second

    if not problem.answer.strip():
        raise ValueError(f"problem {problem.id!r} has no answer to compare with")
    answer = final_answer(response)
    if answer is None:
        return Grade(verdict="unparsable", reward=0.0, detail="no final answer")
    right = algebra.equal(problem.answer, answer)
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=answer)


def gold_response(problem: Problem) -> str:
    """A response that states the gold answer."""
    answer = " ".join(problem.answer.split())  # one gold answer in MATH has a line break
    return f"Final Answer: The final answer is ${answer}$. I hope it is correct."


HALF = Problem(id="math/known", prompt="What is 1/2?", answer=r"\frac{1}{2}")
POINT = Problem(id="math/known", prompt="Which point?", answer="(1,2)")
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (HALF, "The answer is 0.5.", "correct"),
    (HALF, r"So it is $\boxed{\dfrac{2}{4}}$.", "correct"),
    (HALF, "Final Answer: The final answer is $2$. I hope it is correct.", "wrong"),
    (HALF, "1/2", "unparsable"),
    (POINT, r"$\boxed{\{1,2\}}$", "wrong"),
)
TASK = Task(
    name="math",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=grade,
    gold_response=gold_response,
    self_test_cases=SELF_TEST_CASES,
)
