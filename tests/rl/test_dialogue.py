"""Plans and the rows that they begin with, laid out letter by letter."""

import numpy as np
import pytest

from score_jax.records import Part, Problem, Task, WorkedDialogue
from score_jax.rl.dialogue import DialoguePlan, Encoder, TooLong, given_rows, row_ids

LIMIT = 5


class Letters:
    """A chat whose tokens are characters: prompts are ?..., instructions /.../, turns end in #."""

    stops = (ord("#"), ord("!"))

    def encode_plain(self, text):
        return [ord(letter) for letter in text]

    def encode_prompt(self, text):
        return self.encode_plain(f"?{text}")

    def encode_instruction(self, text):
        return self.encode_plain(f"/{text}/")


def task(name="letters", instruction="i"):
    return Task(
        name=name, prompt=lambda p: p.prompt, instruction=instruction, grade=lambda *_: None
    )


def complete(turns=2, limit=LIMIT, **fields):
    return DialoguePlan(**fields).complete(turns, limit)


def encoder(turns=2, tasks=None, prompt_limit=4, **fields):
    tasks = tasks or {"": task()}
    return Encoder(
        chat=Letters(), tasks=tasks, plan=complete(turns, **fields), prompt_limit=prompt_limit
    )


def problem(prompt="ab", *given, task="", id="p"):
    return Problem(id=id, prompt=prompt, given=given, task=task)


def text(ids):
    return "".join(map(chr, ids))


def shown(prompts, row=0):
    """What a row begins with and whose that is, and the same of what is forced before each turn.

    Behind it is nothing but zeros.
    """
    lines = [(prompts.tokens[row], prompts.turn[row], prompts.length[row])]
    lines += zip(
        prompts.forced[row], prompts.forced_turn[row], prompts.forced_length[row], strict=True
    )
    for ids, owner, length in lines:
        assert not ids[length:].any() and not owner[length:].any()
    return [(text(ids[:length]), "".join(map(str, owner[:length]))) for ids, owner, length in lines]


def encoded(*problems, **fields):
    return encoder(**fields).prompts(problems or [problem()], np.arange(len(problems or [0])))


def test_a_plain_row_begins_with_its_prompt_and_is_asked_again_by_its_instruction():
    got = encoded()
    assert shown(got) == [("?ab", "000"), ("", ""), ("#/i/", "0000")]
    assert got.present.all() and got.drawn.all() and got.trained.all()
    assert got.tokens.shape == (1, 4) and got.forced.shape == (1, 2, 4)


def test_a_single_turn_has_nothing_before_it():
    got = encoded(turns=1)
    assert shown(got) == [("?ab", "000"), ("", "")]
    assert got.forced.shape == (1, 1, 0)


GIVEN = {"sources": ("given", "sampled")}


@pytest.mark.parametrize(
    "attempt",
    ["xy", (ord("x"), ord("y")), (ord("x"), ord("y"), ord("#"))],
    ids=["text", "ids", "closed"],
)
def test_a_given_attempt_is_its_turns_own_with_the_stop_token(attempt):
    got = encoded(problem("ab", attempt), **GIVEN)
    assert shown(got) == [("?abxy#/i/", "000111000"), ("", ""), ("", "")]
    assert got.drawn.tolist() == got.trained.tolist() == [[False, True]]
    assert got.present.all()


def test_a_given_attempt_may_end_in_any_stop_and_is_not_closed_twice():
    got = encoded(problem("ab", (ord("x"), ord("!"))), **GIVEN)
    assert shown(got)[0] == ("?abx!/i/", "00011000")
    assert shown(encoded(problem("ab", ""), **GIVEN))[0] == ("?ab#/i/", "0001000")


def test_several_given_attempts_are_taken_in_turn():
    got = encoded(problem("ab", "x", "yz", "more"), turns=3, sources=("given", "given", "sampled"))
    assert shown(got)[0] == ("?abx#/i/yz#/i/", "00011000222000")
    assert shown(got)[1:] == [("", "")] * 3


