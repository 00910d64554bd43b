"""Grades multiple-choice answers by their letter; a response with several letters has none."""

import re
from functools import lru_cache

from score_jax.records import Grade, Problem
from score_jax.tasks.grading import plain
from score_jax.tasks.grading.extract import final_answer

LETTER = re.compile(
    r"[(\[]?\s*\\?(?:text|textbf|mathrm|mathbf)?\s*\{?\s*[(\[]?\s*([A-Za-z])\s*[)\]]?\s*[.:]?\s*\}?"
    r"\s*[)\]]?"
)
_LEADING = re.compile(
    r"[(\[]\s*([A-Za-z])\s*[)\]]|\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Za-z])\)?[.:]?\s*\}"
    r"|([A-Za-z])\s*(?:[).:](?=\s|$)|,(?=\s)|\s[-–—](?=\s))"
)
_NAME = re.compile(r"(?:the )?(?:option|choice|letter|answer)\s+", re.IGNORECASE)
_OTHER = re.compile(  # another letter after the first one
    r"\s*(?:or|and|/|,|&)\s*(?:option |choice )?[(\[]?[A-Za-z](?![A-Za-z'])"
    r"|.*\b(?:or|and)\s+(?:option |choice )?[(\[][A-Za-z][)\]]",
    re.DOTALL,
)
LONGEST_BARE = 4  # characters of a response that counts without a marker: "(B)."


@lru_cache(maxsize=4096)
def letter(answer: str) -> str | None:
    r"""Returns the letter of an answer such as `B`, `(b)`, `B. Battery`, `\text{(B)}`, or None."""
    answer = plain.peel(plain.characters(answer).rstrip("!"))
    answer = answer[named.end() :] if (named := _NAME.match(answer)) else answer
    whole = LETTER.fullmatch(answer)
    if whole:
        return whole[1].upper()
    leading = _LEADING.match(answer)
    if leading is None or _OTHER.match(answer, leading.end(leading.lastindex or 0)):
        return None
    if _OTHER.match(answer, leading.end()):
        return None
    return answer[leading.start(leading.lastindex or 0)].upper()


def grade(problem: Problem, response: str) -> Grade:
    """Compares a response's letter with the gold one.

    Raises:
      ValueError: the gold answer is no letter.
    """
    gold = letter(problem.answer)
    if gold is None:
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no letter")
    answer = final_answer(response)
    if answer is None:
        alone = plain.peel(plain.characters(response.strip()[:100]))
        answer = alone if len(alone) <= LONGEST_BARE else None
    given = None if answer is None else letter(answer)
    if given is None:
        return Grade(verdict="unparsable", reward=0.0, extracted=answer, detail="no single letter")
    right = given == gold
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=given)
