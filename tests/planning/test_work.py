"""Work of a step, counted by hand."""

import dataclasses

import numpy as np
import pytest

from score_jax.planning.work import (
    count_step,
    decode_bytes,
    decode_flops,
    learner_bytes,
    learner_flops,
)
from score_jax.types import Effort
from tests.tiny import MODEL, rows_of

# Two problems of two rows each, prompts of 2 and 3 tokens; `0` in a row's turns is forced.
LINES = [
    ([1] * 6, [0, 0, 1, 0, 2, 2]),
    ([1] * 4, [0, 0, 1, 1]),
    ([1] * 7, [0, 0, 0, 1, 1, 0, 2]),
    ([1] * 4, [0, 0, 0, 1]),
]
# Drafts of 4 tokens were made 3 times, and 5 of their tokens were drawn.
EFFORT = Effort(*(np.array(x) for x in ([4, 3, 5, 4], [0, 1, 2, 0], [0, 2, 3, 0])))
COUNTS = count_step(rows_of(LINES, 2, width=9).replace(effort=EFFORT), np.array([2, 3]), 4)


def test_tokens_and_row_steps_by_hand():
    assert (COUNTS.rows, COUNTS.prompt, COUNTS.drawn) == (4, 5, 9)
    assert COUNTS.appended == 4 + 2 + 4 + 1 and COUNTS.row_steps == 16
    assert COUNTS.most_drawn == 3
    assert COUNTS.whole == 6 + 4 + 7 + 4
    assert COUNTS.shares["useful row-steps"] == pytest.approx(11 / 16)
    assert COUNTS.shares["draft acceptance"] == pytest.approx(5 / 12)


def test_acceptance_is_told_of_drafts_alone():
    none = dataclasses.replace(COUNTS, guessed=0, accepted=0)
    assert set(none.shares) == {"useful row-steps"}


def test_tokens_that_each_token_attends_to_by_hand():
    """Token n of a row attends to n tokens, itself included."""
    rows = [(2, 6), (2, 4), (3, 7), (3, 4)]
    assert COUNTS.appended_attended == sum(sum(range(p + 1, n + 1)) for p, n in rows)
    assert COUNTS.whole_attended == sum(sum(range(1, n + 1)) for _, n in rows)


def test_operations_by_hand():
    """Two layers of width 16: 4 heads and 2 for keys of 4 channels, MLP of 24, 9 words."""
    layer = 16 * 4 * (4 + 2 + 2 + 4) + 3 * 16 * 24
    matrices, attended, logits = 2 * 2 * layer, 4 * 2 * 4 * 4, 2 * 9 * 16
    expected = 21 * matrices + COUNTS.whole_attended * attended + 9 * logits
    found = learner_flops(MODEL, COUNTS)
    assert found["score"] == pytest.approx(expected)
    assert found["update"] == pytest.approx(3 * expected)
    appended = 11 * matrices + COUNTS.appended_attended * attended + 9 * logits
    assert decode_flops(MODEL, COUNTS) == pytest.approx(appended)


def test_bytes_of_decoding_by_hand():
    """All weights are read three times; a token's keys and values are 2 layers x 2 heads x 4."""
    weights = 2 * (16 * 4 * (4 + 2 + 2 + 4) + 3 * 16 * 24) + 9 * 16
    cached = COUNTS.appended_attended * 2 * 2 * 2 * 4
    assert decode_bytes(MODEL, COUNTS) == 4 * (3 * weights + cached)
    half = dataclasses.replace(MODEL, dtype="bfloat16")
    assert decode_bytes(half, COUNTS) == 2 * (3 * weights + cached)


def test_bytes_of_learning_by_hand():
    """An adapter of 10 numbers on a model of 1,000, in three microbatches."""
    found = learner_bytes(MODEL, parameters=1000, trained=10, microbatches=3)
    assert found["score"] == 3 * 4000
    assert found["update"] == 3 * 2 * 4000 + 3 * 2 * 40 + 7 * 40
