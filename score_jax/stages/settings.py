"""The door: a ConfigDict comes in, frozen and checked dataclasses go on.

Each section of a config is the keyword arguments of one dataclass. Below this module
nobody sees a ConfigDict, a flag or a hidden default.
"""

import dataclasses
import difflib
import re
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Literal, get_args

from ml_collections import ConfigDict

from score_jax.checks import Count, Natural, NotNegative, Positive, Seed, Share, check_fields
from score_jax.distributed.sharding import MeshConfig
from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.lora import LoraConfig
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.objectives import Objective
from score_jax.rl.optimizer import OptimizerConfig
from score_jax.rl.sampling import SamplingConfig

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # of a stage
ProgramKind = Literal["rl", "supervised"]
Select = Literal["best", "validation", "last"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Where the tokenizer comes from and how dialogues are written."""

    # "embedded", "trained" on the task, a folder, "stand_in" (plans); "": beside the weights
    source: str = "embedded"
    chat: str = "plain"  # a format of text.chat

    def __post_init__(self):
        check_fields(self, "tokenizer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Where the base model, which is also the reference, comes from."""

    source: str = (
        "embedded"  # "embedded", "random", a folder, a .gguf file, hub:org/name[@revision]
    )

    def __post_init__(self):
        check_fields(self, "weights")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a model whose shape comes with its weights is computed; "": as the model says."""

    dtype: str = ""  # of activations, and of the parameters that sampling reads
    remat: str = ""  # what the backward pass recomputes: none, dots, full

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
    """Worker processes that grade answers."""

    workers: Count = 2  # per host
    deadline_seconds: Positive = 5.0  # of one answer
    batch_deadline_seconds: Positive = 60.0  # of all answers of a rollout
    recycle_after: Count = 10_000  # answers after which a worker is replaced
    cache_size: Natural = 100_000  # verdicts remembered

    def __post_init__(self):
        check_fields(self, "grading")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which one a stage hands on."""

    every: Count = 50  # steps
    keep: Count = 2  # latest ones kept, beside the best
    # By training reward (the paper's rule), by validation accuracy of the last turn, or the last.
    select: Select = "best"

    def __post_init__(self):
        check_fields(self, "checkpoint")
        if self.select not in get_args(Select):
            raise ValueError(
                f"checkpoint.select is {self.select!r}; choose one of {', '.join(get_args(Select))}"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is measured on held-out problems when a stage ends."""

    task: str = ""  # that is measured; "": config.task
    prompt_limit: Natural = 0  # tokens; 0: sampling.prompt_limit
    problems: Natural = 1000  # 0: all
    batch: Count = 500  # problems per sampling call
    turns: int = 2  # attempts in a row, up to 10
    samples: Natural = 4  # dialogues per problem at temperature 1; 0: greedy only
    temperature: Positive = 1.0  # of the sampled part
    seed: Seed = 0
    # fields of config.data that differ; data.task holds for the same data set and task only
    data: tuple[tuple[str, Any], ...] = ()
    every: Natural = 0  # steps between two looks at validation problems in training; 0: none
    validation: tuple[tuple[str, Any], ...] = (("split", "validation"),)  # as data, for these
    validation_problems: Natural = 200  # 0: all

    def __post_init__(self):
        check_fields(self, "evaluation")
        if not 1 <= self.turns <= 10:
            raise ValueError(f"evaluation.turns is {self.turns}; set 1 to 10")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogConfig:
    """What is written besides checkpoints."""

    transcripts: Natural = 8  # dialogues recorded per logged step
    transcripts_every: Count = 10  # steps
    tensorboard: bool = True
    wandb: str = ""  # project name; needs the extra [wandb]
    progress: bool = True

    def __post_init__(self):
        check_fields(self, "log")
        if self.wandb and find_spec("wandb") is None:
            raise ValueError(
                f"log.wandb is {self.wandb!r} and wandb is not installed; install the extra "
                "(pip install -e '.[wandb]') or set log.wandb to ''"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileConfig:
    """Which steps the profiler records, on all hosts."""

    steps: Natural = 0  # length of a window; 0: nothing is recorded
    start: Natural = 2  # steps done before the first window: the first steps compile
    every: Natural = 0  # steps from the start of one window to that of the next; 0: only one window

    def __post_init__(self):
        check_fields(self, "profile")
        if 0 < self.every <= self.steps:
            raise ValueError(
                f"profile.every is {self.every}; set 0, or more than profile.steps ({self.steps})"
            )

    def records(self, done: int) -> bool:
        """Whether the step after `done` steps lies in a window."""
        since = done - self.start
        if since < 0 or not self.steps:
            return False
        return (since % self.every if self.every else since) < self.steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class PracticeConfig:
    """What the embedded base policy is taught; see data.procedural.dialogues."""

    careful: Share = 0.8  # share of careful second attempts while skills are learnt
    careful_at_last: Share = 0.12  # the same while habits settle
    settling: Share = 0.2  # share of the steps, at the end, over which they do
    right: Share = 0.25  # share of first attempts that are right, and learnt
    # Of each tensor's norm: the random step at whose end gradients are taken, for a wide optimum
    weight_noise: Share = 0.0

    def __post_init__(self):
        check_fields(self, "practice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One stage, checked."""

    name: str  # of the stage's folder in the workdir
    parent: str = ""  # config file of the stage that hands its policy on; "": the base model
    program: ProgramKind = "rl"
    task: str = "equations"
    seed: Seed = 0
    steps: Count
    batch: Count  # problems per step over all hosts (rows for supervised training)
    # Nats a token, mean over a turn; None: as compute.dtype has it.
    mismatch_limit: NotNegative | None = None
    data: tuple[tuple[str, Any], ...] = ()
    practice: PracticeConfig = PracticeConfig()  # program "supervised" only
    tokenizer: TokenizerConfig
    weights: WeightsConfig
    model: ModelConfig | None
    lora: LoraConfig | None = None  # None, in a config rank 0: every parameter is trained
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
        """The task that evaluation asks."""
        return self.evaluation.task or self.task

    @property
    def measured_prompt_limit(self) -> int:
        """The most tokens of a prompt of evaluation."""
        return self.evaluation.prompt_limit or self.sampling.prompt_limit

    @property
    def measured_data(self) -> dict[str, Any]:
        """Where evaluation's problems come from: keyword arguments of data.sources.load."""
        trained, own = dict(self.data), dict(self.evaluation.data)
        if self.measured_task != self.task or own.keys() & {"source", "name", "path", "parts"}:
            trained.pop("task", None)  # it is about other problems
        return trained | own

    def check_selection(self) -> None:
        """Checks that every checkpoint has the number that it is chosen by."""
        every = self.evaluation.every
        if self.checkpoint.select == "validation" and (every < 1 or self.checkpoint.every % every):
            raise ValueError(
                f"checkpoint.select is 'validation' with evaluation.every={every}; set "
                f"evaluation.every to a divisor of checkpoint.every ({self.checkpoint.every})"
            )


def check_grouping(objective: Objective, sampling: SamplingConfig, learner: LearnerConfig) -> None:
    """Checks that the baseline has other samples to compare with.

    Raises:
      ValueError: it has none, or a rollout is reused without a clip range.
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
    """Checks a config and turns it into frozen dataclasses.

    Raises:
      ValueError: a field is unknown, missing or out of range; the message names it.
    """
    fields: dict[str, Any] = {}
    for name, value in config.items():
        if name == "lora" and value is not None and value.get("rank") == 0:
            fields[name] = None
        elif name in SECTIONS and value is not None:
            fields[name] = section(SECTIONS[name], value, f"config.{name}")
        elif name == "data":
            fields[name] = items(value)
        else:
            fields[name] = value
    return section(Settings, fields, "config")


def section(kind: type, values: Mapping[str, Any], path: str) -> Any:
    """One dataclass from its keyword arguments; `path` is named in errors."""
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"{path}.{name} is no field of the config; {hint}")
    missing = [
        name
        for name, field in known.items()
        if name not in values and field.default is dataclasses.MISSING
    ]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; set it in the config file")
    arguments = {name: plain(value) for name, value in values.items()}
    if kind is ModelConfig:
        for name in ("rope_scaling", "rope_local_scaling"):
            if isinstance(arguments.get(name), tuple):
                arguments[name] = RopeScaling(**dict(arguments[name]))
    return kind(**arguments)


def plain(value: Any) -> Any:
    """Lists become tuples and mappings tuples of items, so that settings are hashable."""
    if isinstance(value, Mapping | ConfigDict):
        return items(value)
    if isinstance(value, list | tuple):
        return tuple(plain(part) for part in value)
    return value


def items(value: Any) -> tuple[tuple[str, Any], ...]:
    """A mapping as a sorted tuple of pairs."""
    return tuple(sorted((name, plain(part)) for name, part in value.items()))
