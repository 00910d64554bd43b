"""Alarms for a stage that stops correcting itself, from the metrics of its steps.

A condition is judged by means over windows of steps: the last one, the one before it, and the
stage's first. An alarm is raised once, and cleared when its condition has not held for a whole
window, so that noise around a bound raises no second one. All follows from the rows of
metrics.jsonl, so a resumed run, which reads them again, raises what an uninterrupted one does.

Source: arXiv:2409.12917, sections 4 and 5 (behaviour collapse, the likelihood of first attempts,
edit distance ratios).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, Literal

from score_jax.checks import Count, Positive, Share, check_fields

Row = Mapping[str, float | None]  # the metrics of a step; None: not finite

ADVICE = {  # what an alarm means, and what to change, by the field of its bound
    "answer_changed": (
        "answers hardly change: the policy copies its first answer",
        "train Stage I first, or raise objective.alpha or the first value of objective.beta",
    ),
    "delta_fall": (
        "the gain of the last attempt falls while the attempts grow alike",
        "go back to an earlier checkpoint, or raise objective.alpha",
    ),
    "accuracy_fall": (
        "first attempts get worse than they were at the stage's start",
        "raise the first value of objective.beta, or lower objective.alpha",
    ),
    "kl": (
        "the policy runs off from the base model",
        "raise objective.beta of that turn, or lower optimizer.learning_rate",
    ),
    "no_signal": (
        "all dialogues of most problems earn the same, so there is little to learn from",
        "take problems that are neither too easy nor too hard, or raise sampling.group_size",
    ),
    "truncated_growth": (
        "more attempts than at the stage's start are cut at their limit",
        "raise sampling.turn_limit, or lower optimizer.learning_rate if attempts ramble",
    ),
}


@dataclass(frozen=True, kw_only=True)
class AlarmsConfig:
    """When an alarm is raised; each bound has its alarm's name, and None switches it off."""

    window: Count = 10  # steps in a mean
    answer_changed: Share | None = 0.02  # share of changed answers below which it is raised
    delta_fall: Share | None = 0.05  # accuracy that the gain lost since the window before
    accuracy_fall: Share | None = 0.1  # accuracy that turn 1 lost since the first window
    kl: Positive | None = 10.0  # nats of one turn
    no_signal: Share | None = 0.9  # share of problems whose rewards at the last turn are all alike
    truncated_growth: Share | None = 0.1  # share of a turn's attempts, above the first window
    stop: tuple[str, ...] = ()  # names of alarms that end the run

    def __post_init__(self):
        check_fields(self, "alarms")
        for name in self.stop:
            if name not in ADVICE:
                raise ValueError(f"alarms.stop is {self.stop}; choose from {', '.join(ADVICE)}")
            if getattr(self, name) is None:
                raise ValueError(f"alarms.stop is {self.stop}, but alarms.{name} is None; set it")


