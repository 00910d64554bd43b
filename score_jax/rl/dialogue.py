"""Dialogue plans: where each turn's tokens come from, what stands before it, what is trained.

SCoRe's stages draw both turns; a plan may also have one turn, or four, a first attempt that
is given, a turn that judges the one before it, or a text that is forced. `Encoder` makes of
problems the rows that such dialogues begin with. Each problem is asked, and asked again, by
its own task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np

from score_jax.checks import Natural, check_fields
from score_jax.records import Problem, Task, WorkedDialogue
from score_jax.text.chat import Chat
from score_jax.types import Episodes, Ids, Prompts

Source = Literal["sampled", "given", "forced"]
Role = Literal["answer", "verify"]


@dataclass(frozen=True, kw_only=True)
class DialoguePlan:
    """One value per turn; an empty tuple is completed by `complete`."""

    # sampled: by the policy; given: an attempt that comes with the problem; forced: a text
    sources: tuple[str, ...] = ()  # (): all are sampled
    roles: tuple[str, ...] = ()  # answer, or verify: whether the answer before is right; (): answer
    instructions: tuple[str, ...] = ()  # message before the turn; "": the task's own
    texts: tuple[str, ...] = ()  # of the forced turns; "" for the others
    trained: tuple[bool, ...] = ()  # its tokens carry loss; (): all that are sampled
    limits: tuple[Natural, ...] = ()  # tokens with the stop token; 0: sampling.turn_limit

    def __post_init__(self):
        check_fields(self, "dialogue")
        for name, choices in (("sources", Source), ("roles", Role)):
            if unknown := set(getattr(self, name)) - set(get_args(choices)):
                raise ValueError(
                    f"dialogue.{name} is {getattr(self, name)}; {sorted(unknown)[0]!r} is none of "
                    f"{', '.join(get_args(choices))}"
                )

    def complete(self, turns: int, limit: int) -> "DialoguePlan":
        """The plan with one value per turn.

        Args:
          limit: of the turns without one of their own.

        Raises:
          ValueError: a field has another number of values, or the turns contradict each other.
        """
        sources = self.sources or ("sampled",) * turns
        defaults: dict[str, tuple] = {
            "sources": sources,
            "roles": ("answer",) * turns,
            "instructions": ("",) * turns,
            "texts": ("",) * turns,
            "trained": tuple(source == "sampled" for source in sources),
            "limits": (limit,) * turns,
        }
        values = {name: getattr(self, name) or default for name, default in defaults.items()}
        for name, value in values.items():
            if len(value) != turns:
                raise ValueError(
                    f"dialogue.{name} is {value}; give one value for each of the {turns} turns "
                    "that objective.reward_weights or evaluation.turns has"
                )
        values["limits"] = tuple(own or limit for own in values["limits"])
        plan = replace(self, **values)
        plan.check_order()
        return plan

    def check_order(self) -> None:
        """Checks that the turns fit each other.

        Raises:
          ValueError: they do not.
        """
        for turn, source in enumerate(self.sources, 1):
            field, index = f"dialogue.sources[{turn - 1}]", turn - 1
            if source == "given" and "sampled" in self.sources[:index]:
                raise ValueError(f"{field} is 'given'; given turns come before all sampled ones")
            if (source == "forced") != bool(self.texts[index]):
                raise ValueError(
                    f"{field} is {source!r} and dialogue.texts[{index}] {self.texts[index]!r}; a "
                    "forced turn needs a text, no other has one"
                )
            if self.trained[index] and source != "sampled":
                raise ValueError(
                    f"dialogue.trained[{index}] is True, but turn {turn} is {source}: the policy "
                    "did not draw it; set False"
                )
        if self.sources[-1] != "sampled":
            raise ValueError(
                f"dialogue.sources is {self.sources}; the last turn must be sampled, or be left out"
            )
        if self.roles[0] != "answer":
            raise ValueError(
                "dialogue.roles[0] is 'verify'; there is no answer before turn 1: set 'answer'"
            )
        if self.instructions[0]:
            raise ValueError(
                f"dialogue.instructions[0] is {self.instructions[0]!r}; before turn 1 stands the "
                "prompt alone: set ''"
            )

    @property
    def turns(self) -> int:
        """R, turns of a dialogue."""
        return len(self.sources)

    @cached_property
    def drawn(self) -> tuple[int, ...]:
        """The turns that the policy draws, from 1."""
        return tuple(turn for turn, source in enumerate(self.sources, 1) if source == "sampled")

    @property
    def drawn_tokens(self) -> int:
        """The most tokens that the policy draws in a row."""
        return sum(self.limits[turn - 1] for turn in self.drawn)

    def steps(self, block: int, row_limit: int = 0) -> int:
        """The most tokens after what a row begins with, which is one token at least.

        Args:
          block: I, the most tokens between two drawn turns.
          row_limit: of a whole dialogue; 0: none.
        """
        whole = self.drawn_tokens + (len(self.drawn) - 1) * block
        return min(whole, (row_limit or whole + 1) - 1)

    def row_length(self, width: int, block: int, row_limit: int = 0) -> int:
        """T, the most tokens of a dialogue; `width` is T0."""
        whole = width + self.steps(block, row_limit)
        return min(whole, row_limit or whole)


SAMPLED = DialoguePlan()  # every turn by the policy


class TooLong(ValueError):
    """A text does not fit into its limit; the message names the problem."""


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Encodes problems as the rows of a plan."""

    chat: Chat
    tasks: Mapping[str, Task]  # by Problem.task; rows have room for all their instructions
    plan: DialoguePlan  # complete
    prompt_limit: int

    def task(self, problem: Problem) -> Task:
        """The task that asks, asks again and grades a problem."""
        return self.tasks[problem.task]

    @cached_property
    def forced(self) -> dict[str, list[tuple[list[int], list[int]]]]:
        """`blocks` of each task, by its name."""
        return {name: self.blocks(task) for name, task in self.tasks.items()}

    def lost(self) -> dict[str, str]:
        """By field of the plan, characters of its texts that the vocabulary lacks."""
        texts = {
            f"dialogue.{name}[{turn}]": text
            for name in ("instructions", "texts")
            for turn, text in enumerate(getattr(self.plan, name))
        }
        return {field: lost for field, text in texts.items() if (lost := self.chat.lost(text))}

    @property
    def block(self) -> int:
        """I: the most tokens between two drawn turns."""
        return max(len(ids) for blocks in self.forced.values() for ids, _ in blocks)

    @property
    def width(self) -> int:
        """T0: the most tokens that a row begins with."""
        first = self.plan.drawn[0]
        between = max(
            sum(len(self.instruction(task, turn)) for turn in range(2, first + 1))
            for task in self.tasks.values()
        )
        ahead = self.plan.limits[: first - 1]
        return self.prompt_limit + sum(ahead) + len(ahead) + between  # a stop behind a cut turn

    def row_length(self, row_limit: int = 0) -> int:
        """T, of a row of these problems."""
        return self.plan.row_length(self.width, self.block, row_limit)

    def instruction(self, task: Task, turn: int) -> list[int]:
        """The tokens between the turn before and this one; none before the first."""
        if turn == 1:
            return []
        return self.chat.encode_instruction(self.plan.instructions[turn - 1] or task.instruction)

    def attempt(self, text: str | Sequence[int]) -> list[int]:
        """The tokens of a whole attempt, its stop token included."""
        ids = self.chat.encode_plain(text) if isinstance(text, str) else list(text)
        closed = bool(ids) and ids[-1] in self.chat.stops
        return ids if closed else [*ids, self.chat.stops[0]]

    def blocks(self, task: Task) -> list[tuple[list[int], list[int]]]:
        """For each turn, the tokens forced before it is drawn, and the turns they belong to."""
        out, ids, owner = [], [self.chat.stops[0]], [0]
        for turn, source in enumerate(self.plan.sources, 1):
            piece = self.instruction(task, turn)
            ids, owner = ids + piece, owner + [0] * len(piece)
            drawn = source == "sampled" and turn > self.plan.drawn[0]
            out.append((ids, owner) if drawn else ([], []))
            if source == "forced" and turn > self.plan.drawn[0]:
                piece = self.attempt(self.plan.texts[turn - 1])
                ids, owner = ids + piece, owner + [turn] * len(piece)
            else:
                ids, owner = [self.chat.stops[0]], [0]
        return out

    def opening(self, problem: Problem) -> tuple[list[int], list[int]]:
        """The tokens that a row begins with, and the turns that they belong to.

        Raises:
          TooLong: the prompt or a given attempt exceeds its limit.
          ValueError: the problem has fewer given attempts than the plan takes.
        """
        task = self.task(problem)
        ids = self.chat.encode_prompt(task.ask(problem))
        self.check_length(ids, self.prompt_limit, "sampling.prompt_limit", problem)
        owner, given = [0] * len(ids), list(problem.given)
        for turn in range(1, self.plan.drawn[0] + 1):
            piece = self.instruction(task, turn)
            ids, owner = ids + piece, owner + [0] * len(piece)
            if turn == self.plan.drawn[0]:
                break
            forced = self.plan.sources[turn - 1] == "forced"
            if not forced and not given:
                raise ValueError(
                    f"dialogue.sources[{turn - 1}] is 'given', but problem {problem.id!r} has no "
                    f"attempt for turn {turn}; set data.first_attempts, or sample the turn"
                )
            piece = self.attempt(self.plan.texts[turn - 1] if forced else given.pop(0))
            limit = self.plan.limits[turn - 1]  # a turn that was cut at it lacks the stop token
            field = f"dialogue.limits[{turn - 1}] (0: sampling.turn_limit)"
            self.check_length(piece[:-1], limit, field, problem)
            ids, owner = ids + piece, owner + [turn] * len(piece)
        return ids, owner

    def check_length(self, ids: Sequence[int], limit: int, field: str, problem: Problem) -> None:
        """Raises TooLong where a text exceeds its limit."""
        if len(ids) > limit:
            raise TooLong(
                f"{field} is {limit}; problem {problem.id!r} has {len(ids)} tokens: "
                "raise the limit or leave the problem out"
            )

    def prompts(
        self,
        problems: Sequence[Problem],
        draws: Sequence[int] | np.ndarray,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        samples: Sequence[int] | np.ndarray | int = 0,
        policy_step: int = 0,
    ) -> Prompts:
        """Encodes problems; all arrays are numpy until they are made global.

        Args:
          draws: ordinals of the problems in the run's stream.
          indices: of the problems in their data set; None: the draws.
          samples: number of the first dialogue of each.
        """
        plan, count = self.plan, len(problems)
        tokens, turn = np.zeros((2, count, self.width), np.int32)
        forced, owners = np.zeros((2, count, plan.turns, self.block), np.int32)
        forced_length = np.zeros((count, plan.turns), np.int32)
        length = np.zeros(count, np.int32)
        for row, problem in enumerate(problems):
            ids, owner = self.opening(problem)
            tokens[row, : len(ids)], turn[row, : len(ids)] = ids, owner
            length[row] = len(ids)
            for index, (ids, owner) in enumerate(self.forced[problem.task]):
                forced[row, index, : len(ids)], owners[row, index, : len(ids)] = ids, owner
                forced_length[row, index] = len(ids)
        columns: dict[str, Any] = {
            "tokens": tokens,
            "turn": turn,
            "length": length,
            "forced": forced,
            "forced_turn": owners,
            "forced_length": forced_length,
            "present": np.ones((count, plan.turns), bool),
            "drawn": np.tile([source == "sampled" for source in plan.sources], (count, 1)),
            "trained": np.tile(np.asarray(plan.trained, bool), (count, 1)),
            "ids": row_ids(
                draws if indices is None else indices, draws, samples, policy_step=policy_step
            ),
        }
        return Prompts(**columns)

    def worked(self, dialogues: Sequence[WorkedDialogue], length: int) -> Episodes:
        """Encodes worked dialogues as rows of supervised training; nothing of them is sampled.

        Raises:
          TooLong: a dialogue is longer than a row, or teaches more tokens than turns may have.
          ValueError: it has more attempts than the plan has turns.
        """
        count = len(dialogues)
        tokens, turn = np.zeros((2, count, length), np.int32)
        trained, lengths = np.zeros((count, length), bool), np.zeros(count, np.int32)
        for row, dialogue in enumerate(dialogues):
            task = self.task(dialogue.problem)
            ids = self.chat.encode_prompt(task.ask(dialogue.problem))
            owner, learnt = [0] * len(ids), [False] * len(ids)
            if len(dialogue.attempts) > self.plan.turns:
                raise ValueError(
                    f"objective.reward_weights has {self.plan.turns} turns, but the dialogue on "
                    f"problem {dialogue.problem.id!r} has {len(dialogue.attempts)}: raise it"
                )
            for number, parts in enumerate(dialogue.attempts, 1):
                pieces = [(self.instruction(task, number), 0, False)]
                pieces += [(self.chat.encode_plain(p.text), number, p.learn) for p in parts]
                pieces.append(([self.chat.stops[0]], number, parts[-1].learn))
                for piece, whose, learn in pieces:
                    ids = ids + list(piece)
                    owner = owner + [whose] * len(piece)
                    learnt = learnt + [learn] * len(piece)
            self.check_length(ids, length, "sampling.prompt_limit + turn_limit", dialogue.problem)
            taught, most = np.flatnonzero(learnt).tolist(), sum(self.plan.limits)
            self.check_length(taught, most, "the sum of dialogue.limits", dialogue.problem)
            tokens[row, : len(ids)], turn[row, : len(ids)] = ids, owner
            trained[row, : len(ids)], lengths[row] = learnt, len(ids)
        return given_rows(tokens, lengths, turn, trained, turns=self.plan.turns)


def row_ids(
    problems: Any, draws: Any, samples: Any = 0, attempts: Any = None, *, policy_step: int = 0
) -> Ids:
    """Ids of rows as int32 arrays of numpy."""
    values = (problems, draws, samples, samples if attempts is None else attempts, policy_step)
    shape = np.shape(draws)
    columns: list[Any] = [np.array(np.broadcast_to(x, shape), np.int32) for x in values]
    return Ids(*columns)


def given_rows(
    tokens: np.ndarray, length: np.ndarray, turn: np.ndarray, trained: np.ndarray, *, turns: int
) -> Episodes:
    """Rows that nobody has sampled, for supervised training; arrays are numpy."""
    shape = (len(tokens), turns)
    columns: dict[str, Any] = {
        "tokens": tokens,
        "length": length,
        "turn": turn,
        "sampled": np.zeros(tokens.shape, bool),
        "trained": trained,
        "logprobs": np.zeros(tokens.shape, np.float32),
        "present": (turn[:, None, :] == np.arange(1, turns + 1)[None, :, None]).any(-1),
        "truncated": np.zeros(shape, bool),
        "rewards": np.zeros(shape, np.float32),
        "ids": row_ids(*[np.arange(len(tokens))] * 2),
    }
    return Episodes(**columns)