def test_a_forced_turn_at_the_start_is_part_of_what_a_row_begins_with():
    got = encoded(sources=("forced", "sampled"), texts=("hm", ""))
    assert shown(got) == [("?abhm#/i/", "000111000"), ("", ""), ("", "")]
    both = {"turns": 3, "sources": ("given", "forced", "sampled"), "texts": ("", "hm", "")}
    assert shown(encoded(problem("ab", "x"), **both))[0] == ("?abx#/i/hm#/i/", "00011000222000")


def test_a_forced_turn_in_the_middle_stands_before_the_next_drawn_one():
    got = encoded(turns=3, sources=("sampled", "forced", "sampled"), texts=("", "hm", ""))
    assert shown(got) == [("?ab", "000"), ("", ""), ("", ""), ("#/i/hm#/i/", "0000222000")]
    assert got.drawn.tolist() == got.trained.tolist() == [[True, False, True]]


def test_two_forced_turns_in_a_row_are_one_block_and_a_drawn_one_ends_it():
    got = encoded(
        turns=5,
        sources=("sampled", "forced", "forced", "sampled", "sampled"),
        texts=("", "h", "mm", "", ""),
    )
    assert shown(got)[4:] == [("#/i/h#/i/mm#/i/", "000022000333000"), ("#/i/", "0000")]
    assert [line for line, _ in shown(got)[1:4]] == ["", "", ""]


def test_a_plans_own_instruction_takes_the_place_of_the_tasks():
    got = encoded(turns=3, roles=("answer", "verify", "answer"), instructions=("", "right?", ""))
    assert shown(got) == [("?ab", "000"), ("", ""), ("#/right?/", "0" * 9), ("#/i/", "0000")]


TASKS = {"": task("first", "i"), "other": task("other", "again")}


def test_each_row_is_asked_again_by_its_own_task_and_all_have_room_for_the_longest():
    rows = [problem("ab"), problem("c", task="other", id="q")]
    got = encoded(*rows, tasks=TASKS)
    assert shown(got, 0) == [("?ab", "000"), ("", ""), ("#/i/", "0000")]
    assert shown(got, 1) == [("?c", "00"), ("", ""), ("#/again/", "00000000")]
    assert got.forced.shape == (2, 2, 8)
    alone = encoded(rows[0], tasks=TASKS)
    assert alone.forced.shape == (1, 2, 8)  # whatever the batch, one program serves it
    given = encoded(*[problem("ab", "x", task=name) for name in TASKS], tasks=TASKS, **GIVEN)
    assert shown(given, 0)[0] == ("?abx#/i/", "00011000")
    assert shown(given, 1)[0] == ("?abx#/again/", "000110000000")


def test_ids_are_the_draws_and_the_data_sets_indices():
    problems = [problem(), problem("c", id="q")]
    got = encoder().prompts(problems, [17, 4])
    assert got.ids.draw.tolist() == got.ids.problem.tolist() == [17, 4]
    assert got.ids.sample.tolist() == got.ids.policy_step.tolist() == [0, 0]
    got = encoder().prompts(problems, [17, 4], indices=[3, 3], samples=[6, 2], policy_step=9)
    assert got.ids.draw.tolist() == [17, 4] and got.ids.problem.tolist() == [3, 3]
    assert got.ids.sample.tolist() == [6, 2] and got.ids.policy_step.tolist() == [9, 9]
    assert all(column.dtype == np.int32 for column in vars(got.ids).values())


