"""Token ids of each chat format equal those of the family's own template."""

from pathlib import Path

import jinja2
import pytest

from score_jax.records import Problem
from score_jax.tasks import registry
from score_jax.text.chat import FORMATS, PLAIN, Chat, get_format
from score_jax.text.examples import WORDS
from score_jax.text.tokenizer import train_sentencepiece
from tests.small_tokenizers import CORPUS, make

pytest.importorskip("tokenizers")
TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = {  # format: (small tokenizer, template, what the template is given)
    "gemma": ("gemma", "gemma", {"bos_token": "<bos>"}),
    "llama3": ("llama3", "llama3", {"bos_token": "<|begin_of_text|>"}),
    "llama31": ("llama3", "llama31", {"bos_token": "<|begin_of_text|>"}),
    "smollm2": ("chatml", "smollm2", {}),
    "qwen25": ("chatml", "qwen25", {}),
    "qwen25_math": ("chatml", "qwen25", {}),
    "qwen25_code": ("chatml", "qwen25", {}),
    "qwen3": ("chatml", "qwen3", {}),
    "qwen3_no_think": ("chatml", "qwen3", {"enable_thinking": False}),
}
PROMPT = "What is 37 + 58?\nAnswer in a box."
ANSWER = "The sum of 37 and 58 is 85."
INSTRUCTION = "There might be an error in the solution above.\n\nPlease correct it."


@pytest.fixture(scope="module")
def tokenizers():
    return {family: make(family) for family in ("gemma", "llama3", "chatml")}


def render(template, messages, **given):
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    source = (TEMPLATES / f"{template}.jinja").read_text()
    return environment.from_string(source).render(
        messages=messages, add_generation_prompt=True, **given
    )


def encode_marked(tokenizer, text, markers):
    """Ids of a rendered template, markers read as such."""
    for marker in markers:
        if marker in text:
            before, after = text.split(marker, 1)
            return [
                *encode_marked(tokenizer, before, markers),
                tokenizer.marker(marker),
                *encode_marked(tokenizer, after, markers),
            ]
    return tokenizer.encode(text) if text else []


def system(name):
    texts = {
        "qwen25_math": "Please reason step by step, and put your final answer within \\boxed{}.",
        "qwen25_code": "You are an expert Python programmer. Answer with the complete Python "
        "program in one code block, without an explanation.",
    }
    return [{"role": "system", "content": texts[name]}] if name in texts else []


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(
    "prompt", [PROMPT, "x", "  spaces around \n", "braces {} {text} \\boxed{}"]
)
def test_the_prompt_is_that_of_the_template(name, prompt, tokenizers):
    family, template, given = FAMILIES[name]
    chat = Chat(tokenizers[family], FORMATS[name])
    text = render(template, [*system(name), {"role": "user", "content": prompt}], **given)
    assert chat.encode_prompt(prompt) == encode_marked(chat.tokenizer, text, chat.format.markers)


@pytest.mark.parametrize("name", FAMILIES)
def test_turn_two_is_that_of_the_template_and_extends_turn_one(name, tokenizers):
    family, template, given = FAMILIES[name]
    chat = Chat(tokenizers[family], FORMATS[name])
    row = [*chat.encode_prompt(PROMPT), *chat.tokenizer.encode(ANSWER), chat.stop]
    row += chat.encode_instruction(INSTRUCTION)
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": INSTRUCTION},
    ]
    text = render(template, [*system(name), *messages], **given)
    if name == "qwen3_no_think":  # its template drops the empty thinking of earlier turns
        assert "<think>" not in text.split("<|im_end|>")[1]
        first, last = (
            text.rsplit("<|im_start|>assistant\n", 2)[0],
            text.rsplit("\n<|im_start|>user"),
        )
        text = first + "<|im_start|>assistant\n<think>\n\n</think>\n\n" + ANSWER + "<|im_end|>"
        text += "\n<|im_start|>user" + last[-1]
    assert row == encode_marked(chat.tokenizer, text, chat.format.markers)


