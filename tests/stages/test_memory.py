"""What a stage's programs take is told before anything runs, and refused where it is too much."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    for name in memory.GPU_SETTINGS:
        monkeypatch.delenv(name, raising=False)
    for name, value in set_before.items():
        monkeypatch.setenv(name, value)
    memory.reserve()
    found = {name: memory.os.environ.get(name) for name in memory.GPU_SETTINGS}
    assert {name: value for name, value in found.items() if value} == expected
    assert told in memory.share_of([device("gpu")])
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)


def needed(monkeypatch, *found):
    monkeypatch.setattr(memory, "needs", lambda *_: list(found))


def test_what_fits_is_told_and_what_does_not_is_refused_to_the_byte(programs, monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda _: 3 * GIB)
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=2 * GIB))
    told = memory.check(programs, [])
    assert told == "memory: 3.00 of 3.00 GiB there are (decode, with what stays beside it)"
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=2 * GIB + 1))
    with pytest.raises(MemoryShortError, match=r"does not fit. decode: raise config.mesh.sampling"):
        memory.check(programs, [])
    monkeypatch.setattr(processes, "any_process", lambda _: True)  # on another host it does not
    needed(monkeypatch, Need(name="decode", own_bytes=GIB, resident_bytes=0))
    with pytest.raises(MemoryShortError):
        memory.check(programs, [])


def test_devices_that_do_not_tell_their_memory_refuse_nothing(programs, monkeypatch):
    monkeypatch.setattr(memory, "limit_bytes", lambda _: None)
    needed(monkeypatch, Need(name="decode", own_bytes=10**15, resident_bytes=0))
    assert memory.check(programs, []) == ""


@pytest.mark.parametrize(
    ("name", "argument_bytes", "fields"),
    [
        ("prefill", 0, ("config.batch (now 4)", "sampling.group_size (now 2)", "lora.rank=16")),
        ("evaluation's decode", 0, ("config.evaluation.batch (now 8)",)),
        ("update", 0, ("learner.microbatches (now 1)", "compute.remat to full", "logits_chunk")),
        ("update", 19, ("mesh.fsdp (now 1)", "lora.rank=16")),
    ],
)
def test_the_remedy_names_fields_and_what_they_are_now(name, argument_bytes, fields):
    settings = stages()[-1].settings
    need = Need(name=name, own_bytes=20, resident_bytes=0, argument_bytes=argument_bytes)
    told = memory.remedy(need, settings)
    assert all(field in told for field in fields), told
    with_adapter = stages(lora__rank=2)[-1].settings
    assert "lora" not in memory.remedy(need, with_adapter)


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


@pytest.mark.parametrize("fields", [{}, {"lora__rank": 2}], ids=["all", "adapter"])
def test_the_check_compiles_what_runs_and_nothing_twice(tmp_path, monkeypatch, fields):
    """Behind it, up to the end of the evaluation, only the trial row has programs of its own."""
    usual = preflight.check_memory

    def check(checked):
        usual(checked)
        ahead.extend(compilations.take().names)

    monkeypatch.setattr(chain, "check_memory", check)
    ahead: list[str] = []
    with Compilations() as compilations:
        train(tmp_path, steps=2, evaluation__samples=0, **fields)
    behind = compilations.take().names
    rollout = ["jit(begin)", "jit(draw_turn)"]  # once of training, once of evaluation
    assert [name for name in ahead if name in rollout] == 2 * rollout
    assert "jit(update)" in ahead and "jit(update)" not in behind
    for name in ("jit(draw_turn)", "jit(score_episodes)"):
        assert behind.count(name) == 1, behind


def test_a_run_that_does_not_fit_ends_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "host_bytes", lambda: 1000)
    with pytest.raises(ValueError, match=r"it does not fit\. .*config\.learner\.microbatches"):
        train(tmp_path)
    assert not (tmp_path / "stage1/checkpoints").exists()


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
