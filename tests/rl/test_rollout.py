"""From problems to graded rows, with a chat of one character per token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.records import Grade, Problem, Task
from score_jax.rl import rollout
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.metrics import flat
from score_jax.rl.rollout import Graded, RolloutPrograms
from tests.scripted import Scripted
from tests.tiny import grouped, rows_of

A, B = Problem(id="a", prompt="3", answer="1"), Problem(id="b", prompt="45", answer="2")
PROBLEMS = [A, A, B, B]  # one per row


def task(name, instruction="7"):
    return Task(
        name=name,
        prompt=lambda problem: f"9{problem.prompt}",
        instruction=instruction,
        grade=lambda *_: None,
    )


LINES = [  # turn 1 and turn 2 end in the stop token 0, or were cut
    ([9, 3, 1, 0, 7, 2, 2, 0], [0, 0, 1, 1, 0, 2, 2, 2]),
    ([9, 3, 5, 5, 5, 0, 7, 1, 0], [0, 0, 1, 1, 1, 0, 0, 2, 2]),
    ([9, 4, 5, 0, 7, 2, 0], [0, 0, 0, 1, 0, 2, 2]),
    ([9, 4, 5, 2, 0, 7, 1, 1, 1], [0, 0, 0, 1, 1, 0, 2, 2, 2]),
]
TEXTS = [("1", "22"), ("555", "1"), ("", "2"), ("2", "111")]
EPISODES = rows_of(LINES, 2, rewards=np.zeros((4, 2)), ids=grouped(4, 2))


class DigitChat:
    stops = (0,)

    def encode_prompt(self, text):
        return [int(digit) for digit in text]

    encode_plain = encode_instruction = encode_prompt

    def decode(self, ids):
        return "".join(str(index) for index in ids)

    def answer(self, text):
        return text


class LastDigit:
    """Grades by the last digit, for the task "other" by the first; remembers what it was asked."""

    def __init__(self, events=None):
        self.events = [] if events is None else events

    def submit(self, task, items, cut):
        self.events.append(("submit", task, list(items), list(cut)))
        return Pending(self.events, 0 if task == "other" else -1, list(items))


class Pending:
    def __init__(self, events, place, items):
        self.events, self.place, self.items = events, place, items

    def result(self):
        self.events.append(("result",))
        return [self.grade(problem, text) for problem, text in self.items]

    def grade(self, problem, text):
        if not text:
            return Grade(verdict="unparsable", reward=0.0)
        right, digit = text[self.place] == problem.answer, text[self.place]
        verdict = "correct" if right else "wrong"
        return Grade(verdict=verdict, reward=float(right), extracted=digit)


def encoder(turns=2, tasks=None, **fields):
    """Of plans whose turns have up to four tokens."""
    return Encoder(
        chat=DigitChat(),
        tasks=tasks or {"": task("digits")},
        plan=DialoguePlan(**fields).complete(turns, 4),
        prompt_limit=3,
    )


ENCODER = encoder()


def graded(episodes=EPISODES):
    events = []
    episodes = jax.tree.map(np.asarray, episodes)
    found = rollout.grade_rollout(ENCODER, LastDigit(events), PROBLEMS, episodes)
    return found, events


def scripted(texts, problems, made=ENCODER):
    """Rows that say this, one for each problem, and their grades with what was asked for."""
    rows = Scripted(encoder=made, texts=texts)(
        None, made.prompts(problems, np.arange(len(problems))), jax.random.key(0)
    )
    rows, events = jax.tree.map(np.asarray, rows), []
    return rows, rollout.grade_rollout(made, LastDigit(events), problems, rows), events


def rewards(found):
    return rollout.reward_array(found.grades).tolist()


def test_attempts_are_the_turns_own_tokens_without_their_stop():
    assert rollout.attempt_texts(DigitChat(), EPISODES) == TEXTS


def test_a_stop_token_within_padding_belongs_to_nobody():
    wide = rows_of(LINES, 2, width=14, padding=0)
    assert rollout.attempt_texts(DigitChat(), wide) == TEXTS


SEVERAL = [  # turns of a chat that ends them at 0, 6 or 8
    ([9, 3, 1, 6, 7, 2, 2, 8], [0, 0, 1, 1, 0, 2, 2, 2]),
    ([9, 3, 8, 7, 6], [0, 0, 1, 0, 2]),
    ([9, 6, 5, 5, 0, 7, 1, 0], [0, 0, 1, 1, 0, 0, 2, 2]),  # turn 1 cut; 6 in the prompt
    ([9, 3, 1, 6, 2, 0, 7, 3, 8, 4], [0, 0, 1, 1, 1, 1, 0, 2, 2, 2]),  # never sampled so
]


def test_whatever_stops_a_turn_nothing_behind_it_is_graded():
    chat = DigitChat()
    chat.stops = (0, 6, 8)
    got = rollout.attempt_texts(chat, rows_of(SEVERAL, 2))
    assert got == [("1", "22"), ("", ""), ("55", "1"), ("1", "3")]


def test_every_turn_is_graded_against_its_rows_problem():
    found, events = graded()
    asked = zip(np.repeat(PROBLEMS, 2), [text for row in TEXTS for text in row], strict=True)
    assert events[0][:3] == ("submit", "digits", list(asked))
    assert rewards(found) == [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert found.attempts == TEXTS


CUTS = EPISODES.replace(truncated=jnp.array([[0, 0], [1, 0], [0, 0], [0, 1]], bool))


def test_the_grader_is_told_which_turns_were_cut():
    _, events = graded(CUTS)
    assert events[0][3] == [False, False, True, False, False, False, False, True]


def snapshots(episodes=EPISODES):
    """The dialogues after each of two turns, as a sampler gives them."""
    rows = jax.tree.map(np.asarray, episodes)
    known = np.cumsum(rows.turn == 2, axis=1) == 0
    first = rows.replace(
        tokens=np.where(known, rows.tokens, 9),
        turn=np.where(known, rows.turn, 0),
        truncated=rows.truncated & np.array([True, False]),
    )
    return [first, rows]


def test_first_attempts_are_graded_before_second_ones_are_known():
    """With the grades that whole dialogues get, cuts included."""
    events = []
    grading, rows = rollout.Grading(ENCODER, LastDigit(events)), snapshots(CUTS)
    for turns in (1, 2):
        grading.submit(PROBLEMS, rows[turns - 1], turns)
        assert [event[0] for event in events] == ["submit"] * turns
    found, (whole, _) = grading.result(rows[1]), graded(CUTS)
    assert found == whole and found.attempts == TEXTS
    for turn in (0, 1):
        _, name, items, cut = events[turn]
        assert items == list(zip(PROBLEMS, [row[turn] for row in TEXTS], strict=True))
        assert name == "digits" and cut == CUTS.truncated[:, turn].tolist()


MIXED = {"": task("digits", "7"), "other": task("other", "88")}
OTHER = Problem(id="c", prompt="6", answer="5", task="other")


def test_each_row_is_asked_again_and_graded_by_its_own_task():
    """Answers 1 and 2 stand last in `digits`, 5 stands first in `other`."""
    made = encoder(tasks=MIXED)
    problems = [A, OTHER, B, OTHER]
    texts = [("31", "13"), ("51", "15"), ("2…", "22"), ("1", "5…")]
    rows, found, events = scripted(texts, problems, made)
    assert rewards(found) == [[1, 0], [1, 0], [1, 1], [0, 1]]
    told = [event[1:] for event in events if event[0] == "submit"]
    assert told == [
        ("digits", [(A, "31"), (A, "13"), (B, "2"), (B, "22")], [False, False, True, False]),
        (
            "other",
            [(OTHER, "51"), (OTHER, "15"), (OTHER, "1"), (OTHER, "5")],
            [False, False, False, True],
        ),
    ]
    ends = [[3, 1, 0, 7, 1, 3, 0], [5, 1, 0, 8, 8, 1, 5, 0], [2, 0, 7, 2, 2, 0], [1, 0, 8, 8, 5]]
    begun = [2, 2, 3, 2]
    for row, (start, end) in enumerate(zip(begun, ends, strict=True)):
        assert rows.tokens[row, start : rows.length[row]].tolist() == end


def test_metrics_of_mixed_tasks_are_told_task_by_task():
    made = encoder(tasks=MIXED)
    problems = [A, OTHER, B, OTHER, OTHER]
    _, found, _ = scripted(
        [("31", "13"), ("51", "15"), ("2", "22"), ("1", "5"), ("5",)], problems, made
    )
    told = flat(rollout.grading_metrics(made, problems, found))
    by_task = {name: value for name, value in told.items() if name.startswith("task/")}
    for name in ("accuracy", "reward"):
        assert by_task.pop(f"task/digits/{name}/turn1") == 1.0
        assert by_task.pop(f"task/digits/{name}/turn2") == 0.5
        assert by_task.pop(f"task/other/{name}/turn1") == pytest.approx(2 / 3)
        assert by_task.pop(f"task/other/{name}/turn2") == 0.5  # of the two rows that have one
    assert not by_task
    alone = rollout.grading_metrics(ENCODER, PROBLEMS, graded()[0])
    assert not any(name.startswith("task/") for name in alone)


JUDGED = {"turns": 3, "roles": ("answer", "verify", "answer")}


class Judging(DigitChat):
    """Digits, but that 6 reads right, 8 reads not right, and 9 is no judgement."""

    def decode(self, ids):
        words = {6: " right ", 8: " not right ", 9: " perhaps "}
        return "".join(words.get(index, str(index)) for index in ids).strip()


def judging(**fields):
    made = encoder(**fields)
    return Encoder(chat=Judging(), tasks=made.tasks, plan=made.plan, prompt_limit=3)


def test_a_verify_turn_is_graded_by_whether_what_it_says_of_the_answer_is_true():
    """No task sees it: A's answer is 1."""
    texts = [("1", "6", "1"), ("1", "8", "2"), ("2", "8", "1"), ("2", "6", "2"), ("1", "9", "")]
    _, found, events = scripted(texts, [A] * 5, judging(**JUDGED))
    assert rewards(found) == [[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 0, 0]]
    verdicts = [row[1].verdict for row in found.grades]
    assert verdicts == ["correct", "wrong", "correct", "wrong", "unparsable"]
    (asked,) = [event[2] for event in events if event[0] == "submit"]
    assert [text for _, text in asked] == ["1", "1", "1", "2", "2", "1", "2", "2", "1", ""]


