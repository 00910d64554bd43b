"""What a stage's programs take is told before anything runs, and refused where it is too much."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.errors import JaxRuntimeError

from score_jax.distributed import processes
from score_jax.planning import command
from score_jax.stages import chain, memory, preflight, step_programs
from score_jax.stages.build import build
from score_jax.stages.compilation import Compilations
from score_jax.stages.memory import GIB, MemoryShortError, Need
from tests.stage_configs import stages, train

SIZE = 256 * 256 * 4  # bytes of the arrays below


def test_a_programs_bytes_are_its_arrays_and_what_lies_between():
    """By hand: an argument, a result and at least one product between them."""
    shape = jax.ShapeDtypeStruct((256, 256), jnp.float32)
    compiled = jax.jit(lambda x: jnp.sort(x @ x, 0) @ x).lower(shape).compile()
    assert 3 * SIZE <= memory.program_bytes(compiled, "cpu") <= 6 * SIZE
    donated = jax.jit(lambda x: x + 1, donate_argnums=0).lower(shape).compile()
    assert SIZE <= memory.program_bytes(donated, "cpu") < 2 * SIZE  # its result is its argument


@pytest.fixture(scope="module")
def programs():
    return build(stages()[-1].settings)


def device(platform, limit=None, **more):
    stats = limit and {"bytes_limit": limit}
    return SimpleNamespace(platform=platform, memory_stats=lambda: stats, process_index=0, **more)


def test_a_devices_memory_is_what_it_tells_and_cpus_share_their_machines(monkeypatch):
    assert memory.limit_bytes([device("gpu", 5), device("gpu", 4)]) == 4
    assert memory.limit_bytes([device("tpu")]) is None
    silent = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_in_use": 1})
    assert (
        memory.limit_bytes([silent]) is None and memory.limit_bytes([silent, device("gpu", 3)]) == 3
    )
    monkeypatch.setattr(memory, "host_bytes", lambda: 800)
    assert memory.limit_bytes([device("cpu")] * 8) == 100


def test_a_machines_memory_is_that_of_its_container(tmp_path, monkeypatch):
    whole = memory.host_bytes()
    with open("/proc/meminfo", encoding="ascii") as file:
        assert whole <= 1024 * int(file.readline().split()[1])
    limits = [tmp_path / "memory.max", tmp_path / "none"]
    limits[0].write_text("max\n")
    monkeypatch.setattr(memory, "CGROUPS", tuple(map(str, limits)))
    assert memory.host_bytes() >= whole
    limits[0].write_text("4096\n")
    assert memory.host_bytes() == 4096


@pytest.mark.parametrize(
    ("set_before", "expected", "told"),
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.9"}, "reserved at the start (XLA_CLIENT_MEM_FRACTION="),
        ({"XLA_CLIENT_MEM_FRACTION": ".5"}, {"XLA_CLIENT_MEM_FRACTION": ".5"}, "FRACTION=.5)"),
        (
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            {"XLA_PYTHON_CLIENT_MEM_FRACTION": ".6"},  # both together are an error of JAX
            "taken as needed (XLA_PYTHON_CLIENT_MEM_FRACTION=.6)",
        ),
    ],
)
def test_of_a_gpu_nine_tenths_are_taken_unless_the_environment_says_else(
    monkeypatch, set_before, expected, told
):
    environment = dict(set_before)
    monkeypatch.setattr(memory.os, "environ", environment)
    memory.reserve()
    assert {name: environment[name] for name in memory.GPU_SETTINGS if name in environment} == (
        expected
    )
    assert told in memory.share_of([device("gpu")])


def needed(monkeypatch, *found):
    monkeypatch.setattr(memory, "needs", lambda *_: list(found))


def test_what_fits_is_told_and_what_does_not_is_refused_to_the_byte(programs, monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda _: 3 * GIB)
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=2 * GIB))
    told = memory.check(programs, [])
    assert told == "memory: 3.00 of 3.00 GiB there are (decode, with what stays beside it)"
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=2 * GIB + 1))
    with pytest.raises(MemoryShortError, match=r"does not fit. decode: lower config.batch"):
        memory.check(programs, [])


def test_all_hosts_end_with_the_words_of_the_one_that_is_short(programs, monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda _: 3 * GIB)
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=0))
    monkeypatch.setattr(processes, "all_gather_objects", lambda own: [own, "that of another"])
    with pytest.raises(MemoryShortError, match=r"^that of another$"):
        memory.check(programs, [])


def test_devices_that_do_not_tell_their_memory_refuse_nothing(programs, monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda _: None)
    needed(monkeypatch, Need(name="decode", own_bytes=10**15, resident_bytes=0))
    assert memory.check(programs, []) == "memory: the devices do not tell how much they have"


def test_a_compiler_that_finds_no_room_is_told_with_what_to_change(programs, tmp_path, monkeypatch):
    """As TPUs' compilers do; whatever the devices tell."""

    def refuse(*_):
        raise JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20G of 15G hbm\nand more")

    lowered = SimpleNamespace(compile=refuse)
    program = SimpleNamespace(lower=lambda *_: lowered, mesh=programs.mesh)
    call = step_programs.Call("update", program, (), ())
    (found,) = memory.needs(programs, [call])
    assert found.refused == "RESOURCE_EXHAUSTED: Used 20G of 15G hbm"
    monkeypatch.setattr(memory, "limit_bytes", lambda _: None)
    with pytest.raises(MemoryShortError, match=r"no room for update \(RES.*hbm\): .*microbatches"):
        memory.check(programs, [call])
    monkeypatch.setattr(step_programs, "calls", lambda _: [call])
    assert not command.run_plan(stages()[-1].settings, "", tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text())["programs"]["update"]["refused"]


