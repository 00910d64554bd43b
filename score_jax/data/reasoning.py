"""Procedural problems of the package reasoning-gym, graded by our own graders.

Its scorer runs a model's text in nine of its tasks, gives full marks to anything in
one and credit for containment in many. Here are those whose answer is one fixed
text or number; the others are left out.
"""

from importlib.util import find_spec

from score_jax.data.lazy import Lazy
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


def problems(name: str, *, split: str, count: int, seed: int) -> Lazy:
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

    def read(place: int) -> Problem:
        entry = dataset[place]
        return Problem(
            id=f"{name}/{split}/{place}",
            prompt=entry["question"].strip(),
            answer=str(entry["answer"]).strip("$"),
            task=GRADERS[name],
        )

    return Lazy(len(dataset), read)
