"""Sections of a config that belong to no other module: one frozen dataclass each, checked."""

import dataclasses
import re
from importlib.util import find_spec
from typing import Any, Literal, get_args

from score_jax.checks import Count, Kept, Natural, NotNegative, Positive, Seed, check_fields
from score_jax.model.config import ModelConfig

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
        "embedded"  # "embedded", "random", a folder, a .gguf file, hub:org/name[@revision];
        # stage:NAME in a list of stages: what that one has trained
    )
    adapter: str = ""  # a PEFT folder or hub:org/name, added to the weights; "": none

    def __post_init__(self):
        check_fields(self, "weights")
        if self.adapter and self.source in ("embedded", "random"):
            raise ValueError(
                f"weights.adapter is {self.adapter!r}, but weights.source {self.source!r}; an "
                "adapter goes with the weights that it was trained beside: name them"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Overrides of ModelConfig for models whose config comes with the weights; "": no override."""

    dtype: str = ""  # of activations, and of the parameters while sampling
    remat: str = ""  # activations that the backward pass recomputes: none, dots, full
    attention: str = ""  # without a cache: auto, plain, cudnn, splash

    def __post_init__(self):
        check_fields(self, "compute")

    def apply_to(self, model: ModelConfig) -> ModelConfig:
        """Returns the model config with the fields that are set here replaced.

        Raises:
          ValueError: ModelConfig does not accept a value.
        """
        overrides = {name: value for name, value in dataclasses.asdict(self).items() if value}
        return dataclasses.replace(model, **overrides)


REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
AS_STORED = ComputeConfig()  # no overrides


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradingConfig:
    """Number and limits of the worker processes that grade answers."""

    workers: Count = 2  # per host
    deadline_seconds: Positive = 5.0  # of one answer
    batch_deadline_seconds: Positive = 60.0  # of the answers of a turn, from its end
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
    turns: int = 2  # of a dialogue, 1 to 10
    dialogue: tuple[tuple[str, Any], ...] = ()  # as config.dialogue; usually all turns sampled
    samples: Natural = 4  # sampled dialogues per problem; 0: greedy decoding only
    temperature: Positive = 1.0  # of the sampled dialogues
    seed: Seed = 0
    # Overrides of config.data. config.data.task is dropped for another data set or task.
    data: tuple[tuple[str, Any], ...] = ()
    # Further evaluations, by name: fields of this section that differ; of `dialogue` its own fields
    # that do. Each gets a file of its own.
    sets: tuple[tuple[str, Any], ...] = ()
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

    rollouts: Kept = -1  # dialogues kept of a step, with tokens and verdicts; -1: all
    rollouts_every: Count = 1  # steps from one that is kept to the next
    tensorboard: bool = True
    wandb: str = ""  # project name; needs the extra [wandb]
    progress: bool = True  # whether to show progress bars
    samples: Natural = 4  # dialogues of a step that TensorBoard and wandb show
    samples_every: Count = 10  # steps from one that is shown to the next
    report_minutes: NotNegative = 10.0  # between two writings of report.html; 0: at the end only

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


NO_PROFILE = ProfileConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What an exported folder says of itself, and where it goes."""

    license: str = ""  # identifier on a hub, such as apache-2.0, for the model card; "": not stated
    push: str = ""  # org/name on a hub that the folder is uploaded to, as a private one; "": none

    def __post_init__(self):
        check_fields(self, "export")
        if self.push and not REPOSITORY.fullmatch(self.push):
            raise ValueError(f"export.push is {self.push!r}; write org/name")


HERE = ExportConfig()
