"""Draws other problems in the place of groups without signal, so that a step learns from all rows.

A group (the dialogues of a draw) has a signal if two of them differ in the reward of a turn that
the objective pays: else a baseline within the group leaves it no advantage from rewards. What else
makes advantages (another baseline, the KL in the reward, a penalty for repeats) is not asked for.
Further batches of the stream are drawn until enough groups have a signal, or there were as many
as allowed; what is missing then is filled with groups without. The first draws count, in the
stream's order.

All hosts know the rewards of all rows and choose alike, so that they draw equally often, and what
a step learns from depends neither on hosts nor on devices.

Source: arXiv:2503.14476, section 3.2 (dynamic sampling).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import jax
import numpy as np

from score_jax.distributed import processes
from score_jax.records import Grade, Problem
from score_jax.rl.metrics import Metric, largest, mean
from score_jax.rl.objectives import Objective
from score_jax.rl.rollout import Choice, Clock, Graded, Rollout, RolloutPrograms
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.types import Episodes, Params


def paid_turns(objective: Objective, roles: Sequence[str]) -> tuple[bool, ...]:
    """Whether a turn's own reward, or the progress that it made, is paid for."""
    bonus = zip(roles, objective.weights_of_bonus, strict=True)
    gains = [
        objective.alpha > 0 and turn > 0 and role == "answer" and weight > 0
        for turn, (role, weight) in enumerate(bonus)
    ]
    own = [weight > 0 for weight in objective.reward_weights]
    return tuple(a or b for a, b in zip(own, gains, strict=True))


def check_redraws(sampling: SamplingConfig, objective: Objective, roles: Sequence[str]) -> None:
    """Checks that some group may have a signal.

    Raises:
      ValueError: none can, so that every redraw would be in vain.
    """
    if not sampling.redraws:
        return
    if sampling.group_size < 2:
        raise ValueError(
            f"sampling.redraws is {sampling.redraws}, but a group of one dialogue has no signal: "
            "set 0, or sampling.group_size to 2 or more"
        )
    if not any(paid_turns(objective, roles)):
        raise ValueError(
            f"sampling.redraws is {sampling.redraws}, but the objective pays no turn: set 0, or a "
            "weight in objective.reward_weights"
        )


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Graded rows of one or more batches, as every host holds them."""

    episodes: Episodes  # numpy
    problems: list[Problem]
    attempts: list[tuple[str, ...]]
    grades: list[tuple[Grade | None, ...]]

    def take(self, index: Sequence[int] | np.ndarray) -> "Rows":
        """The rows of these numbers."""
        chosen = np.asarray(index, int).tolist()
        return Rows(
            episodes=jax.tree.map(lambda x: x[chosen], self.episodes),
            problems=[self.problems[row] for row in chosen],
            attempts=[self.attempts[row] for row in chosen],
            grades=[self.grades[row] for row in chosen],
        )


def join(parts: Sequence[Rows]) -> Rows:
    """All rows, one part behind the other."""
    return Rows(
        episodes=jax.tree.map(lambda *x: np.concatenate(x), *(part.episodes for part in parts)),
        problems=[one for part in parts for one in part.problems],
        attempts=[one for part in parts for one in part.attempts],
        grades=[one for part in parts for one in part.grades],
    )


def rows_of_all_hosts(programs: RolloutPrograms, batch: Rollout) -> Rows:
    """A batch's rows in their order; all hosts must call."""
    own = Rows(
        episodes=batch.local,
        problems=batch.problems,
        attempts=batch.graded.attempts,
        grades=batch.graded.grades,
    )
    numbers = programs.own_rows(np.arange(len(batch.episodes.tokens)))
    found = processes.all_gather_objects((numbers, own))
    # Hosts that split a model hold the same rows, of which one copy counts.
    _, first = np.unique(np.concatenate([rows for rows, _ in found]), return_index=True)
    return join([rows for _, rows in found]).take(first)


