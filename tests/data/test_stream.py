"""Order, hosts and position of the stream, against permutations made here."""

import numpy as np
import pytest

from score_jax.data.stream import Stream, epoch_order
from score_jax.records import Problem

PROBLEMS = [Problem(id=f"p{i}", prompt=str(i)) for i in range(10)]


def take(stream, count):
    """Places of the problems of some batches."""
    return [int(problem.prompt) for _ in range(count) for problem in stream.next()[2]]


def stream(batch=4, seed=1, **fields):
    return Stream(PROBLEMS, batch=batch, seed=seed, **fields)


def test_an_epoch_visits_every_problem_once_and_the_next_in_another_order():
    places = take(stream(), 5)  # 20 problems: two epochs, a batch across their border
    first, second = places[:10], places[10:]
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second and first != sorted(first)


def test_the_seed_decides_the_order():
    assert take(stream(seed=1), 5) == take(stream(seed=1), 5)
    assert take(stream(seed=1), 5) != take(stream(seed=2), 5)
    want = np.random.default_rng([1, 0]).permutation(10)
    assert take(stream(), 2) == want[:8].tolist()


def test_every_draw_has_an_ordinal_of_its_own():
    """Also where an epoch ends within a batch and a problem comes twice."""
    own = stream(batch=7)
    draws = [own.next()[0] for _ in range(4)]
    assert all(ordinals.dtype == np.int32 for ordinals in draws)
    assert np.concatenate(draws).tolist() == list(range(28))


def test_indices_are_those_of_the_problems_in_the_data():
    own = stream(batch=7)
    for _ in range(3):
        _, indices, problems = own.next()
        assert [PROBLEMS[index] for index in indices] == problems


def test_a_stage_goes_on_behind_the_draws_of_its_parent():
    whole, later = stream(batch=2), stream(batch=4, begin=6)
    places = take(whole, 9)
    assert later.next()[0].tolist() == [6, 7, 8, 9]
    later.position = 0
    assert take(later, 3) == places[6:18]


def test_a_saved_position_goes_on_where_it_was():
    whole = take(stream(), 6)
    begun = stream()
    take(begun, 2)
    resumed = stream()
    resumed.position = begun.position
    assert take(resumed, 4) == whole[8:]


def test_hosts_share_each_batch_without_changing_it():
    whole, halves = stream(), [stream(rows=rows) for rows in ((0, 1), (2, 3))]
    for _ in range(6):
        parts = [take(half, 1) for half in halves]
        assert [len(part) for part in parts] == [2, 2]
        assert parts[0] + parts[1] == take(whole, 1)
    assert [half.next()[0].tolist() for half in halves] == [[24, 25], [26, 27]]


def test_a_batch_larger_than_the_data_wraps_around():
    places = take(stream(batch=25), 1)
    assert np.bincount(places, minlength=10).min() == 2
    assert np.bincount(places, minlength=10).max() == 3


def test_the_order_of_an_epoch_cannot_be_changed_by_a_reader():
    """It is kept between calls: a caller that shuffled it would move the whole run."""
    before = epoch_order(10, 5, 0).copy()
    with pytest.raises(ValueError):
        epoch_order(10, 5, 0)[0] = 99
    np.testing.assert_array_equal(epoch_order(10, 5, 0), before)


def test_impossible_streams_are_refused():
    with pytest.raises(ValueError, match=r"data holds no problems; check config.data"):
        Stream([], batch=4, seed=0)
    with pytest.raises(ValueError, match=r"config.batch is 0; set at least 1"):
        stream(batch=0)
