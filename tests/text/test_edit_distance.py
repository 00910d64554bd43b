"""The edit distance ratio of two texts, by hand; tests/report/test_metrics.py has the table."""

import pytest

from score_jax.text.edit_distance import edit_distance_ratio


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        ("", "", 0),
        ("abc", "abc", 0),
        ("abc", "xyz", 3 / 6),
        ("", "ab", 1),
        ("kitten", "sit", 4 / 9),
    ],
)
def test_the_ratio_is_edits_over_both_lengths(before, after, ratio):
    assert edit_distance_ratio(before, after) == ratio