def test_ids_of_rows_are_of_one_shape_and_an_attempt_is_the_sample_unless_said():
    ids = row_ids(np.arange(4), np.arange(4) // 2, np.array([0, 1, 0, 1]))
    assert ids.attempt.tolist() == [0, 1, 0, 1] and ids.policy_step.tolist() == [0] * 4
    assert row_ids(7, np.zeros(3), 0, 5).attempt.tolist() == [5, 5, 5]


def most(**fields):
    """The longest row that these plans may begin with, made of a prompt and attempts at limits."""
    made = encoder(tasks=TASKS, **fields)
    full = problem("abc", *["x" * limit for limit in made.plan.limits], task="other")
    return made, made.prompts([full], [0])


@pytest.mark.parametrize(
    ("fields", "width", "block"),
    [  # prompts of 4, turns of 5, instructions of 3 and of 7 tokens, stop tokens
        ({"turns": 1}, 4, 0),
        ({"turns": 2}, 4, 8),
        # An attempt that was cut at its limit has its stop token behind it.
        ({"turns": 2, **GIVEN}, 4 + (5 + 1) + 7, 0),
        ({"turns": 3, "sources": ("given", "sampled", "sampled")}, 4 + (5 + 1) + 7, 8),
        (
            {"turns": 3, "sources": ("given", "given", "sampled"), "limits": (2, 3, 4)},
            4 + (2 + 1) + 7 + (3 + 1) + 7,
            0,
        ),
        (
            {"turns": 3, "sources": ("sampled", "forced", "sampled"), "texts": ("", "hm", "")},
            4,
            1 + 7 + 3 + 7,
        ),
    ],
    ids=str,
)
def test_rows_have_room_for_the_longest_that_they_may_begin_with(fields, width, block):
    made, prompts = most(**fields)
    assert made.width == width == prompts.length[0]
    assert made.block == block == prompts.forced.shape[2]
    whole = width + sum(made.plan.limits[turn - 1] for turn in made.plan.drawn)
    whole += (len(made.plan.drawn) - 1) * block
    assert made.row_length() == whole and made.row_length(width + 3) == width + 3


def test_row_length_holds_the_longest_dialogue():
    assert complete(3, 20).row_length(10, 4) == 10 + 20 + 4 + 20 + 4 + 20
    assert complete(3, limits=(20, 1, 0)).row_length(10, 4) == 10 + 20 + 4 + 1 + 4 + 5
    assert complete(2, 20, **GIVEN).row_length(40, 4) == 40 + 20
    assert complete(2, 20).row_length(10, 4, 30) == 30


def test_a_row_may_begin_with_one_token_however_many_there_is_room_for():
    assert complete(2, 20).steps(4) == 44
    assert complete(2, 20).steps(4, 30) == 29
    assert complete(2, 20).steps(4, 500) == 44


def test_a_plan_is_completed_by_what_is_usual():
    got = DialoguePlan().complete(3, 7)
    assert got.sources == ("sampled",) * 3 and got.roles == ("answer",) * 3
    assert got.instructions == got.texts == ("",) * 3
    assert got.trained == (True,) * 3 and got.limits == (7, 7, 7)
    assert (got.turns, got.drawn, got.drawn_tokens) == (3, (1, 2, 3), 21)
    assert got.complete(3, 9) == got


def test_what_is_not_sampled_is_not_trained_unless_said_and_limits_of_zero_are_the_usual():
    got = complete(3, sources=("given", "sampled", "sampled"), limits=(0, 2, 0))
    assert got.trained == (False, True, True) and got.limits == (5, 2, 5)
    assert got.drawn == (2, 3) and got.drawn_tokens == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sources": ("drawn", "sampled")},
            r"dialogue.sources is \('drawn', 'sampled'\); 'drawn' is none of sampled, given, "
            "forced",
        ),
        (
            {"roles": ("answer", "judge")},
            r"dialogue.roles is \('answer', 'judge'\); 'judge' is none of answer, verify",
        ),
        ({"limits": (5, -1)}, r"dialogue.limits is \(5, -1\); set a value >= 0 for each element"),
        ({"trained": (1, 0)}, r"dialogue.trained is \(1, 0\); set True or False for each element"),
        ({"texts": ("", None)}, r"dialogue.texts is \('', None\); set a text for each element"),
        ({"sources": "sampled"}, r"dialogue.sources is 'sampled'; set a tuple"),
        *(
            (
                {name: (value,) * 3},
                rf"dialogue.{name} is \(.*\); give one value for each of the 2 turns that "
                r"objective.reward_weights or evaluation.turns has",
            )
            for name, value in {
                "sources": "sampled",
                "roles": "answer",
                "instructions": "i",
                "texts": "",
                "trained": True,
                "limits": 5,
            }.items()
        ),
        (
            {"sources": ("sampled", "given")},
            r"dialogue.sources\[1\] is 'given'; given turns come before all sampled ones",
        ),
        (
            {"sources": ("forced", "sampled")},
            r"dialogue.sources\[0\] is 'forced' and dialogue.texts\[0\] ''; a forced turn needs a "
            "text, no other has one",
        ),
        (
            {"texts": ("", "hm")},
            r"dialogue.sources\[1\] is 'sampled' and dialogue.texts\[1\] 'hm'; a forced turn needs",
        ),
        (
            {"sources": ("given", "sampled"), "trained": (True, True)},
            r"dialogue.trained\[0\] is True, but turn 1 is given: the policy did not draw it; set "
            "False",
        ),
        (
            {"sources": ("sampled", "forced"), "texts": ("", "hm")},
            r"dialogue.sources is \('sampled', 'forced'\); the last turn must be sampled, or be "
            "left out",
        ),
        (
            {"roles": ("verify", "answer")},
            r"dialogue.roles\[0\] is 'verify'; there is no answer before turn 1: set 'answer'",
        ),
        (
            {"instructions": ("i", "")},
            r"dialogue.instructions\[0\] is 'i'; before turn 1 stands the prompt alone: set ''",
        ),
    ],
)
def test_plans_that_contradict_themselves_are_named_with_their_remedy(fields, message):
    with pytest.raises(ValueError, match=message):
        complete(**fields)


