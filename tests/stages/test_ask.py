"""A dialogue that is shown is the one that the model draws."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from score_jax.stages import ask
from score_jax.stages.build import build
from score_jax.stages.settings import parse
from score_jax.tasks import registry
from score_jax.text.tokenizer import train_sentencepiece
from tests.tiny import next_token

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


def plain_loop(programs, params, ids, limit):
    """Greedy tokens of one turn after these, by a full forward pass for each."""
    line, stops = list(ids), programs.chat.stops
    padded = len(ids) + limit
    for _ in range(limit):
        tokens = np.asarray(line + [0] * (padded - len(line)), np.int32)
        draw = next_token(programs.decoder.config, 0)
        line.append(int(draw(params, tokens, len(line), jax.random.key(0))))
        if line[-1] in stops:
            return line
    return [*line, stops[0]]


@pytest.mark.slow
def test_greedy_attempts_are_those_of_a_plain_loop(programs):
    params = programs.init_params(jax.random.key(3))
    chat, task = programs.chat, registry.get("equations")
    long = "7x+95=628" * 8  # more tokens than one block
    for prompt in ("7x+95=628", long):
        written = []
        attempts = ask.ask(programs, params, prompt, write=written.append)
        line, expected = list(chat.encode_prompt(prompt)), []
        assert (len(line) > ask.BLOCK) == (prompt == long)
        for turn in (1, 2):
            line += chat.encode_instruction(task.instruction) if turn == 2 else []
            before, line = len(line), plain_loop(programs, params, line, 12)
            expected.append(chat.decode(line[before:-1]))
        assert attempts == expected
        shown = "".join(written)
        places = [shown.index(f"attempt {turn}") for turn in (1, 2)]
        assert places[0] < shown.index(task.instruction) < places[1]
        for place, attempt in zip(places, attempts, strict=True):
            assert shown[place:].startswith(f"{shown[place : place + 9]}\n{attempt}\n")


@pytest.mark.slow
def test_a_seed_decides_what_is_drawn(programs):
    params = programs.init_params(jax.random.key(3))

    def draw(seed):
        return ask.ask(programs, params, "7x=7", temperature=1.0, seed=seed, write=len)

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_the_change_is_marked_word_by_word():
    assert ask.mark_change("so x=85 here", "so x=95 here") == "so x=[-85-]{+95+} here"
    assert ask.mark_change("a b", "a b") == "(none: the attempts are equal)"
    assert ask.mark_change("a", "") == "[-a-]"
    assert ask.mark_change("a", "b", colour=True) == "\x1b[31;9ma\x1b[0m\x1b[32mb\x1b[0m"


def test_without_prompt_and_terminal_the_flag_is_named(programs, monkeypatch):
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(ValueError, match="set --prompt"):
        ask.interact(programs, None, "")
