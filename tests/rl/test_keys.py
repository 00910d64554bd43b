"""The rule of the keys, against foldings written out one by one."""

import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl.dialogue import row_ids
from score_jax.rl.keys import row_keys, run_key, token_keys, turn_keys
from tests.tiny import grouped


def words(keys):
    return np.asarray(jax.random.key_data(keys)).tolist()


def folded(seed, *numbers):
    key = jax.random.key(seed)
    for number in numbers:
        key = jax.random.fold_in(key, number)
    return key


def token_key(seed=3, purpose="train", stage="stage2", round=0, draw=17, sample=1, turn=2, at=40):
    """The key of one token, by the functions of the package."""
    key = run_key(seed, purpose, stage=stage, round=round)
    first, own = row_keys(key, row_ids(np.array([5, draw]), np.array([5, draw]), [0, sample]))
    return words(token_keys(turn_keys(first[1:], own[1:], turn), jnp.asarray([at])))


def test_a_key_is_folded_from_seed_purpose_stage_round_draw_sample_turn_and_position():
    train, stage = zlib.crc32(b"train"), zlib.crc32(b"stage2")
    want = folded(3, train, stage, 0, 17, 1, 2, 40)
    assert token_key() == [words(want)]


def test_the_rule_is_final():
    """Other numbers here make every result that was ever reported another one."""
    assert token_key() == [[2259081639, 2965619938]]
    assert token_key(purpose="evaluate", stage="", draw=0, sample=0, turn=1, at=9) == [
        [3777339313, 2714319881]
    ]


OTHERS = {
    "seed": 4, "purpose": "evaluate", "stage": "stage1", "round": 1, "draw": 18, "sample": 2,
    "turn": 1, "at": 41,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_every_part_of_the_rule_counts(name):
    assert token_key(**{name: OTHERS[name]}) != token_key()


def test_purposes_never_share_a_key():
    found = [words(run_key(0, purpose)) for purpose in ("train", "evaluate", "collect", "ask")]
    assert all(a != b for a, b in itertools.combinations(found, 2))


def test_branches_share_the_keys_of_their_first_attempt_only():
    ids = grouped(8, group_size=4, second_attempts=2)
    first, own = row_keys(run_key(0, "train"), ids)

    def keys(turn):
        found = token_keys(turn_keys(first, own, turn), jnp.full(8, 12))
        return [tuple(row) for row in words(found)]

    one, two = keys(1), keys(2)
    assert one[0::2] == one[1::2] and len(set(one)) == 4
    assert len(set(two)) == 8
    alone, _ = row_keys(run_key(0, "train"), jax.tree.map(lambda x: x[4:], ids))
    assert words(alone) == words(first[4:])


@pytest.mark.parametrize("field", ["problem", "policy_step"])
def test_neither_the_data_sets_index_nor_the_policys_age_counts(field):
    """A problem that moves in its file, or an older policy's row, keeps its random numbers."""
    ids = grouped(6, group_size=3)
    other = ids.replace(**{field: getattr(ids, field) + 17})
    for a, b in zip(*(row_keys(run_key(0, "train"), x) for x in (ids, other)), strict=True):
        assert words(a) == words(b)
