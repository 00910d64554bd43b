"""Procedural problems: receipts of two items, with worked dialogues for the base policy.

"47*8+36*7" asks for the total of two items, price times count. An attempt has three sites,
product, product and total, and at each it is plain or careful:

    plain     376+252=628
    careful   (32,56)376+(21,42)252(08,12,06)=628

Careful work stands in brackets before what it leads to, and it holds no equals sign. For a
product these are the tens and the ones times the count, 4*8 and 7*8; for the total the
columns from the right, each with the carry of the one before. Which of the two a site is
shows in its first token, a bracket or none.

A second attempt that is plain at a site states what the first attempt did, but for a total
behind careful work: that one is computed anew. So a product has to be mended at its own site.

Half of the products the base policy has learnt by heart, the others it has to guess in one go:
so products slip as well as totals.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from score_jax.data import splits
from score_jax.records import Part, Problem, WorkedDialogue

TASK = "receipts"
PRICES, COUNTS = range(10, 100), range(2, 10)
PRODUCTS = range(100, 1000)  # so that all sites have one form
BY_HEART = 50  # percent of the items
POOL = {"train": 6000, "validation": 800, "test": 2000}  # problems, unless a count is given
SITES = 3  # of an attempt: two products and their total
WORDS = ("*", "+", "=", "(", ")", ",")  # one token each, alone
VOCABULARY = 80
Values = tuple[int, int, int]  # what an attempt states: two products and the total
PLAIN = (False,) * SITES


@dataclass(frozen=True)
class Item:
    """A price of two digits and a count of one."""

    price: int
    count: int

    @property
    def text(self) -> str:
        """The item as a problem states it."""
        return f"{self.price}*{self.count}"

    @property
    def product(self) -> int:
        """What the items cost together."""
        return self.price * self.count

    @property
    def by_heart(self) -> bool:
        """Whether worked first attempts teach its product."""
        return splits.percentile(f"by heart: {self.text}") < BY_HEART

    @property
    def work(self) -> str:
        """The tens and the ones of the price, times the count."""
        tens, ones = divmod(self.price, 10)
        return f"({tens * self.count:02},{ones * self.count:02})"


@dataclass(frozen=True)
class Receipt:
    """Two items, whose total is asked for."""

    first: Item
    second: Item

    @property
    def text(self) -> str:
        """The problem statement."""
        return f"{self.first.text}+{self.second.text}"

    @property
    def values(self) -> Values:
        """The true values of the three sites."""
        return self.first.product, self.second.product, self.first.product + self.second.product

    def attempt(self, values: Values, careful: Sequence[bool] = PLAIN) -> str:
        """An attempt that states these values.

        Args:
          careful: of each site, whether its work is written out.
        """
        left, right, total = values
        sums = ",".join(f"{column:02}" for column in columns(left, right))
        works = (self.first.work, self.second.work, f"({sums})")
        one, two, three = (
            work if chosen else "" for work, chosen in zip(works, careful, strict=True)
        )
        return f"{one}{left}+{two}{right}{three}={total}"

    def again(self, first: Values, careful: Sequence[bool]) -> str:
        """A second attempt: careful sites are right, plain ones follow the first attempt."""
        true = self.values
        left, right = (true[i] if careful[i] else first[i] for i in range(2))
        copied = not any(careful)
        return self.attempt((left, right, first[2] if copied else left + right), careful)


def columns(left: int, right: int) -> list[int]:
    """The sums of the digits from the right, each with the carry of the one before."""
    found = [left % 10 + right % 10]
    for place in (10, 100):
        found.append(left // place % 10 + right // place % 10 + found[-1] // 10)
    return found


@cache
def items(*, by_heart: bool = False) -> tuple[Item, ...]:
    """All items whose product has three digits, or those of them that are learnt by heart."""
    every = (Item(price, count) for price in PRICES for count in COUNTS)
    found = (item for item in every if item.product in PRODUCTS)
    return tuple(item for item in found if item.by_heart or not by_heart)


def split_of(receipt: Receipt) -> str:
    """The split of a receipt, whichever of its items is first."""
    return splits.split_of("+".join(sorted((receipt.first.text, receipt.second.text))))


def problems(task: str, split: str, count: int, seed: int) -> Sequence[Problem]:
    """Distinct problems of a split in seeded order.

    Args:
      task: of each problem; "": none.
      count: number of problems; 0: as many as POOL says. There are 376,996 receipts in all.

    Raises:
      ValueError: there is no such split.
    """
    splits.check(split)
    known, wanted, found = items(), count or POOL[split], []
    for place in np.random.default_rng(seed).permutation(len(known) ** 2).tolist():
        receipt = Receipt(known[place // len(known)], known[place % len(known)])
        if split_of(receipt) == split:
            found.append(asked(receipt, task))
        if len(found) == wanted:
            break
    return found


def asked(receipt: Receipt, task: str) -> Problem:
    """A receipt as a problem."""
    answer = str(receipt.values[2])
    return Problem(id=receipt.text, prompt=receipt.text, answer=answer, task=task)


def drawn_receipt(rng: np.random.Generator, split: str, *, by_heart: bool = False) -> Receipt:
    """Draws a receipt of a split.

    Args:
      by_heart: only items whose product is learnt in one go.
    """
    known = items(by_heart=by_heart)
    while True:
        receipt = Receipt(*(known[i] for i in rng.integers(len(known), size=2)))
        if split_of(receipt) == split:
            return receipt


def sample_texts(instruction: str) -> list[str]:
    """Texts from which the embedded tokenizer is trained; deterministic."""
    rng = np.random.default_rng(0)
    receipts = [drawn_receipt(rng, "train") for _ in range(200)]
    return [
        text
        for receipt in receipts
        for text in (receipt.text, instruction, receipt.attempt(receipt.values, (True,) * SITES))
    ]


def slipped_product(rng: np.random.Generator, item: Item) -> int:
    """Draws a wrong product: a count or a price off by one, off by ten, or no carry."""
    tens, ones = divmod(item.price, 10)
    misses = [10 * tens * item.count + ones * item.count % 10]
    for off in (item.price, item.count, 10):
        misses += [item.product - off, item.product + off]
    wrong = [value for value in misses if value in PRODUCTS and value != item.product]
    return int(rng.choice(wrong))


def slipped_total(rng: np.random.Generator, left: int, right: int) -> int:
    """Draws a wrong total: without one of its carries, or with a digit off by one."""
    carries = [10 * 10**place for place, sums in enumerate(columns(left, right)[:2]) if sums > 9]
    if carries and rng.random() < 0.5:
        return left + right - int(rng.choice(carries))
    return left + right + int(rng.choice((-1, 1))) * 10 ** int(rng.integers(3))


def with_slips(rng: np.random.Generator, receipt: Receipt) -> Values:
    """Draws what a wrong first attempt states: one slip, or in a quarter of cases two."""
    total = receipt.values[2]
    while total == receipt.values[2]:  # two slips may cancel each other
        slips = rng.choice(SITES, size=2 if rng.random() < 0.25 else 1, replace=False)
        left, right = (
            slipped_product(rng, item) if site in slips else item.product
            for site, item in enumerate((receipt.first, receipt.second))
        )
        total = slipped_total(rng, left, right) if 2 in slips else left + right
    return left, right, total


def dialogues(
    rng: np.random.Generator, count: int, *, careful: float, right: float
) -> list[WorkedDialogue]:
    """Worked examples from which the base policy learns.

    The loss leaves out wrong first attempts: they are context for second ones, and the policy
    should not learn to slip.

    Args:
      careful: share of careful sites in second attempts, each drawn for itself.
      right: share of first attempts that are right, and trained on; their products are those
        that are learnt by heart.
    """
    examples = []
    for _ in range(count):
        solved = rng.random() < right
        receipt = drawn_receipt(rng, "train", by_heart=solved)
        values = receipt.values if solved else with_slips(rng, receipt)
        sites = (rng.random(SITES) < careful).tolist()
        first = (Part(receipt.attempt(values), learn=solved),)
        second = (Part(receipt.again(values, sites)),)
        examples.append(WorkedDialogue(asked(receipt, TASK), (first, second)))
    return examples
