"""From problems to graded rows, with a chat of one character per token."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.records import Grade, Problem, Task
from score_jax.rl import rollout
from score_jax.rl.rollout import Graded, Sampler
from tests.tiny import rows_of

PROBLEMS = [Problem(id="a", prompt="3", answer="1"), Problem(id="b", prompt="45", answer="2")]
TASK = Task(
    name="digits",
    prompt=lambda problem: f"9{problem.prompt}",
    instruction="7",
    grade=lambda *_: None,
)
LINES = [  # turn 1 and turn 2 end in the stop token 0, or were cut
    ([9, 3, 1, 0, 7, 2, 2, 0], [0, 0, 1, 1, 0, 2, 2, 2]),
    ([9, 3, 5, 5, 5, 0, 7, 1, 0], [0, 0, 1, 1, 1, 0, 0, 2, 2]),
    ([9, 4, 5, 0, 7, 2, 0], [0, 0, 0, 1, 0, 2, 2]),
    ([9, 4, 5, 2, 0, 7, 1, 1, 1], [0, 0, 0, 1, 1, 0, 2, 2, 2]),
]
TEXTS = [("1", "22"), ("555", "1"), ("", "2"), ("2", "111")]
EPISODES = rows_of(LINES, 2, rewards=np.zeros((4, 2)))


class DigitChat:
    stops = (0,)

    def encode_prompt(self, text):
        return [int(digit) for digit in text]

    def decode(self, ids):
        return "".join(str(index) for index in ids)


@dataclass
class LastDigit:
    """Grades at once by the last digit; remembers what it was asked."""

    events: list

    def submit(self, task, items, cut):
        self.events.append(("submit", task, list(items), list(cut)))
        return self

    def result(self):
        self.events.append(("result",))
        grades = []
        for problem, text in self.events[0][2]:
            if not text:
                grades.append(Grade(verdict="unparsable", reward=0.0))
            elif text[-1] == problem.answer:
                grades.append(Grade(verdict="correct", reward=1.0, extracted=text[-1]))
            else:
                grades.append(Grade(verdict="wrong", reward=0.0, extracted=text[-1]))
        return grades


def graded(meanwhile=lambda: None):
    events = []
    found = rollout.grade_rollout(
        DigitChat(), TASK, LastDigit(events), PROBLEMS, EPISODES, meanwhile
    )
    return found, events


def test_prompts_are_padded_behind_and_keep_their_draws():
    draws = np.array([17, 4])
    got = rollout.encode_prompts(DigitChat(), TASK, draws, PROBLEMS, 4)
    assert got.tokens.tolist() == [[9, 3, 0, 0], [9, 4, 5, 0]]
    assert got.length.tolist() == [2, 3]
    assert got.draw.tolist() == [17, 4]


def test_a_prompt_that_is_too_long_is_refused_by_name():
    message = r"sampling.prompt_limit is 2; problem 'b' has 3 tokens: raise the limit"
    with pytest.raises(ValueError, match=message):
        rollout.encode_prompts(DigitChat(), TASK, np.array([0, 1]), PROBLEMS, 2)


def test_attempts_are_the_turns_own_tokens_without_their_stop():
    assert rollout.attempt_texts(DigitChat(), EPISODES, 2) == TEXTS


def test_a_stop_token_within_padding_belongs_to_nobody():
    wide = rows_of(LINES, 2, width=14, padding=0)
    assert rollout.attempt_texts(DigitChat(), wide, 2) == TEXTS


SEVERAL = [  # turns of a chat that ends them at 0, 6 or 8
    ([9, 3, 1, 6, 7, 2, 2, 8], [0, 0, 1, 1, 0, 2, 2, 2]),
    ([9, 3, 8, 7, 6], [0, 0, 1, 0, 2]),
    ([9, 6, 5, 5, 0, 7, 1, 0], [0, 0, 1, 1, 0, 0, 2, 2]),  # turn 1 cut; 6 in the prompt
    ([9, 3, 1, 6, 2, 0, 7, 3, 8, 4], [0, 0, 1, 1, 1, 1, 0, 2, 2, 2]),  # never sampled so
]


def test_whatever_stops_a_turn_nothing_behind_it_is_graded():
    chat = DigitChat()
    chat.stops = (0, 6, 8)
    got = rollout.attempt_texts(chat, rows_of(SEVERAL, 2), 2)
    assert got == [("1", "22"), ("", ""), ("55", "1"), ("1", "3")]


def test_every_turn_is_graded_against_its_rows_problem():
    found, events = graded()
    a, b = PROBLEMS
    assert events[0][:3] == ("submit", "digits", [
        (a, "1"), (a, "22"), (a, "555"), (a, "1"), (b, ""), (b, "2"), (b, "2"), (b, "111"),
    ])  # fmt: skip
    assert rollout.reward_array(found.grades).tolist() == [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert found.attempts == TEXTS
    assert found.seconds.keys() == {"grade"}


def test_the_grader_is_told_which_turns_were_cut():
    cut = EPISODES.replace(truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool))
    events = []
    rollout.grade_rollout(DigitChat(), TASK, LastDigit(events), PROBLEMS, cut)
    assert events[0][3] == [False, False, True, False, False, False, False, True]


def test_the_device_works_while_the_graders_do():
    events = []
    rollout.grade_rollout(
        DigitChat(), TASK, LastDigit(events), PROBLEMS, EPISODES, lambda: events.append(("device",))
    )
    assert [event[0] for event in events] == ["submit", "device", "result"]


def test_transcripts_hold_what_happened_in_a_row():
    found, _ = graded()
    cut = EPISODES.replace(truncated=np.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool))
    first, last = rollout.transcripts(TASK, PROBLEMS, cut, found, step=6, rows=[1, 3])
    assert (first.step, first.problem, first.prompt, first.answer) == (6, "a", "93", "1")
    assert first.attempts == ("555", "1") and first.verdicts == ("wrong", "correct")
    assert first.rewards == (0.0, 1.0) and first.extracted == ("5", "1")
    assert first.lengths == (3, 2) and first.truncated == (True, False)
    assert last.problem == "b" and last.lengths == (2, 3) and last.truncated == (False, True)


def test_every_verdict_is_counted():
    found, _ = graded()
    metrics = rollout.grading_metrics(found)
    shares = {"correct": 4 / 8, "wrong": 3 / 8, "unparsable": 1 / 8, "timeout": 0, "crashed": 0}
    assert {name: metrics[f"verdict/{name}"] for name in shares} == shares


def test_answer_changed_compares_first_and_last():
    def row(*answers):
        return tuple(Grade(verdict="wrong", reward=0.0, extracted=a) for a in answers)

    grades = [row("1", "1"), row("1", "2"), row(None, "2"), row("3", "3")]
    metrics = rollout.grading_metrics(Graded(attempts=[], grades=grades))
    assert metrics["answer_changed"] == 0.5


def test_a_row_of_several_hosts_has_one_grade_whoever_ran_out_of_time():
    def graded(*verdicts):
        return tuple(Grade(verdict=verdict, reward=verdict == "correct") for verdict in verdicts)

    settled = rollout.merge_grades(
        [
            ([0, 1], [graded("timeout", "correct"), graded("wrong", "timeout")]),
            ([0, 1], [graded("correct", "crashed"), graded("correct", "crashed")]),
            ([3], [graded("crashed", "crashed")]),
            ([3], [graded("correct", "timeout")]),
            ([2], [graded("timeout", "wrong")]),
        ]
    )
    assert settled == {
        0: graded("correct", "correct"),
        1: graded("wrong", "timeout"),
        2: graded("timeout", "wrong"),
        3: graded("correct", "crashed"),
    }


def test_collecting_puts_rewards_on_the_rows_and_scores_with_the_reference():
    seen = {}

    def sample(params, prompts, key):
        seen.update(params=params, prompts=prompts, key=key)
        return EPISODES

    def score(reference, episodes):
        seen.update(reference=reference, scored=episodes)
        return "scores"

    def to_global(tree):
        return jax.tree.map(jnp.asarray, tree)

    got = rollout.collect_rollout(
        Sampler(
            to_global=to_global,
            own_rows=lambda rows: rows,
            prepare=lambda params: params,
            sample=sample,
            score=score,
        ),
        DigitChat(),
        TASK,
        LastDigit([]),
        params="policy",
        reference="base",
        key="key",
        draws=np.array([5, 6]),
        problems=PROBLEMS,
        prompt_limit=3,
    )
    assert (seen["params"], seen["reference"], seen["key"]) == ("policy", "base", "key")
    assert seen["prompts"].draw.tolist() == [5, 6] and seen["scored"] is EPISODES
    want = [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert got.episodes.rewards.tolist() == want and got.local.rewards.tolist() == want
    assert got.scores == "scores" and got.graded.attempts == TEXTS
    assert isinstance(got.local.tokens, np.ndarray)
    assert got.graded.seconds.keys() == {"sample", "grade"}
