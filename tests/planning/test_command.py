"""Plans, their tables and what is told of bad input; one slow test compiles for a TPU."""

import dataclasses
import importlib.util
import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs import stage2
from score_jax.distributed.sharding import MeshConfig
from score_jax.planning import command, examine, search, tpu
from score_jax.planning.chips import GIB, parse_topology
from score_jax.planning.course import Lengths
from score_jax.planning.examine import Examined, Plan
from score_jax.planning.hlo import Collective
from score_jax.planning.roofline import phase
from score_jax.rl.sampling_plan import forced_blocks
from score_jax.stages.settings import parse
from score_jax.tasks import registry

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'score_jax[tpu]'"
)


def preset(name="gemma2_2b_math", **mesh):
    settings = command.without_weights(parse(stage2.get_config(name)))
    return dataclasses.replace(settings, mesh=MeshConfig(**mesh))


def examined(name, own, kept=4, **more):
    chip = parse_topology("v5e:4x4").chip
    sent = [Collective("all-gather", 16, False, False, 5, 2e9)]
    phases = [phase(name, chip, 197e12, 0.0, sent)]
    fields = {"name": name, "own_bytes": own * GIB, "resident_bytes": kept * GIB}
    return Examined(**fields, collectives=sent, phases=phases, **more)


def planned(*programs):
    return Plan(
        settings=preset(fsdp=16),
        topology=parse_topology("v5e:4x4"),
        devices=[SimpleNamespace(platform="tpu")] * 16,
        resident={"params": 1 * GIB, "optimizer": 2 * GIB, "reference": 1 * GIB},
        programs=list(programs),
        lengths=Lengths(
            opening=np.full(512, 512), turns=np.full((512, 2), 1024), between=40, width=2600
        ),
        useful_flops=16 * 197e12,
    )


def test_the_peak_is_the_largest_program_with_what_is_kept():
    found = planned(examined("decode", 10), examined("update", 8))
    assert found.hbm_bytes == 14 * GIB and found.fits and command.advice(found) == []
    text = command.describe(found)
    assert "peak 14.00 of 15.75 GiB per chip: fits, 1.75 free" in text
    assert "all-gather of 16: 5, 2.00" in text


def test_bounds_of_a_step_by_hand():
    """Two phases of one second each; 512 rows of 2 x 1,024 tokens on 16 chips."""
    found = command.speeds(planned(examined("decode", 10), examined("update", 8)))
    assert found["step_seconds"] == pytest.approx(2.0)
    assert found["tokens_per_second_per_chip"] == pytest.approx(512 * 2048 / 2 / 16)
    assert found["mfu"] == pytest.approx(0.5)


def test_a_plan_tells_that_redraws_are_not_in_its_bounds():
    found = planned(examined("decode", 10))
    assert "if it draws once" not in command.describe(found)
    sampling = dataclasses.replace(found.settings.sampling, redraws=2)
    more = dataclasses.replace(
        found, settings=dataclasses.replace(found.settings, sampling=sampling)
    )
    assert "if it draws once of the 3 times of sampling.redraws" in command.describe(more)


def test_what_does_not_fit_is_told_with_a_remedy():
    found = planned(examined("decode", 20), examined("update", 15))
    assert not found.fits
    text = command.describe(found)
    assert "DOES NOT FIT, 8.25 too much" in text
    assert "decode: raise config.mesh.sampling_tensor (now 1)" in text
    assert "update: raise config.learner.microbatches (now 16)" in text


def test_a_program_that_the_compiler_refuses_never_fits():
    found = planned(examined("decode", 1, refused=True))
    assert not found.fits and command.speeds(found) == {}
    assert "OUT OF MEMORY in the compiler" in command.describe(found)


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        (
            "Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm. Exceeded by 4.75G.",
            (20.5, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (110.00G) exceeds available HBM (95.74G).",
            (110, 95.74),
        ),
    ],
)
def test_the_compilers_message_is_read(text, sizes):
    assert tpu.out_of_memory(RuntimeError(text)) == tuple(int(size * GIB) for size in sizes)


