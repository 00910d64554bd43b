"""Removes typography: wide characters, special spaces, Markdown, quotes, delimiters.

A model writes `**Final Answer**：１５` for `Final Answer: 15`. Characters are replaced before
the answer is extracted. Emphasis, quotes and delimiters around the answer are removed
afterwards, layer by layer, so that a grader for exact text can compare every layer.
"""

import re

_WIDE = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}  # full-width ASCII
_SPACES = dict.fromkeys([0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " ")
_INVISIBLE = dict.fromkeys(
    (
        *(0xAD, 0x61C, 0xFE0E, 0xFE0F, 0xFEFF),  # soft hyphen, marks of direction, of variants
        *(*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)),
    ),
    None,
)
_SIGNS = {0x3002: ".", 0xFF61: ".", 0x2010: "-", 0x2011: "-", 0x2212: "-"}
_LINES = {0x85: "\n", 0x2028: "\n", 0x2029: "\n"}
_CHARACTERS = _WIDE | _SPACES | _INVISIBLE | _SIGNS | _LINES

ORNAMENTS = "✅✔✓☑🎉👉➡→⇒📌⭐💡🎯🏁🔥🟢🔹🔸•▪"
_MARKED = re.compile(r"(?<![\w)^*\\])(\*\*\*|\*\*|\*|___|__|_|`+)(?=\S)(.+?)(?<=\S)\1(?![\w(*])")
_BOLD = r"\\(?:textbf|textit|emph|underline|mathbf|boldsymbol|bm)\s*"
_AROUND = {  # first character: pairs of opening and closing delimiter, the longest first
    "$": (("$$", "$$"), ("$", "$")),
    "\\": ((r"\(", r"\)"), (r"\[", r"\]")),
    "=": (("==", "=="),),
    **{mark: tuple((mark * n, mark * n) for n in (3, 2, 1)) for mark in "*_`"},
    **{
        quotes[0]: ((quotes[0], quotes[1]),)
        for quotes in ('""', "“”", "„“", "''", "‘’", "«»", "「」")
    },
}
_EXCLAIMED = re.compile(r"(?:[A-Za-z]{2}|[\"”’])!$")  # 5! and n! are numbers
_TAG = re.compile(r"</?(?:b|strong|i|em|u|p|mark|code|span|h[1-6])(?:\s[^<>]*)?>", re.IGNORECASE)
_FENCED = re.compile(r"(```|~~~)[\w+-]*[ \t]*\n(.*?)\n[ \t]*\1\s*", re.DOTALL)
_COMMAND_AROUND = re.compile(rf"{_BOLD}\{{([^{{}}]*(?:\{{[^{{}}]*\}}[^{{}}]*)*)\}}")


def characters(text: str) -> str:
    """Replaces full-width characters, special spaces, hyphens and line ends by ASCII ones.

    Zero-width characters and HTML tags for emphasis are removed. Superscripts, fractions and
    the like are kept.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "</" in text or "&nbsp;" in text:
        text = _TAG.sub("", text.replace("&nbsp;", " "))
    return text if text.isascii() else text.translate(_CHARACTERS)


def unfenced(text: str) -> str:
    """Returns the content of a text that is one fenced block; other texts unchanged."""
    fenced = _FENCED.fullmatch(text) if text.startswith(("```", "~~~")) else None
    return fenced[2] if fenced else text


def without_emphasis(text: str) -> str:
    """Removes Markdown's emphasis marks, also unpaired ones at the start and end."""
    if not ("*" in text or "_" in text or "`" in text):
        return text
    text = re.sub(r"(?<=[*_`])!(?=\s|$)", "", text)
    while (shorter := _MARKED.sub(r"\2", text)) != text:
        text = shorter
    text = re.sub(r"^(?:\*+|_{2,}|`+)(?=[^\s*])", "", text)
    return re.sub(r"(?<=[^\s*^\\])(?:\*+|_{2,}|`+)$", "", text)


def layers(text: str) -> list[str]:
    """Returns a text, then the results of removing its wrapping layers one after another."""
    found = [text]
    while (inner := _unwrap(found[-1])) != found[-1]:
        found.append(inner)
    return found


def peel(text: str) -> str:
    """Returns the innermost layer."""
    return layers(text)[-1]


def _unwrap(text: str) -> str:
    """Removes the outermost layer: ornaments, fence, delimiters, emphasis or punctuation."""
    if text.isalnum():
        return text
    bare = text.strip().strip(ORNAMENTS).strip()
    if bare != text:
        return bare
    inner = unfenced(text)
    if inner != text:
        return inner
    for opening, closing in _AROUND.get(text[:1], ()):
        inner = text[len(opening) : len(text) - len(closing)]
        if (
            len(text) > len(opening) + len(closing)
            and text.startswith(opening)
            and text.endswith(closing)
            and opening not in inner
            and closing not in inner
        ):
            return inner.strip()
    whole = _COMMAND_AROUND.fullmatch(text) if text.startswith("\\") else None
    if whole:
        return whole[1].strip()
    if text.endswith("!") and _EXCLAIMED.search(text):
        return text[:-1]
    if text.endswith((".", ",", ":", "?")) and not text.endswith(("..", "\\,", "\\:")):
        return text[:-1].rstrip()
    return without_emphasis(text)
