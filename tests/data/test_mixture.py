from collections import Counter

import pytest

from score_jax.data.mixture import keep_by_pass_rate, mix
from score_jax.records import Problem


def part(name, size):
    return [Problem(id=f"{name}{n}", prompt="p", answer="1") for n in range(size)]


def test_shares_follow_the_weights_and_every_problem_is_seen():
    mixed = mix([part("a", 100), part("b", 10)], [1.0, 3.0], seed=0)
    ids = [problem.id.partition("/")[2] for problem in mixed]
    assert len(ids) == len(mixed) == 400
    assert sum(x.startswith("a") for x in ids) == 100
    counts = Counter(ids)
    assert {counts[f"a{n}"] for n in range(100)} == {1}
    assert {counts[f"b{n}"] for n in range(10)} == {30}


@pytest.mark.parametrize(
    ("parts", "weights"),
    [
        ([part("a", 5), part("a", 5)], [1, 1]),  # the same problems twice
        ([part("a", 5), part("a", 3), part("b", 2)], [1, 1, 1]),
        ([part("a", 2), part("a", 9)], [5, 1]),  # the first is repeated
        ([part("0.0/a", 3), part("a", 3)], [1, 1]),  # ids that look like a mixture's
        ([mix([part("a", 3), part("a", 2)], [1, 1], seed=0), part("a", 3)], [1, 1]),
        ([part("a", 4)], [1]),
    ],
)
def test_no_two_places_have_the_same_id(parts, weights):
    ids = [problem.id for problem in mix(parts, weights, seed=0)]
    assert len(set(ids)) == len(ids) >= sum(map(len, parts))
    own = {problem.id for part in parts for problem in part}
    assert {id.partition("/")[2] for id in ids} == own  # behind the mark stands the part's own


def test_a_place_always_holds_the_same_problem():
    def make(seed):
        return mix([part("a", 7), part("b", 5)], [1, 1], seed=seed)

    first, second, other = make(1), make(1), make(2)
    assert [first[n].id for n in reversed(range(14))] == [p.id for p in second][::-1]
    assert [p.id for p in first] != [p.id for p in other]
    assert first[-1] == first[13] and first[2:4] == [first[2], first[3]]
    with pytest.raises(IndexError):
        first[14]


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_parts_are_refused(weight):
    with pytest.raises(ValueError, match=r"data.parts\[1\].weight"):
        mix([part("a", 1), part("b", 1)], [1.0, weight], seed=0)
    with pytest.raises(ValueError, match=r"data.parts\[0\] holds no problems"):
        mix([[]], [1.0], seed=0)


def test_the_filter_keeps_what_is_solved_sometimes():
    rates = {"a0": 0.0, "a1": 0.5, "a2": 1.0}
    kept = keep_by_pass_rate(part("a", 3), rates, lowest=0.1, highest=0.9)
    assert [problem.id for problem in kept] == ["a1"]
    with pytest.raises(ValueError, match="'a3' the rate None"):
        keep_by_pass_rate(part("a", 4), rates, lowest=0.1, highest=0.9)
    with pytest.raises(ValueError, match="no problem has a pass rate"):
        keep_by_pass_rate(part("a", 3), rates, lowest=0.6, highest=0.9)
    with pytest.raises(ValueError, match="low <= high"):
        keep_by_pass_rate(part("a", 3), rates, lowest=0.9, highest=0.1)
