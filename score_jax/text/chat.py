"""Dialogues as token ids: prompt, turn border and instruction of each model family.

A family's format is three templates. Markers (stated as `markers`) become single
ids; what lies between two markers is encoded in one go together with the text put
in, so that ids equal those of the family's own template:

    prompt       <user>7x+95=628<policy>
    turn 1       x=73...<stop>                  sampled; <stop> is the policy's own
    instruction  <user>There might be...<policy>
    turn 2       x=76...<stop>

Turn 2's prompt is turn 1's row extended: nothing is decoded and encoded again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from score_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """Templates of one model family; `{}` is where the text goes."""

    markers: tuple[str, ...]  # every marker that the templates name
    prompt: str  # start of dialogue up to where turn 1 begins
    instruction: str  # from behind a turn's stop marker up to where the next turn begins
    stop: str  # the marker that ends a turn; sampled by the policy and trained


PLAIN = ChatFormat(
    markers=("<user>", "<policy>", "<stop>"),
    prompt="<user>{}<policy>",
    instruction="<user>{}<policy>",
    stop="<stop>",
)

FORMATS = {"plain": PLAIN}


@dataclass(frozen=True)
class Chat:
    """A chat format bound to a tokenizer."""

    tokenizer: Tokenizer
    format: ChatFormat

    @property
    def stop(self) -> int:
        """Id of the marker that ends a turn."""
        return self.tokenizer.marker(self.format.stop)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids from the start of the dialogue to where turn 1 begins."""
        return self.fill(self.format.prompt, text)

    def encode_instruction(self, text: str) -> list[int]:
        """Ids from behind a turn's stop marker to where the next turn begins."""
        return self.fill(self.format.instruction, text)

    def decode(self, ids: Sequence[int]) -> str:
        """A turn's text, without its stop marker."""
        return self.tokenizer.decode(ids)

    def fill(self, template: str, text: str) -> list[int]:
        """Encodes a template around a text; markers inside the text stay text."""
        pattern = "|".join(re.escape(m) for m in self.format.markers)
        ids: list[int] = []
        for segment in re.split(f"({pattern})", template):
            if segment in self.format.markers:
                ids.append(self.tokenizer.marker(segment))
            elif segment:
                ids.extend(self.tokenizer.encode(segment.replace("{}", text)))
        return ids


def get_format(name: str) -> ChatFormat:
    """The chat format of a family.

    Raises:
      ValueError: there is none of this name.
    """
    if name not in FORMATS:
        raise ValueError(f"tokenizer.chat is {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
