"""Derives a headline sentence and a list of alarms from a run's numbers.

An alarm names what was measured, where, and its usual cause. Training curves are judged
by the mean of their last tenth, so that a dip that recovered raises no alarm.

Source: arXiv:2409.12917, sections 4 and 5 (behaviour collapse: both accuracies rise
together, the second attempt stops changing the first).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from score_jax.report.alarms import ADVICE
from score_jax.report.workdir import Run, StageRecord

Level = Literal["alarm", "note"]

UNCHANGED = 0.05  # share of changed answers below which the policy hardly corrects itself
FLAT = 0.01  # accuracy; a smaller delta does not count as self-correction
TRUNCATED = 0.10  # share of truncated attempts above which lengths and rewards are distorted
UNGRADED = 0.01  # share of timeouts and crashes above which they distort the rewards
DECODINGS = ("greedy", "sampled")
NO_SIGNAL = 0.02  # accuracy below which rewards give no useful gradient


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A condition that makes the run's numbers doubtful."""

    level: Level
    title: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The run's result in one sentence, and a second sentence of context."""

    text: str
    context: str
    tone: Literal["good", "bad", "flat"]


def stage_label(name: str) -> str:
    """The display name of a stage or model."""
    known = {"base": "Base model", "stage1": "Stage I", "stage2": "Stage II"}
    return known.get(name, name.replace("_", " "))


def points(value: float, *, signed: bool = True) -> str:
    """Formats an accuracy, or a difference of two, in percentage points."""
    rounded = round(100 * value, 6)  # so that 0.15 and 0.3 - 0.15 give the same text
    text = f"{rounded:+.1f}" if signed else f"{rounded:.1f}"
    return "0.0" if text in ("+0.0", "-0.0") else text


def trained_model(evaluation: Mapping[str, Any]) -> str:
    """The model that an evaluation is about: its stage, or the last one listed."""
    models = list(evaluation.get("models", {}))
    stage = evaluation.get("stage", "")
    return stage if stage in models or not models else models[-1]


def interval_of(
    evaluation: Mapping[str, Any], model: str, key: str, decoding: str = "greedy"
) -> dict[str, float] | None:
    """A model's measurement as {value, low, high}; None where absent or undefined."""
    measured = evaluation.get("models", {}).get(model, {}).get(decoding) or {}
    found = measured.get(key)
    complete = isinstance(found, dict) and all(
        isinstance(found.get(bound), int | float) for bound in ("value", "low", "high")
    )
    return found if complete else None


def turns_of(measured: Mapping[str, Any], name: str = "accuracy") -> list[int]:
    """The turns, from 1, that have a metric "name/turn<t>" among the keys."""
    keys = [key.removeprefix(f"{name}/turn") for key in measured if key.startswith(f"{name}/turn")]
    return sorted(int(key) for key in keys if key.isdigit())


def last_turn(evaluation: Mapping[str, Any]) -> int:
    """The last turn with an accuracy, of any model and decoding; 0: there is none."""
    found = [
        turn
        for measured in evaluation.get("models", {}).values()
        for decoding in DECODINGS
        for turn in turns_of(measured.get(decoding) or {})
    ]
    return max(found, default=0)


def last_attempts(turns: int) -> str:
    """What the last attempts of dialogues of so many turns are called."""
    return "last attempts" if turns > 2 else "second attempts"


def headline(run: Run) -> Headline:
    """States whether later attempts help, from the last evaluation or else from training."""
    stage = run.evaluated
    if stage is not None:
        evaluation = stage.evaluation
        trained = trained_model(evaluation)
        for decoding in DECODINGS:
            delta = interval_of(evaluation, trained, "delta", decoding)
            if delta is not None:
                return _measured_headline(evaluation, trained, delta, decoding)
    return _training_headline(run)


def _measured_headline(
    evaluation: Mapping[str, Any], trained: str, delta: Mapping[str, float], decoding: str
) -> Headline:
    low, high = (points(delta[bound], signed=False) for bound in ("low", "high"))
    bounds = f"[{low}, {high}]"
    if delta["low"] > 0:
        verb, tone = f"gain {points(delta['value'])} points {bounds}", "good"
    elif delta["high"] < 0:
        verb, tone = f"lose {points(-delta['value'], signed=False)} points {bounds}", "bad"
    else:
        verb, tone = f"change little: {points(delta['value'])} points {bounds}", "flat"
    problems = evaluation.get("problems")
    where = f"{problems:,} held-out problems" if isinstance(problems, int) else "held-out problems"
    turn = last_turn(evaluation) or 2
    attempts, key = last_attempts(turn), f"accuracy/turn{turn}"
    last = interval_of(evaluation, trained, key, decoding)
    text = f"{attempts.capitalize()} {verb} on {where}"
    if last:
        value, low, high = (points(last[part], signed=False) for part in ("value", "low", "high"))
        share = f"{value}% [{low}, {high}] of {where}"
        text = f"{attempts.capitalize()} are right in {share}; they {verb}"
    base = interval_of(evaluation, "base", "delta", decoding) if trained != "base" else None
    if base is not None:
        lost = base["value"] < 0 and points(base["value"]) != "0.0"
        moved = points(-base["value"], signed=False) if lost else points(base["value"])
        text += f"; the base model {'loses' if lost else 'gains'} {moved}"
    first = interval_of(evaluation, trained, "accuracy/turn1", decoding)
    context = [f"{stage_label(trained)}, {decoding} decoding"]
    if first and last:
        rise = f"{points(first['value'], signed=False)}% to {points(last['value'], signed=False)}%"
        context.append(f"accuracy from {rise} between the attempts")
    before = interval_of(evaluation, "base", key, decoding)
    if last and before and base is not None:
        gap = last["value"] - before["value"]
        side = "above" if gap >= 0 else "below"
        far = points(abs(gap), signed=False)
        context.append(f"{attempts} are {far} points {side} the base model's")
    return Headline(text=text + ".", context="; ".join(context) + ".", tone=tone)