def test_a_compiler_that_tells_nothing_refuses_nothing():
    assert memory.program_bytes(SimpleNamespace(memory_analysis=lambda: None), "gpu") == 0


def held(calls):
    return {call.name: set(call.resident) for call in calls}


ALL = {"params", "optimizer", "reference"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        # In float32 on one device sampling takes the parameters themselves: an argument.
        ({}, {
            "reshard": {"optimizer", "reference"},
            "prefill": {"optimizer", "reference", "merged"},
            "decode": {"optimizer", "reference", "merged"},
            "score": {"params", "optimizer", "merged"},
            "update": set(),
            "evaluation's decode": {"reference", "merged"},
            "evaluation's sampled decode": {"reference", "merged"},
        }),
        ({"compute__dtype": "bfloat16"}, {
            "decode": ALL | {"merged"},
            "evaluation's decode": {"params", "reference", "merged"},
        }),
        ({"lora__rank": 2}, {
            "merge": {"optimizer"},
            "decode": ALL,  # the merged sum is the argument
            "evaluation's decode": {"params", "reference"},
        }),
        ({"evaluation__every": 1}, {"evaluation's decode": {"optimizer", "reference", "merged"}}),
    ],
    ids=["float32", "bfloat16", "adapter", "validation"],
)  # fmt: skip
def test_what_stays_beside_each_program(fields, expected):
    """By hand: of the step's arrays those that no argument is and that are still needed."""
    built = build(stages(**fields)[-1].settings)
    tasks = step_programs.encoder(built).tasks
    found = held(step_programs.calls(built) + step_programs.evaluation_calls(built, tasks, 8))
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize("trained", [False, True])
def test_a_collecting_stage_has_no_optimiser(programs, trained):
    tasks = step_programs.encoder(programs).tasks
    found = held(step_programs.collect_calls(programs, tasks, trained=trained))
    assert found["decode"] == {"reference", "merged"}
    assert found["reshard"] == ({"params"} if trained else set())


@pytest.mark.parametrize(
    ("name", "argument_bytes", "fields"),
    [
        ("prefill", 0, ("config.batch (now 4)", "sampling.group_size (now 2)", "lora.rank=16")),
        ("merge", 0, ("too large; config.lora.rank=16", "a smaller model")),
        ("evaluation's decode", 0, ("config.evaluation.batch (now 8)",)),
        ("update", 0, ("learner.microbatches (now 1)", "compute.remat to full", "logits_chunk")),
        ("update", 19, ("too large; config.lora.rank=16", "more memory")),
        ("evaluation's decode", 19, ("too large; config.lora.rank=16",)),
    ],
)
def test_the_remedy_names_fields_and_what_they_are_now(name, argument_bytes, fields):
    settings = stages()[-1].settings
    need = Need(name=name, own_bytes=20, resident_bytes=0, argument_bytes=argument_bytes)
    told = memory.remedy(need, settings, [device("gpu")])
    assert all(field in told for field in fields), told
    assert "mesh" not in told  # there is nothing to split over
    assert told == memory.remedy(need, settings, [device("cpu")] * 8)  # which share one memory
    with_adapter = stages(lora__rank=2)[-1].settings
    assert "lora" not in memory.remedy(need, with_adapter, [device("gpu")])


@pytest.mark.parametrize(
    ("name", "argument_bytes", "field"),
    [("decode", 0, "mesh.sampling_tensor (now 1)"), ("update", 19, "mesh.fsdp (now 1)")],
)
def test_several_devices_can_share_what_is_too_large(name, argument_bytes, field):
    need = Need(name=name, own_bytes=20, resident_bytes=0, argument_bytes=argument_bytes)
    assert field in memory.remedy(need, stages()[-1].settings, [device("tpu")] * 8)


@pytest.mark.parametrize(
    ("change", "grows"),
    [
        ({"batch": 64}, {"prefill", "decode", "score", "update"}),
        ({"evaluation__problems": 64, "evaluation__batch": 64}, {"evaluation's decode"}),
    ],
)
def test_more_rows_take_more_memory(change, grows):
    def taken(**fields):
        built = build(stages(**fields)[-1].settings)
        tasks = step_programs.encoder(built).tasks
        held_out = step_programs.evaluation_calls(built, tasks, 64)
        return {
            n.name: n.own_bytes for n in memory.needs(built, step_programs.calls(built) + held_out)
        }

    before, after = taken(), taken(**change)
    assert {name for name in after if after[name] > before[name]} >= grows
    assert {name.startswith("evaluation") for name in after if after[name] > before[name]} == {
        "evaluation's decode" in grows
    }


