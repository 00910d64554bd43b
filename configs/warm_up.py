"""SCoRe on a base model that seldom answers in the task's form: first it learns the form.

Run:     python -m score_jax.main --config=configs/warm_up.py:PRESET
         PRESET of a published model in configs/presets.py, such as smollm2_135m_brief
Gives:   warm_up, stage1 and stage2 in the workdir; warm_up/export is the base model of the two.
Cost:    smollm2_135m_brief (five steps in all): 9 minutes on two busy cores, when it had one turn;
         smollm2_135m_subtraction: docs/real_models.md. All others: not run.
Expect:  of the brief one, nothing but that it runs (2 problems); of subtraction's, without its
         stages, docs/real_models.md; else unknown: not run.

The warm-up is fine-tuning on problems with their worked answers (data.fields.worked; the named
formats math and gsm8k have it), closed by the gold answer in the form that the task's grader
reads. The answer stands in both turns, half of the time behind a wrong one: what is learnt of
first attempts alone left hardly a second one right, and where all are right they are only copied
(docs/real_models.md). Its policy is then the base model, so that both stages' KL is
measured against what already answers in form. Rows that answer as they should make it needless:
see verdict/unparsable of the base model's evaluation before (docs/guide.md).
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from configs import methods, presets

WARM_UP = {
    "name": "warm_up",
    "program": "supervised",
    "batch": 256,  # dialogues; see methods.for_preset
    "objective.reward_weights": (1.0, 1.0),  # the answer in both turns
    "objective.beta": (0.0, 0.0),
    "examples.source": "answers",
    "examples.mistaken": 0.5,
    "optimizer.learning_rate": methods.SUPERVISED_RATE,
    "checkpoint.select": "last",
}
# Two to three visits of each problem: the form is soon learnt, and more teaches the answers.
STEPS = {"math": 22, "code": 10, "words": 160, "brief": 1}
# Subtraction's answers are to be learnt: first attempts by themselves, since their rows are half as
# long, then both turns. At a rate and with a batch of its own, 64 dialogues.
SUBTRACTION: tuple[dict[str, Any], ...] = (
    {
        "name": "first_attempts",
        "steps": 100,
        "batch": 64,
        "optimizer.learning_rate": 1e-4,
        "checkpoint.every": 50,
        "objective.reward_weights": (1.0,),
        "objective.beta": (0.0,),
        "examples.mistaken": 0.0,
    },
    {"steps": 20, "batch": 64, "optimizer.learning_rate": 1e-4, "checkpoint.every": 20},
)
ON_IT = {"weights.source": "stage:warm_up"}


def get_config(preset: str = "") -> ConfigDict:
    """A warm-up, then both stages on it.

    Raises:
      ValueError: there is no such preset, or it is an embedded task.
    """
    if preset in ("", *presets.EMBEDDED):
        raise ValueError(
            f"the preset of configs/warm_up.py is {preset!r}; choose a published model of "
            "configs/presets.py: the embedded ones answer in form"
        )
    config: Any = methods.shared(preset)
    config.name = "warm_up"
    task = presets.split(preset)[1]
    stages = (methods.STAGE1, methods.STAGE2)
    if task == "subtraction":
        own = methods.for_preset({"stages": stages}, preset)["stages"]
        config.stages = before(SUBTRACTION, own)
    else:
        whole = before(({"steps": STEPS[task]},), stages)
        config.stages = methods.for_preset({"stages": whole}, preset)["stages"]
    return config


def before(
    warmed: Sequence[dict[str, Any]], stages: Sequence[dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """A warm-up and the stages of a method on what it has trained.

    Args:
      warmed: fields of the warm-up's stages, where they differ from WARM_UP; those before the last
        have names of their own.
    """
    first, *rest = (stage | ON_IT for stage in stages)
    return (*(WARM_UP | fields for fields in warmed), {"start": "base"} | first, *rest)
