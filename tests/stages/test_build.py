"""Every config becomes programs whose shapes and shardings fit each other."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import base, multi_turn, single_turn, stage1, stage2
from score_jax.distributed import sharding
from score_jax.stages.build import build, check_lengths, check_rows, layer_groups
from score_jax.stages.settings import parse
from score_jax.stages.step_programs import calls, result
from score_jax.tasks import registry
from tests.stage_configs import stages
from tests.tiny import MODEL
from tests.tiny_stages import finish

CONFIGS = {c.__name__.split(".")[-1]: c for c in (base, stage1, stage2, single_turn, multi_turn)}


def shapes(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


def traced(programs):
    """Episodes, scores, and the train state before and after an update, as shapes."""
    update = calls(programs)[-1]
    state, reference, episodes, scores = update.arguments
    if programs.settings.program == "supervised":
        rows = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (programs.settings.batch, *leaf.shape[1:]), leaf.dtype
            ),
            episodes,
        )
        return episodes, None, state, result(programs.sft_update, state, reference, rows)[0]
    return episodes, scores, state, result(update.program, *update.arguments)[0]


def row_length(programs):
    """By hand: what a dialogue of the stage's own task takes, each turn to its limit."""
    sampling, turns = programs.settings.sampling, programs.settings.objective.turns
    instruction = registry.get(programs.settings.task).instruction
    between = 1 + len(programs.chat.encode_instruction(instruction))  # 1: the stop of a cut turn
    whole = sampling.prompt_limit + turns * sampling.turn_limit + (turns - 1) * between
    return min(whole, sampling.row_limit or whole)


@pytest.mark.parametrize("name", CONFIGS)
def test_each_config_is_built_and_its_programs_fit_each_other(name):
    programs = build(parse(CONFIGS[name].get_config()))
    settings = programs.settings
    episodes, scores, before, after = traced(programs)
    assert shapes(after) == shapes(before)
    rows = settings.batch * settings.sampling.group_size
    length = row_length(programs)
    assert episodes.tokens.shape == (rows, length) == episodes.logprobs.shape
    assert episodes.rewards.shape == (rows, settings.objective.turns) == episodes.truncated.shape
    if scores is not None:
        assert scores.hidden.shape == (rows, length, programs.decoder.config.width)


def longest_of(**fields):
    """What the longest dialogue of a stage takes."""
    programs = build(stages("stage1", **fields)[-1].settings)
    return row_length(programs)


@pytest.mark.parametrize("fields", [{}, {"sampling__row_limit": 0}, {"sampling__turn_limit": 7}])
def test_rows_are_no_longer_than_the_models_longest_text(fields):
    length = longest_of(**fields)
    build(stages("stage1", model__max_length=length, **fields)[-1].settings)
    with pytest.raises(
        ValueError, match=rf"turns 2 may take {length} tok.* has {length - 1}; lower"
    ):
        build(stages("stage1", model__max_length=length - 1, **fields)[-1].settings)


def test_of_several_tasks_the_longest_instruction_counts():
    length = longest_of()
    programs = build(stages("stage1", model__max_length=length)[-1].settings)
    own, other = registry.get("tests.short_answers"), registry.get("math")
    encode = programs.chat.encode_instruction
    more = len(encode(other.instruction)) - len(encode(own.instruction))
    assert more > 0
    check_lengths(programs, {"": own}, {"": own})
    with pytest.raises(ValueError, match=rf"objective.turns 2 may take {length + more} tokens"):
        check_lengths(programs, {"": own, "math": other}, {"": own})
    with pytest.raises(ValueError, match=rf"evaluation.turns 2 may take {length + more} tokens"):
        check_lengths(programs, {"": own}, {"": own, "math": other})


def test_a_row_has_room_behind_what_is_given():
    """By hand: prompt, given attempt and its stop, instruction, and one token to draw."""
    given = {"dialogue__sources": ("given", "sampled"), "sampling__turn_limit": 7}
    given |= {"objective__reward_weights": (0.0, 1.0), "objective__beta": (0.0, 0.01)}
    programs = build(stages("stage1", **given)[-1].settings)
    instruction = registry.get("tests.short_answers").instruction
    before = 12 + 7 + 1 + len(programs.chat.encode_instruction(instruction))
    build(stages("stage1", sampling__row_limit=before + 1, **given)[-1].settings)
    told = rf"row_limit is {before}, but what objective's rows begin with may take {before} tok"
    with pytest.raises(ValueError, match=told):
        build(stages("stage1", sampling__row_limit=before, **given)[-1].settings)


def test_evaluation_of_more_turns_is_held_to_it_too():
    """row_limit is for two attempts; three take what they take."""
    length = longest_of()
    build(stages("stage1", model__max_length=length)[-1].settings)
    with pytest.raises(
        ValueError, match=r"evaluation.turns 3 may take \d+ tokens, but the model's"
    ):
        build(stages("stage1", model__max_length=length, evaluation__turns=3)[-1].settings)


