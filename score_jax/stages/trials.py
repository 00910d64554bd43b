"""What a comparison of methods consists of: trials, each a method's variant under one seed.

Every method is tuned alike: as many variants, each trained once with the first seed and measured
on the same validation problems. The best variant is trained with the method's further seeds.
Usually a variant is a learning rate, the method's own times one of the comparison's `rates`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ml_collections import ConfigDict

from score_jax.checks import Count, Natural, Positive, check_fields
from score_jax.stages.handoff import StageConfig
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.settings import Settings, build_section

FIRST_SEED = 0  # of the trials that variants are chosen by, and of each method's first run
RATE = "optimizer.learning_rate"
Part = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of a comparison."""

    title: str  # in tables
    stages: tuple[Any, ...] = ()  # as config.stages; (): prompting alone, nothing is trained
    rounds: Count = 1
    budget: Positive = 1.0  # dialogues drawn, of those that the others draw
    seeds: Count = 1
    variants: tuple[Any, ...] = ()  # fields of all stages, for each; (): the comparison's rates
    sets: tuple[tuple[str, Any], ...] = ()  # measurements of its own, as evaluation.sets

    def __post_init__(self):
        check_fields(self, "comparison.methods")


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Which methods are compared, and how they are tuned and measured."""

    methods: tuple[tuple[str, Any], ...]  # fields of Method, by name
    only: tuple[str, ...] = ()  # names of the methods that are run; (): all
    seeds: Natural = 0  # of each method; 0: as many as it says
    rates: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # of the method's own learning rates
    against: str = ""  # the method that all are compared with, problem by problem; "": the first
    scaled: tuple[str, ...] = ()  # methods that are measured on `sets` too, with one seed
    sets: tuple[tuple[str, Any], ...] = ()  # further measurements, as evaluation.sets

    def __post_init__(self):
        check_fields(self, "comparison")
        known = dict(self.methods)
        if not self.rates or not known:
            raise ValueError(
                f"comparison.rates is {self.rates} and comparison.methods has "
                f"{len(known)} methods; give at least one of each"
            )
        for field in ("only", "scaled"):
            if unknown := [name for name in getattr(self, field) if name not in known]:
                raise ValueError(
                    f"comparison.{field} is {getattr(self, field)}; {unknown[0]!r} is none of "
                    f"{', '.join(known)}"
                )
        if self.against and self.against not in known:
            raise ValueError(
                f"comparison.against is {self.against!r}; choose one of {', '.join(known)}"
            )

    def chosen_methods(self) -> dict[str, Method]:
        """The methods that are run, by name, in the order of the config or of `only`.

        Raises:
          ValueError: a method has an unknown field, or another number of variants than others.
        """
        found: dict[str, Method] = {}
        for name in self.only or [name for name, _ in self.methods]:
            values = dict(dict(self.methods)[name])
            values.setdefault("title", name)
            if self.seeds:
                values["seeds"] = self.seeds
            found[name] = build_section(Method, values, f"comparison.methods.{name}")
        for name, method in found.items():
            if twice := dict(method.sets).keys() & dict(self.sets).keys():
                raise ValueError(
                    f"comparison.methods.{name}.sets has {sorted(twice)}, as comparison.sets has; "
                    "choose another name"
                )
        if self.against and self.against not in found:
            raise ValueError(
                f"comparison.against is {self.against!r}, which comparison.only leaves out; add "
                f"it, or compare with one of {', '.join(found)}"
            )
        counts = {name: len(self.variants(method)) for name, method in found.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(
                f"comparison.methods have different numbers of variants: {counts}; every method "
                "is tuned with the same effort: give each as many as comparison.rates"
            )
        return found

    def variants(self, method: Method) -> list[dict[str, Any]]:
        """The fields that each variant of a method sets; "rate" is a factor of all its rates."""
        return [dict(own) for own in method.variants] or [{"rate": rate} for rate in self.rates]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A variant of a method under one seed."""

    name: str  # of the method
    method: Method
    variant: int  # number, from 1
    fields: tuple[tuple[str, Any], ...]  # that the variant sets
    seed: int

    @property
    def folder(self) -> Path:
        """The trial's workdir, in that of the comparison."""
        return Path(self.name) / f"variant{self.variant}" / f"seed{self.seed}"

    def stages(
        self, shared: ConfigDict, overrides: Mapping[str, Any], part: Part
    ) -> list[StageConfig]:
        """The trial's stages, measured on one part of the problems.

        Args:
          shared: the comparison's config.
          overrides: of the command line.
        """
        config: Any = measured_on(shared, part)
        config.seed, config.name = self.seed, self.name
        fields = dict(self.fields)
        factor = fields.pop("rate", 1.0)
        config.update_from_flattened_dict(fields)
        if self.method.stages:
            config.rounds = self.method.rounds
            config.stages = tuple(
                own | fields | {RATE: factor * own.get(RATE, config.optimizer.learning_rate)}
                for own in map(dict, self.method.stages)
            )
        own = {n: v for n, v in overrides.items() if n.split(".")[0] not in NOT_PASSED}
        return resolve_stages(config, own)


