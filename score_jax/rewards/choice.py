"""Reads the letter of a multiple-choice answer; a response that hedges has none."""

import re

from score_jax.records import Grade, Problem
from score_jax.rewards.extract import final_answer

LETTER = re.compile(r"\(?\s*\\?(?:text|textbf|mathrm)?\s*\{?\s*\(?\s*([A-Za-z])\s*\)?\s*\}?\s*\)?")


def letter(answer: str) -> str | None:
    """Returns the letter of an answer such as `B`, `(b)`, `B. Battery`, `\\text{(B)}`, or None."""
    answer = answer.strip().strip("*").strip()
    if answer.lower().startswith("option "):
        answer = answer[7:]
    whole = LETTER.fullmatch(answer.rstrip("."))
    if whole:
        return whole[1].upper()
    leading = re.match(r"\(\s*([A-Za-z])\s*\)|([A-Za-z])\s*[).:](?=\s|$)", answer)
    if leading:
        return (leading[1] or leading[2]).upper()
    return None


def grade(problem: Problem, response: str) -> Grade:
    """Compares a response's letter with the gold one.

    Raises:
      ValueError: the gold answer is no letter.
    """
    gold = letter(problem.answer)
    if gold is None:
        raise ValueError(f"problem {problem.id!r}: the answer {problem.answer!r} is no letter")
    answer = final_answer(response)
    if answer is None and len(response.strip()) <= 4:
        answer = response.strip()
    given = None if answer is None else letter(answer)
    if given is None:
        return Grade(verdict="unparsable", reward=0.0, extracted=answer, detail="no single letter")
    right = given == gold
    return Grade(verdict="correct" if right else "wrong", reward=float(right), extracted=given)
