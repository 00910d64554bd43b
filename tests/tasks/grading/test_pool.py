import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from score_jax.records import Problem, Task
from score_jax.tasks.grading.pool import LONGEST_RESPONSE, Pool, count_verdicts
from tests.tasks.sandbox.hostile_programs import programs as hostile_programs

TASK = "graders_for_tests.task"  # found through sys.path, as a user's own task is
PROBLEM = Problem(id="1", prompt="?", answer="4")


@pytest.fixture(scope="module", autouse=True)
def importable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("package") / "graders_for_tests"
    folder.mkdir()
    source = (Path(__file__).parent / "graders_for_tests.py").read_text()
    (folder / "__init__.py").write_text("")
    (folder / "task.py").write_text(source)
    sys.path.insert(0, str(folder.parent))
    yield
    sys.path.remove(str(folder.parent))


@pytest.fixture
def pool():
    with Pool(2, deadline_seconds=2, batch_deadline_seconds=60, cache_size=0) as pool:
        yield pool


def verdicts(pool, *responses, problem=PROBLEM):
    return [grade.verdict for grade in pool.grade(TASK, [(problem, r) for r in responses])]


def test_grades_come_in_order(pool):
    grades = pool.grade(TASK, [(PROBLEM, str(n % 7)) for n in range(500)])
    assert [grade.extracted for grade in grades] == [str(n % 7) for n in range(500)]
    assert [grade.reward for grade in grades] == [float(n % 7 == 4) for n in range(500)]


def test_a_hung_answer_is_a_timeout_and_its_neighbours_are_graded(pool):
    answers = ["4", "hang", "5", "4"] * 3
    expected = ["correct", "timeout", "wrong", "correct"] * 3
    assert verdicts(pool, *answers) == expected
    assert pool.killed >= 1


def test_a_crash_of_either_kind_is_a_verdict(pool):
    assert verdicts(pool, "die", "raise", "4", "lie", "print") == [
        "crashed",
        "crashed",
        "correct",
        "crashed",
        "wrong",
    ]


def test_a_worker_cannot_import_jax_whatever_the_environment_says(pool, monkeypatch):
    for name in ("JAX_PLATFORMS", "TPU_NAME", "XLA_FLAGS", "SECRET_TOKEN"):
        monkeypatch.setenv(name, "tpu")
    with Pool(1, cache_size=0) as pool:
        modules, environment, jax = pool.grade(
            TASK, [(PROBLEM, r) for r in ("modules", "environment", "jax")]
        )
    assert modules.extracted == "False"
    assert not set(environment.extracted.split()) & {"JAX_PLATFORMS", "TPU_NAME", "SECRET_TOKEN"}
    assert jax.verdict == "crashed" and "must not import jax" in jax.detail


def test_the_batch_deadline_holds():
    """Twenty answers of a second each would take one worker twice as long."""
    with Pool(1, deadline_seconds=30, batch_deadline_seconds=10, cache_size=0) as pool:
        pool.grade(TASK, [(PROBLEM, "4")])
        pending = pool.submit(TASK, [(PROBLEM, f"sleep {1 + n / 1000}") for n in range(20)])
        assert not pending.done
        counts = count_verdicts(pending.result())
        assert counts["wrong"] >= 1 and counts["timeout"] >= 10
        assert pool.grade(TASK, [(PROBLEM, "4")])[0].verdict == "correct"


def test_equal_answers_are_graded_once():
    with Pool(1, recycle_after=1, cache_size=10) as pool:
        first = [grade.extracted for grade in pool.grade(TASK, [(PROBLEM, "pid")] * 5)]
        again = [grade.extracted for grade in pool.grade(TASK, [(PROBLEM, "pid")] * 5)]
        other = Problem(id="1", prompt="?", answer="5")
        assert first == again == [first[0]] * 5
        assert pool.grade(TASK, [(other, "pid")])[0].extracted != first[0]


def test_the_cache_is_bounded_and_keeps_the_latest():
    with Pool(1, recycle_after=1, cache_size=2) as pool:
        problems = [Problem(id=str(n), prompt="?") for n in range(3)]
        pids = [pool.grade(TASK, [(problem, "pid")])[0].extracted for problem in problems]
        assert pool.grade(TASK, [(problems[2], "pid")])[0].extracted == pids[2]
        assert pool.grade(TASK, [(problems[0], "pid")])[0].extracted != pids[0]


def test_workers_are_recycled(pool):
    with Pool(1, recycle_after=3, cache_size=0) as pool:
        pids = {pool.grade(TASK, [(PROBLEM, "pid")])[0].extracted for _ in range(9)}
    assert len(pids) == 3


def test_a_killed_worker_is_replaced(pool):
    pid = int(pool.grade(TASK, [(PROBLEM, "pid")])[0].extracted)
    os.kill(pid, 9)
    psutil.wait_procs([p for p in psutil.Process().children() if p.pid == pid], timeout=5)
    assert verdicts(pool, *[f"{n}" for n in range(100)]).count("wrong") == 99


def test_strange_text_is_only_an_answer(pool):
    problem = Problem(id="\ud800", prompt="\x00", answer="\udfff\n\x00")
    assert verdicts(pool, "\udfff\n\x00", "\n", "", problem=problem) == [
        "correct",
        "wrong",
        "wrong",
    ]


