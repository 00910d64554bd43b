"""Decides whether two mathematical answers are equal: as text, as numbers, symbolically.

Structure is compared on the text (`latex.py`) and numbers exactly (`quantities.py`); only
the remaining cases go to SymPy (`symbols.py`), after `too_large` has refused expressions
whose evaluation would not terminate. SymPy may still run forever, so this module must run
in a grading worker, which the pool kills at a deadline.
"""

import itertools
import re
from dataclasses import replace
from fractions import Fraction

from score_jax.tasks.grading import latex, quantities, symbols
from score_jax.tasks.grading.latex import Answer

LONGEST_EXPRESSION = 400  # characters
DEEPEST = 12  # nested brackets
LARGEST_POWER = 1000  # largest literal exponent
MOST_PARTS = 50  # of a list or matrix

_UNIT = re.compile(  # short units; other letters after a number are variables
    "[mgls]|[ckm]m|[km]g|ft|in|yd|mi|lbs?|oz|ml|cc|hrs?|min|sec|[mk]ph|[ap]m|rpm|deg|rad|yrs?|sq|"
    "qt|pt|gal"
)

_BIG = re.compile(r"\d{5,}")
_ASSIGNED = re.compile(r"^\s*(?:[a-zA-Z](?:_\{?\w+\}?)?(?:\s*\(\s*[a-zA-Z]\s*\))?'?)\s*=\s*(?!=)")
_POINT = re.compile(r"^\s*\(\s*[a-zA-Z](?:\s*,\s*[a-zA-Z])+\s*\)\s*=\s*")
_BASED = re.compile(r"(-?(?=[A-Z]*\d)[\dA-Z.]+)_\{?(\d+)\}?")
_PLAIN_UNIT = re.compile(
    r"(?<=[\d\s})])(?:(?:square|sq|cubic|cu)\.?\s+)?([a-zA-Z]{2,})\s*(?:\^\s*\{?[23]\}?)?\s*$"
)
_MEMBER = re.compile(r"^\s*[a-zA-Z]\s*\\in(?![a-zA-Z])\s*")


def _depth(text: str) -> int:
    depth = deepest = 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        deepest = max(deepest, depth)
    return deepest


def too_large(text: str) -> str:
    """The reason why an expression must not be evaluated; "" if it may be."""
    if len(text) > LONGEST_EXPRESSION:
        return f"{len(text)} characters"
    if _depth(text) > DEEPEST:
        return "brackets too deep"
    flat = re.sub(r",+\^", "^", re.sub(r"[\s{}()]", "", re.sub(r"\}\s*\{", ",", text)))
    if re.search(r"\^-?\d+(?:\.\d+)?\^|\^-?\d+!", flat):
        return "a tower of powers"
    powers = [int(number[:9]) for number in re.findall(r"\^-?(\d+)", flat)]
    if any(power > LARGEST_POWER for power in powers):
        return "a huge power"
    if re.search(r"!!|\^\S*!|!\s*\^", flat) or ("!" in flat and _BIG.search(flat)):
        return "a huge factorial"
    if re.search(r"binom|choose|\bC_|Gamma|zeta|\\sum|\\prod|\\int|\\lim", text) and (
        _BIG.search(flat) or powers
    ):
        return "a huge sum or binomial"
    return ""


def _cases(text: str) -> dict[str, set[str]]:
    """Returns the names in a text by their lower case: {"a": {"a", "A"}, ...}."""
    cases: dict[str, set[str]] = {}
    for name in re.findall(r"\\[a-zA-Z]+|[a-zA-Z]", text):
        cases.setdefault(name.lower(), set()).add(name)
    return cases


def _same_symbols(gold: str, given: str) -> bool:
    if too_large(gold) or too_large(given):
        return False
    first, second = _cases(gold), _cases(given)
    if any(first[name] != second[name] for name in first.keys() & second.keys()):
        return False  # a and A are different variables; math-verify takes them as one
    return symbols.equal(gold, given)


def _same_scalar(gold: str, given: str) -> bool:
    if _no_spaces(gold) == _no_spaces(given):
        return True
    letters = _letter(gold), _letter(given)
    if letters[0] and letters[1]:  # (b) is choice B, a bare b is a variable
        choice = gold != letters[0]
        return letters[0] == letters[1] or (choice and letters[0].lower() == letters[1].lower())
    if _is_text(gold):
        return latex.words(gold).lower() == latex.words(given).lower()
    return _same_mathematics(latex.inside(gold) or gold, latex.inside(given) or given)


def _same_mathematics(gold: str, given: str) -> bool:
    bases = _BASED.fullmatch(gold), _BASED.fullmatch(given)
    if any(bases):
        return (
            bases[0] is not None and bases[1] is not None and bases[0].groups() == bases[1].groups()
        )
    first, second = _measured(gold), _measured(given)
    if first and second:
        return quantities.same(first, second, relative=Fraction(0), absolute=Fraction(0))
    gold, given = _without_unit(gold), _without_unit(given)
    return gold == given or _same_symbols(gold, given)


def _measured(text: str) -> quantities.Quantity | None:
    """Parses a number with its unit; None if its letters are variables, as in 3x, 3xy, 3ab."""
    found = quantities.parse(text)
    letters = re.search(r"\d(\s*)([a-zA-Z]{1,3})$", text)
    if not found or not letters or (letters[1] and len(letters[2]) == 3):
        return found
    known = _UNIT.fullmatch(letters[2]) or letters[2].lower() in quantities.SCALES or "$" in text
    return found if known else None


