"""Measurements count what was said, whatever the batches and the number of attempts."""

import json
from dataclasses import replace

import pytest

from score_jax.data import sources
from score_jax.stages import evaluate
from score_jax.stages import measure as measuring
from score_jax.stages.build import build, load_reference
from score_jax.stages.evaluate import (
    encoder_of,
    evaluation_protocol,
    measure_model,
    merge_hosts,
    read_measurements,
    sample_attempts,
    write_evaluation,
)
from score_jax.stages.problem_sets import ProblemSet, evaluation_spec, read
from score_jax.stages.settings import sorted_items
from score_jax.tasks import equations, math, registry
from tests.report.test_dialogues import dialogue
from tests.stage_configs import stages


def open_tiny(**fields):
    programs = build(stages("stage1", **{"evaluation__problems": 5} | fields)[-1].settings)
    spec = evaluation_spec(programs.settings)
    tasks, problems = read(spec)
    limits = {"longest": 0, "prompt_limit": spec.prompt_limit}
    asked = ProblemSet(part=spec.part, tasks=tasks, problems=problems, **limits)
    return programs, load_reference(programs), asked


def open_pool(programs, asked):
    return measuring.open_pool(programs.settings, [asked.tasks])


def measure(**fields):
    programs, params, asked = open_tiny(**fields)
    with open_pool(programs, asked) as pool:
        return programs, asked, measure_model(programs, params, asked, pool, step=3)


def test_a_dialogue_does_not_depend_on_the_batch_it_is_measured_in(compiled):
    found = []
    for batch in (2, 5):  # 2: the last one is filled up, and what fills it is left out
        programs, params, asked = open_tiny(evaluation__batch=batch)
        sampling = replace(programs.settings.sampling, group_size=3)
        with open_pool(programs, asked) as pool:
            found.append(sample_attempts(programs, params, asked, pool, sampling=sampling, step=0))
    assert found[0] == found[1]
    assert [t.problem for t in found[0]] == [p.id for p in asked.problems for _ in range(3)]
    assert len({t.attempts for t in found[0]}) > 5  # sampled, not repeated


def test_devices_draw_while_what_they_drew_before_is_graded(compiled, monkeypatch):
    """The next batch is on its way before the grading of the one before begins."""
    programs, params, asked = open_tiny(evaluation__batch=2)  # of 5 problems
    order = []

    def told(name):
        function = getattr(evaluate, name)

        def call(*arguments, **options):
            order.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(evaluate, name, call)

    told("draw_batch"), told("grade_batch")
    sampling = replace(programs.settings.sampling, group_size=1)
    with open_pool(programs, asked) as pool:
        sample_attempts(programs, params, asked, pool, sampling=sampling, step=0)
    draw, grade = "draw_batch", "grade_batch"
    assert order == [draw, draw, grade, draw, grade, grade]


def test_of_what_two_hosts_hold_the_record_with_verdicts_counts():
    late = dialogue("b", verdicts=("timeout", "crashed"))
    seen = dialogue("b", verdicts=("wrong", "correct"))
    cut = dialogue("a", verdicts=("correct", "timeout"))
    parts = [([0, 1], [cut, seen]), ([0, 1], [late, late]), ([2], [late])]
    assert merge_hosts(parts, 1) == [cut, seen, late]
    assert merge_hosts(parts[::-1], 1) == [cut, seen, late]


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_accuracies_are_counts_over_the_dialogues(compiled, turns):
    programs, asked, found = measure(evaluation__turns=turns, evaluation__samples=0)
    greedy, dialogues = found["greedy"], found["transcripts"]
    assert len(dialogues) == len(asked.problems) == 5 and "sampled" not in found
    for turn in range(turns):
        right = sum(d["rewards"][turn] >= 1 for d in dialogues)
        assert greedy[f"accuracy/turn{turn + 1}"]["value"] == pytest.approx(right / 5)
        assert all(len(d["attempts"]) == turns for d in dialogues)
    assert f"accuracy/turn{turns + 1}" not in greedy
    if turns == 1:
        assert not greedy.get("delta")
        return
    steps = {f"step_delta/turn{n}": (n - 1, n) for n in range(2, turns + 1) if turns > 2}
    for name, (before, after) in {"delta": (1, turns), **steps}.items():
        pairs = [(d["rewards"][before - 1] >= 1, d["rewards"][after - 1] >= 1) for d in dialogues]
        gained, lost = pairs.count((False, True)), pairs.count((True, False))
        assert greedy[name]["value"] == pytest.approx((gained - lost) / 5)
    assert {name for name in greedy if name.startswith("step_delta/")} == set(steps)
    assert programs.settings.objective.turns == 2  # trained for two, measured over more


