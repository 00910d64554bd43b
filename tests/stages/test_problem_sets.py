"""What is asked of a data set: measured, graded, and left out or refused, alike everywhere."""

import dataclasses
import json

import pytest

from score_jax.records import Problem
from score_jax.rl.dialogue import DialoguePlan
from score_jax.stages import problem_sets
from score_jax.stages.build import greedy_sampling
from score_jax.stages.problem_sets import (
    ProblemSetSpec,
    evaluation_spec,
    read,
    select,
    training_spec,
    validation_spec,
)
from score_jax.stages.sections import GradingConfig
from score_jax.stages.settings import parse
from score_jax.tasks import registry
from score_jax.text.chat import ChatFormat
from tests.stage_configs import stages
from tests.tiny_stages import get_config

GRADING = GradingConfig(workers=1)


class Letters:
    """A tokenizer of one id per letter."""

    vocab_size = 128

    def __init__(self):
        self.encoded = 0

    def contents(self):
        return b"letters"


class Chat:
    """A chat of one token per letter of the prompt, which counts what it is asked."""

    format = ChatFormat(markers=(), prompt="{text}", instruction="", stop="")
    stops = (ord("#"),)

    def __init__(self):
        self.tokenizer, self.asked = Letters(), 0

    def encode_prompt(self, text):
        self.asked += 1
        return [0] * len(text)

    def encode_plain(self, text):
        return list(map(ord, text))


ROWS = [
    {"id": "a", "prompt": "x", "answer": "1"},
    {"prompt": "xxxx", "answer": "2"},
    {"id": "c", "prompt": "xxxxxxxx", "answer": "3"},
    {"id": "d", "prompt": "xx", "answer": "plenty"},  # a gold answer that is no number
    {"id": "e", "prompt": "xxxxxxxxx", "answer": "5"},
]
FRAME = len(registry.get("numeric").prompt(Problem(id="", prompt="")))  # what the task adds


def spec(path, limit, **options):
    rows = options.pop("rows", ROWS)
    path.write_text("\n".join(map(json.dumps, rows)))
    skips = {name: value for name, value in options.items() if name.startswith("skip")}
    return ProblemSetSpec(
        part=options.get("part", "training"),
        data={"source": "jsonl", "path": str(path), **skips},
        count=options.get("count", 0),
        task="numeric",
        task_field="config.task",
        prompt_limit=FRAME + limit,
        limit_field="config.sampling.prompt_limit",
    )


def chosen(tmp_path, limit, chat=None, **options):
    return select(spec(tmp_path / "p.jsonl", limit, **options), chat or Chat(), GRADING, tmp_path)


def test_prompts_beyond_the_limit_are_refused_with_numbers(tmp_path):
    with pytest.raises(ValueError) as told:
        chosen(tmp_path, 4, skip_bad=True)
    assert str(told.value) == (
        f"config.sampling.prompt_limit is {FRAME + 4}; problem '{tmp_path}/p.jsonl:5 (e)' has "
        f"{FRAME + 9} tokens, the longest of 2 too long among 5 training prompts (median "
        f"{FRAME + 4}): raise the limit, or set config.data.skip_long=True to leave them out"
    )


def test_gold_answers_that_are_not_accepted_are_refused_by_file_and_line(tmp_path):
    with pytest.raises(ValueError) as told:
        chosen(tmp_path, 9)
    text = str(told.value)
    assert "gold answer of 1 of 5 training problems" in text
    assert f"{tmp_path}/p.jsonl:4 (d): 'Final Answer: plenty' is graded crashed" in text
    assert "config.data.skip_bad=True" in text


def test_all_gold_answers_are_tried_not_the_first_few(tmp_path):
    rows = [{"prompt": "x", "answer": "1"} for _ in range(150)]
    rows[149]["answer"] = "none"
    with pytest.raises(ValueError, match=r"1 of 150 .*p.jsonl:150: "):
        chosen(tmp_path, 1, rows=rows)


