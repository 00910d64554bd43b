"""A pool of grading processes that returns grades in order and within a deadline.

Each worker is `python -m score_jax.tasks.grading.worker` on two pipes, served by one
thread of this process. The thread sends its worker a chunk of answers and waits for one
verdict after another; the deadline restarts with each. A worker that exceeds it is killed
(SIGKILL, as an alarm signal can't interrupt a C loop or reach another thread), the answer
becomes `timeout`, and the rest of the chunk goes to a new worker. If a worker dies, the
answer that it was grading becomes `crashed`. Neither raises.
"""

import hashlib
import json
import math
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Sequence

from score_jax.records import UNGRADED, VERDICTS, Grade, Problem, Task
from score_jax.tasks.grading.process import GraderBroken, WorkerLost, WorkerProcess

LONGEST_RESPONSE = 1_000_000  # characters; a longer one is `unparsable` without grading
CHUNK_ANSWERS = 64
CHUNK_CHARACTERS = 1_000_000

LATE = Grade(verdict="timeout", reward=0.0, detail="not graded before the batch's deadline")


def count_verdicts(grades: Iterable[Grade]) -> dict[str, int]:
    """Returns the number of grades with each verdict, 0 included."""
    counts = Counter(grade.verdict for grade in grades)
    return {verdict: counts[verdict] for verdict in VERDICTS}


class Submission:
    """The grades of one `submit` call, some of which may be pending."""

    def __init__(self, count: int, deadline: float):
        """Args: count: number of grades; deadline: in seconds of the monotonic clock."""
        self.deadline = deadline
        self._grades: list[Grade | None] = [None] * count
        self._missing = count
        self._lock = threading.Lock()
        self._complete = threading.Event()
        if not count:
            self._complete.set()

    def settle(self, indices: Sequence[int], grade: Grade) -> None:
        """Sets one grade at several indices; an index that has a grade keeps it."""
        with self._lock:
            for index in indices:
                if self._grades[index] is None:
                    self._grades[index] = grade
                    self._missing -= 1
            if not self._missing:
                self._complete.set()

    @property
    def done(self) -> bool:
        """Whether `result` returns at once."""
        return self._complete.is_set() or time.monotonic() >= self.deadline

    def result(self) -> list[Grade]:
        """Waits for all grades, at most until the deadline; the missing ones are `timeout`."""
        self._complete.wait(max(0.0, self.deadline - time.monotonic()))
        with self._lock:
            return [LATE if grade is None else grade for grade in self._grades]


class _Answer:
    """One distinct answer of a submission, with all its indices in it."""

    def __init__(self, task: str, key: bytes, payload: str, submission: Submission):
        self.task, self.key, self.payload, self.submission = task, key, payload, submission
        self.indices: list[int] = []


