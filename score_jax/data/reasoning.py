"""Procedural problems of the package reasoning-gym, graded by score_jax's graders.

The package's scorers are not used: nine of its tasks execute the model's text, one
accepts any answer, and many give credit if the response contains the answer. Only tasks
whose answer is one fixed text or number are offered.
"""

from importlib.util import find_spec

from score_jax.data.lazy import Lazy
from score_jax.records import Problem

GRADERS = {  # task of reasoning-gym: task of score_jax that grades it
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
    """Returns a task's problems; each split has its own range of seeds.

    With a small problem space the same problem can still occur in two splits.

    Args:
      name: key of GRADERS.
      split: train, validation or test.
      count: number of problems; 0 means 10,000.
      seed: of the data; combined with the split.

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

    # The package draws problem i from seed + i: the starts of splits differ by more than any count.
    start = (seed * len(SPLIT_SEEDS) + SPLIT_SEEDS[split]) * 1_000_000_000
    dataset = reasoning_gym.create_dataset(name, size=count or 10_000, seed=start)

    def read(index: int) -> Problem:
        entry = dataset[index]
        return Problem(
            id=f"{name}/{split}/{index}",
            prompt=entry["question"].strip(),
            answer=str(entry["answer"]).strip("$"),
            task=GRADERS[name],
        )

    return Lazy(len(dataset), read)
