"""Parses a ConfigDict into frozen dataclasses and checks every value.

Each section of a config holds the keyword arguments of one dataclass. The modules that run
a stage read these dataclasses only, no ConfigDict and no flags.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

from ml_collections import ConfigDict

from score_jax.checks import (
    RENAMED_FIELDS,
    Count,
    NotNegative,
    Seed,
    check_fields,
)
from score_jax.distributed.sharding import MeshConfig
from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.lora import LoraConfig
from score_jax.report.alarms import USUAL, AlarmsConfig, Watched
from score_jax.rl.coefficients import CONSTANT, CoefficientsConfig
from score_jax.rl.dialogue import SAMPLED, DialoguePlan
from score_jax.rl.estimators import EstimatorConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.objectives import Objective
from score_jax.rl.optimizer import OptimizerConfig
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.rl.selection import check_redraws
from score_jax.stages.methods import LIST_FIELDS
from score_jax.stages.sections import (
    AS_STORED,
    HERE,
    NO_PROFILE,
    CheckpointConfig,
    ComputeConfig,
    EvaluationConfig,
    ExportConfig,
    GradingConfig,
    LogConfig,
    ProfileConfig,
    Select,
    TokenizerConfig,
    WeightsConfig,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # stage names, which name folders
ProgramKind = Literal["rl", "supervised", "collect", "prompting"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one stage, checked."""

    name: str  # of the stage, and of its folder in the workdir
    parent: str = ""  # config file of the stage to start from; "": the base model
    start: str = ""  # in a method's list of stages: see stages.methods
    program: ProgramKind = "rl"
    task: str = "equations"
    seed: Seed = 0
    steps: Count
    batch: Count  # problems per step over all hosts (rows for supervised training)
    # Most nats per token by which sampler and scorer may differ, as a mean over a turn; None:
    # the default of the dtype.
    mismatch_limit: NotNegative | None = None
    data: tuple[tuple[str, Any], ...] = ()
    examples: tuple[tuple[str, Any], ...] = ()  # program "supervised" only
    tokenizer: TokenizerConfig
    weights: WeightsConfig
    model: ModelConfig | None
    lora: LoraConfig | None = None  # None (rank 0 in a config): all parameters are trained
    compute: ComputeConfig = AS_STORED
    mesh: MeshConfig
    sampling: SamplingConfig
    dialogue: DialoguePlan = SAMPLED
    objective: Objective
    estimator: EstimatorConfig
    coefficients: CoefficientsConfig = CONSTANT
    optimizer: OptimizerConfig
    learner: LearnerConfig
    grading: GradingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    log: LogConfig
    alarms: AlarmsConfig = USUAL
    profile: ProfileConfig = NO_PROFILE
    export: ExportConfig = HERE

    def __post_init__(self):
        check_fields(self, "config")
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"config.name is {self.name!r}; it names a folder of the workdir: set up to 100 "
                "letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
        if self.program not in get_args(ProgramKind):
            raise ValueError(
                f"config.program is {self.program!r}; choose one of "
                f"{', '.join(get_args(ProgramKind))}"
            )
        parts = self.learner.microbatches * self.learner.minibatches
        if self.rows % parts:
            raise ValueError(
                f"config.batch is {self.batch}, {self.rows} rows; they must split evenly into "
                f"learner.microbatches x learner.minibatches = {parts} parts"
            )
        self.check_selection()
        plan = self.plan
        assert self.measured_plan, "raises where evaluation's turns contradict each other"
        assert self.measured_sets is not None, "raises where a set is invalid"
        if self.program == "rl":
            self.objective.check_plan(plan)
            self.coefficients.check(self.objective)
            check_grouping(self.estimator, self.sampling, self.learner)
            check_redraws(self.sampling, self.objective, plan.roles)
        elif self.sampling.redraws:
            raise ValueError(
                f"sampling.redraws is {self.sampling.redraws}, but program {self.program!r} does "
                "not choose among what it draws: set 0"
            )

    @property
    def rows(self) -> int:
        """Dialogues of a step, before redraws."""
        return self.batch * (1 if self.program == "supervised" else self.sampling.group_size)

    @property
    def plan(self) -> DialoguePlan:
        """The dialogues of training."""
        return self.dialogue.complete(self.objective.turns, self.sampling.turn_limit)

    @property
    def watched(self) -> Watched:
        """What alarms may judge; nothing of a supervised stage, which draws no attempt."""
        plan, draws = self.plan, self.program == "rl"
        return Watched(
            turns=tuple(t for t, trained in enumerate(plan.trained, 1) if trained and draws),
            last=plan.turns,
            answers=plan.roles.count("answer") if draws else 0,
            grouped=draws and self.sampling.group_size > 1,
        )

    @property
    def has_base(self) -> bool:
        """Whether it starts from a model worth measuring, not from weights drawn at random."""
        return self.program != "supervised" or self.weights.source != "random"

    @property
    def selects(self) -> Select:
        """How the checkpoint is selected; no training reward ranks those of supervised learning."""
        unranked = self.program == "supervised" and self.checkpoint.select == "best"
        return "last" if unranked else self.checkpoint.select

    @property
    def measured_plan(self) -> DialoguePlan:
        """The dialogues of evaluation."""
        plan = DialoguePlan(**dict(self.evaluation.dialogue))
        return plan.complete(self.evaluation.turns, self.sampling.turn_limit)

    @property
    def measured_task(self) -> str:
        """The task that evaluation measures."""
        return self.evaluation.task or self.task

    @property
    def measured_prompt_limit(self) -> int:
        """Most tokens of an evaluation prompt."""
        return self.evaluation.prompt_limit or self.sampling.prompt_limit

    @property
    def measured_data(self) -> dict[str, Any]:
        """Keyword arguments of data.sources.load for the evaluation's problems."""
        base, overrides = dict(self.data), dict(self.evaluation.data)
        base.pop("first_attempts", None)  # they are at the training problems
        if overrides.get("source", base.get("source")) != base.get("source"):
            for field in ("name", "subset", "fields"):  # they tell how the other source is read
                base.pop(field, None)
        other_data = overrides.keys() & {"source", "name", "path", "parts"}
        if self.measured_task != self.task or other_data:
            base.pop("task", None)  # it describes the training problems
        return base | overrides

    @property
    def measured_sets(self) -> dict[str, "Settings"]:
        """The settings with which each of evaluation.sets is measured.

        A set's `dialogue` is put over that of evaluation, field by field.

        Raises:
          ValueError: a set has a field that evaluation lacks, or its dialogue does not fit its
            turns.
        """
        found = {}
        for name, values in self.evaluation.sets:
            fields = {**vars(self.evaluation), "sets": (), **dict(values)}
            dialogue = dict(self.evaluation.dialogue) | dict(dict(values).get("dialogue", ()))
            path = f"config.evaluation.sets.{name}"
            own = build_section(EvaluationConfig, fields | {"dialogue": dialogue}, path)
            try:
                found[name] = dataclasses.replace(self, evaluation=own)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        return found

    def check_selection(self) -> None:
        """Checks that validation runs at every checkpoint that is selected by it.

        Raises:
          ValueError: it does not.
        """
        every = self.evaluation.every
        if self.checkpoint.select == "validation" and (every < 1 or self.checkpoint.every % every):
            raise ValueError(
                f"checkpoint.select is 'validation' with evaluation.every={every}; set "
                f"evaluation.every to a divisor of checkpoint.every ({self.checkpoint.every})"
            )