def test_two_judgements_in_a_row_are_both_of_the_answer_before_them():
    """Not the second of the first: 2 is wrong, which the first calls right and the second not."""
    made = judging(turns=4, roles=("answer", "verify", "verify", "answer"))
    _, found, _ = scripted([("2", "6", "8", "1"), ("1", "8", "8", "1")], [A, A], made)
    assert rewards(found) == [[0, 0, 1, 1], [1, 0, 0, 1]]


def test_whether_an_answer_has_changed_is_no_question_of_judgements():
    made = judging(turns=3, roles=("answer", "answer", "verify"))
    texts = [("1", "1", "6"), ("1", "2", "6"), ("2", "2", "8"), ("1", "2", "8")]
    _, found, _ = scripted(texts, [A] * 4, made)
    told = rollout.grading_metrics(made, [A] * 4, found)
    assert told["answer_changed"].value() == 0.5


def test_a_row_without_a_second_turn_has_no_grade_there():
    rows, found, events = scripted([("1", "22"), ("31",)], [A, A])
    assert rows.present.tolist() == [[True, True], [True, False]]
    assert found.grades[1][1] is None and rewards(found) == [[1, 0], [1, 0]]
    assert events[0][2] == [(A, "1"), (A, "22"), (A, "31")]
    told = flat(rollout.grading_metrics(ENCODER, [A, A], found))
    assert told["verdict/correct"] == pytest.approx(2 / 3)
    assert told["answer_changed"] == 0.5  # 1, 2; and 1 alone, which stays what it is


