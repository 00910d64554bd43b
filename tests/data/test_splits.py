"""A text's split follows from its hash."""

import zlib
from collections import Counter

import pytest

from score_jax.data import splits


def test_of_each_hundred_hashes_seventy_are_train_ten_validation_and_twenty_test():
    shares = Counter()
    for text in map(str, range(5000)):
        place = zlib.crc32(text.encode()) % 100
        expected = ["train"] * 70 + ["validation"] * 10 + ["test"] * 20
        assert splits.split_of(text) == expected[place]
        shares[splits.split_of(text)] += 1
    assert min(shares.values()) > 400


def test_an_unknown_split_is_named():
    splits.check("test")
    with pytest.raises(ValueError, match=r"data.split is 'dev'; choose one of train, validation"):
        splits.check("dev")