def check_grouping(
    estimator: EstimatorConfig, sampling: SamplingConfig, learner: LearnerConfig
) -> None:
    """Checks that baseline, group size, temperature and minibatches fit together.

    Raises:
      ValueError: the baseline needs more samples per problem, sampling is off-policy, a
        rollout is used for several updates without `estimator.clip`, or gradients are taken
        elsewhere.
    """
    if sampling.group_size % sampling.second_attempts:
        raise ValueError(
            f"sampling.group_size is {sampling.group_size}; "
            f"set a multiple of sampling.second_attempts {sampling.second_attempts}"
        )
    if estimator.baseline == "leave_one_out" and sampling.group_size < 2:
        raise ValueError(
            "estimator.baseline is 'leave_one_out' and sampling.group_size is "
            f"{sampling.group_size}; draw at least 2 samples or choose another baseline"
        )
    if estimator.baseline == "leave_one_out_attempt" and (
        sampling.second_attempts < 2 or sampling.group_size < 2 * sampling.second_attempts
    ):
        raise ValueError(
            "estimator.baseline is 'leave_one_out_attempt' with sampling.group_size="
            f"{sampling.group_size} and sampling.second_attempts={sampling.second_attempts}; it "
            "needs at least 2 second attempts from each of at least 2 first attempts"
        )
    if sampling.second_attempts > 1 and estimator.baseline != "leave_one_out_attempt":
        raise ValueError(
            f"sampling.second_attempts is {sampling.second_attempts} with estimator.baseline="
            f"{estimator.baseline!r}; set the baseline to 'leave_one_out_attempt', or "
            "second_attempts to 1"
        )
    if sampling.temperature != 1.0:
        raise ValueError(
            f"sampling.temperature is {sampling.temperature}; training is on-policy: set 1.0"
        )
    if learner.minibatches > 1 and estimator.clip is None:
        raise ValueError(
            f"learner.minibatches is {learner.minibatches}; later updates are off-policy: "
            "set estimator.clip, or minibatches to 1"
        )
    if learner.weight_noise:
        raise ValueError(
            f"learner.weight_noise is {learner.weight_noise}; it is for program 'supervised': set 0"
        )


