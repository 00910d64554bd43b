"""Receipts: apart by split, and true in every worked line."""

import itertools
import re
import zlib
from collections import Counter

import numpy as np
import pytest

from score_jax.data import receipts
from score_jax.data.receipts import Item, Receipt

RECEIPT = Receipt(Item(47, 8), Item(36, 7))  # 376 + 252 = 628
PLAIN = (False, False, False)
FORM = re.compile(r"(?:\((.{5})\))?(\d+)\+(?:\((.{5})\))?(\d+)(?:\((.{8})\))?=(\d+)")


def read(attempt):
    """Stated values and work of an attempt's three sites."""
    found = FORM.fullmatch(attempt)
    assert found, attempt
    one, left, two, right, three, total = found.groups()
    return (int(left), int(right), int(total)), (one, two, three)


def written_addition(left, right):
    """Column by column on paper: each sum in two digits, from the right."""
    carry, sums = 0, []
    for a, b in zip(f"{left:03}"[::-1], f"{right:03}"[::-1], strict=True):
        sums.append(f"{int(a) + int(b) + carry:02}")
        carry = int(sums[-1][0])
    return ",".join(sums)


@pytest.mark.parametrize(
    ("first", "careful", "attempt"),
    [
        ((376, 252, 628), (0, 0, 0), "376+252=628"),
        ((376, 252, 628), (1, 1, 1), "(32,56)376+(21,42)252(08,12,06)=628"),
        ((376, 252, 618), (0, 0, 0), "376+252=618"),  # a copy, slip and all
        ((376, 252, 618), (1, 0, 0), "(32,56)376+252=628"),  # behind a careful product: anew
        ((376, 252, 618), (0, 0, 1), "376+252(08,12,06)=628"),
        ((326, 252, 578), (1, 0, 0), "(32,56)376+252=628"),
        ((326, 252, 578), (0, 1, 0), "326+(21,42)252=578"),  # at another product: no cure
        ((326, 252, 578), (0, 0, 1), "326+252(08,07,05)=578"),  # a right sum of what it states
        ((326, 259, 999), (0, 1, 0), "326+(21,42)252=578"),
    ],
)
def test_a_slip_of_a_product_is_mended_at_its_own_site_and_a_total_behind_any(
    first, careful, attempt
):
    assert RECEIPT.text == "47*8+36*7" and RECEIPT.values == (376, 252, 628)
    assert RECEIPT.again(first, tuple(map(bool, careful))) == attempt


def test_the_work_of_every_item_leads_to_its_product():
    known = {(p, c) for p in range(10, 100) for c in range(2, 10) if p * c >= 100}
    assert {(item.price, item.count) for item in receipts.items()} == known
    assert len(receipts.items()) == len(known) == 614
    for item in receipts.items():
        tens, ones = item.work.strip("()").split(",")
        assert len(tens) == len(ones) == 2
        assert 10 * int(tens) + int(ones) == item.product == item.price * item.count
        assert int(tens) == item.price // 10 * item.count


@pytest.mark.parametrize("left", [100, 199, 376, 555, 891])
def test_columns_are_those_of_addition_on_paper(left):
    for right in range(100, 1000, 7):
        sums = receipts.columns(left, right)
        assert ",".join(f"{column:02}" for column in sums) == written_addition(left, right)
        assert sums[2] * 100 + sums[1] % 10 * 10 + sums[0] % 10 == left + right


def test_problems_are_distinct_in_seeded_order_and_apart_by_split():
    texts = {}
    for split, size in (("train", 6_000), ("validation", 800), ("test", 2_000)):
        found = receipts.problems("receipts", split, 0, 0)
        texts[split] = [problem.prompt for problem in found]
        assert len(set(texts[split])) == len(found) == size
        assert receipts.problems("receipts", split, 10, 0) == found[:10]
        assert receipts.problems("receipts", split, 10, 1) != found[:10]
        for problem in found[::50]:
            assert problem.task == "receipts" and int(problem.answer) == eval(problem.prompt)
    sets = {
        split: {"+".join(sorted(text.split("+"))) for text in own} for split, own in texts.items()
    }
    assert not any(one & two for one, two in itertools.combinations(sets.values(), 2))
    assert receipts.problems("", "test", 1, 0)[0].task == ""


def test_a_split_is_the_same_whichever_item_is_first():
    known = receipts.items()
    shares = Counter()
    for one, two in zip(known, known[::-1], strict=True):
        place = zlib.crc32("+".join(sorted([one.text, two.text])).encode()) % 100
        split = "train" if place < 70 else "validation" if place < 80 else "test"
        assert receipts.split_of(Receipt(one, two)) == receipts.split_of(Receipt(two, one)) == split
        shares[split] += 1
    assert len(shares) == 3


