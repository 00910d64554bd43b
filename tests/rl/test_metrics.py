"""Parts of a metric, merged in any way, say what the whole says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.rl import metrics
from score_jax.rl.metrics import flat, largest, mean, merge, total

VALUES = np.array([[3.0, -1.0], [0.5, -7.0], [-2.0, -4.0], [8.0, -2.5], [1.0, -3.0], [0.25, -9.0]])
PRESENT = np.array([[1, 1], [1, 0], [0, 0], [1, 1], [1, 0], [1, 1]], bool)


def measured(rows):
    """The three kinds over some rows of VALUES; the largest of nothing is -inf."""
    values, present = VALUES[rows], PRESENT[rows]
    return {
        "summed": total(np.where(present, values, 0.0).sum(0), "nats"),
        "averaged": mean(np.where(present, values, 0.0).sum(0), present.sum(0), "nats"),
        "worst": largest(np.where(present, values, -np.inf).max(0, initial=-np.inf)),
    }


def split(at):
    """Metrics of consecutive parts of the rows."""
    return [measured(rows) for rows in np.split(np.arange(len(VALUES)), at)]


def by_hand():
    own = [VALUES[PRESENT[:, turn], turn] for turn in (0, 1)]
    return {
        "summed": [sum(x) for x in own],
        "averaged": [sum(x) / len(x) for x in own],
        "worst": [max(x) for x in own],
    }


def assert_says(found, want):
    assert found.keys() == want.keys()
    for name, numbers in want.items():
        np.testing.assert_allclose(found[name].value(), numbers, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("at", [[], [3], [1, 2], [2, 2, 5], [1, 2, 3, 4, 5], [0, 6]], ids=str)
def test_any_split_says_what_the_whole_says(at):
    assert_says(merge(split(at)), by_hand())


def test_parts_of_parts_add_up_in_any_order():
    a, b, c, d = split([1, 3, 4])
    for nested in (
        merge([merge([a, b]), merge([c, d])]),
        merge([merge([d, a]), merge([merge([c]), b])]),
        merge([a, merge([b, merge([c, d])])]),
    ):
        assert_says(nested, by_hand())


def test_unequal_parts_count_by_their_rows_not_alike():
    """A mean of means of 1 row and of 2 would be 2.0."""
    parts = [{"x": mean(3.0, 1.0)}, {"x": mean(2.0, 2.0)}]
    assert merge(parts)["x"].value() == pytest.approx(5 / 3)


def test_the_largest_of_negative_values_is_negative():
    """Not the 0 that a sum begins with."""
    parts = [{"x": largest(np.array([-3.0, -1.0]))}, {"x": largest(np.array([-2.0, -5.0]))}]
    assert merge(parts)["x"].value().tolist() == [-2.0, -1.0]
    start = metrics.empty(jax.tree.map(jnp.asarray, parts[0]))
    assert merge([start, *parts])["x"].value().tolist() == [-2.0, -1.0]


def test_nothing_is_neutral_under_merging():
    """As the carry that a scan over microbatches begins with."""
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, measured(np.arange(6))))
    start = metrics.empty(shapes)
    assert_says(merge([start, *split([2, 5])]), by_hand())
    kinds = {name: (metric.reduction, metric.unit) for name, metric in start.items()}
    assert kinds == {"summed": ("sum", "nats"), "averaged": ("mean", "nats"), "worst": ("max", "")}


def test_a_jitted_scan_adds_parts_up_as_the_host_does():
    parts = jax.tree.map(lambda *x: jnp.stack(x).astype(jnp.float32), *split([1, 3, 4]))

    @jax.jit
    def run(parts):
        first = jax.tree.map(lambda x: x[0], parts)
        carry = metrics.empty(first)
        return jax.lax.scan(lambda a, b: (merge((a, b)), None), carry, parts)[0]

    assert_says(run(parts), by_hand())


def test_a_mean_of_nothing_is_zero():
    assert mean(0.0, 0.0).value() == 0.0
    assert mean(np.zeros(2), np.array([0.0, 4.0])).value().tolist() == [0.0, 0.0]


def test_a_name_that_a_part_lacks_is_taken_from_the_others():
    got = merge([{"a": total(1.0)}, {"b": mean(3.0, 2.0)}, {"a": total(4.0)}, {}])
    assert {name: float(x.value()) for name, x in got.items()} == {"a": 5.0, "b": 1.5}
    assert merge([]) == {}


def test_merging_changes_neither_part():
    parts = split([3])
    before = [{name: metric.value().copy() for name, metric in part.items()} for part in parts]
    merge(parts)
    for part, values in zip(parts, before, strict=True):
        assert_says(part, values)


def test_flat_names_have_a_turn_where_there_is_one_value_per_turn():
    got = flat({
        "loss": mean(jnp.float32(3.0), jnp.float32(2.0)),
        "kl": mean(np.array([1.0, 9.0]), np.array([2.0, 3.0])),
        "worst/of": largest(np.array([-1.0, 2.0, 0.5])),
        "one": total(np.array([4.0])),
    })  # fmt: skip
    assert got == {
        "loss": 1.5, "kl/turn1": 0.5, "kl/turn2": 3.0,
        "worst/of/turn1": -1.0, "worst/of/turn2": 2.0, "worst/of/turn3": 0.5, "one/turn1": 4.0,
    }  # fmt: skip
    assert all(type(value) is float for value in got.values())