def _training_headline(run: Run) -> Headline:
    stage = next(stage for stage in reversed(run.stages) if stage.rows or stage.evaluation)
    step = f" at step {stage.rows[-1]['step']:g}" if stage.rows else ""
    text = f"No held-out measurement yet: {stage_label(stage.name)} is{step or ' under way'}."
    turns = _turns(stage, "accuracy") or [1, 2]
    first, last = (_late(stage, f"accuracy/turn{turn}") for turn in (turns[0], turns[-1]))
    context = "Held-out numbers appear here when a stage has been evaluated."
    if first is not None and last is not None and len(turns) > 1:
        context = (
            f"On recent training problems first attempts are right in {first:.1%}, "
            f"{last_attempts(turns[-1])} in {last:.1%}. {context}"
        )
    return Headline(text=text, context=context, tone="flat")


def find_alarms(run: Run) -> list[Finding]:
    """Lists the run's alarms, then its notes."""
    found = [finding for stage in run.stages for finding in _stage_alarms(stage)]
    if run.evaluated is not None:
        found += _evaluation_alarms(run.evaluated.evaluation)
        found += _cut_off(run.evaluated.evaluation)
        for name, own in run.evaluated.sets.items():
            found += _cut_off(own, f" of {name}")
    return sorted(found, key=lambda finding: finding.level != "alarm")


def _raised_alarms(stage: StageRecord) -> Iterator[Finding]:
    """Those that training raised; one that was cleared is a note."""
    latest: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in stage.alarms:
        latest.setdefault((event["name"], event["metric"]), []).append(event)
    for (name, _), events in latest.items():
        meaning, remedy = ADVICE.get(name, (name.replace("_", " "), "see docs/alarms.md"))
        raised = [event for event in events if event["event"] == "raised"]
        open_still = events[-1]["event"] == "raised"
        end = "" if open_still else f" Cleared at step {events[-1]['step']}."
        told = [f"step {e['step']} ({e['metric']}: {e['value']:.3g})" for e in raised]
        yield Finding(
            level="alarm" if open_still else "note",
            title=f"{stage_label(stage.name)}: {meaning}",
            text=f"Raised at {', '.join(told)}; alarms.{name} is {events[0]['bound']:g}.{end} "
            f"To try: {remedy}.",
        )


def _stage_alarms(stage: StageRecord) -> Iterator[Finding]:
    name = stage_label(stage.name)
    yield from _raised_alarms(stage)
    lost = [row["step"] for row in stage.rows if not math.isfinite(row.get("loss", 0.0))]
    if lost:
        yield Finding(
            level="alarm",
            title=f"{name}: the loss is not a number",
            text=f"First at step {lost[0]:g}, {len(lost)} steps in all. The parameters after that "
            "are unusable; resume from an earlier checkpoint with a lower learning rate.",
        )
    right = [_late(stage, f"accuracy/turn{turn}") for turn in _turns(stage, "accuracy")]
    if any(share is not None for share in right) and max(s or 0.0 for s in right) < NO_SIGNAL:
        unread = _late(stage, "verdict/unparsable")
        seen = "" if unread is None else f" No answer can be read from {unread:.0%} of them."
        yield Finding(
            level="alarm",
            title=f"{name}: almost no attempt is right",
            text=f"Without right answers there is nothing to reinforce.{seen} Start with easier "
            "problems or a better base model; 40-70% right at first is the useful range.",
        )
    else:
        yield from _training_collapse(stage)
    yield from _mismatch(stage)
    for turn in _turns(stage, "truncated"):
        share = _late(stage, f"truncated/turn{turn}")
        if share is not None and share > TRUNCATED:
            yield Finding(
                level="alarm",
                title=f"{name}: {share:.0%} of attempts at turn {turn} are cut off",
                text="They reach the length limit before a stop token, so low accuracy may be due "
                "to the limit and not to the problems. Raise the limit of that turn.",
            )
    yield from _ungraded(stage)


