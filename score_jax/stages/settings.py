"""Parses a ConfigDict into frozen dataclasses and checks every value.

Each section of a config holds the keyword arguments of one dataclass. The modules that run
a stage read these dataclasses only, no ConfigDict and no flags.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

from ml_collections import ConfigDict

from score_jax.checks import (
    RENAMED_FIELDS,
    Count,
    Natural,
    NotNegative,
    Positive,
    Seed,
    Share,
    check_fields,
)
from score_jax.distributed.sharding import MeshConfig
from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.lora import LoraConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.objectives import Objective
from score_jax.rl.optimizer import OptimizerConfig
from score_jax.rl.sampling import SamplingConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # stage names, which name folders
ProgramKind = Literal["rl", "supervised"]
Select = Literal["best", "validation", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Source of the tokenizer, and the chat format."""

    # "embedded", "trained" on the task, a folder, "stand_in" (for plans); "": weights.source
    source: str = "embedded"
    chat: str = "plain"  # name of a chat format in text.chat

    def __post_init__(self):
        check_fields(self, "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Source of the base model, which is also the reference."""

    source: str = (
        "embedded"  # "embedded", "random", a folder, a .gguf file, hub:org/name[@revision]
    )

    def __post_init__(self):
        check_fields(self, "weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Overrides of ModelConfig for models whose config comes with the weights; "": no override."""

    dtype: str = ""  # of activations, and of the parameters while sampling
    remat: str = ""  # activations that the backward pass recomputes: none, dots, full

    def __post_init__(self):
        check_fields(self, "compute")

    def apply_to(self, model: ModelConfig) -> ModelConfig:
        """Returns the model config with the fields that are set here replaced.

        Raises:
          ValueError: ModelConfig does not accept a value.
        """
        overrides = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return dataclasses.replace(model, **overrides)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Number and limits of the worker processes that grade answers."""

    workers: Count = 2  # per host
    deadline_seconds: Positive = 5.0  # of one answer
    batch_deadline_seconds: Positive = 60.0  # of all answers of a rollout
    recycle_after: Count = 10_000  # answers after which a worker is replaced
    cache_size: Natural = 100_000  # verdicts cached

    def __post_init__(self):
        check_fields(self, "grading")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are saved, and which one a stage hands on to its child."""

    every: Count = 50  # steps
    keep: Count = 2  # number of latest checkpoints kept, in addition to the best
    # "best" training reward (the paper's rule), best accuracy of the last turn on the
    # "validation" problems, or the "last" checkpoint.
    select: Select = "best"

    def __post_init__(self):
        check_fields(self, "checkpoint")
        if self.select not in get_args(Select):
            raise ValueError(
                f"checkpoint.select is {self.select!r}; choose one of {', '.join(get_args(Select))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Evaluation on held-out problems after the last step, and validation during training."""

    task: str = ""  # of the held-out problems; "": config.task
    prompt_limit: Natural = 0  # tokens; 0: sampling.prompt_limit
    problems: Natural = 1000  # 0: all
    batch: Count = 500  # problems per sampling call
    turns: int = 2  # attempts per dialogue, 1 to 10
    samples: Natural = 4  # sampled dialogues per problem; 0: greedy decoding only
    temperature: Positive = 1.0  # of the sampled dialogues
    seed: Seed = 0
    # Overrides of config.data. config.data.task is dropped for another data set or task.
    data: tuple[tuple[str, Any], ...] = ()
    every: Natural = 0  # steps between validations during training; 0: no validation
    validation: tuple[tuple[str, Any], ...] = (("split", "validation"),)  # overrides of config.data
    validation_problems: Natural = 200  # 0: all

    def __post_init__(self):
        check_fields(self, "evaluation")
        if not 1 <= self.turns <= 10:
            raise ValueError(f"evaluation.turns is {self.turns}; set 1 to 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Which logs a stage writes."""

    transcripts: Natural = 8  # dialogues written per logged step
    transcripts_every: Count = 10  # steps between logged ones
    tensorboard: bool = True
    wandb: str = ""  # project name; needs the extra [wandb]
    progress: bool = True  # whether to show progress bars

    def __post_init__(self):
        check_fields(self, "log")
        if self.wandb and find_spec("wandb") is None:
            raise ValueError(
                f"log.wandb is {self.wandb!r} and wandb is not installed; install the extra "
                "(pip install -e '.[wandb]') or set log.wandb to ''"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Windows of steps that the profiler records, on all hosts."""

    steps: Natural = 0  # length of a window; 0: the profiler is off
    start: Natural = 2  # steps before the first window; the first steps compile
    every: Natural = 0  # steps from the start of one window to the next start; 0: one window

    def __post_init__(self):
        check_fields(self, "profile")
        if 0 < self.every <= self.steps:
            raise ValueError(
                f"profile.every is {self.every}; set 0, or more than profile.steps ({self.steps})"
            )

    def records(self, done: int) -> bool:
        """Whether the step that follows `done` finished steps is in a window."""
        since = done - self.start
        if since < 0 or not self.steps:
            return False
        return (since % self.every if self.every else since) < self.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PracticeConfig:
    """Mix of the dialogues that train the embedded base policy; see data.equations.dialogues."""

    careful: Share = 0.8  # careful second attempts, as a share of all, before `settling`
    careful_at_last: Share = 0.12  # the same share during `settling`
    settling: Share = 0.2  # the last steps, as a share of all
    right: Share = 0.25  # right first attempts, as a share of all; wrong guesses have no loss
    # Norm of the random perturbation at which gradients are taken, as a share of each
    # tensor's norm; it favours wide optima.
    weight_noise: Share = 0.0

    def __post_init__(self):
        check_fields(self, "practice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of one stage, checked."""

    name: str  # of the stage, and of its folder in the workdir
    parent: str = ""  # config file of the stage to start from; "": the base model
    program: ProgramKind = "rl"
    task: str = "equations"
    seed: Seed = 0
    steps: Count
    batch: Count  # problems per step over all hosts (rows for supervised training)
    # Most nats per token by which sampler and scorer may differ, as a mean over a turn; None:
    # the default of the dtype.
    mismatch_limit: NotNegative | None = None
    data: tuple[tuple[str, Any], ...] = ()
    practice: PracticeConfig = PracticeConfig()  # program "supervised" only
    tokenizer: TokenizerConfig
    weights: WeightsConfig
    model: ModelConfig | None
    lora: LoraConfig | None = None  # None (rank 0 in a config): all parameters are trained
    compute: ComputeConfig = ComputeConfig()
    mesh: MeshConfig
    sampling: SamplingConfig
    objective: Objective
    optimizer: OptimizerConfig
    learner: LearnerConfig
    grading: GradingConfig
    checkpoint: CheckpointConfig
    evaluation: EvaluationConfig
    log: LogConfig
    profile: ProfileConfig = ProfileConfig()

    def __post_init__(self):
        check_fields(self, "config")
        if not NAME.fullmatch(self.name):
            raise ValueError(
                f"config.name is {self.name!r}; it names a folder of the workdir: set up to 100 "
                "letters, digits, '.', '_' and '-', beginning with a letter or digit"
            )
        if self.program not in get_args(ProgramKind):
            raise ValueError(f"config.program is {self.program!r}; choose rl or supervised")
        rows = self.batch * (self.sampling.group_size if self.program == "rl" else 1)
        parts = self.learner.microbatches * self.learner.minibatches
        if rows % parts:
            raise ValueError(
                f"config.batch is {self.batch}, {rows} rows; they must split evenly into "
                f"learner.microbatches x learner.minibatches = {parts} parts"
            )
        self.check_selection()
        if self.program == "supervised" and self.lora is not None:
            raise ValueError("config.lora is for program 'rl'; set lora.rank to 0")
        if self.program == "rl":
            check_grouping(self.objective, self.sampling, self.learner)

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
        other_data = overrides.keys() & {"source", "name", "path", "parts"}
        if self.measured_task != self.task or other_data:
            base.pop("task", None)  # it describes the training problems
        return base | overrides

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


def check_grouping(objective: Objective, sampling: SamplingConfig, learner: LearnerConfig) -> None:
    """Checks that baseline, group size, temperature and minibatches fit together.

    Raises:
      ValueError: the baseline needs more samples per problem, sampling is off-policy, or a
        rollout is used for several updates without `objective.clip`.
    """
    if objective.baseline == "leave_one_out" and sampling.group_size < 2:
        raise ValueError(
            "objective.baseline is 'leave_one_out' and sampling.group_size is "
            f"{sampling.group_size}; draw at least 2 samples or choose another baseline"
        )
    if objective.baseline == "leave_one_out_attempt" and (
        sampling.second_attempts < 2 or sampling.group_size < 2 * sampling.second_attempts
    ):
        raise ValueError(
            "objective.baseline is 'leave_one_out_attempt' with sampling.group_size="
            f"{sampling.group_size} and sampling.second_attempts={sampling.second_attempts}; it "
            "needs at least 2 second attempts from each of at least 2 first attempts"
        )
    if sampling.second_attempts > 1 and objective.baseline != "leave_one_out_attempt":
        raise ValueError(
            f"sampling.second_attempts is {sampling.second_attempts} with objective.baseline="
            f"{objective.baseline!r}; set the baseline to 'leave_one_out_attempt', or "
            "second_attempts to 1"
        )
    if sampling.temperature != 1.0:
        raise ValueError(
            f"sampling.temperature is {sampling.temperature}; training is on-policy: set 1.0"
        )
    if learner.minibatches > 1 and objective.clip is None:
        raise ValueError(
            f"learner.minibatches is {learner.minibatches}; later updates are off-policy: "
            "set objective.clip, or minibatches to 1"
        )


SECTIONS: dict[str, type] = {
    "practice": PracticeConfig,
    "tokenizer": TokenizerConfig,
    "weights": WeightsConfig,
    "model": ModelConfig,
    "lora": LoraConfig,
    "compute": ComputeConfig,
    "mesh": MeshConfig,
    "sampling": SamplingConfig,
    "objective": Objective,
    "optimizer": OptimizerConfig,
    "learner": LearnerConfig,
    "grading": GradingConfig,
    "checkpoint": CheckpointConfig,
    "evaluation": EvaluationConfig,
    "log": LogConfig,
    "profile": ProfileConfig,
}


def parse(config: Any) -> Settings:
    """Converts a ConfigDict to Settings and checks it.

    Raises:
      ValueError: a field is unknown, missing or out of range; the message names it.
    """
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name == "lora" and value is not None and value.get("rank") == 0:
            fields[name] = None
        elif name in SECTIONS and value is not None:
            fields[name] = build_section(SECTIONS[name], value, f"config.{name}")
        elif name == "data":
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