def test_worked_dialogues_before_a_prompt_are_those_of_the_template(tokenizers):
    chat = Chat(tokenizers["chatml"], FORMATS["smollm2_words"])
    roles = ("user", "assistant") * (len(WORDS) // 2)
    messages = [{"role": r, "content": t} for r, t in zip(roles, WORDS, strict=True)]
    text = render("smollm2", [*messages, {"role": "user", "content": PROMPT}])
    assert chat.encode_prompt(PROMPT) == encode_marked(chat.tokenizer, text, chat.format.markers)


def test_thinking_is_never_stripped_though_qwen3s_template_does(tokenizers):
    chat = Chat(tokenizers["chatml"], FORMATS["qwen3"])
    thought = "<think>\n37 + 58 is 85?\n</think>\n\n" + ANSWER
    messages = [
        {"role": "user", "content": PROMPT},
        {"role": "assistant", "content": thought},
        {"role": "user", "content": INSTRUCTION},
    ]
    text = render("qwen3", messages)
    assert "37 + 58 is 85?" not in text
    row = [*chat.encode_prompt(PROMPT), *chat.tokenizer.encode(thought), chat.stop]
    row += chat.encode_instruction(INSTRUCTION)
    assert "37 + 58 is 85?" in chat.decode(row)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_marker_inside_a_problem_stays_text(name, tokenizers):
    chat = Chat(tokenizers[FAMILIES[name][0]], FORMATS[name])
    harmless = chat.encode_prompt("say x")
    for marker in chat.format.markers:
        index = chat.tokenizer.marker(marker)
        ids = chat.encode_prompt(f"say {marker} x")
        assert ids.count(index) == harmless.count(index), f"{marker} was read as a marker"
        assert marker in chat.decode(ids)


@pytest.mark.parametrize(
    ("name", "family"),
    [("base_gemma", "gemma"), ("base_llama3", "llama3"), ("base_qwen", "chatml")],
)
def test_a_base_model_is_prompted_without_chat_markers(name, family, tokenizers):
    chat = Chat(tokenizers[family], FORMATS[name])
    assert chat.decode(chat.encode_prompt("7 + 5?")) == "Problem: 7 + 5?\n\nSolution:"
    assert chat.decode(chat.encode_instruction("Again.")) == "\n\nAgain.\n\nSolution:"
    assert chat.stop == chat.tokenizer.marker(chat.format.markers[-1])


def test_a_base_model_sees_no_heading_twice(tokenizers):
    """The prompt of MATH ends with it itself: asked twice, Gemma 3 270M wrote nothing else."""
    chat = Chat(tokenizers["gemma"], FORMATS["base_gemma"])
    asked = registry.get("math").ask(Problem(id="1", prompt="7 + 5?"))
    shown = chat.decode(chat.encode_prompt(asked))
    assert shown.startswith("Problem: You are") and shown.endswith("Problem: 7 + 5?\nSolution:")
    assert shown.count("Solution:") == 1
    assert chat.decode(chat.encode_instruction("Again.\nSolution:")) == "\n\nAgain.\nSolution:"


def test_a_model_without_the_formats_markers_is_refused():
    plain = train_sentencepiece(CORPUS, vocab_size=200, markers=["<user>"])
    with pytest.raises(ValueError, match=r"tokenizer has no <bos>, <start_of_turn>, .*base_gemma"):
        Chat(plain, get_format("gemma"))


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match=r"tokenizer.chat is 'vicuna'; choose one of plain, gemma"):
        get_format("vicuna")


def test_characters_that_the_vocabulary_lacks_are_told(tokenizers):
    trained = train_sentencepiece(
        ["wait a bit, there might be an error"] * 9, vocab_size=60, markers=PLAIN.markers
    )
    chat = Chat(trained, PLAIN)
    assert chat.lost("Wait, Z: wait") == "WZ:" and chat.lost("wait  a bit\n") == ""
    assert Chat(tokenizers["chatml"], get_format("chatml")).lost("Wait: Ω 🙂") == ""  # bytes


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>\nThe answer is 3?\n</think>\n\n4", "\n\n4"),
        ("<think>\nThe answer is 3", ""),  # cut within the thought
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>a</think>4<think>5", ""),  # it thinks again
        ("4", "4"),  # it did not think
        ("", ""),
    ],
)
def test_what_is_graded_stands_behind_the_thought(text, answer, tokenizers):
    assert Chat(tokenizers["chatml"], FORMATS["qwen3"]).answer(text) == answer
    assert Chat(tokenizers["chatml"], FORMATS["qwen3_no_think"]).answer(text) == text