def _without_unit(text: str) -> str:
    """Removes a unit after an expression, a degree sign, currency and percent."""
    text = re.sub(r"\\(?:text|mbox|mathrm|textrm)\s*\{[^{}]*\}\s*(?:\^\s*\{?\d\}?)?\s*$", "", text)
    plain = _PLAIN_UNIT.search(text)
    if plain and (_UNIT.fullmatch(plain[1]) or len(plain[1]) > 3):
        constant = not re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+", "", text[: plain.start()]))
        text = text[: plain.start()] if constant else text
    if not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):
        text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*$|°\s*$", "", text)
    return re.sub(r"^\\\$|\\?%\s*$", "", text.strip()).strip()


def _is_text(text: str) -> bool:
    """Whether an answer is words and not mathematics."""
    inside = latex.inside(text)
    if inside is not None:
        return quantities.parse(inside) is None
    opened = re.sub(r"\\[a-zA-Z]+", " ", text)
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z\s,.'-]*", opened.strip())) and bool(
        re.search(r"[A-Za-z]{3,}", opened)
    )


def _letter(text: str) -> str | None:
    match = re.fullmatch(r"\(?([A-Za-z])\)?", latex.words(text))
    return match[1] if match else None


def _match_in_any_order(gold: tuple[Answer, ...], given: tuple[Answer, ...]) -> bool:
    """Whether the parts can be paired so that each pair is equal."""
    left = list(given)
    for part in gold:
        exact = next((other for other in left if other.text == part.text), None)
        found = exact or next((other for other in left if same(part, other)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _unassigned(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    """Removes "x =" from the parts of a list if all name the same variable."""
    found = [_ASSIGNED.match(part.text) for part in parts]
    names = {match.group().strip() for match in found if match}
    if len(names) != 1 or not found[0]:
        return parts
    return tuple(
        latex.parse(part.text[match.end() :]) if match else part
        for part, match in zip(parts, found, strict=True)
    )


def _distinct(parts: tuple[Answer, ...]) -> tuple[Answer, ...]:
    kept: list[Answer] = []
    for part in parts:
        if not any(other.text == part.text for other in kept):
            kept.append(part)
    return tuple(kept)


def _mirrored(chain: Answer) -> Answer:
    """Reverses a chain: x > 2 becomes 2 < x."""
    turned = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le"}
    signs = tuple(turned.get(sign, sign) for sign in reversed(chain.signs))
    return replace(chain, parts=chain.parts[::-1], signs=signs)


def _same_chain(gold: Answer, given: Answer) -> bool:
    """Whether two chains state the same relations between neighbours."""
    if gold.signs != given.signs:
        return False
    if all(itertools.starmap(same, zip(gold.parts, given.parts, strict=True))):
        return True
    texts = [[part.text for part in chain.parts] for chain in (gold, given)]
    if any(map(too_large, itertools.chain(*texts))):
        return False
    first, second = map(itertools.pairwise, texts)
    return all(map(symbols.same_relation, gold.signs, first, second))


def same(gold: Answer, given: Answer) -> bool:
    """Whether two answers are equal in kind and value."""
    if gold.text == given.text:
        return True
    if max(len(gold.parts), len(given.parts)) > MOST_PARTS:
        return False
    unordered = ("list", "set")
    if gold.kind in unordered and given.kind in unordered:
        parts = _unassigned(gold.parts), _unassigned(given.parts)
        return _match_in_any_order(_distinct(parts[0]), _distinct(parts[1]))
    if gold.kind in unordered and len(gold.parts) == 1:
        return same(gold.parts[0], given)
    if gold.kind != given.kind:
        return False
    if gold.kind == "scalar":
        return _same_scalar(gold.text, given.text)
    if len(gold.parts) != len(given.parts):
        return False
    if gold.kind == "chain":
        return _same_chain(gold, given) or _same_chain(gold, _mirrored(given))
    if gold.kind == "union":
        return _match_in_any_order(gold.parts, given.parts)
    if gold.brackets != given.brackets or gold.columns != given.columns:
        return False
    return all(itertools.starmap(same, zip(gold.parts, given.parts, strict=True)))


def _no_spaces(text: str) -> str:
    return re.sub(r"\s", "", text)


def _bare(text: str, other: str) -> str:
    """Removes "x =" or "x \\in" if the other answer has none or the same."""
    for pattern in (_ASSIGNED, _POINT, _MEMBER):
        match = pattern.match(text)
        if match and text.count("=") <= 1:
            counterpart = pattern.match(other)
            if counterpart is None and "=" not in other:
                return text[match.end() :]
            if counterpart and _no_spaces(counterpart.group()) == _no_spaces(match.group()):
                return text[match.end() :]
    return text


def equal(gold: str, given: str) -> bool:
    """Whether two final answers are equal.

    Args:
      gold: LaTeX, or plain text.
      given: a model's answer; untrusted.
    """
    gold, given = latex.spell(gold), latex.spell(given)
    gold, given = _bare(gold, given), _bare(given, gold)
    return same(latex.parse(gold), latex.parse(given))
