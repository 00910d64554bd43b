"""How far one text is from another, for measurements on the page and for metrics in training."""

from rapidfuzz.distance import Levenshtein


def edit_distance_ratio(before: str, after: str) -> float:
    """How much a text differs from the one before it: 0 for a copy, at most 1.

    Levenshtein's distance in characters over the sum of both lengths, so two texts of
    one length that share nothing are at 0.5.

    Source: arXiv:2409.12917, section 4 ("edit distance ratio").
    """
    return Levenshtein.distance(before, after) / max(1, len(before) + len(after))