USUAL = AlarmsConfig()


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What of a stage alarms may judge; turns count from 1."""

    turns: tuple[int, ...]  # that are trained
    last: int  # turn of a dialogue
    answers: int  # turns that answer
    grouped: bool  # whether a problem has several dialogues


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """A condition that holds after a step."""

    step: int
    name: str  # of the field of its bound
    metric: str  # that it was read from
    value: float
    bound: float

    def text(self) -> str:
        """What is measured, what that means and what to do, in a line."""
        meaning, remedy = ADVICE[self.name]
        return (
            f"{self.name}: {meaning} ({self.metric}: {self.value:.3g}, "
            f"alarms.{self.name} is {self.bound:g}); {remedy}"
        )


@dataclass(frozen=True, kw_only=True)
class Event:
    """An alarm that is raised or cleared."""

    kind: Literal["raised", "cleared"]
    alarm: Alarm  # as it last held; of one that is cleared, with the step that cleared it

    def record(self) -> dict[str, Any]:
        """The line of alarms.jsonl."""
        return {**asdict(self.alarm), "event": self.kind, "text": self.alarm.text()}


def window_mean(rows: Sequence[Row], metric: str, window: int) -> float | None:
    """The mean over a window; None if it is not full, or the metric is absent somewhere."""
    values = [value for row in rows if (value := row.get(metric)) is not None and isfinite(value)]
    return sum(values) / window if len(values) == window else None


def conditions(config: AlarmsConfig, watched: Watched, rows: Sequence[Row]) -> list[Alarm]:
    """The alarms whose condition holds after the last of a stage's rows."""
    size, step = config.window, int(rows[-1]["step"] or 0)
    found: list[Alarm] = []

    def of_all(metric: str) -> str:
        """The metric over all that was drawn, where a step learns from chosen groups only."""
        return f"drawn/{metric}" if f"drawn/{metric}" in rows[-1] else metric

    def last(metric: str) -> float | None:
        return window_mean(rows[-size:], metric, size)

    def rise(metric: str, earlier: Sequence[Row]) -> float | None:
        now, then = last(metric), window_mean(earlier, metric, size)
        return None if now is None or then is None else now - then

    def judge(name: str, metric: str, value: float | None, *, below: bool = False) -> None:
        bound = getattr(config, name)
        if value is None or bound is None:
            return
        if value < bound if below else value > bound:
            found.append(Alarm(step=step, name=name, metric=metric, value=value, bound=bound))

    first, before = rows[:size], rows[-2 * size : -size]
    if watched.answers > 1:
        judge("answer_changed", "answer_changed", last("answer_changed"), below=True)
        delta, distance = rise("delta", before), rise("edit_distance", before)
        if delta is not None and distance is not None and distance < 0:
            judge("delta_fall", "delta", -delta)
    metric = of_all("accuracy/turn1")
    accuracy = rise(metric, first)
    if accuracy is not None and 1 in watched.turns:
        judge("accuracy_fall", metric, -accuracy)
    for turn in watched.turns:
        judge("kl", f"kl/turn{turn}", last(f"kl/turn{turn}"))
        truncated = f"truncated/turn{turn}"
        judge("truncated_growth", truncated, rise(truncated, first))
    if watched.grouped:
        chosen = "drawn/no_signal" in rows[-1]
        metric = "drawn/no_signal" if chosen else f"no_signal/turn{watched.last}"
        judge("no_signal", metric, last(metric))
    return found


@dataclass(frozen=True, kw_only=True)
class State:
    """What a stage's rows so far say."""

    rows: tuple[Row, ...] = ()  # those of the first window, and of the last two
    raised: tuple[Alarm, ...] = ()  # each as it last held
    holding: tuple[Alarm, ...] = ()  # after the last row


def advance(
    config: AlarmsConfig, watched: Watched, state: State, row: Row
) -> tuple[State, list[Event]]:
    """The state after one more row, and what it raised and cleared."""
    size, rows = config.window, (*state.rows, row)
    if len(rows) > 3 * size:
        rows = (*rows[:size], *rows[-2 * size :])
    holding = conditions(config, watched, rows)
    raised = {(alarm.name, alarm.metric): alarm for alarm in state.raised}
    events = []
    for alarm in holding:
        if (alarm.name, alarm.metric) not in raised:
            events.append(Event(kind="raised", alarm=alarm))
        raised[alarm.name, alarm.metric] = alarm
    step = int(row["step"] or 0)
    for key, alarm in list(raised.items()):
        if step - alarm.step >= size:
            events.append(Event(kind="cleared", alarm=replace(raised.pop(key), step=step)))
    return State(rows=rows, raised=tuple(raised.values()), holding=tuple(holding)), events


def replay(
    config: AlarmsConfig, watched: Watched, rows: Sequence[Row]
) -> tuple[State, list[Event]]:
    """The state after rows that were logged before, and all that they raised and cleared."""
    state, events = State(), []
    for row in rows:
        state, more = advance(config, watched, state, row)
        events += more
    return state, events