@pytest.mark.parametrize(
    ("limit", "skips", "kept", "long", "bad"),
    [
        (9, ("skip_bad",), "abce", "", "d"),
        (8, ("skip_bad", "skip_long"), "abc", "e", "d"),
        (4, ("skip_bad", "skip_long"), "ab", "ce", "d"),
        (1, ("skip_bad", "skip_long"), "a", "bcde", "d"),
    ],
)
def test_what_is_left_out_is_left_out_and_counted(tmp_path, limit, skips, kept, long, bad):
    names = {"b": f"{tmp_path}/p.jsonl:2"}  # the row that has no id
    found = chosen(tmp_path, limit, **dict.fromkeys(skips, True))
    assert [p.id for p in found.problems] == [names.get(name, name) for name in kept]
    assert found.long == tuple(names.get(name, name) for name in long)
    assert found.bad == tuple(bad)
    assert found.longest == FRAME + max(len(ROWS["abcde".index(n)]["prompt"]) for n in kept)
    assert found.counts() == {"problems": len(kept), "long": len(long), "bad": len(bad)}


def test_evaluation_leaves_out_as_training_does(tmp_path):
    parts = ("training", "evaluation")
    found = [chosen(tmp_path, 4, part=part, skip_long=True, skip_bad=True) for part in parts]
    assert found[0].problems == found[1].problems
    assert [one.part for one in found] == ["training", "evaluation"]


def test_of_the_first_problems_none_is_replaced_by_a_later_one(tmp_path):
    found = chosen(tmp_path, 4, count=3, skip_long=True)
    assert [p.id for p in found.problems] == ["a", f"{tmp_path}/p.jsonl:2"]
    assert found.long == ("c",)


def test_a_set_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no training problem is left, 5 being too long"):
        chosen(tmp_path, 0, skip_long=True, skip_bad=True)


@pytest.mark.parametrize("value", [1, "yes", None, "True", 0.0])
def test_a_skip_is_true_or_false(tmp_path, value):
    with pytest.raises(ValueError, match=r"config.data.skip_long is .*; set True or False"):
        chosen(tmp_path, 4, skip_long=value, skip_bad=True)


def test_what_was_found_is_remembered_by_contents(tmp_path, monkeypatch):
    graded = []
    faults = problem_sets.gold_faults
    monkeypatch.setattr(
        problem_sets, "gold_faults", lambda *a, **k: graded.append(1) or faults(*a, **k)
    )
    options = {"skip_long": True, "skip_bad": True}
    chat = Chat()
    first = chosen(tmp_path, 4, chat, **options)
    assert (chat.asked, len(graded)) == (5, 1)
    assert chosen(tmp_path, 4, chat, **options) == first
    assert chosen(tmp_path, 8, chat, **options).long == ("e",)  # another limit, the same lengths
    assert (chat.asked, len(graded)) == (5, 1)
    changed = [*ROWS[:4], ROWS[4] | {"answer": "6"}]  # another answer, the same texts
    chosen(tmp_path, 4, chat, rows=changed, **options)
    assert (chat.asked, len(graded)) == (5, 2)
    chosen(tmp_path, 4, chat, rows=[*ROWS[:4], ROWS[4] | {"prompt": "y"}], **options)
    assert (chat.asked, len(graded)) == (10, 3)


def test_a_refused_set_is_not_remembered(tmp_path):
    with pytest.raises(ValueError, match="skip_bad"):
        chosen(tmp_path, 9)
    assert not (tmp_path / problem_sets.FILE).exists()


def test_all_hosts_act_on_what_the_first_found(tmp_path, monkeypatch):
    """A host whose machine is busy may see a timeout where another sees none."""
    lengths, chat = [FRAME + n for n in (1, 4, 8, 2, 9)], Chat()
    monkeypatch.setattr(problem_sets.processes, "is_first", lambda: False)
    monkeypatch.setattr(
        problem_sets.processes, "broadcast_from_first", lambda _: (lengths, {0: "timeout"})
    )
    found = chosen(tmp_path, 4, chat, skip_long=True, skip_bad=True)
    assert [p.id for p in found.problems] == [f"{tmp_path}/p.jsonl:2", "d"]
    assert (found.long, found.bad) == (("c", "e"), ("a",))
    assert chat.asked == 0 and not (tmp_path / problem_sets.FILE).exists()