class Pool:
    """Grades answers in worker processes; a context manager."""

    def __init__(
        self,
        workers: int,
        *,
        deadline_seconds: float = 10.0,
        batch_deadline_seconds: float = 120.0,
        recycle_after: int = 2000,
        cache_size: int = 100_000,
    ):
        """Starts the workers.

        Args:
          workers: number of processes; grading in this process could not be interrupted.
          deadline_seconds: for one answer, without loading the grader.
          batch_deadline_seconds: for all answers of one `submit`, from that call.
          recycle_after: number of answers after which a worker is replaced, as graders may
            leak memory.
          cache_size: number of grades cached; 0: no cache.
        """
        for name, value, least in (
            ("workers", workers, 1),
            ("recycle_after", recycle_after, 1),
            ("cache_size", cache_size, 0),
        ):
            if value < least:
                raise ValueError(f"grading.{name} is {value}; set at least {least}")
        for name, value in (
            ("deadline_seconds", deadline_seconds),
            ("batch_deadline_seconds", batch_deadline_seconds),
        ):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"grading.{name} is {value}; set a finite time above 0")
        self._deadline_seconds = deadline_seconds
        self._batch_deadline_seconds = batch_deadline_seconds
        self._recycle_after = recycle_after
        self._cache_size = cache_size
        self._cache: OrderedDict[bytes, Grade] = OrderedDict()
        self._queue: deque[_Answer] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._processes: dict[int, WorkerProcess] = {}
        self.killed = 0  # workers killed because an answer exceeded its deadline
        self._threads = [
            threading.Thread(target=self._serve, args=(n,), name=f"grader-{n}", daemon=True)
            for n in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def submit(
        self, task_name: str, items: Sequence[tuple[Problem, str]], cut: Sequence[bool] = ()
    ) -> Submission:
        """Starts grading and returns without waiting.

        Args:
          task_name: of the task that grades.
          items: problems with responses.
          cut: per item, whether the response was truncated, so that its answer counts only if
            it was complete before the end; empty: none was.
        """
        if len(cut) not in (0, len(items)):
            raise ValueError(f"cut has {len(cut)} values for {len(items)} items; give one for each")
        submission = Submission(len(items), time.monotonic() + self._batch_deadline_seconds)
        answers: dict[bytes, _Answer] = {}
        for index, (problem, response) in enumerate(items):
            if len(response) > LONGEST_RESPONSE:
                detail = f"the response has {len(response)} characters"
                grade = Grade(verdict="unparsable", reward=0.0, detail=detail)
                submission.settle([index], grade)
                continue
            # A grade depends neither on earlier attempts nor on a worked answer.
            asked = vars(problem) | {"given": (), "worked": ""}
            payload = json.dumps([asked, response, bool(len(cut) and cut[index])])
            key = hashlib.blake2b(f"{task_name}\n{payload}".encode("ascii", "replace")).digest()
            if key not in answers:
                answers[key] = _Answer(task_name, key, payload, submission)
            answers[key].indices.append(index)
        with self._changed:
            if self._closed:
                raise ValueError("the grading pool is closed; create another one")
            for key, answer in answers.items():
                if key in self._cache:
                    self._cache.move_to_end(key)
                    submission.settle(answer.indices, self._cache[key])
                else:
                    self._queue.append(answer)
            self._changed.notify_all()
        return submission

    def grade(
        self, task_name: str, items: Sequence[tuple[Problem, str]], cut: Sequence[bool] = ()
    ) -> list[Grade]:
        """Grades and waits for the result; for the arguments see `submit`."""
        return self.submit(task_name, items, cut).result()

    def self_test(self, task: Task, problems: Sequence[Problem]) -> None:
        """Tests the grader of a task.

        Each problem's gold answer must be graded `correct`, and each of the task's
        self_test_cases must get its verdict.

        Raises:
          ValueError: some cases fail; the message lists up to five.
        """
        gold_response = task.gold_response or (lambda problem: problem.answer)
        cases = [(problem, gold_response(problem), "correct") for problem in problems]
        cases += list(task.self_test_cases)
        grades = self.grade(task.name, [(problem, response) for problem, response, _ in cases])
        faults = [
            f"problem {problem.id!r}, answer {problem.answer!r}: {response[-80:]!r} is graded "
            f"{grade.verdict}, not {expected} ({grade.detail or 'no detail'})"
            for (problem, response, expected), grade in zip(cases, grades, strict=True)
            if grade.verdict != expected
        ]
        if faults:
            listed = "\n  ".join(faults[:5])
            raise ValueError(
                f"the grader of task {task.name!r} fails {len(faults)} of {len(cases)} self-tests; "
                f"repair it or these problems:\n  {listed}"
            )

    def close(self) -> None:
        """Kills the workers; pending answers become `timeout`. May be called twice."""
        with self._changed:
            self._closed = True
            while self._queue:
                answer = self._queue.popleft()
                answer.submission.settle(answer.indices, LATE)
            self._changed.notify_all()
            for process in self._processes.values():
                process.kill()
        for thread in self._threads:
            thread.join()

    # The methods below run in the threads, one per worker.

    def _serve(self, number: int) -> None:
        process = self._start(number)
        while process is not None:
            chunk = self._take_chunk()
            if chunk is None:
                break
            if not process.alive():  # died while idle, so no answer is `crashed`
                process.reap()
                process = self._start(number)
                if process is None:
                    self._drop_late(chunk)
                    break
            ungraded = self._grade_chunk(process, self._drop_late(chunk))
            with self._changed:
                self._queue.extendleft(reversed(ungraded))
                self._changed.notify_all()
            if process.lost or process.graded >= self._recycle_after:
                process.reap()
                process = self._start(number)
        if process is not None:
            process.reap()

    def _start(self, number: int) -> WorkerProcess | None:
        with self._changed:  # so that close() kills every process that was started
            if self._closed:
                return None
            self._processes[number] = WorkerProcess()
            return self._processes[number]

    def _take_chunk(self) -> list[_Answer] | None:
        """Waits for answers; takes a share of the queue, of one task and bounded in size."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            share = math.ceil(len(self._queue) / (4 * len(self._threads)))
            chunk: list[_Answer] = []
            characters = 0
            while self._queue and len(chunk) < min(share, CHUNK_ANSWERS):
                answer = self._queue[0]
                characters += len(answer.payload)
                if chunk and (answer.task != chunk[0].task or characters > CHUNK_CHARACTERS):
                    break
                chunk.append(self._queue.popleft())
            return chunk

    def _grade_chunk(self, process: WorkerProcess, chunk: list[_Answer]) -> list[_Answer]:
        """Grades a chunk in order; returns the answers that another worker must grade."""
        ungraded = deque(chunk)
        try:
            if chunk:
                process.send(chunk[0].task, [answer.payload for answer in chunk])
            while ungraded:
                deadline = time.monotonic() + self._deadline_seconds
                for grade in process.receive(min(deadline, ungraded[0].submission.deadline)):
                    self._settle(ungraded.popleft(), grade)
        except WorkerLost as loss:
            grade = Grade(verdict=loss.verdict, reward=0.0, detail=str(loss))
            self._settle(ungraded.popleft(), grade)
            self.killed += loss.verdict == "timeout"
        except GraderBroken as fault:
            for answer in ungraded:
                self._settle(answer, Grade(verdict="crashed", reward=0.0, detail=str(fault)))
            ungraded.clear()
        return self._drop_late(ungraded)

    def _drop_late(self, answers: Iterable[_Answer]) -> list[_Answer]:
        kept = []
        for answer in answers:
            if self._closed or time.monotonic() >= answer.submission.deadline:
                self._settle(answer, LATE)
            else:
                kept.append(answer)
        return kept

    def _settle(self, answer: _Answer, grade: Grade) -> None:
        answer.submission.settle(answer.indices, grade)
        if grade.verdict in UNGRADED or not self._cache_size:
            return  # a retry may succeed on a less busy machine
        with self._changed:
            self._cache[answer.key] = grade
            while len(self._cache) > self._cache_size:
                self._cache.popitem(last=False)