def test_rows_that_pad_a_batch_are_neither_graded_nor_counted():
    rows = EPISODES.replace(present=EPISODES.present.at[3].set(False))
    found, events = graded(rows)
    assert len(events[0][2]) == 6 and found.grades[3] == (None, None)
    told = flat(rollout.grading_metrics(ENCODER, PROBLEMS, found))
    assert told["answer_changed"] == 1.0 and told["verdict/correct"] == 0.5


def test_a_given_attempt_is_graded_as_any_other():
    made = encoder(sources=("given", "sampled"))
    problems = [Problem(id=str(n), prompt="3", answer="1", given=(text,)) for n, text in
                enumerate(["31", "2"])]  # fmt: skip
    rows, found, _ = scripted([("2",), ("1",)], problems, made)
    assert found.attempts == [("31", "2"), ("2", "1")] and rewards(found) == [[1, 0], [0, 1]]
    assert (rows.sampled == (rows.turn == 2)).all() and rows.turn[0, 2:5].tolist() == [1, 1, 1]


def grades(*answers):
    return tuple(a if a is None else Grade(verdict="wrong", reward=0.0, extracted=a or None)
                 for a in answers)  # fmt: skip


def test_a_repetition_is_an_answer_that_its_dialogue_has_given_before():
    """No answer at all is none, nor is a judgement; the first of equals is no repetition."""
    roles = ("answer", "verify", "answer", "answer")
    table = [
        grades("1", "right", "1", "2"),
        grades("1", "1", "2", "1"),
        grades("", "right", "", ""),
        grades("1", None, None, None),
        grades("3", "right", "4", "4"),
    ]
    got = rollout.repetitions(table, roles)
    assert got.tolist() == [[0, 0, 1, 0], [0, 0, 0, 1], [0] * 4, [0] * 4, [0, 0, 0, 1]]
    columns = rollout.graded_columns(table, roles, 0.25)
    np.testing.assert_array_equal(columns["shaping"], -0.25 * got)
    assert rollout.graded_columns(table, roles, 0.0).keys() == {"rewards"}