def _training_collapse(stage: StageRecord) -> Iterator[Finding]:
    changed, delta = _late(stage, "answer_changed"), _late(stage, "delta")
    if changed is None or delta is None or changed >= UNCHANGED or abs(delta) >= FLAT:
        return
    early = _early(stage, "answer_changed")
    fell = early is not None and early >= 2 * UNCHANGED
    attempts = last_attempts(max(_turns(stage, "accuracy"), default=2))
    trend = f"fell from {early:.1%} to {changed:.1%}" if fell else f"is {changed:.1%}"
    yield Finding(
        level="alarm",
        title=f"{stage_label(stage.name)}: {attempts} collapsed into copies",
        text=f"The share of changed answers {trend} while the gain of the {attempts} is "
        f"{points(delta)} points. The policy puts its best answer first and repeats it. Usual "
        "remedies: Stage I before Stage II, a larger beta on turn 1, a larger alpha.",
    )


def _mismatch(stage: StageRecord) -> Iterator[Finding]:
    limits = stage.column("mismatch/limit")[1]
    mismatches = {
        turn: float(np.fmax.reduce(stage.column(f"mismatch/trimmed/turn{turn}")[1], initial=0))
        for turn in _turns(stage, "mismatch/trimmed")
    }
    if not limits or not mismatches:
        return
    worst, turn = max((value, turn) for turn, value in mismatches.items())
    limit = limits[-1]
    if not worst > limit / 2:
        return
    yield Finding(
        level="alarm" if worst > limit else "note",
        title=f"{stage_label(stage.name)}: sampler and learner disagree by {worst:.2g} nats a "
        f"token in turn {turn}",
        text=f"On average, in the worst step; the limit is {limit:g}. Beyond it the policy that is "
        "trained is not the one that was sampled: compare weights, positions, masks and precision "
        "of both.",
    )


def _ungraded(stage: StageRecord) -> Iterator[Finding]:
    for verdict, cause in (
        ("timeout", "answers that run for too long, or too few grading workers"),
        ("crashed", "a fault in the grader, or answers that break it"),
    ):
        keys = sorted({key for row in stage.rows for key in row if f"verdict/{verdict}" in key})
        shares = [value for key in keys for value in stage.column(key)[1] if math.isfinite(value)]
        if not shares or max(shares) <= 0:
            continue
        mean, worst = float(np.mean(shares)), max(shares)
        yield Finding(
            level="alarm" if mean > UNGRADED else "note",
            title=f"{stage_label(stage.name)}: the grader returned '{verdict}'",
            text=f"For {mean:.2%} of attempts, {worst:.1%} in the worst step. They count as not "
            f"right whatever they say. Usual cause: {cause}.",
        )


def _evaluation_alarms(evaluation: Mapping[str, Any]) -> Iterator[Finding]:
    trained = trained_model(evaluation)
    name = stage_label(trained)
    delta = interval_of(evaluation, trained, "delta")
    changed = interval_of(evaluation, trained, "answer_changed")
    if delta and delta["high"] < 0:
        yield Finding(
            level="alarm",
            title=f"{name}: correcting does harm on held-out problems",
            text="More right answers are broken than wrong ones fixed.",
        )
    flat = delta is not None and abs(delta["value"]) < FLAT and trained != "base"
    if flat and changed is not None and changed["value"] < UNCHANGED:
        yield Finding(
            level="alarm",
            title=f"{name}: held-out {last_attempts(last_turn(evaluation))} are copies",
            text=f"{changed['value']:.1%} of final answers change. Any rise in accuracy comes "
            "from the first attempt, not from self-correction.",
        )


def _cut_off(evaluation: Mapping[str, Any], place: str = "") -> Iterator[Finding]:
    """Held-out attempts without an end; `place`: " of " and a set of evaluation.sets."""
    trained = trained_model(evaluation)
    greedy = evaluation.get("models", {}).get(trained, {}).get("greedy") or {}
    for turn in turns_of(greedy, "truncated"):
        cut = interval_of(evaluation, trained, f"truncated/turn{turn}")
        if cut and cut["value"] > TRUNCATED:
            share = f"{cut['value']:.0%} of held-out attempts{place} at turn {turn}"
            yield Finding(
                level="alarm",
                title=f"{stage_label(trained)}: {share} are cut off",
                text="They end at the length limit; their accuracy is a lower bound.",
            )


def _turns(stage: StageRecord, name: str) -> list[int]:
    return turns_of(dict.fromkeys(key for row in stage.rows for key in row), name)


def _late(stage: StageRecord, key: str) -> float | None:
    """Mean over the last tenth of a stage's values, or the last 5 if that is more."""
    return _mean(stage, key, late=True)


def _early(stage: StageRecord, key: str) -> float | None:
    return _mean(stage, key, late=False)


def _mean(stage: StageRecord, key: str, *, late: bool) -> float | None:
    values = [value for value in stage.column(key)[1] if math.isfinite(value)]
    window = max(5, len(values) // 10)
    chosen = values[-window:] if late else values[:window]
    return float(np.mean(chosen)) if chosen else None
