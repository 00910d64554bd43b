"""Which tokens of a worked dialogue are learnt, held against its text."""

import numpy as np
import pytest

from score_jax import imitation
from score_jax.data.procedural import Dialogue, Part
from score_jax.records import Task
from score_jax.sampling import Script

TASK = Task(name="letters", prompt=lambda p: f"?{p.prompt}", instruction="i", grade=lambda *_: None)
SCRIPT = Script(stops=(ord("#"),), instruction=(ord("i"), ord("j")), turns=2)
WRONG = Dialogue("ab", ((Part("x="), Part("7:", learn=False), Part("cd")), (Part("efg"),)))
RIGHT = Dialogue("c", ((Part("x="), Part("7:"), Part("d")), (Part("e"), Part("fg", learn=False))))


class Letters:
    """A chat whose tokens are characters."""

    stops = SCRIPT.stops

    @property
    def tokenizer(self):
        return self

    def encode(self, text):
        return [ord(letter) for letter in text]

    encode_prompt = encode


def test_learnt_tokens_are_exactly_the_intended_ones():
    ids, turns = imitation.encode_dialogue(Letters(), SCRIPT, "?ab", WRONG)
    assert "".join(map(chr, ids)) == "?abx=7:cd#ijefg#"
    assert "".join(map(str, turns)) == "0001100111002222"


def test_a_stop_token_is_learnt_with_the_part_that_it_ends():
    ids, turns = imitation.encode_dialogue(Letters(), SCRIPT, "?c", RIGHT)
    assert "".join(map(chr, ids)) == "?cx=7:d#ije" + "fg#"
    assert "".join(map(str, turns)) == "00111111002" + "000"


def test_rows_are_padded_behind_with_nothing_learnt():
    rows = imitation.encode_dialogues(Letters(), TASK, SCRIPT, [WRONG, RIGHT], 20)
    assert rows.length.tolist() == [16, 14]
    for row, dialogue in enumerate([WRONG, RIGHT]):
        ids, turns = imitation.encode_dialogue(Letters(), SCRIPT, f"?{dialogue.prompt}", dialogue)
        assert rows.tokens[row].tolist() == ids + [0] * (20 - len(ids))
        assert rows.turn[row].tolist() == turns + [0] * (20 - len(ids))
    assert not np.any(rows.logprobs) and not np.any(rows.rewards) and not np.any(rows.truncated)


def test_making_rows_leaves_the_script_alone():
    imitation.encode_dialogues(Letters(), TASK, SCRIPT, [WRONG] * 3, 20)
    assert SCRIPT.instruction == (ord("i"), ord("j"))


def test_worked_turns_end_in_the_formats_own_stop():
    several = Script(stops=(ord("#"), ord("!")), instruction=SCRIPT.instruction, turns=2)
    ids, _ = imitation.encode_dialogue(Letters(), several, "?ab", WRONG)
    assert "".join(map(chr, ids)) == "?abx=7:cd#ijefg#"


def test_a_dialogue_longer_than_a_row_is_refused_by_name():
    message = r"turn_limit allow 15 tokens; a dialogue on 'ab' has 16: raise them"
    with pytest.raises(ValueError, match=message):
        imitation.encode_dialogues(Letters(), TASK, SCRIPT, [WRONG], 15)