def test_a_prompt_that_is_too_long_is_refused_by_name():
    message = r"sampling.prompt_limit is 4; problem 'b' has 5 tokens: raise the limit or leave"
    with pytest.raises(TooLong, match=message):
        encoded(problem(), problem("abcd", id="b"))


@pytest.mark.parametrize(
    ("fields", "given", "limit"),
    [
        (GIVEN, ("sixsix",), 5),
        (GIVEN, ((1, 2, 3, 4, 5, 6),), 5),  # without the stop token that would close it
        ({**GIVEN, "limits": (2, 5)}, ("six",), 2),
        ({"sources": ("forced", "sampled"), "texts": ("forced", "")}, (), 5),
    ],
)
def test_an_attempt_longer_than_its_turn_is_refused_by_name(fields, given, limit):
    message = (
        rf"dialogue.limits\[0\] \(0: sampling.turn_limit\) is {limit}; problem 'p' has {limit + 1} "
        "tokens: "
        "raise the limit or leave the problem out"
    )
    with pytest.raises(TooLong, match=message):
        encoded(problem("ab", *given), **fields)


@pytest.mark.parametrize("cut", ["fives", (1, 2, 3, 4, 5)], ids=["text", "ids"])
def test_an_attempt_that_was_cut_at_its_limit_is_taken_and_closed(cut):
    line, owner = shown(encoded(problem("abc", cut), **GIVEN))[0]
    assert line[9:] == "#/i/" and owner == "0000111111000"


def test_a_problem_without_the_attempts_that_a_plan_takes_is_named():
    message = (
        r"dialogue.sources\[1\] is 'given', but problem 'p' has no attempt for turn 2; set "
        "data.first_attempts, or sample the turn"
    )
    with pytest.raises(ValueError, match=message):
        encoded(problem("ab", "x"), turns=3, sources=("given", "given", "sampled"))