def test_every_verdict_is_counted():
    metrics = flat(rollout.grading_metrics(ENCODER, PROBLEMS, graded()[0]))
    shares = {"correct": 4 / 8, "wrong": 3 / 8, "unparsable": 1 / 8, "timeout": 0, "crashed": 0}
    assert {name: metrics[f"verdict/{name}"] for name in shares} == shares


def test_answer_changed_compares_first_and_last():
    table = [grades("1", "1"), grades("1", "2"), grades("", "2"), grades("3", "3")]
    texts = [("", "")] * 4
    metrics = rollout.grading_metrics(ENCODER, PROBLEMS, Graded(attempts=texts, grades=table))
    assert metrics["answer_changed"].value() == 0.5


def test_the_edit_distance_is_that_of_first_and_last_text_over_both_lengths():
    """By hand: "31" to "13" takes two edits of 4 characters, a copy none, "2" to "22" one of 3."""
    _, found, _ = scripted([("31", "13"), ("31", "31"), ("2", "22"), ("2",)], [A] * 4)
    told = rollout.grading_metrics(ENCODER, [A] * 4, found)["edit_distance"]
    assert told.count == 3  # the last row has no second text
    assert told.value() == pytest.approx((2 / 4 + 0 + 1 / 3) / 3)


def test_the_text_of_a_judgement_is_no_answers_edit_distance():
    made = judging(**JUDGED)
    _, found, _ = scripted([("1", "6", "1"), ("1", "8", "2")], [A] * 2, made)
    told = rollout.grading_metrics(made, [A] * 2, found)
    assert told["edit_distance"].value() == (0 + 1 / 2) / 2


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


def test_a_turn_that_a_row_lacks_is_lacking_on_all_hosts():
    none = (Grade(verdict="timeout", reward=0.0), None)
    right = (Grade(verdict="correct", reward=1.0), None)
    assert rollout.merge_grades([([0], [none]), ([0], [right])]) == {0: right}


def test_rows_find_their_problem_by_their_draw_in_any_order():
    ids = jax.tree.map(lambda x: x[jnp.array([2, 1, 0, 3])], EPISODES.ids)
    ids = ids.replace(draw=ids.draw + 5)
    found = rollout.problems_of_rows(np.array([5, 6]), [A, B], EPISODES.replace(ids=ids))
    assert found == [B, A, A, B]