def test_another_message_is_none_of_memory():
    assert tpu.out_of_memory(RuntimeError("INVALID_ARGUMENT: something else")) is None


def test_plan_json_holds_what_is_promised(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "topology_devices", lambda _: [])
    monkeypatch.setattr(command, "make_plan", lambda *_, **__: planned(examined("decode", 10)))
    settings = parse(stage2.get_config("gemma2_2b_math"))
    assert command.run_plan(settings, "v5e:4x4", tmp_path / "new")
    found = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert found["fits"] is True and found["hbm_bytes"] == 14 * GIB
    assert found["hbm_limit_bytes"] == 15.75 * GIB
    assert found["programs"]["decode"]["phases"]["decode"]["bound"] == "compute"
    assert found["programs"]["decode"]["collectives"][0]["kind"] == "all-gather"


def test_weights_and_tokenizer_are_stood_in_for_by_their_shapes():
    settings = preset()
    assert settings.model.width == 2304 and settings.weights.source == "random"
    assert settings.tokenizer.source == "stand_in" and settings.tokenizer.chat == "gemma"
    embedded = parse(stage2.get_config())
    assert command.without_weights(embedded) == embedded


def test_decoding_takes_both_turns_and_what_stands_between():
    """1,024 each; the stop token that a cut turn needs, and the instruction."""
    settings = preset(fsdp=1)
    settings = dataclasses.replace(settings, compute=dataclasses.replace(settings.compute))
    programs = examine.build(settings)
    instruction = registry.get(settings.task).instruction
    between = len(programs.chat.encode_instruction(instruction))
    found = examine.full_lengths(programs)
    assert found.opening.tolist() == [512] * 512 and 10 < between < 200
    assert set(found.appended) == {2 * 1024 + 1 + between}


def test_loops_are_as_long_as_full_rows_make_them():
    """512 rows; on 16 shards 32 of each, in 16 microbatches of 2, or 2 x 8 of 2 after a score."""
    settings = preset(fsdp=16)
    settings = dataclasses.replace(
        settings, sampling=dataclasses.replace(settings.sampling, prompt_limit=16, turn_limit=16)
    )

    def loops(name, *, kl="exact", **fields):
        estimator = dataclasses.replace(settings.estimator, kl=kl, clip=0.2)
        learner = dataclasses.replace(settings.learner, **fields)
        one = dataclasses.replace(settings, learner=learner, estimator=estimator, mesh=MeshConfig())
        programs = examine.build(one)
        learner = dataclasses.replace(programs.learner, row_shards=16)
        programs = dataclasses.replace(programs, learner=learner)
        return examine.course_of(programs, name, examine.full_lengths(programs)).loops

    assert loops("score") == loops("update") == [[16]]
    assert loops("update", microbatches=1) == [[16]]
    assert loops("update", microbatches=32) == [[32]]
    assert loops("update", microbatches=1, minibatches=2) == [[16], [16, 16]]
    assert loops("update", kl="reward") == [[16], [16]]
    assert loops("score", pack=False) == loops("update", pack=False) == []


def test_meshes_split_heads_chips_and_batch():
    """Gemma 2 2B has 4 key heads; 64 problems."""
    found = list(search.meshes(preset(), parse_topology("v5e:4x4")))
    assert {(m.fsdp, m.sampling_tensor, m.tensor) for m in found} == {
        (16, 1, 1), (8, 2, 1), (4, 4, 1), (8, 1, 2), (4, 2, 2), (4, 1, 4),
    }  # fmt: skip
    assert search.microbatches(preset(), parse_topology("v5e:4x4"), found[0])[0] == 32


def test_what_fits_and_is_faster_goes_first():
    fits, tight = planned(examined("decode", 10)), planned(examined("decode", 11.5))
    slower = planned(examined("decode", 9), examined("score", 9))
    large, larger = planned(examined("decode", 13)), planned(examined("decode", 20))
    order = sorted([larger, slower, large, fits], key=search.rank)
    assert order == [fits, slower, large, larger] and tight.fits