@pytest.mark.parametrize(
    "fields",
    [{}, {"lora__rank": 2}, {"objective__repeat_penalty": 0.1, "sampling__redraws": 1}],
    ids=["all", "adapter", "shaped"],
)
def test_the_check_compiles_what_runs_and_nothing_twice(tmp_path, monkeypatch, fields):
    """Behind it, up to the end of the evaluation, only the trial row has programs of its own."""
    usual = preflight.check_memory

    def check(*arguments, **named):
        usual(*arguments, **named)
        ahead.extend(compilations.take().names)

    monkeypatch.setattr(chain, "check_memory", check)
    ahead: list[str] = []
    with Compilations() as compilations:
        train(tmp_path, steps=2, **fields)
    behind = compilations.take().names
    rollout = ["jit(begin)", "jit(draw_turn)"]  # of training, greedy evaluation and samples
    assert [name for name in ahead if name in rollout] == 3 * rollout
    assert "jit(update)" in ahead and "jit(update)" not in behind
    for name in ("jit(draw_turn)", "jit(score_episodes)"):
        assert behind.count(name) == 1, behind


def test_a_run_that_does_not_fit_ends_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 1000)
    monkeypatch.setattr(chain, "load_reference", lambda _: pytest.fail("loaded"))
    with pytest.raises(ValueError, match=r"it does not fit\. .*config\.learner\.microbatches"):
        train(tmp_path)


def names_of_checked(tmp_path, monkeypatch, name="stage1", **fields):
    """The programs that the check of a stage looks at."""
    found: list[str] = []

    def check(programs, calls):
        found.extend(call.name for call in calls)
        return ""

    monkeypatch.setattr(memory, "check", check)
    (settings,) = [stage.settings for stage in stages(name, **fields)]
    preflight.check_memory(preflight.check_stage(settings, tmp_path), tmp_path, trained=False)
    return found


def test_what_is_looked_at_goes_by_the_stages_program(tmp_path, monkeypatch):
    drawn = ["evaluation's prefill", "evaluation's decode"]
    drawn += ["evaluation's sampled prefill", "evaluation's sampled decode"]
    step = ["reshard", "prefill", "decode", "score", "update"]
    assert names_of_checked(tmp_path, monkeypatch) == step + drawn
    assert names_of_checked(tmp_path, monkeypatch, "base") == [*drawn, "sft_update"]
    collected = names_of_checked(tmp_path, monkeypatch, program="collect")
    assert collected == ["reshard", "prefill", "decode"]


def test_a_trained_stage_is_looked_at_for_its_evaluation_alone(tmp_path, monkeypatch):
    (tmp_path / "stage1/checkpoints/6").mkdir(parents=True)
    found = names_of_checked(tmp_path, monkeypatch, steps=6, evaluation__samples=0)
    assert found == ["evaluation's prefill", "evaluation's decode"]
    assert "update" in names_of_checked(tmp_path, monkeypatch, steps=7)


@pytest.mark.parametrize("flags", [{"search": True}, {"realistic": True}])
def test_what_a_topology_alone_can_have_is_refused_without_one(tmp_path, flags):
    with pytest.raises(ValueError, match=r"--topology is ''; --(search|lengths=realistic) is for"):
        command.run_plan(stages()[-1].settings, "", tmp_path, **flags)


def test_a_plan_without_a_topology_is_of_the_devices_at_hand(tmp_path, capsys, monkeypatch):
    settings = stages()[-1].settings
    assert command.run_plan(settings, "", tmp_path)
    told, written = capsys.readouterr().out, json.loads((tmp_path / "plan.json").read_text())
    assert written["fits"] and set(written["programs"]) >= {"decode", "update"}
    assert "evaluation's decode" in told and told.rstrip().endswith("plan.json")
    monkeypatch.setattr(memory, "host_bytes", lambda: 1000)
    assert not command.run_plan(settings, "", tmp_path)
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert json.loads((tmp_path / "plan.json").read_text())["advice"]


def test_a_supervised_step_is_looked_at_as_well(tmp_path):
    """Its rows are as the stage learns them."""
    settings = stages("base")[-1].settings
    checked = preflight.check_stage(settings, tmp_path)
    rows = checked.examples(0)
    call = step_programs.supervised_call(checked.programs, rows)
    (found,) = memory.needs(checked.programs, [call])
    assert found.own_bytes > sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(rows))
    assert [leaf.shape for leaf in jax.tree.leaves(call.arguments[-1])] == [
        leaf.shape for leaf in jax.tree.leaves(rows)
    ]