def collect(texts, made=ENCODER, seen=None, **options):
    """Two draws of a script, and what the programs were given."""
    seen = {} if seen is None else seen
    seen["events"] = []
    say = Scripted(encoder=made, texts=texts)

    def sample(params, prompts, key):
        seen.update(params=params, prompts=prompts, key=key)
        return say.by_turn(params, prompts, key)

    def score(reference, episodes):
        seen.update(reference=reference, scored=episodes)
        seen["events"].append(("score",))
        return "scores"

    return rollout.collect_rollout(
        RolloutPrograms(
            encoder=made,
            to_global=lambda tree: jax.tree.map(jnp.asarray, tree),
            own_rows=lambda rows: rows,
            prepare=lambda params: f"prepared {params}",
            sample=sample,
            score=score,
            **options,
        ),
        LastDigit(seen["events"]),
        params="policy",
        reference="base",
        key="key",
        draws=np.array([5, 6]),
        problems=[A, B],
        indices=[40, 41],
        policy_step=3,
        begin=lambda phase: seen.setdefault("phases", []).append(phase),
    )


def test_collecting_puts_rewards_on_the_rows_and_scores_with_the_reference():
    seen = {}
    got = collect(TEXTS, seen=seen)
    assert (seen["params"], seen["reference"], seen["key"]) == ("prepared policy", "base", "key")
    assert seen["phases"] == ["sample", "grade", "share verdicts"]
    assert seen["prompts"].ids.draw.tolist() == [5, 6]
    assert seen["prompts"].ids.problem.tolist() == [40, 41]
    assert seen["prompts"].ids.policy_step.tolist() == [3, 3]
    want = [[1, 0], [0, 1], [0, 1], [1, 0]]
    assert got.episodes.rewards.tolist() == want and got.local.rewards.tolist() == want
    assert not seen["scored"].rewards.any()  # scored before the grades were known
    assert got.scores == "scores" and got.graded.attempts == TEXTS and got.problems == PROBLEMS
    assert got.episodes.ids.sample.tolist() == [0, 1, 0, 1] and got.local.shaping is None
    assert isinstance(got.local.tokens, np.ndarray)
    assert got.graded.seconds.keys() == {"sample", "grade"}


def test_collecting_grades_each_turn_by_itself_and_scores_before_it_waits_for_grades():
    seen = {}
    collect(TEXTS, seen=seen)
    assert [event[0] for event in seen["events"]] == [
        "submit", "submit", "score", "result", "result",
    ]  # fmt: skip
    asked = [[text for _, text in event[2]] for event in seen["events"][:2]]
    assert asked == [[row[turn] for row in TEXTS] for turn in (0, 1)]


def test_collecting_grades_a_forced_turn_with_the_one_that_is_drawn_behind_it():
    """Its tokens stand in the row only then."""
    made = encoder(3, sources=("sampled", "forced", "sampled"), texts=("", "2", ""))
    seen, texts = {}, [("1", "31"), ("2", "1"), ("2", "2"), ("1", "12")]
    got = collect(texts, made, seen)
    assert got.graded.attempts == [(first, "2", last) for first, last in texts]
    assert got.episodes.rewards.tolist() == [[1, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 1]]
    assert [len(event[2]) for event in seen["events"] if event[0] == "submit"] == [4, 8]


def test_collecting_takes_a_penalty_for_repeated_answers_where_the_objective_does():
    texts = [("1", "31"), ("1", "2"), ("", ""), ("2", "2")]
    got = collect(texts, repeat_penalty=0.5)
    want = [[0, -0.5], [0, 0], [0, 0], [0, -0.5]]
    assert got.episodes.shaping.tolist() == want and got.local.shaping.tolist() == want
    assert got.episodes.rewards.tolist() == [[1, 1], [1, 0], [0, 0], [1, 1]]  # rewards stay


def test_what_is_graded_is_the_answer_behind_a_turns_thought(monkeypatch):
    """Texts that are kept and learnt from are whole."""
    events = []
    monkeypatch.setattr(DigitChat, "answer", lambda self, text: text[1:])
    grading = rollout.Grading(ENCODER, LastDigit(events))
    grading.submit(PROBLEMS, EPISODES, 2)
    texts = [text for kind, *rest in events if kind == "submit" for _, text in rest[1]]
    assert sorted(texts) == sorted(text[1:] for row in TEXTS for text in row)
    assert [tuple(row) for row in grading.attempts] == TEXTS
