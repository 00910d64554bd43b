"""Options of multiple-choice questions, as data sets store them, as lettered lines of a prompt."""

from collections.abc import Mapping
from string import ascii_uppercase
from typing import Any


def lettered(
    location: str, row: Mapping[str, Any], name: Mapping[str, str], prompt: str
) -> tuple[Mapping[str, Any], str]:
    """A row whose answer is a letter, and its prompt with the options below the question.

    Options may be a list of texts, texts by label, lists of labels and of texts, or a list of
    label and text (or key and value) each. The answer may be a number from 0, a label, or an
    option's text.

    Args:
      name: the row's names of the fields `options` ("": its prompt stays as it is) and `answer`.

    Raises:
      ValueError: the options have another form, or the answer is not one of them.
    """
    if not name["options"]:
        return row, prompt
    labels, texts = labelled(location, row.get(name["options"]), name["options"])
    answer = row.get(name["answer"])
    told = str(answer).strip()
    read = {i for i, label in enumerate(labels) if label == told}
    read |= {i for i, text in enumerate(texts) if text.strip() == told}
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        read.add(answer)
    if len(read) != 1:
        raise ValueError(
            f"{location}: {name['answer']!r} is {answer!r}, which is {len(read)} of the "
            f"{len(texts)} in {name['options']!r}; write the number (from 0), the label or the "
            "text of one, so that it can't be read as another"
        )
    letters = ascii_uppercase[: len(texts)]
    lines = [f"{letter}. {text.strip()}" for letter, text in zip(letters, texts, strict=True)]
    changed = {**row, name["answer"]: letters[read.pop()]}
    return changed, "\n".join([prompt.rstrip(), "", *lines])


def labelled(location: str, found: Any, name: str) -> tuple[list[str], list[str]]:
    """Labels and texts of a row's options; the letters from A where they have no labels.

    Raises:
      ValueError: they are no texts, fewer than two, or more than there are letters.
    """
    labels: Any = None
    texts: Any = found
    if isinstance(found, Mapping) and found.keys() == {"label", "text"}:
        labels, texts = found["label"], found["text"]
    elif isinstance(found, Mapping):  # a column of structs has every label that any row has
        labels = [label for label, text in found.items() if text is not None]
        texts = [found[label] for label in labels]
    elif isinstance(found, list) and all(isinstance(item, Mapping) for item in found):
        pairs = [("key", "value") if "key" in item else ("label", "text") for item in found]
        labels = [item.get(label) for item, (label, _) in zip(found, pairs, strict=True)]
        texts = [item.get(text) for item, (_, text) in zip(found, pairs, strict=True)]
    if (
        not isinstance(texts, list)
        or not all(isinstance(text, str) and text.strip() for text in texts)
        or not 2 <= len(texts) <= len(ascii_uppercase)
    ):
        raise ValueError(
            f"{location}: {name!r} must be 2 to {len(ascii_uppercase)} texts: a list, by label, or "
            "lists 'label' and 'text'"
        )
    return list(map(str, labels or ascii_uppercase[: len(texts)])), texts