@pytest.mark.parametrize("place", [0, 1])
def test_hosts_with_different_problems_are_told_so(tmp_path, monkeypatch, place):
    def gather(keys):
        other = list(keys)
        other[place] = "another"
        return [keys, other]

    monkeypatch.setattr(problem_sets.processes, "all_gather_objects", gather)
    with pytest.raises(ValueError, match="the hosts hold different training problems"):
        chosen(tmp_path, 9)


def test_reference_programs_are_run_where_there_are_some():
    tests = ("assert f(2) == 4",)
    problems = [
        Problem(id="right", prompt="?", answer="def f(x):\n    return 2 * x", tests=tests),
        Problem(id="none", prompt="?", tests=tests),
        Problem(id="wrong", prompt="?", answer="def f(x):\n    return x", tests=tests),
        Problem(id="endless", prompt="?", answer="while True: pass", tests=tests),
    ]
    grading = GradingConfig(workers=1, deadline_seconds=1.0)
    found = problem_sets.gold_faults({"": registry.get("code")}, problems, grading)
    assert list(found) == [2, 3]
    assert "is graded wrong" in found[2] and "is graded timeout" in found[3]


def test_a_gold_answer_without_a_verdict_is_tried_again(monkeypatch):
    from score_jax.records import Grade

    asked = []

    class Busy:
        def __init__(self, *_):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def grade(self, task, items):
            asked.append([problem.id for problem, _ in items])
            late = len(asked) < 3
            return [
                Grade(verdict="timeout" if late and p.id == "b" else "correct", reward=0.0)
                for p, _ in items
            ]

    monkeypatch.setattr(problem_sets, "open_pool", Busy)
    problems = [Problem(id=name, prompt="?", answer="1") for name in "abc"]
    assert problem_sets.gold_faults({"": registry.get("numeric")}, problems, GRADING) == {}
    assert asked == [["a", "b", "c"], ["b"], ["b"]]


GIVEN = {  # turn 1 is given, 4 tokens at most
    "plan": DialoguePlan(sources=("given", "sampled")).complete(2, 4)
}


def given(tmp_path, attempts, *, chat=None, plan=GIVEN, skip=False):
    """What is kept of the problems "a" and "b" with these attempts at them: ids and left out."""
    rows = [{"id": name, **attempt} for name, attempt in attempts]
    (tmp_path / "given.jsonl").write_text("\n".join(map(json.dumps, rows)))
    problems = [{"id": name, "prompt": "x", "answer": "1"} for name in "ab"]
    asked = spec(tmp_path / "p.jsonl", 1, rows=problems)
    data = asked.data | {"first_attempts": str(tmp_path / "given.jsonl"), "skip_long": skip}
    asked = dataclasses.replace(asked, data=data, **plan)
    found = select(asked, chat or Chat(), GRADING, tmp_path)
    return [(p.id, p.given) for p in found.problems], found.long


SHORT, LONG = ("a", {"attempt": "abcd"}), ("b", {"attempt": "abcde"})


def test_a_given_attempt_beyond_its_turns_limit_is_refused_or_left_out(tmp_path):
    message = (
        r"turn_limit is 4 in turn 1; the given attempt of training problem '.*\(b\)' has 5 tokens: "
        r"raise the limit, or set config.data.skip_long=True"
    )
    with pytest.raises(ValueError, match=message):
        given(tmp_path, [SHORT, LONG])
    assert given(tmp_path, [SHORT, LONG], skip=True) == ([("a", ("abcd",))], ("b",))
    with_stop = ("b", {"tokens": [1, 2, 3, 4, ord("#")]})  # the limit is of what stands before it
    assert len(given(tmp_path, [SHORT, with_stop])[0]) == 2