def test_numbers_are_taken_over_from_the_same_protocol_only(compiled, tmp_path):
    programs, asked, found = measure()
    mine = evaluation_protocol(programs, asked)
    path = tmp_path / "evaluation.json"
    out = {"long": (), "bad": ()}
    write_evaluation(
        path, programs, {"base": found}, step=3, protocol=mine, reference=7, left_out=out
    )
    known = read_measurements(path, evaluation_protocol(programs, replace(asked, longest=9)), 7)
    assert known["base"]["greedy"] == found["greedy"] and known["base"]["step"] == 3
    assert read_measurements(path, mine, 8) == {}  # another base model
    fewer = evaluation_protocol(programs, replace(asked, problems=asked.problems[:4]))
    assert read_measurements(path, fewer, 7) == {}
    assert read_measurements(tmp_path / "nowhere.json", mine, 7) == {}


def test_where_the_measured_problems_come_from_is_written_down(compiled, tmp_path):
    programs, asked, found = measure()
    mine, path = evaluation_protocol(programs, asked), tmp_path / "evaluation.json"
    for data, told in (
        ({"split": "test"}, "procedural"),
        ({"source": "jsonl", "path": "rows.jsonl"}, "rows.jsonl"),
    ):
        own = replace(programs.settings.evaluation, data=sorted_items(data))
        programs = replace(programs, settings=replace(programs.settings, evaluation=own))
        write_evaluation(
            path, programs, {"base": found}, step=3, protocol=mine, reference=7, left_out={}
        )
        assert json.loads(path.read_text())["data"] == told


def test_corrections_of_given_attempts_can_be_measured(compiled, tmp_path):
    """Three problems have one attempt, one has two, the last has none and is left out."""
    known = sources.load(source="procedural", split="test", count=5)
    texts = ["b", "a", "x=3:", "a", "2"]  # right where the first letter's number is even
    rows = [
        {"id": problem.id, "attempt": text}
        for problem, text in zip([*known[:4], known[3]], texts, strict=True)
    ]
    path = tmp_path / "attempts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"split": "test", "count": 5, "first_attempts": str(path)}
    plan = {"evaluation__dialogue__sources": ("given", "sampled"), "evaluation__samples": 0}
    _, asked, found = measure(evaluation__data=data, **plan)
    assert [problem.id for problem in asked.problems][3:] == [known[3].id, f"{known[3].id}#2"]
    assert [dialogue["attempts"][0] for dialogue in found["transcripts"]] == texts
    assert found["greedy"]["accuracy/turn1"]["value"] == pytest.approx(3 / 5)
    right = sum(dialogue["rewards"][1] >= 1 for dialogue in found["transcripts"])
    assert found["greedy"]["accuracy/turn2"]["value"] == pytest.approx(right / 5)


def test_another_task_than_the_trained_one_can_be_measured(compiled):
    """Its instruction between the turns, its grader, its name in the protocol."""
    programs, asked, found = measure(evaluation__task="equations", evaluation__samples=0)
    by_id = {problem.id: problem for problem in asked.problems}
    for record in found["transcripts"]:
        problem = by_id[record["problem"]]
        graded = [equations.TASK.grade(problem, text) for text in record["attempts"]]
        assert record["verdicts"] == tuple(grade.verdict for grade in graded)
        assert record["task"] == "equations"
    assert programs.settings.task == "tests.short_answers"
    protocol = evaluation_protocol(programs, asked)
    assert protocol["task"] == "equations"
    assert protocol["instruction"] == equations.TASK.instruction


def test_the_measured_tasks_instruction_stands_between_the_turns():
    programs, _, asked = open_tiny(evaluation__task="math", evaluation__prompt_limit=300)
    encoder = encoder_of(programs, asked)
    prompts = encoder.prompts(asked.problems[:1], [0])
    between = prompts.forced[0, 1, : prompts.forced_length[0, 1]].tolist()
    chat, trained = programs.chat, registry.get(programs.settings.task)
    assert between == [chat.stop, *chat.encode_instruction(math.INSTRUCTION)]
    assert between[1:] != list(chat.encode_instruction(trained.instruction))


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"evaluation__data": {"task": "equations"}}, "config.evaluation.task is 'tests.short"),
        ({"evaluation__task": "math", "evaluation__data": {"task": "equations"}}, "is 'math'"),
    ],
)
def test_problems_of_another_task_are_not_measured(fields, told):
    with pytest.raises(ValueError, match=told):
        open_tiny(**fields)


OTHER_PROTOCOLS = {
    "evaluation__dialogue__roles": ("answer", "verify"),
    "evaluation__dialogue__instructions": ("", "Look again."),
    "evaluation__seed": 1,
    "evaluation__samples": 3,
    "evaluation__turns": 3,
    "evaluation__temperature": 0.5,
    "sampling__prompt_limit": 13,
    "sampling__turn_limit": 9,
    "sampling__row_limit": 20,
    "tokenizer__chat": "chatml",
    "compute__dtype": "bfloat16",
    "grading__deadline_seconds": 9.0,
}


