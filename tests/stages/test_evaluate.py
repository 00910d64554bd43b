"""Measurements count what was said, whatever the batches and the number of attempts."""

from dataclasses import replace

import pytest

from score_jax.stages import chain
from score_jax.stages.build import build, load_reference
from score_jax.stages.evaluate import (
    evaluation_protocol,
    measure_model,
    merge_hosts,
    read_measurements,
    sample_attempts,
    write_evaluation,
)
from score_jax.stages.problem_sets import evaluation_spec, read
from score_jax.tasks import equations, math
from tests.report.test_dialogues import dialogue
from tests.stage_configs import stages


def open_tiny(**fields):
    programs = build(stages("stage1", evaluation__problems=5, **fields)[-1].settings)
    return programs, load_reference(programs), read(evaluation_spec(programs.settings))[1]


def measure(**fields):
    programs, params, problems = open_tiny(**fields)
    with chain.open_pool(programs) as pool:
        return programs, problems, measure_model(programs, params, problems, pool, step=3)


def test_a_dialogue_does_not_depend_on_the_batch_it_is_measured_in(compiled):
    found = []
    for batch in (2, 5):  # 2: the last one is filled up, and what fills it is left out
        programs, params, problems = open_tiny(evaluation__batch=batch)
        sampling = replace(programs.settings.sampling, group_size=3)
        with chain.open_pool(programs) as pool:
            found.append(
                sample_attempts(programs, params, problems, pool, sampling=sampling, step=0)
            )
    assert found[0] == found[1]
    assert [t.problem for t in found[0]] == [p.id for p in problems for _ in range(3)]
    assert len({t.attempts for t in found[0]}) > 5  # sampled, not repeated


def test_of_what_two_hosts_hold_the_record_with_verdicts_counts():
    late = dialogue("b", verdicts=("timeout", "crashed"))
    seen = dialogue("b", verdicts=("wrong", "correct"))
    cut = dialogue("a", verdicts=("correct", "timeout"))
    parts = [([0, 1], [cut, seen]), ([0, 1], [late, late]), ([2], [late])]
    assert merge_hosts(parts, 1) == [cut, seen, late]
    assert merge_hosts(parts[::-1], 1) == [cut, seen, late]


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_accuracies_are_counts_over_the_dialogues(compiled, turns):
    programs, problems, found = measure(evaluation__turns=turns, evaluation__samples=0)
    greedy, dialogues = found["greedy"], found["transcripts"]
    assert len(dialogues) == len(problems) == 5 and "sampled" not in found
    for turn in range(turns):
        right = sum(d["rewards"][turn] >= 1 for d in dialogues)
        assert greedy[f"accuracy/turn{turn + 1}"]["value"] == pytest.approx(right / 5)
        assert all(len(d["attempts"]) == turns for d in dialogues)
    assert f"accuracy/turn{turns + 1}" not in greedy
    if turns == 1:
        assert not greedy.get("delta")
        return
    # From turn 1 to turn 2, however many follow (metrics.measure).
    gained = sum(d["rewards"][1] >= 1 > d["rewards"][0] for d in dialogues)
    lost = sum(d["rewards"][0] >= 1 > d["rewards"][1] for d in dialogues)
    assert greedy["delta"]["value"] == pytest.approx((gained - lost) / 5)
    assert programs.settings.objective.turns == 2  # trained for two, measured over more


def test_numbers_are_taken_over_from_the_same_protocol_only(compiled, tmp_path):
    programs, problems, found = measure()
    mine = evaluation_protocol(programs, problems)
    path = tmp_path / "evaluation.json"
    out = {"long": (), "bad": ()}
    write_evaluation(
        path, programs, {"base": found}, step=3, protocol=mine, reference=7, left_out=out
    )
    known = read_measurements(tmp_path, evaluation_protocol(programs, list(problems)), 7)
    assert known["base"]["greedy"] == found["greedy"] and known["base"]["step"] == 3
    assert read_measurements(tmp_path, mine, 8) == {}  # another base model
    assert read_measurements(tmp_path, evaluation_protocol(programs, problems[:4]), 7) == {}
    assert read_measurements(tmp_path / "nowhere", mine, 7) == {}


def test_another_task_than_the_trained_one_can_be_measured(compiled):
    """Its instruction between the turns, its grader, its name in the protocol."""
    programs, problems, found = measure(evaluation__task="equations", evaluation__samples=0)
    by_id = {problem.id: problem for problem in problems}
    for record in found["transcripts"]:
        problem = by_id[record["problem"]]
        graded = [equations.TASK.grade(problem, text) for text in record["attempts"]]
        assert record["verdicts"] == tuple(grade.verdict for grade in graded)
    assert programs.task.name == "tests.short_answers"
    assert evaluation_protocol(programs, problems)["task"] == "equations"


def test_the_measured_tasks_instruction_stands_between_the_turns():
    programs = open_tiny(evaluation__task="math")[0]
    template = programs.turn_template(2, programs.measured_task)
    assert template.instruction == tuple(programs.chat.encode_instruction(math.INSTRUCTION))
    assert programs.turn_template(2).instruction != template.instruction


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
    programs, _, problems = open_tiny()
    other, *_ = open_tiny(**{name: OTHER_PROTOCOLS[name]})
    assert (
        evaluation_protocol(other, problems)["hash"]
        != evaluation_protocol(programs, problems)["hash"]
    )


@pytest.mark.parametrize("name", ["prompt", "answer", "tests", "id"])
def test_the_problems_contents_are_part_of_the_protocol(name, compiled):
    programs, _, problems = open_tiny()
    changed = [replace(problems[0], **{name: ("x",) if name == "tests" else "5x+9=34"})]
    mine, theirs = (
        evaluation_protocol(programs, problems),
        evaluation_protocol(programs, changed + problems[1:]),
    )
    assert mine["hash"] != theirs["hash"]
    assert (mine["prompts"] != theirs["prompts"]) == (name == "prompt")


def test_an_evaluation_that_was_killed_goes_on_where_it_was(compiled, tmp_path):
    """What was graded before is not graded again, and the whole is the uninterrupted one's."""
    programs, params, problems = open_tiny(evaluation__batch=2)
    sampling = replace(programs.settings.sampling, group_size=3)
    asked = []

    class Counting:
        def __init__(self, pool, most):
            self.pool, self.most = pool, most

        def submit(self, task, items, cut):
            if len(asked) == self.most:
                raise KeyboardInterrupt
            asked.append({problem.id for problem, _ in items})
            return self.pool.submit(task, items, cut)

    with chain.open_pool(programs) as pool:

        def run(grader, partial_file=None):
            options = {"sampling": sampling, "step": 0, "partial_file": partial_file}
            return sample_attempts(programs, params, problems, grader, **options)

        whole = run(pool)
        path = tmp_path / "deep" / "greedy.jsonl"
        with pytest.raises(KeyboardInterrupt):
            run(Counting(pool, 2), path)
        with path.open("a") as file:
            file.write('{"place": 4, "dial')  # cut off in the middle of a line
        found = run(Counting(pool, 9), path)
    assert found == whole
    ids = [problem.id for problem in problems]
    assert asked == [set(ids[:2]), set(ids[2:4]), {ids[4]}]