def test_a_huge_response_is_not_sent(pool):
    grade, other = pool.grade(TASK, [(PROBLEM, "4" * (LONGEST_RESPONSE + 1)), (PROBLEM, "4")])
    assert grade.verdict == "unparsable" and "characters" in grade.detail
    assert other.verdict == "correct"


def test_an_unknown_task_crashes_every_answer_and_fails_the_self_test(pool):
    grade = pool.grade("no_such_task", [(PROBLEM, "4")])[0]
    assert grade.verdict == "crashed" and "no_such_task" in grade.detail
    task = Task(name="no_such_task", prompt=str, instruction="", grade=None)  # pyright: ignore
    with pytest.raises(ValueError, match="no_such_task"):
        pool.self_test(task, [PROBLEM])


def test_the_self_test_names_what_is_broken(pool):
    def task(**fields):
        return Task(name=TASK, prompt=str, instruction="", grade=None, **fields)  # pyright: ignore

    pool.self_test(task(self_test_cases=((PROBLEM, "5", "wrong"),)), [PROBLEM])
    with pytest.raises(ValueError, match=r"fails 1 of 2 self-tests(.|\n)*'odd'"):
        pool.self_test(
            task(gold_response=lambda p: "4"), [PROBLEM, Problem(id="odd", prompt="?", answer="7")]
        )
    with pytest.raises(ValueError, match="graded wrong, not correct"):
        pool.self_test(task(self_test_cases=((PROBLEM, "5", "correct"),)), [PROBLEM])


@pytest.mark.parametrize(
    "fields",
    [
        {"workers": 0},
        {"workers": 1, "deadline_seconds": 0.0},
        {"workers": 1, "batch_deadline_seconds": float("inf")},
        {"workers": 1, "recycle_after": 0},
    ],
)
def test_impossible_settings_are_refused(fields):
    name = list(fields)[-1]
    with pytest.raises(ValueError, match=f"grading.{name} is"):
        Pool(**fields)


def test_nothing_is_left_after_close():
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    pool = Pool(2, cache_size=0)
    pending = pool.submit(TASK, [(PROBLEM, "hang")])
    time.sleep(0.3)
    pool.close()
    assert pending.result()[0].verdict in ("timeout", "crashed")
    pool.close()
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
    with pytest.raises(ValueError, match="closed"):
        pool.submit(TASK, [])


def test_workers_die_with_a_killed_trainer():
    code = (
        f"import sys, time; sys.path[:0] = {sys.path[:]!r}\n"
        "from score_jax.tasks.grading.pool import Pool\n"
        "from score_jax.records import Problem\n"
        "pool = Pool(2, cache_size=0)\n"
        "item = (Problem(id='1', prompt=''), 'pid')\n"
        f"print(pool.grade({TASK!r}, [item])[0].extracted, flush=True)\n"
        f"pool.submit({TASK!r}, [(item[0], 'hang')] * 2); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    for _ in range(50):
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.1)
    pytest.fail(f"worker {pid} outlives its trainer")


@pytest.mark.slow
def test_a_hundred_thousand_answers_leak_nothing():
    """Of both kinds: remembered ones and new ones, with workers recycled on the way."""
    me = psutil.Process()
    with Pool(2, recycle_after=10_000, cache_size=1000) as pool:
        pool.grade(TASK, [(PROBLEM, str(n)) for n in range(5000)])
        files, memory = me.num_fds(), me.memory_info().rss
        start = time.monotonic()
        for batch in range(100):
            answers = [str(batch * 1000 + n) for n in range(1000)]
            grades = pool.grade(TASK, [(PROBLEM, answer) for answer in answers])
            assert [grade.extracted for grade in grades] == answers
        seconds = time.monotonic() - start
        grown = me.memory_info().rss - memory
        assert len(me.children()) == 2 and abs(me.num_fds() - files) <= 2
        assert grown < 20 << 20, f"{grown / (1 << 20):.1f} MB"
        workers = [child.memory_info().rss for child in me.children()]
        assert max(workers) < 200 << 20
    print(f"{100_000 / seconds:.0f} answers a second, {grown >> 10} KiB grown, {workers}")


def test_hostile_programs_do_not_disturb_the_pool(tmp_path):
    programs = hostile_programs(
        mark=tmp_path / "mark", parent=os.getpid(), port=9, repository=tmp_path
    )[::6]
    problem = Problem(id="1", prompt="?", tests=("assert f(2) == 42",))
    children = {child.pid for child in psutil.Process().children(recursive=True)}
    with Pool(2, deadline_seconds=8, batch_deadline_seconds=60, cache_size=0) as pool:
        items = [(problem, source) for _, source in programs]
        items.append((problem, "def f(x): return 42"))
        grades = pool.grade("code", items)
    assert grades[-1].verdict == "correct"
    assert {grade.verdict for grade in grades[:-1]} <= {"wrong", "timeout", "unparsable"}
    assert not (tmp_path / "mark").exists()
    left = {child.pid for child in psutil.Process().children(recursive=True)} - children
    assert left == set()
