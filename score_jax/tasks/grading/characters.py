r"""Rewrites Unicode mathematics as LaTeX: powers, indices, fractions, roots, signs and letters.

`x²` becomes `x^{2}`, `3½` `3\frac{1}{2}`, `∛8` `\sqrt[3]{8}`. Digits of other scripts and
widths are left unchanged; the parsers of numbers do not accept them.
"""

import re
import unicodedata

# Superscript and subscript characters; their Unicode decomposition gives the plain character.
# Ordinal indicators and trade marks are superscripts too, but are left out as no powers.
_RAISED_OR_LOWERED = "²³¹ʰ-ʸˡ-ˣᴬ-ᵪᶜᶠᶻ⁰ⁱ⁴-ⁿ₀-ₜⱼⱽ"
_SHIFTED = re.compile(f"[{_RAISED_OR_LOWERED}]+")
_INDEXED_ROOT = re.compile("(?<![0-9a-zA-Z)\\]}])([²³⁴-⁹])√")
_FRACTION = re.compile("[¼-¾⅐-⅞↉]|[⁰¹²³⁴-⁹]+[⁄/][₀-₉]+|(?<![√0-9])[0-9]+⁄[0-9]+")
_RADICAND = r"(\d+(?:\.\d+)?|[a-zA-Z]|\\frac\{\d+\}\{\d+\}|\\[a-zA-Z]+)"
_ROOT = re.compile(rf"√(\[\d\])?\s*{_RADICAND}")
_OVERLINED = re.compile("(?:[0-9][\u0304\u0305])+")
_DOTTED = re.compile("([0-9])\u0307")
_GREEK_NAMES = re.findall(
    "[a-z]+",
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho "
    "varsigma sigma tau upsilon phi chi psi omega",
)
_LATIN_LOOKALIKES = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΥΧο", "ABEZHIKMNOPTYXo", strict=True))
_GREEK = {
    **{chr(ord("α") + n): rf"\{name} " for n, name in enumerate(_GREEK_NAMES)},
    **{chr(ord("Α") + n): rf"\{name.title()} " for n, name in enumerate(_GREEK_NAMES)},
    **_LATIN_LOOKALIKES,
    **{"ϵ": r"\epsilon ", "ϑ": r"\theta ", "ϕ": r"\phi ", "ϱ": r"\rho "},
}
_SIGNS = {
    **dict.fromkeys("−–—‐‑‒﹣", "-"),
    **dict.fromkeys("⁄∕÷", "/"),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("≤≦⩽", r"\le "),
    **dict.fromkeys("≥≧⩾", r"\ge "),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("∅⦰", r"\emptyset "),
    **{"×": r"\times ", "∗": "*", "±": r"\pm ", "∓": r"\mp ", "≠": r"\ne ", "≈": r"\approx "},
    **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in "},
    **{"∛": "√[3]", "∜": "√[4]"},
    **{"⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil "},
    **{"′": "'", "∣": "|", "⟨": r"\langle ", "⟩": r"\rangle "},
}
_TABLE = str.maketrans({**_GREEK, **_SIGNS})


def _shift(match: re.Match) -> str:
    """Rewrites a run such as ₁² as an index and a power."""
    parts: list[tuple[str, str]] = []
    for letter in match.group():
        tag, *codes = unicodedata.decomposition(letter).split()
        mark = "_" if tag == "<sub>" else "^"
        plain = "".join(chr(int(code, 16)) for code in codes)
        if parts and parts[-1][0] == mark:
            plain = parts.pop()[1] + plain
        parts.append((mark, plain))
    return "".join(f"{mark}{{{plain}}}" for mark, plain in parts)


def _fraction(match: re.Match) -> str:
    over, under = re.split("[⁄/]", unicodedata.normalize("NFKC", match.group()))
    return rf"\frac{{{over}}}{{{under}}}"


def _plain(letter: str) -> str:
    """Returns the plain form of a letter or sign in another font or width: x for 𝑥."""
    kind, _, codes = unicodedata.decomposition(letter).partition(" ")
    if kind in ("<font>", "<wide>", "<compat>") and not codes.startswith("0020"):
        number = unicodedata.category(letter).startswith("N")
        return letter if number else unicodedata.normalize("NFKC", letter)
    return letter


def as_latex(text: str) -> str:
    """Rewrites a text's Unicode mathematics as LaTeX; returns ASCII unchanged."""
    if text.isascii():
        return text
    text = _INDEXED_ROOT.sub(lambda root: f"√[{unicodedata.normalize('NFKC', root[1])}]", text)
    text = _FRACTION.sub(_fraction, text)
    text = _SHIFTED.sub(_shift, text)
    text = _OVERLINED.sub(lambda run: rf"\overline{{{re.sub('[^0-9]', '', run.group())}}}", text)
    text = _DOTTED.sub(r"\\dot{\1}", text)
    text = "".join(map(_plain, text)).translate(_TABLE)
    text = _ROOT.sub(lambda root: rf"\sqrt{root[1] or ''}{{{root[2]}}}", text)
    return text.replace("√", r"\sqrt")