def test_rows_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match=r"config.batch is 3.*6 rows.*= 4 parts"):
        stages("stage1", batch=3, learner__microbatches=4)
    settings = stages("stage1", mesh__data=2)[-1].settings
    with pytest.raises(
        ValueError, match=r"mesh is slices=1 data=2 fsdp=1 sampling_tensor=1 tensor=1; .*devices, 1"
    ):
        build(settings, devices=jax.devices()[:1])


@pytest.mark.parametrize("program", ["rl", "collect", "prompting", "supervised"])
def test_what_draws_has_as_many_rows_to_divide_as_rl(program):
    """8 problems, 2 dialogues each, in 4 parts over 4 devices; worked dialogues are but 8."""
    settings = stages("stage1", batch=8, learner__microbatches=4)[-1].settings
    settings = dataclasses.replace(settings, program=program)
    axes = tuple(4 if axis == "data" else 1 for axis in sharding.MESH_AXES)
    mesh = jax.sharding.AbstractMesh(axes, sharding.MESH_AXES)
    if program == "supervised":
        with pytest.raises(ValueError, match=r"its 8 rows by .* = 16"):
            check_rows(settings, mesh)
    else:
        check_rows(settings, mesh)


@pytest.mark.parametrize(("stops", "fits"), [([11, 79], True), ([11, 80], False)])
def test_a_stop_that_the_model_cannot_draw_is_named(stops, fits, tmp_path):
    settings = stages("stage1")[-1].settings
    programs = build(settings)
    programs.chat.tokenizer.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    tokenizer = dataclasses.replace(settings.tokenizer, source=str(tmp_path))
    settings = dataclasses.replace(settings, tokenizer=tokenizer)
    if fits:
        assert build(settings).chat.stops == (programs.chat.stop, 11, 79)
        return
    message = r"eos_token_id of .* is 80, but the model has embeddings for 80; correct its gener"
    with pytest.raises(ValueError, match=message):
        build(settings)


def test_a_model_of_random_weights_must_be_described():
    config = stage1.get_config()
    config.weights.source = "random"
    with pytest.raises(ValueError, match=r"config.model is None .*'random'; set config.model"):
        build(parse(config))


def test_an_adapter_is_all_that_the_state_holds():
    """Counted by hand: rank x (inputs + outputs) of each target, in every layer."""
    programs = build(stages("stage1", lora__rank=3)[-1].settings)
    width, heads, kv_heads, head, mlp = 16, 2, 1, 8, 16
    sides = {
        "query": width + heads * head,
        "key": width + kv_heads * head,
        "value": width + kv_heads * head,
        "out": heads * head + width,
        "gate": width + mlp,
        "up": width + mlp,
        "down": mlp + width,
    }
    leaves = jax.tree.leaves(programs.abstract_state().params)
    assert sum(leaf.size for leaf in leaves) == 3 * sum(sides.values())
    config = ConfigDict(stage1.get_config())
    config.lora.targets = ("query", "router")
    config.lora.rank = 2
    with pytest.raises(ValueError, match=r"lora.targets is .*router.*choose some of query"):
        parse(config)


def test_the_devices_decide_which_attention_a_stage_computes():
    config = stage1.get_config()
    assert build(parse(config)).decoder.config.attention == "plain"
    config.compute.attention = "splash"
    with pytest.raises(ValueError, match=r"model\.attention is 'splash', but the devices are of"):
        build(parse(config))


@pytest.mark.parametrize(
    ("platform", "parameters", "expected"),
    [("cpu", 2**20, 1), ("cpu", 2**20 + 1, 3), ("gpu", 8, 3), ("tpu", 2**24, 1)],
)
def test_layers_are_cut_apart_where_that_is_faster(platform, parameters, expected):
    device = SimpleNamespace(platform=platform)
    mesh = SimpleNamespace(devices=np.array([device]))
    boxed = {"blocks": {"matrix": jax.ShapeDtypeStruct((3, parameters), "float32")}}
    config = dataclasses.replace(MODEL, layers=3)
    assert layer_groups(boxed, config, mesh) == expected


LOWERED = """
import hashlib
from score_jax.stages.step_programs import calls
from score_jax.stages.build import build
from tests.stage_configs import stages
for call in calls(build(stages(lora__rank=2)[-1].settings)):
    text = call.program.lower(*call.arguments).as_text()
    print(call.name, hashlib.sha256(text.encode()).hexdigest())
"""


def test_every_process_makes_the_same_programs():
    """Whatever order its sets have: else none is found among those kept, and hosts run others."""
    told = [finish(["-c", LOWERED], "", variables={"PYTHONHASHSEED": seed}) for seed in "12"]
    (code, out, err), (_, other, _) = told
    assert code == 0, err
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["merge", "reshard", "prefill", "decode", "score", "update"] and out == other