@pytest.mark.parametrize("name", OTHER_PROTOCOLS)
def test_all_that_reaches_prompt_sampler_or_grader_is_part_of_the_protocol(name, compiled):
    room = {"evaluation__prompt_limit": 40} if name == "tokenizer__chat" else {}
    programs, _, mine = open_tiny(**room)
    other, _, theirs = open_tiny(**room, **{name: OTHER_PROTOCOLS[name]})
    assert theirs.problems == mine.problems
    assert evaluation_protocol(other, theirs)["hash"] != evaluation_protocol(programs, mine)["hash"]


@pytest.mark.parametrize("name", ["prompt", "answer", "tests", "id"])
def test_the_problems_contents_are_part_of_the_protocol(name, compiled):
    programs, _, asked = open_tiny()
    first, *others = asked.problems
    changed = replace(first, **{name: ("x",) if name == "tests" else "5x+9=34"})
    mine, theirs = (
        evaluation_protocol(programs, asked),
        evaluation_protocol(programs, replace(asked, problems=[changed, *others])),
    )
    assert mine["hash"] != theirs["hash"]
    assert (mine["prompts"] != theirs["prompts"]) == (name == "prompt")


def test_an_evaluation_that_was_killed_goes_on_where_it_was(compiled, tmp_path):
    """What was graded before is not graded again, and the whole is the uninterrupted one's."""
    programs, params, asked = open_tiny(evaluation__batch=2)
    sampling = replace(programs.settings.sampling, group_size=3)
    graded = []

    class Counting:
        def __init__(self, pool, most):
            self.pool, self.most = pool, most

        def submit(self, task, items, cut):
            if len(graded) == self.most:
                raise KeyboardInterrupt
            graded.append({problem.id for problem, _ in items})
            return self.pool.submit(task, items, cut)

    with open_pool(programs, asked) as pool:

        def run(grader, partial_file=None):
            options = {"sampling": sampling, "step": 0, "partial_file": partial_file}
            return sample_attempts(programs, params, asked, grader, **options)

        whole = run(pool)
        path = tmp_path / "deep" / "greedy.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run(Counting(pool, 2), path)
        with path.open("a") as file:
            file.write('{"place": 4, "dial')  # cut off in the middle of a line
        found = run(Counting(pool, 9), path)
        again = run(Counting(pool, 3), path)  # killed when all was graded: nothing is left
    assert found == again == whole
    ids = [problem.id for problem in asked.problems]
    assert graded == [set(ids[:2]), set(ids[2:4]), {ids[4]}]


def interval(value):
    return {"value": value, "low": value - 0.02, "high": value + 0.03}


def test_the_log_names_the_gain_of_the_largest_vote_from_four_samples_on():
    greedy = {"accuracy/turn1": interval(0.5), "accuracy/turn2": interval(0.6)}
    measured = {"greedy": greedy | {"delta": interval(0.1)}}
    line = "base: accuracy t1 50.0, t2 60.0, delta +10.0 [+8.0, +13.0]"
    scaling = {str(k): {"gain": interval(k / 100)} for k in (2, 16, 4)}
    assert evaluate.summary_line("base", measured | {"scaling": scaling}) == (
        f"{line}, votes of 16 samples gain +16.0 [+14.0, +19.0] in sequence"
    )
    assert evaluate.summary_line("base", measured | {"scaling": {"2": scaling["2"]}}) == line
    assert evaluate.summary_line("base", measured | {"scaling": {}}) == line
    one = {"greedy": {"accuracy/turn1": interval(0.5)}, "scaling": {"8": {}}}
    assert evaluate.summary_line("base", one) == "base: accuracy t1 50.0"


@pytest.mark.parametrize(
    ("plan", "budgets"),
    [
        ({"evaluation__samples": 5}, ["2", "4"]),
        ({"evaluation__samples": 5, "evaluation__turns": 1}, ["2", "4"]),
        ({"evaluation__samples": 5, "evaluation__turns": 3}, ["3"]),
        ({"evaluation__samples": 1}, []),
        (
            {
                "evaluation__samples": 4,
                "evaluation__turns": 3,
                "evaluation__dialogue__roles": ("answer", "verify", "answer"),
            },
            ["3"],
        ),
        (
            {
                "evaluation__samples": 4,
                "evaluation__dialogue__sources": ("forced", "sampled"),
                "evaluation__dialogue__texts": ("x=3", ""),
            },
            [],
        ),
    ],
)
def test_votes_are_measured_wherever_the_samples_suffice(compiled, plan, budgets):
    programs, asked, found = measure(**plan)
    assert list(found["scaling"]) == budgets
    turns = programs.settings.evaluation.turns
    for row in found["scaling"].values():
        assert ("gain" in row) == (turns > 1)
        assert all(i["low"] <= i["value"] <= i["high"] for i in row.values())
    outcomes = [word.split() for word in found["outcomes"]["sampled"]]
    first = [sum(s[0] == "1" for s in samples) / len(samples) for samples in outcomes]
    if budgets:  # avg@S is the accuracy over the samples
        accuracy = found["sampled"]["accuracy/turn1"]["value"]
        assert accuracy == pytest.approx(sum(first) / len(asked.problems))