@pytest.mark.parametrize(
    ("item", "misses"),
    [
        # Without the carry 5 of 56; one 47 less or more; 8 less or more; ten less or more.
        (Item(47, 8), {326, 329, 423, 368, 384, 366, 386}),
        (Item(50, 2), {150, 102, 110}),  # no carry to lose; 50, 98 and 90 have two digits
    ],
)
def test_a_slip_of_a_product_is_of_several_sorts(item, misses):
    rng = np.random.default_rng(0)
    assert {receipts.slipped_product(rng, item) for _ in range(400)} == misses


def test_every_item_has_slips_and_none_is_its_product():
    rng = np.random.default_rng(0)
    for item in receipts.items():
        miss = receipts.slipped_product(rng, item)
        assert miss != item.product and 100 <= miss < 1000


def test_a_slip_of_a_total_is_a_lost_carry_or_a_digit_off_by_one():
    rng = np.random.default_rng(0)
    drawn = Counter(receipts.slipped_total(rng, 376, 252) for _ in range(3000))  # carries a 100
    assert set(drawn) == {627, 629, 618, 638, 528, 728}
    assert 1600 < drawn[528] < 1900  # half, and a sixth of the other half
    plain = {receipts.slipped_total(rng, 111, 222) for _ in range(400)}
    assert plain == {332, 334, 323, 343, 233, 433}


def known_by_heart(item):
    """Half of the items, by a hash of their text."""
    return zlib.crc32(f"by heart: {item}".encode()) % 100 < 50


def test_half_of_the_items_are_known_by_heart_and_problems_have_the_others_too():
    every = {item.text for item in receipts.items()}
    found = {item.text for item in receipts.items(by_heart=True)}
    assert found == set(filter(known_by_heart, every)) and 0.4 < len(found) / len(every) < 0.6
    asked = {item for p in receipts.problems("", "test", 0, 0) for item in p.prompt.split("+")}
    assert len(asked - found) > 0.9 * len(every - found)


def drawn(careful, right, count=400):
    return receipts.dialogues(np.random.default_rng(0), count, careful=careful, right=right)


def test_first_attempts_with_a_slip_are_never_learnt():
    sorts = Counter()
    for dialogue in drawn(careful=0.5, right=0.5):
        (first,), (second,) = dialogue.attempts
        (left, right, total), work = read(first.text)
        true = tuple(eval(text) for text in dialogue.problem.prompt.split("+"))
        wrong = (left != true[0], right != true[1], total != left + right)
        assert work == (None, None, None) and second.learn
        assert first.learn == (not any(wrong)) and sum(wrong) <= 2
        assert first.learn == (total == sum(true))  # slips never cancel each other
        if first.learn:
            assert all(known_by_heart(item) for item in dialogue.problem.prompt.split("+"))
        sorts[wrong] += 1
    assert len(sorts) == 7 and min(sorts.values()) >= 5  # none, each alone, each two


def test_a_site_is_careful_by_itself_and_then_right():
    sites = Counter()
    for dialogue in drawn(careful=0.3, right=0.2, count=1000):
        (first,), (second,) = dialogue.attempts
        before, _ = read(first.text)
        stated, works = read(second.text)
        prices = [eval(text) for text in dialogue.problem.prompt.split("+")]
        for site, (work, truth) in enumerate(zip(works, [*prices, sum(stated[:2])], strict=True)):
            if work is None:
                anew = site == 2 and any(works)
                assert stated[site] == (truth if anew else before[site])
            else:
                assert stated[site] == truth
        if works[2] is not None:
            assert works[2] == written_addition(*stated[:2])
        sites[tuple(work is not None for work in works)] += 1
    for chosen in itertools.product((False, True), repeat=3):
        share = 0.3 ** sum(chosen) * 0.7 ** (3 - sum(chosen))
        spread = (share * (1 - share) / 1000) ** 0.5
        assert abs(sites[chosen] / 1000 - share) < 4 * spread


def test_shares_of_0_and_1_are_kept_to_the_letter():
    assert all(d.attempts[0][0].learn for d in drawn(careful=0, right=1))
    assert not any(d.attempts[0][0].learn for d in drawn(careful=0, right=0))
    assert all(None not in read(d.attempts[1][0].text)[1] for d in drawn(careful=1, right=0))
    assert all(d.attempts[0][0].text == d.attempts[1][0].text for d in drawn(careful=0, right=0))


def test_worked_dialogues_are_drawn_from_the_training_split_alone():
    for dialogue in drawn(careful=0.5, right=0.5):
        first, second = (
            Item(*map(int, text.split("*"))) for text in dialogue.problem.prompt.split("+")
        )
        assert receipts.split_of(Receipt(first, second)) == "train"


def test_the_tokenizers_texts_are_always_the_same():
    texts = receipts.sample_texts("Again.")
    assert texts == receipts.sample_texts("Again.")
    assert set("0123456789*+=(),") <= set("".join(texts))
