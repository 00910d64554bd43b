"""What programs do for dialogues of given lengths, by hand and by the program's own packing."""

import dataclasses

import numpy as np
import pytest

from score_jax.model.decoder import Decoder
from score_jax.planning.course import Lengths, cut_lengths, learner_course
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.learner import Learner, LearnerConfig
from tests.tiny import MODEL

# Prompts of 3 tokens, 2 between the turns, rows of 20.
LENGTHS = Lengths(
    opening=np.full(4, 3), turns=np.array([[5, 8], [1, 1], [2, 4], [7, 1]]), between=2, width=20
)


def learner(shards=1, **fields):
    return Learner(
        decoder=Decoder(MODEL),
        optimizer=None,
        max_tokens=16,
        config=LearnerConfig(**fields),
        row_shards=shards,
    )


def test_tokens_of_dialogues_are_added_up():
    assert LENGTHS.appended.tolist() == [15, 4, 8, 10]
    assert LENGTHS.whole.tolist() == [18, 7, 11, 13]
    drawn = LENGTHS.drawn
    assert "".join(".x"[int(n)] for n in drawn[2]) == "...xx..xxxx" + 9 * "."
    assert drawn.sum(1).tolist() == LENGTHS.turns.sum(1).tolist()


def test_turns_that_are_not_drawn_have_no_tokens_and_nothing_stands_before_them():
    plan = DialoguePlan(sources=("given", "sampled")).complete(2, 8)
    found = cut_lengths(plan, LENGTHS.turns, LENGTHS.opening, block=2, width=20)
    assert found.turns.tolist() == [[0, 8], [0, 1], [0, 4], [0, 1]]
    assert found.whole.tolist() == [11, 4, 7, 4]


def test_turns_end_where_a_row_is_full():
    """In rows of 12 nine tokens follow the prompt; the block takes two of them."""
    plan = DialoguePlan().complete(2, 8)
    found = cut_lengths(plan, LENGTHS.turns, LENGTHS.opening, block=2, width=12)
    assert found.turns.tolist() == [[5, 2], [1, 1], [2, 4], [7, 0]]
    assert found.whole.tolist() == [12, 7, 11, 10]


def test_chunks_of_padded_rows_are_those_up_to_the_fullest():
    """Rows 0, 2 and 1, 3: 13 and 8 drawn tokens at most, in chunks of 4 of 16."""
    loops, share = learner_course(
        learner(pack=False, microbatches=2, logits_chunk=4), LENGTHS.episodes(), updates=1
    )
    assert loops == [] and share == pytest.approx((4 + 2) / 8)


def test_packed_rows_that_hold_no_token_are_left_out():
    """Rows of 18, 13 + 7 and 11 tokens make three, of one each, with 13, 10 and 6 drawn ones."""
    config = {"microbatches": 4, "logits_chunk": 4}
    loops, share = learner_course(learner(**config), LENGTHS.episodes(), updates=1)
    assert loops == [3] and share == pytest.approx((4 + 3 + 2) / (3 * 5))


def test_each_minibatch_and_each_shard_is_packed_by_itself():
    """Minibatches of rows 0, 2 (two packed rows) and 1, 3 (one); shards of rows 0, 1 and 2, 3."""
    own = learner(minibatches=2, logits_chunk=20)
    assert learner_course(own, LENGTHS.episodes(), updates=2)[0] == [2, 1]
    assert learner_course(learner(shards=2), LENGTHS.episodes(), updates=1)[0] == [2]


def test_packed_rows_are_about_as_many_as_tokens_fill():
    """64 rows of up to 100 tokens; first fit, decreasing, wastes a fifth at most here."""
    rng = np.random.default_rng(0)
    turns = rng.integers(1, 30, (64, 2))
    many = dataclasses.replace(LENGTHS, opening=np.full(64, 10), turns=turns, width=100)
    loops, share = learner_course(learner(microbatches=64), many.episodes(), updates=1)
    least = many.whole.sum() / 100
    assert least <= loops[0] <= 1.2 * least and share == 1
