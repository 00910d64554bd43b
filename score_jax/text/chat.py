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

from score_jax.text import examples
from score_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """Templates of one model family; `{text}` is where the text goes."""

    markers: tuple[str, ...]  # every marker that the templates name
    prompt: str  # start of dialogue up to where turn 1 begins
    instruction: str  # from behind a turn's stop marker up to where the next turn begins
    stop: str  # the marker that ends a turn; sampled by the policy and trained
    trim: bool = False  # the family's own template strips white space around the text


PLAIN = ChatFormat(
    markers=("<user>", "<policy>", "<stop>"),
    prompt="<user>{text}<policy>",
    instruction="<user>{text}<policy>",
    stop="<stop>",
)


def gemma() -> ChatFormat:
    """Gemma 2 and 3; Gemma has no system role."""
    turn = "<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n"
    return ChatFormat(
        markers=("<bos>", "<start_of_turn>", "<end_of_turn>"),
        prompt="<bos>" + turn,
        instruction="\n" + turn,
        stop="<end_of_turn>",
        trim=True,
    )


def llama3(system: str = "") -> ChatFormat:
    """Llama 3; nothing stands between a turn's stop and the next header."""

    def head(role: str) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    turn = head("user") + "{text}<|eot_id|>" + head("assistant")
    opening = head("system") + system + "<|eot_id|>" if system else ""
    return ChatFormat(
        markers=("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        prompt="<|begin_of_text|>" + opening + turn,
        instruction=turn,
        stop="<|eot_id|>",
        trim=True,
    )


def chatml(system: str = "", opening: str = "", examples: Sequence[str] = ()) -> ChatFormat:
    """Qwen, SmolLM2 and others.

    Args:
      opening: what the family puts at the start of every turn of the policy.
      examples: turns of user and policy that go before the first prompt.
    """
    turn = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" + opening
    start = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for asked, answered in zip(examples[::2], examples[1::2], strict=True):
        start += turn.replace("{text}", asked) + answered + "<|im_end|>\n"
    return ChatFormat(
        markers=("<|im_start|>", "<|im_end|>"),
        prompt=start + turn,
        instruction="\n" + turn,
        stop="<|im_end|>",
    )


def base(start: str, stop: str) -> ChatFormat:
    """A pretrained model without a chat template: headings instead of markers.

    Args:
      start: marker that opens a text, or "".
      stop: marker that ends a text; here it ends a turn.
    """
    return ChatFormat(
        markers=tuple(marker for marker in (start, stop) if marker),
        prompt=start + "Problem: {text}\n\nSolution:",
        instruction="\n\n{text}\n\nSolution:",
        stop=stop,
    )


LLAMA31_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN25_MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
SMOLLM2_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"

FORMATS = {
    "plain": PLAIN,
    "gemma": gemma(),
    "llama3": llama3(),
    "llama31": llama3(LLAMA31_SYSTEM),
    "chatml": chatml(),
    "smollm2": chatml(SMOLLM2_SYSTEM),
    "smollm2_words": chatml(SMOLLM2_SYSTEM, examples=examples.WORDS),
    "qwen25": chatml(QWEN25_SYSTEM),
    "qwen25_math": chatml(QWEN25_MATH_SYSTEM),
    "qwen3": chatml(),
    "qwen3_no_think": chatml(opening="<think>\n\n</think>\n\n"),
    "base_gemma": base("<bos>", "<eos>"),
    "base_llama3": base("<|begin_of_text|>", "<|end_of_text|>"),
    "base_qwen": base("", "<|endoftext|>"),
    "base_smollm2": base("", "<|endoftext|>"),
}


@dataclass(frozen=True)
class Chat:
    """A chat format bound to a tokenizer."""

    tokenizer: Tokenizer
    format: ChatFormat
    more_stops: tuple[int, ...] = ()  # ids that end a turn beside the format's own marker

    def __post_init__(self):
        missing = []
        for marker in self.format.markers:
            try:
                self.tokenizer.marker(marker)
            except ValueError:
                missing.append(marker)
        if missing:
            raise ValueError(
                f"tokenizer has no {', '.join(missing)}, which tokenizer.chat asks for; choose "
                "the format of its family, or for a model without chat markers one of "
                + ", ".join(name for name in FORMATS if name.startswith("base_"))
            )

    @property
    def stop(self) -> int:
        """Id of the format's own marker that ends a turn; a turn that was cut gets it."""
        return self.tokenizer.marker(self.format.stop)

    @property
    def stops(self) -> tuple[int, ...]:
        """All ids that end a turn, the format's own first."""
        return tuple(dict.fromkeys((self.stop, *self.more_stops)))

    def describe_stops(self) -> str:
        """What ends a turn, for people."""
        more = ", ".join(map(str, self.stops[1:])) or "no other"
        return (
            f"turns end at {self.format.stop} (id {self.stop}), by the model's files also at {more}"
        )

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
        text = text.strip() if self.format.trim else text
        ids: list[int] = []
        for segment in re.split(f"({alternatives(self.format.markers)})", template):
            if segment in self.format.markers:
                ids.append(self.tokenizer.marker(segment))
            elif segment:
                ids.extend(self.encode_plain(segment.replace("{text}", text)))
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of text in which no marker is taken for one.

        SentencePiece models hold some markers as ordinary pieces. A marker in the
        text is cut behind its first character, so that its parts are encoded alone.
        """
        inside = [f"(?<={re.escape(m[0])})(?={re.escape(m[1:])})" for m in self.format.markers]
        parts = re.split("|".join(inside), text)
        return [index for part in parts for index in self.tokenizer.encode(part)]


def alternatives(markers: Sequence[str]) -> str:
    """A regular expression that matches any of the markers."""
    return "|".join(re.escape(marker) for marker in markers)


def get_format(name: str) -> ChatFormat:
    """The chat format of a family.

    Raises:
      ValueError: there is none of this name.
    """
    if name not in FORMATS:
        raise ValueError(f"tokenizer.chat is {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