SECTIONS: dict[str, type] = {
    "tokenizer": TokenizerConfig,
    "weights": WeightsConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "compute": ComputeConfig,
    "mesh": MeshConfig,
    "sampling": SamplingConfig,
    "dialogue": DialoguePlan,
    "objective": Objective,
    "estimator": EstimatorConfig,
    "coefficients": CoefficientsConfig,
    "optimizer": OptimizerConfig,
    "learner": LearnerConfig,
    "grading": GradingConfig,
    "checkpoint": CheckpointConfig,
    "evaluation": EvaluationConfig,
    "log": LogConfig,
    "alarms": AlarmsConfig,
    "profile": ProfileConfig,
    "export": ExportConfig,
}


def parse(config: Any) -> Settings:
    """Converts a ConfigDict to Settings and checks it.

    Raises:
      ValueError: it lists a method's stages; or a field is unknown, missing or out of range; the
        message names it.
    """
    if config.get("stages"):
        raise ValueError("config.stages lists stages; stages.resolve makes each a config")
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name in LIST_FIELDS:
            continue
        if name == "lora" and value is not None and value.get("rank") == 0:
            fields[name] = None
        elif name in SECTIONS and value is not None:
            fields[name] = build_section(SECTIONS[name], value, f"config.{name}")
        elif name in ("data", "examples"):
            fields[name] = sorted_items(value)
        else:
            fields[name] = value
    return build_section(Settings, fields, "config")


def build_section(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """Builds the dataclass `kind` from a section of the config.

    Args:
      path: of the section, for error messages.

    Raises:
      ValueError: a field is unknown, missing or out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            if new_name := RENAMED_FIELDS.get(f"{path}.{name}".removeprefix("config.")):
                raise ValueError(f"{path}.{name} is no field of the config; it is {new_name} now")
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(fields)}"
            raise ValueError(f"{path}.{name} is no field of the config; {hint}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; set it in the config file")
    arguments = {name: to_hashable(value) for name, value in values.items()}
    if kind is ModelConfig:
        for name in ("rope_scaling", "rope_local_scaling"):
            if isinstance(arguments.get(name), tuple):
                arguments[name] = RopeScaling(**dict(arguments[name]))
    return kind(**arguments)


def to_hashable(value: Any) -> Any:
    """Converts lists to tuples and mappings to sorted tuples of items, recursively."""
    if isinstance(value, Mapping | ConfigDict):
        return sorted_items(value)
    if isinstance(value, list | tuple):
        return tuple(to_hashable(part) for part in value)
    return value


def sorted_items(value: Any) -> tuple[tuple[str, Any], ...]:
    """Converts a mapping to a sorted tuple of pairs, whose values are hashable."""
    return tuple(sorted((name, to_hashable(part)) for name, part in value.items()))
