"""Procedural problems of the package reasoning-gym, graded by our own graders.

Its scorer runs a model's text in nine of its tasks, gives full marks to anything in
one and credit for containment in many. Here are those whose answer is one fixed
text or number; the others are left out.
"""

from collections.abc import Sequence
from importlib.util import find_spec

from score_jax.records import Problem

GRADERS = {  # our task for each of theirs
    "aiw": "math",
    "base_conversion": "exact",
    "basic_arithmetic": "math",
    "binary_alternation": "math",
    "calendar_arithmetic": "exact",
    "chain_sum": "math",
    "count_bits": "math",
    "count_primes": "math",
    "course_schedule": "exact",
    "decimal_chain_sum": "math",
    "dice": "math",
    "family_relationships": "exact",
    "fraction_simplification": "math",
    "gcd": "math",
    "gsm_symbolic": "math",
    "isomorphic_strings": "exact",
    "largest_island": "math",
    "lcm": "math",
    "leg_counting": "math",
    "letter_counting": "math",
    "number_sequence": "math",
    "products": "math",
    "ransom_note": "exact",
    "self_reference": "math",
    "simple_equations": "math",
    "spell_backward": "exact",
    "syllogism": "exact",
    "time_intervals": "exact",
    "word_sequence_reversal": "exact",
    "zebra_puzzles": "exact",
}
SPLIT_SEEDS = {"train": 0, "validation": 1, "test": 2}


class Generated(Sequence[Problem]):
    """Problems made when they are read; a place always gives the same one."""

    def __init__(self, name: str, dataset: Sequence[dict], split: str):
        """Takes the package's data set."""
        self._name, self._dataset, self._split = name, dataset, split

    def __len__(self) -> int:
        """As many as asked for."""
        return len(self._dataset)

    def __getitem__(self, index):
        """Returns the problem at a place; slices are lists."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"place {index} of {len(self)} problems")
        index %= len(self)
        entry = self._dataset[index]
        return Problem(
            id=f"{self._name}/{self._split}/{index}",
            prompt=entry["question"].strip(),
            answer=str(entry["answer"]).strip("$"),
            task=GRADERS[self._name],
        )


def problems(name: str, *, split: str, count: int, seed: int) -> Generated:
    """Returns a task's problems; the splits are drawn from different seeds.

    A small problem space can still give one problem to two splits.

    Args:
      name: one of GRADERS.
      split: train, validation or test.
      count: how many; 0 means 10,000.
      seed: of the run; the split is added to it.

    Raises:
      ValueError: the name or split is not known, or the package is not installed.
    """
    if name not in GRADERS or split not in SPLIT_SEEDS:
        raise ValueError(
            f"data.name is {name!r}, data.split {split!r}; choose of {', '.join(GRADERS)}; "
            f"{', '.join(SPLIT_SEEDS)}"
        )
    if find_spec("reasoning_gym") is None:
        raise ValueError(
            "data.source is 'reasoning_gym'; install it: pip install reasoning-gym==0.1.25"
        )
    import reasoning_gym

    # The package draws problem i from seed + i: splits must lie further apart than any count.
    start = (seed * len(SPLIT_SEEDS) + SPLIT_SEEDS[split]) * 1_000_000_000
    dataset = reasoning_gym.create_dataset(name, size=count or 10_000, seed=start)
    return Generated(name, dataset, split)
