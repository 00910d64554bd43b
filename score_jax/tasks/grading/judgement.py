"""Grades a turn that judges the answer before it: verify, then revise.

Source: PAG, arXiv:2506.10406, section 3: the verdict's reward is whether it is true.
"""

import re

from score_jax.records import Grade

WORDS = re.compile(r"\b(not\s+)?(correct|right|yes|true|incorrect|wrong|no|false)\b", re.IGNORECASE)
AFFIRMATIVE = ("correct", "right", "yes", "true")


def read_judgement(text: str) -> bool | None:
    """Whether a text calls an answer right, by its last word that says so; None: none does."""
    found = list(WORDS.finditer(text))
    if not found:
        return None
    negated, word = found[-1].groups()
    return (word.lower() in AFFIRMATIVE) != bool(negated)


def grade_judgement(text: str, judged: Grade) -> Grade:
    """Grades a judgement of an answer that has been graded."""
    said = read_judgement(text)
    if said is None:
        return Grade(verdict="unparsable", reward=0.0, detail="says neither right nor wrong")
    true = said == (judged.reward >= 1.0)
    return Grade(
        verdict="correct" if true else "wrong",
        reward=float(true),
        extracted="right" if said else "wrong",
    )
