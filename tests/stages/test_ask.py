"""A dialogue shown token by token is the one that the sampler draws."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from score_jax.records import Problem
from score_jax.rl.rollout import attempt_texts, encode_prompts
from score_jax.rl.sampling import SamplingConfig
from score_jax.stages import ask
from score_jax.stages.build import build
from score_jax.stages.settings import parse
from score_jax.text.tokenizer import train_sentencepiece

CORPUS = ["7x+95=628", "x=73:7*73=511+95=606", "There might be an error. Please correct it."] * 3
SIZES = {"layers": 2, "width": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_dim": 24}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = train_sentencepiece(CORPUS, vocab_size=80, markers=["<user>", "<policy>", "<stop>"])
    tokenizer.save(folder)
    config = common.get_config()
    config.name = "ask"
    config.weights.source = "random"
    config.tokenizer.source = str(folder)
    config.model = ConfigDict({"vocab_size": tokenizer.vocab_size, **SIZES})
    config.sampling.prompt_limit = 80
    config.sampling.turn_limit = 12
    config.sampling.row_limit = 0
    return build(parse(config))


@pytest.mark.slow
def test_greedy_attempts_are_those_of_the_sampler(programs):
    params = programs.init_params(jax.random.key(3))
    sampling = SamplingConfig(group_size=1, prompt_limit=80, turn_limit=12, temperature=0.0)
    sample = programs.sample(sampling, 2)
    long = "7x+95=628" * 6  # more tokens than one block
    for prompt in ("7x+95=628", long):
        written = []
        attempts = ask.ask(programs, params, prompt, write=written.append)
        problem = Problem(id="a", prompt=prompt)
        prompts = encode_prompts(programs.chat, programs.task, np.arange(1), [problem], 80)
        episodes = sample(params, programs.to_global(prompts), jax.random.key(0))
        assert [tuple(attempts)] == attempt_texts(programs.chat, episodes, 2)
        shown = "".join(written)
        assert programs.task.instruction in shown
        for attempt in attempts:
            assert attempt in shown


@pytest.mark.slow
def test_a_seed_decides_what_is_drawn(programs):
    params = programs.init_params(jax.random.key(3))

    def draw(seed):
        return ask.ask(programs, params, "7x=7", temperature=1.0, seed=seed, write=len)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("drawn", "given", "read"),
    [
        ([5, 6, 0], [5, 6], [5, 6, 0]),
        ([5, 9], [5], [5, 9]),
        ([8], [], [8]),
        ([5, 6, 7], [5, 6, 7], [5, 6, 7, 0]),  # cut: the format's own stop closes it
    ],
)
def test_any_stop_ends_a_turn_that_is_shown(drawn, given, read):
    heard, coming = [], [*drawn, 1, 1]

    class Scripted(ask.InteractiveDialogue):
        def __post_init__(self):
            self.logits = np.eye(10)[drawn[0]]

        def read(self, ids):
            heard.extend(ids)
            self.logits = np.eye(10)[coming[len(heard)]]

    dialogue = Scripted(None, None, 0)
    options = {"stops": (0, 9, 8), "limit": 3, "temperature": 0.0}
    assert list(dialogue.draw(jax.random.key(0), 1, **options)) == given
    assert heard == read


def test_text_comes_as_its_tokens_do_and_waits_for_whole_characters():
    pieces = {1: b"caf", 2: b"\xc3", 3: b"\xa9", 4: b"!"}
    written = []

    def decode(ids):
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    assert ask.stream(iter([1, 2, 3, 4]), decode, written.append) == "café!"
    assert written == ["caf", "é", "!", "\n"]


def test_the_change_is_marked_word_by_word():
    assert ask.mark_change("so x=85 here", "so x=95 here") == "so x=[-85-]{+95+} here"
    assert ask.mark_change("a b", "a b") == "(none: the attempts are equal)"
    assert ask.mark_change("a", "") == "[-a-]"
    assert ask.mark_change("a", "b", colour=True) == "\x1b[31;9ma\x1b[0m\x1b[32mb\x1b[0m"


def test_without_prompt_and_terminal_the_flag_is_named(programs, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="set --prompt"):
        ask.interact(programs, None, "")
