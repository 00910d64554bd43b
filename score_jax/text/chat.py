"""Encodes dialogues as token ids with the chat format of each model family.

A format has templates for prompt and instruction. Each marker becomes a single id; the
template between two markers is encoded together with the inserted text, so that the ids
equal those of the family's chat template:

    prompt       <user>7x+95=628<policy>
    turn 1       x=73...<stop>                  sampled, with its <stop>
    instruction  <user>There might be...<policy>
    turn 2       x=76...<stop>

The prompt of turn 2 is turn 1's row, extended: nothing is decoded and encoded again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from score_jax.text import examples
from score_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """Templates of one model family; `{text}` is replaced by the text."""

    markers: tuple[str, ...]  # every marker in the templates
    prompt: str  # from the start of the dialogue to the start of turn 1
    instruction: str  # from a turn's stop marker (excluded) to the start of the next turn
    stop: str  # the marker that ends a turn; sampled by the policy and trained
    heading: str = ""  # ends both templates; a text that ends with it itself gets no second one
    trim: bool = False  # strip white space around the text, as the family's template does
    thinking: tuple[str, str] | None = None  # texts around a turn's thought, which is no answer


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
    """Llama 3; a turn's stop marker is followed directly by the next header."""

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


def chatml(
    system: str = "",
    opening: str = "",
    examples: Sequence[str] = (),
    thinking: tuple[str, str] | None = None,
) -> ChatFormat:
    """Qwen, SmolLM2 and others.

    Args:
      opening: text at the start of every turn of the policy.
      examples: alternating turns of user and policy, before the first prompt.
      thinking: see ChatFormat.
    """
    turn = "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" + opening
    start = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for question, reply in zip(examples[::2], examples[1::2], strict=True):
        start += turn.replace("{text}", question) + reply + "<|im_end|>\n"
    return ChatFormat(
        markers=("<|im_start|>", "<|im_end|>"),
        prompt=start + turn,
        instruction="\n" + turn,
        stop="<|im_end|>",
        thinking=thinking,
    )


def base(start: str, stop: str) -> ChatFormat:
    """A pretrained model without a chat template: headings instead of markers.

    Args:
      start: marker at the start of a text, or "".
      stop: marker at the end of a text, used here for the end of a turn.
    """
    heading = "\n\nSolution:"
    return ChatFormat(
        markers=tuple(marker for marker in (start, stop) if marker),
        prompt=start + "Problem: {text}" + heading,
        instruction="\n\n{text}" + heading,
        heading=heading,
        stop=stop,
    )


LLAMA31_SYSTEM = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
QWEN25_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
QWEN25_MATH_SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."
QWEN25_CODE_SYSTEM = (
    "You are an expert Python programmer. Answer with the complete Python program in one code "
    "block, without an explanation."
)
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
    "qwen25_code": chatml(QWEN25_CODE_SYSTEM),
    "qwen3": chatml(thinking=("<think>", "</think>")),
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
    more_stops: tuple[int, ...] = ()  # further ids that end a turn

    def __post_init__(self):
        missing = []
        for marker in self.format.markers:
            try:
                self.tokenizer.marker(marker)
            except ValueError:
                missing.append(marker)
        if missing:
            raise ValueError(
                f"tokenizer has no {', '.join(missing)}, which tokenizer.chat needs; choose "
                "the format of its family, or for a model without chat markers one of "
                + ", ".join(name for name in FORMATS if name.startswith("base_"))
            )

    @property
    def stop(self) -> int:
        """Id of the format's stop marker; it is also appended to a truncated turn."""
        return self.tokenizer.marker(self.format.stop)

    @property
    def stops(self) -> tuple[int, ...]:
        """All ids that end a turn, the format's stop marker first."""
        return tuple(dict.fromkeys((self.stop, *self.more_stops)))

    def describe_stops(self) -> str:
        """A message that lists the ids that end a turn."""
        more = ", ".join(map(str, self.stops[1:])) or "none"
        return (
            f"turns end at {self.format.stop} (id {self.stop}); other stop ids in the model's "
            f"files: {more}"
        )

    def encode_prompt(self, text: str) -> list[int]:
        """Ids from the start of the dialogue to the start of turn 1."""
        return self.fill(self.format.prompt, text)

    def encode_instruction(self, text: str) -> list[int]:
        """Ids from a turn's stop marker (excluded) to the start of the next turn."""
        return self.fill(self.format.instruction, text)

    def decode(self, ids: Sequence[int]) -> str:
        """A turn's text, without its stop marker."""
        return self.tokenizer.decode(ids)

    def answer(self, text: str) -> str:
        """What a turn's text says behind its thought; nothing, if it was cut within it."""
        if self.format.thinking is None:
            return text
        begin, end = self.format.thinking
        rest = text.rpartition(end)[2]
        return rest if begin not in rest else ""

    def lost(self, text: str) -> str:
        """Characters of a text that its ids do not give back: the vocabulary lacks them."""
        told = self.decode(self.encode_plain(text))
        return "".join(c for c in dict.fromkeys(text) if not c.isspace() and c not in told)

    def fill(self, template: str, text: str) -> list[int]:
        """Encodes a template with a text inserted; markers inside the text are encoded as text."""
        text = text.strip() if self.format.trim else text
        if (heading := self.format.heading) and text.endswith(heading.strip()):
            template = template.removesuffix(heading)
        ids: list[int] = []
        for segment in re.split(f"({alternatives(self.format.markers)})", template):
            if segment in self.format.markers:
                ids.append(self.tokenizer.marker(segment))
            elif segment:
                ids.extend(self.encode_plain(segment.replace("{text}", text)))
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which markers are not recognised.

        Some markers are ordinary pieces in SentencePiece models. A marker in the text is
        split after its first character, and both parts are encoded separately.
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
      ValueError: there is no format of this name.
    """
    if name not in FORMATS:
        raise ValueError(f"tokenizer.chat is {name!r}; choose one of {', '.join(FORMATS)}")
    return FORMATS[name]
