"""Python programs from a description and asserts (MBPP): correct if every test passes.

Source: arXiv:2409.12917, appendix (prompts); arXiv:2108.07732, section 2.1 (the three shots).
"""

from score_jax.records import Grade, Problem, Task, Verdict
from score_jax.tasks.grading import programs

SHOTS = """You are an expert Python programmer, and here is your task: Write a function to find \
the similar elements from the given two tuple lists. Your code should pass these tests:

assert similar_elements((3, 4, 5, 6),(5, 7, 4, 10)) == (4, 5)
assert similar_elements((1, 2, 3, 4),(5, 4, 3, 7)) == (3, 4)
assert similar_elements((11, 12, 14, 13),(17, 15, 14, 13)) == (13, 14)
[BEGIN]
def similar_elements(test_tup1, test_tup2):
  res = tuple(set(test_tup1) & set(test_tup2))
  return (res)
[DONE]

You are an expert Python programmer, and here is your task: Write a python function to identify \
non-prime numbers. Your code should pass these tests:

assert is_not_prime(2) == False
assert is_not_prime(10) == True
assert is_not_prime(35) == True
[BEGIN]
import math
def is_not_prime(n):
    result = False
    for i in range(2,int(math.sqrt(n)) + 1):
        if n % i == 0:
            result = True
    return result
[DONE]

You are an expert Python programmer, and here is your task: Write a function to find the largest \
integers from a given list of numbers using heap queue algorithm. Your code should pass these tests:

assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],3)==[85, 75, 65]
assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],2)==[85, 75]
assert heap_queue_largest( [25, 35, 22, 85, 14, 65, 75, 22, 58],5)==[85, 75, 65, 58, 35]
[BEGIN]
import heapq as hq
def heap_queue_largest(nums,n):
  largest_nums = hq.nlargest(n, nums)
  return largest_nums
[DONE]

"""
INSTRUCTION = (
    "There might be an error in the code above because of lack of understanding of the question. "
    "Please correct the error, if any, and rewrite the solution. Only output the final correct "
    "Python program!"
)


def prompt(problem: Problem) -> str:
    """The three shots, then the problem with its shown asserts."""
    text = f"{SHOTS}You are an expert Python programmer, and here is your task: "
    text += problem.prompt.strip()
    if problem.shown:  # empty for a problem typed by a user
        tests = "\n".join(problem.shown)
        text += f" Your code should pass these tests:\n\n{tests}"
    return f"{text}\n[BEGIN]\n"


def grade(problem: Problem, response: str) -> Grade:
    """Reward 1 if all tests pass, else 0."""
    return programs.grade(problem, programs.extract(problem, response))


EXAMPLE = Problem(id="code/known", prompt="Double x.", tests=("assert double(2) == 4",))
SELF_TEST_CASES: tuple[tuple[Problem, str, Verdict], ...] = (
    (EXAMPLE, "def double(x):\n    return 2 * x", "correct"),
    (EXAMPLE, "```python\ndef double(x):\n    return x\n```", "wrong"),
    (EXAMPLE, "import os\nos._exit(0)", "wrong"),
    (EXAMPLE, "I cannot do that.", "unparsable"),
)
TASK = Task(
    name="code",
    prompt=prompt,
    instruction=INSTRUCTION,
    grade=grade,
    self_test_cases=SELF_TEST_CASES,
    shows_tests=True,
)