WRONG = WorkedDialogue(
    problem("ab", id="w"), ((Part("x="), Part("7:", learn=False), Part("cd")), (Part("efg"),))
)
RIGHT = WorkedDialogue(
    problem("c", id="r"),
    ((Part("x="), Part("7:"), Part("d")), (Part("e"), Part("fg", learn=False))),
)
SINGLE = WorkedDialogue(problem("d", id="s"), ((Part("y"),),))


def worked(*dialogues, length=24, limit=9, **fields):
    return encoder(limits=(limit,) * 2, **fields).worked(dialogues, length)


def told(rows, row):
    length = rows.length[row]
    marks = (rows.turn[row], rows.trained[row].astype(int))
    assert not rows.tokens[row, length:].any() and not any(x[length:].any() for x in marks)
    return text(rows.tokens[row, :length]), *("".join(map(str, x[:length])) for x in marks)


def test_learnt_tokens_are_exactly_the_intended_ones():
    """All of an attempt is its turn's own; what is learnt of it is another matter."""
    rows = worked(WRONG)
    assert told(rows, 0) == ("?abx=7:cd#/i/efg#", "00011111110002222", "00011001110001111")


def test_a_stop_token_is_learnt_with_the_part_that_it_ends():
    rows = worked(RIGHT)
    assert told(rows, 0) == ("?cx=7:d#/i/efg#", "001111110002222", "001111110001000")


def test_worked_rows_say_which_turns_they_have_and_that_nobody_sampled_them():
    rows = worked(WRONG, SINGLE, RIGHT)
    assert told(rows, 1) == ("?dy#", "0011", "0011")
    assert rows.present.tolist() == [[True, True], [True, False], [True, True]]
    empty = (rows.sampled, rows.logprobs, rows.rewards, rows.truncated)
    assert not any(np.any(column) for column in empty)
    assert rows.ids.draw.tolist() == [0, 1, 2]


def test_a_worked_dialogue_is_asked_again_by_its_own_task_or_the_plan():
    other = WorkedDialogue(problem("c", task="other", id="r"), RIGHT.attempts)
    assert told(worked(RIGHT, other, tasks=TASKS), 1)[0] == "?cx=7:d#/again/efg#"
    assert told(worked(RIGHT, instructions=("", "why")), 0)[0] == "?cx=7:d#/why/efg#"


def test_making_rows_leaves_the_encoders_blocks_alone():
    made = encoder()
    before = made.forced[""]
    made.worked([SINGLE] * 3, 20)
    made.prompts([problem()] * 2, [0, 1])
    assert made.forced[""] == before == [([], []), ([ord(x) for x in "#/i/"], [0] * 4)]


def test_a_dialogue_longer_than_a_row_is_refused_by_name():
    message = r"sampling.prompt_limit \+ turn_limit is 16; problem 'w' has 17 tokens: raise the"
    with pytest.raises(TooLong, match=message):
        worked(SINGLE, WRONG, length=16)


def test_a_dialogue_that_teaches_more_than_is_scored_in_a_row_is_refused_by_name():
    """Its row may be long enough, since its prompt is short; what is behind would teach nothing."""
    message = r"the sum of dialogue.limits is 8; problem 'w' has 9 tokens: raise the limit"
    with pytest.raises(TooLong, match=message):
        worked(WRONG, limit=4)


def test_a_dialogue_of_more_attempts_than_the_plan_has_is_refused_by_name():
    message = r"objective.reward_weights has 1 turns, but the dialogue on problem 'w' has 2: .*"
    with pytest.raises(ValueError, match=message):
        encoder(turns=1).worked([WRONG], 30)


def test_rows_that_nobody_sampled_have_the_turns_that_their_tokens_belong_to():
    turn = np.array([[0, 1, 1, 3], [0, 0, 2, 0], [0, 0, 0, 0]])
    rows = given_rows(turn + 4, np.array([4, 3, 0]), turn, turn == 1, turns=3)
    assert rows.present.tolist() == [[True, False, True], [False, True, False], [False] * 3]
    assert rows.rewards.shape == rows.truncated.shape == (3, 3)
