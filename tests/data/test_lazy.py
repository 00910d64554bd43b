import pytest

from score_jax.data.lazy import Lazy
from score_jax.records import Problem


def test_places_slices_and_ends():
    found = Lazy(3, lambda place: Problem(id=str(place), prompt="p"))
    assert len(found) == 3 and [p.id for p in found] == ["0", "1", "2"]
    assert found[-1].id == "2" and [p.id for p in found[1:9]] == ["1", "2"]
    for place in (3, -4):
        with pytest.raises(IndexError, match="of 3 problems"):
            found[place]