def test_given_attempts_and_given_turns_need_each_other(tmp_path):
    told = r"first_attempts gives training problem '.*\(a\)' 1 attempts, and 0 turns"
    with pytest.raises(ValueError, match=told):
        given(tmp_path, [SHORT], plan={})
    three = {"plan": DialoguePlan(sources=("given", "given", "sampled")).complete(3, 4)}
    with pytest.raises(ValueError, match="1 attempts, and 2 turns of its dialogue are given"):
        given(tmp_path, [SHORT], plan=three)
    asked = dataclasses.replace(spec(tmp_path / "p.jsonl", 9, skip_bad=True), **GIVEN)
    with pytest.raises(ValueError, match="0 attempts, and 1 turns of its dialogue are given"):
        select(asked, Chat(), GRADING, tmp_path)


def test_a_given_id_that_the_tokenizer_lacks_is_named(tmp_path):
    assert given(tmp_path, [("a", {"tokens": [127]})])[0] == [("a", ((127,),))]
    with pytest.raises(ValueError, match=r"\(a\)' the token id 128; the tokenizer has 128"):
        given(tmp_path, [("a", {"tokens": [128]})])


def test_the_parts_of_a_config_have_their_own_limits_and_tasks():
    settings = stages(evaluation__prompt_limit=20, evaluation__task="equations")[-1].settings
    training, held_out = training_spec(settings), evaluation_spec(settings)
    assert (training.prompt_limit, training.limit_field) == (12, "config.sampling.prompt_limit")
    assert (held_out.prompt_limit, held_out.limit_field) == (20, "config.evaluation.prompt_limit")
    assert (training.task, held_out.task) == ("tests.short_answers", "equations")
    assert greedy_sampling(settings).prompt_limit == 20
    assert settings.sampling.prompt_limit == 12
    _, problems = read(held_out)
    assert len(problems) == 8 and training.data["split"] != held_out.data["split"]


def test_skips_reach_evaluation_unless_it_has_its_own():
    for own, expected in (({}, True), ({"skip_long": False}, False)):
        config = get_config()
        config.data.skip_long = True
        config.evaluation.data = {"split": "test", **own}
        settings = parse(config)
        assert training_spec(settings).skips("skip_long") is True
        assert evaluation_spec(settings).skips("skip_long") is expected


def test_each_part_has_the_dialogues_of_its_own_plan():
    """Attempts at the training problems are none at the others."""
    settings = stages(
        data__first_attempts="a.jsonl",
        dialogue__sources=("given", "sampled"),
        objective__reward_weights=(0.0, 1.0),
        objective__beta=(0.0, 0.01),
    )[-1].settings
    training, *others = (
        make(settings) for make in (training_spec, evaluation_spec, validation_spec)
    )
    assert training.plan.sources == ("given", "sampled")
    assert training.data["first_attempts"] == "a.jsonl"
    for spec in others:
        assert spec.plan.sources == ("sampled", "sampled")
        assert "first_attempts" not in spec.data


MIXED = [
    {"id": "n", "prompt": "1?", "answer": "1"},
    {"id": "m", "prompt": "2?", "answer": "two", "task": "exact"},
    {"id": "o", "prompt": "3?", "answer": "three"},
]


def test_a_problem_is_asked_and_its_gold_answer_graded_by_its_own_task(tmp_path):
    """Namely: "two" is an answer of the task exact and no number."""
    told = r"gold answer of 1 of 3 .*\(o\): 'Final Answer: three' is graded"
    with pytest.raises(ValueError, match=told):
        chosen(tmp_path, 300, rows=MIXED)
    found = chosen(tmp_path, 300, rows=MIXED, skip_bad=True)
    assert [problem.id for problem in found.problems] == ["n", "m"] and found.bad == ("o",)
    assert found.tasks == {"": registry.get("numeric"), "exact": registry.get("exact")}
    frames = [len(task.ask(Problem(id="", prompt="1?"))) for task in found.tasks.values()]
    assert found.longest == max(frames)
    assert found.describe().startswith("2 training problems of task exact, numeric, longest")