def signals(
    grades: Sequence[Sequence[Grade | None]], group_size: int, paid: Sequence[bool]
) -> list[bool]:
    """Whether each group has a signal, of rows that stand group by group."""

    def differ(group: Sequence[Sequence[Grade | None]], turn: int) -> bool:
        return len({np.float32(grade.reward) for row in group if (grade := row[turn])}) > 1

    starts = range(0, len(grades), group_size)
    groups = [grades[start : start + group_size] for start in starts]
    return [any(differ(g, turn) for turn, own in enumerate(paid) if own) for g in groups]


def choose(signal: Sequence[bool], count: int) -> list[int]:
    """The first groups with a signal, and if they are too few the first without, in order."""
    order = sorted(range(len(signal)), key=lambda group: (not signal[group], group))
    return sorted(order[:count])


def collect_with_signal(
    programs: RolloutPrograms,
    draw: Callable[[RolloutPrograms], Rollout],
    reference: Params,
    sampling: SamplingConfig,
    *,
    paid: Sequence[bool],
    begin: Callable[[str], None] = lambda phase: None,
    clock: Clock | None = None,
) -> Rollout:
    """Draws batches until one can be filled with groups that have a signal; scores that one.

    Args:
      draw: samples and grades the next batch of the stream.
      paid: of `paid_turns`.
      begin, clock: as of `rollout.collect_rollout`.
    """
    size, clock = sampling.group_size, clock or Clock()
    unscored = replace(programs, score=lambda *_: None)  # rewards decide, and most rows may go
    batches: list[Rollout] = []
    rows: list[Rows] = []
    signal: list[bool] = []
    while len(batches) <= sampling.redraws:
        batches.append(draw(unscored))
        rows.append(rows_of_all_hosts(programs, batches[-1]))
        signal += signals(rows[-1].grades, size, paid)
        groups = len(rows[0].problems) // size
        if sum(signal) >= groups:
            break
    begin("select")
    chosen = np.asarray(choose(signal, groups))
    whole = join(rows).take((chosen[:, None] * size + np.arange(size)).ravel())
    own = whole.take(programs.own_rows(np.arange(len(whole.problems))))
    episodes = programs.to_global(own.episodes)
    phases = [batch.graded.seconds for batch in batches]
    seconds = {name: sum(part[name] for part in phases) for name in phases[0]}
    return Rollout(
        episodes=episodes,
        scores=programs.score(reference, episodes),
        local=own.episodes,
        problems=own.problems,
        graded=Graded(
            attempts=own.attempts,
            grades=own.grades,
            seconds=seconds | {"select": clock.lap()},
        ),
        choice=Choice(batches=[batch.local for batch in batches], signal=signal),
    )


def selection_metrics(rollout: Rollout) -> dict[str, Metric]:
    """What a rollout has cost in dialogues; where it was chosen, from what."""
    size, choice = len(rollout.episodes.tokens), rollout.choice
    if choice is None:
        return {"dialogues/drawn": largest(float(size))}
    drawn = len(choice.batches)
    found = {
        "dialogues/drawn": largest(float(size * drawn)),
        "redraws": largest(float(drawn - 1)),
        "groups/signal": mean(float(sum(choice.signal)), float(len(choice.signal))),
        "groups/kept": mean(1.0, float(drawn)),
    }
    present = np.concatenate([rows.present for rows in choice.batches])
    rewards = np.where(present, np.concatenate([rows.rewards for rows in choice.batches]), 0.0)
    counts = present.sum(0, dtype=float)
    without = len(choice.signal) - sum(choice.signal)
    found["drawn/no_signal"] = mean(float(without), float(len(choice.signal)))
    found["drawn/accuracy"] = mean((rewards >= 1.0).sum(0, dtype=float), counts)
    found["drawn/reward"] = mean(rewards.sum(0, dtype=float), counts)
    return found