# Of the command line's overrides, those that the comparison's config has taken over, so that a
# stage's own fields stand: all but these stand over a stage's own.
NOT_PASSED = ("comparison", "evaluation", "optimizer", "batch")
# Those that every trial sets itself, and what is to be set instead.
SET_BY_TRIALS = {
    "seed": "comparison.seeds",
    "name": "--workdir",
    "parent": "comparison.methods",
    "start": "comparison.methods",
    "stages": "comparison.methods",
    "rounds": "comparison.methods",
    "optimizer.learning_rate": "comparison.rates, which are factors of the methods' rates",
    "evaluation.turns": "comparison.sets",
    "evaluation.sets": "comparison.sets",
}


def check_overrides(shared: Any, overrides: Mapping[str, Any]) -> None:
    """Refuses what would reach no trial.

    Raises:
      ValueError: a field is set that every trial sets itself.
    """
    for name in overrides:
        for own, instead in SET_BY_TRIALS.items():
            if name == own or name.startswith(own + "."):
                raise ValueError(
                    f"--config.{name} is set, but a comparison sets it for each trial: set "
                    f"{instead}"
                )
    if shared.evaluation.sets or shared.evaluation.turns != 2:
        raise ValueError(
            f"config.evaluation has turns {shared.evaluation.turns} and sets "
            f"{shared.evaluation.sets.to_dict()}; methods are compared by two attempts: set 2, and "
            "put further measurements into comparison.sets"
        )


def measured_on(shared: ConfigDict, part: Part) -> ConfigDict:
    """The comparison's config without the comparison, for training or for the final measurement.

    What is chosen is chosen by greedy decoding on validation problems, so nothing else is
    measured there.
    """
    config: Any = ConfigDict(shared.to_dict())
    del config["comparison"]
    config.log.progress = False
    if part == "validation":
        evaluation = config.evaluation
        evaluation.data = ConfigDict(evaluation.validation.to_dict())
        evaluation.problems = evaluation.validation_problems
        evaluation.samples = 0
        evaluation.task, evaluation.prompt_limit = "", 0  # as the training problems
    return config


def with_sets(settings: Settings, sets: tuple[tuple[str, Any], ...]) -> Settings:
    """The settings with other further measurements."""
    evaluation = dataclasses.replace(settings.evaluation, sets=sets)
    return dataclasses.replace(settings, evaluation=evaluation)


def roles_of(settings: Settings, sets: tuple[tuple[str, Any], ...]) -> dict[str, list[str]]:
    """What each turn of further measurements is, by their names.

    Raises:
      ValueError: one is invalid.
    """
    measured = with_sets(settings, sets).measured_sets
    return {name: list(own.measured_plan.roles) for name, own in measured.items()}


def describe_fields(fields: tuple[tuple[str, Any], ...]) -> str:
    """The fields of a variant in a line."""
    return ", ".join(
        f"{value:g} x rate" if name == "rate" else f"{name}={value!r}" for name, value in fields
    )


@dataclass(frozen=True)
class Spent:
    """What training costs, for comparing like with like."""

    dialogues: int  # that the policy draws, with sampling.redraws at most
    updates: int  # of its parameters

    @classmethod
    def of(cls, stages: list[Settings]) -> "Spent":
        """What the stages of a trial spend."""
        drawn = [s for s in stages if s.program != "supervised"]
        learnt = [s for s in stages if s.program != "collect"]
        return cls(
            dialogues=sum(
                s.steps * s.batch * s.sampling.group_size * (1 + s.sampling.redraws) for s in drawn
            ),
            updates=sum(s.steps * s.learner.minibatches for s in learnt),
        )


def check_budgets(spent: Mapping[str, Spent], methods: Mapping[str, Method], whole: int) -> None:
    """Checks that every method draws the dialogues that its budget allows.

    Args:
      whole: dialogues of a budget of 1.

    Raises:
      ValueError: a method draws more or fewer.
    """
    for name, own in spent.items():
        allowed = methods[name].budget * whole
        if methods[name].stages and not math.isclose(own.dialogues, allowed):
            raise ValueError(
                f"comparison.methods.{name} draws {own.dialogues} dialogues, others {whole}; "
                f"with its budget of {methods[name].budget} it may draw {allowed:g}: change its "
                "stages' share or steps, or say another budget"
            )