@pytest.mark.parametrize(
    ("topology", "message"),
    [("v5e:five", "write a chip of"), ("v5p:4x4", "slices have 3 dimensions")],
)
def test_a_topology_that_is_none(topology, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        command.run_plan(preset(), topology, tmp_path)


def test_a_stage_without_rollouts_is_refused(tmp_path):
    settings = dataclasses.replace(preset(), program="supervised")
    with pytest.raises(ValueError, match="'supervised'; --mode=plan plans rl stages"):
        command.run_plan(settings, "v5e:4x4", tmp_path)


def test_a_missing_compiler_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(tpu.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed: pip install 'score_jax\[tpu\]'"):
        command.run_plan(preset(), "v5e:4x4", tmp_path)


def test_an_unknown_place_of_weights_is_told():
    settings = parse(stage2.get_config("gemma2_2b_math"))
    weights = dataclasses.replace(settings.weights, source="hub:some/model")
    with pytest.raises(ValueError, match="'hub:some/model'; no preset has its config"):
        command.without_weights(dataclasses.replace(settings, weights=weights))


def test_a_revision_changes_no_shape():
    settings = parse(stage2.get_config("gemma2_2b_math"))
    weights = dataclasses.replace(settings.weights, source=f"{settings.weights.source}@v1")
    pinned = command.without_weights(dataclasses.replace(settings, weights=weights))
    assert pinned.model == command.without_weights(settings).model is not None


@needs_libtpu
@pytest.mark.parametrize(("topology", "chips"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("l4:1", 1)])
def test_the_compiler_knows_single_chips_and_slices(topology, chips):
    assert len(tpu.topology_devices(parse_topology(topology))) == chips


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        ({"fsdp": 5}, "the product must be the number of devices, 16"),
        ({"fsdp": 2, "sampling_tensor": 8}, "mesh splits 'kv_heads' of parameter"),
    ],
    ids=str,
)
def test_meshes_that_do_not_suit(mesh, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        command.run_plan(preset(**mesh), "v5e:4x4", tmp_path)


@pytest.mark.slow
@needs_libtpu
def test_a_small_model_is_planned_by_the_real_compiler(tmp_path):
    """Parameters of smollm2_135m in float32 over 4 chips: 538 MB / 4 each."""
    settings = preset("smollm2_135m", fsdp=4)
    sampling = dataclasses.replace(settings.sampling, prompt_limit=128, turn_limit=128)
    compute = dataclasses.replace(settings.compute, dtype="bfloat16", remat="full")
    settings = dataclasses.replace(settings, sampling=sampling, compute=compute)
    assert command.run_plan(settings, "v5e:2x2", tmp_path)
    found = json.loads((tmp_path / "plan.json").read_text())
    assert found["resident_bytes"]["params"] == pytest.approx(538e6 / 4, rel=0.01)
    assert found["resident_bytes"]["sampling_params"] == pytest.approx(538e6 / 2, rel=0.01)
    assert set(found["programs"]) == {"reshard", "prefill", "decode", "score", "update"}
    decode = found["programs"]["decode"]["phases"]["decode"]
    assert decode["bound"] == "HBM"
    # An iteration reads the parameters and a part of the cache; copies of the cache would make it
    # more than the parameters and all that rows may hold, one prompt for its group.
    rows, drawn = settings.batch * sampling.group_size // 4, 2 * 128
    iterations = drawn + forced_blocks(found["decode_steps"] - drawn)[0]
    slots = found["decode_steps"] + 128 / sampling.group_size
    cache = 30 * 2 * rows * 3 * slots * 64 * 2  # layers, keys and values, heads, their size, bytes
    params = found["resident_bytes"]["sampling_params"]
    assert params <= decode["hbm_bytes"] / iterations < params + cache
    assert 0 < found["bounds"]["mfu"] < 1
