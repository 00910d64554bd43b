"""--mode=bench on a tiny stage: what it counts, what it says, what it refuses."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from score_jax.planning import bench, bench_table
from score_jax.planning.chips import CHIPS, DEVICE_KINDS
from score_jax.planning.turn_lengths import given_lengths
from score_jax.rl.keys import run_key
from score_jax.stages.build import build, load_reference
from score_jax.stages.problem_sets import read, training_spec
from score_jax.stages.settings import parse
from tests.tiny_stages import get_config


def settings(name="stage1", **sampling):
    config = get_config(name)
    config.sampling.update(sampling)
    return parse(config)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    return bench.run_bench(settings(), folder, repeats=2), folder


def test_it_counts_what_the_stage_samples(drawn):
    """The dialogues of the same problems, drawn by the program that training runs."""
    found, _ = drawn
    programs = build(settings())
    tasks, problems = read(training_spec(programs.settings))
    encoder = programs.encoder(programs.settings.plan, 12, tasks)
    prompts = encoder.prompts(problems[:4], np.arange(4))
    sample = programs.sample(programs.settings.sampling, programs.settings.plan)
    params = programs.for_sampling(load_reference(programs))
    key = run_key(programs.settings.seed, "train", stage="stage1")
    episodes = jax.device_get(sample(params, programs.to_global(prompts), key))
    counts = found["counts"]
    assert counts["drawn"] == episodes.sampled.sum() > 0
    assert counts["whole"] == episodes.length.sum()
    appended = [
        length - opening
        for length, opening in zip(episodes.length, np.repeat(prompts.length, 2), strict=True)
    ]
    assert counts["appended"] == sum(appended)
    assert counts["row_steps"] == episodes.effort.computed.sum() >= sum(appended)


def test_speeds_follow_from_counts_and_medians(drawn):
    found, folder = drawn
    for name, count in (("sample", "drawn"), ("score", "whole"), ("update", "whole")):
        times = found["seconds"][name]
        assert len(times["all"]) == 2 and min(times["all"]) > 0
        assert times["median"] == pytest.approx(np.mean(times["all"]))
        speed = found["counts"][count] / times["median"]
        assert found["tokens_per_second"][name] == pytest.approx(speed)
    assert set(found["compile_seconds"]) == {"prefill", "decode", "score", "update"}
    assert json.loads((folder / "bench.json").read_text())["counts"] == found["counts"]


def test_a_cpu_is_said_to_have_no_known_peaks(drawn):
    found, _ = drawn
    text = bench_table.describe(found)
    assert "1 x cpu: cpu" in text
    assert "MFU and bandwidth left out: no peak rates are known for 'cpu'" in text


def test_full_lengths_reach_every_limit(tmp_path):
    """Prompts of at most 12 tokens, two turns of 8, and what the task says between them."""
    found = bench.run_bench(settings(), tmp_path, lengths="full", repeats=1)
    assert found["counts"]["drawn"] == 8 * 2 * 8


def test_realistic_lengths_are_those_given(tmp_path):
    found = bench.run_bench(settings(), tmp_path, lengths="realistic", repeats=1)
    assert found["counts"]["drawn"] == given_lengths(settings()).sum() < 0.5 * 8 * 2 * 8


def test_shares_of_the_peak_by_hand(monkeypatch):
    """One device, so that 1e12 operations in 2 s are half of its 1e12 per second."""
    peak = dataclasses.replace(DEVICE_KINDS["NVIDIA H200"], flops=1e12)
    monkeypatch.setitem(DEVICE_KINDS, "cpu", peak)
    programs = build(settings())
    found = bench.shares_of_peak(programs, {"score": 2.0}, {"score": 1e12}, {"score": 1e9})
    assert found["score"]["mfu"] == pytest.approx(0.5)
    assert found["score"]["bytes_per_second"] == pytest.approx(5e8)
    assert found["score"]["bandwidth"] == pytest.approx(5e8 / 4.8e12)


def test_a_table_with_peaks_shows_them(drawn):
    found = drawn[0] | {"of_peak": {"update": {"mfu": 0.456, "bandwidth": 0.0712}}}
    line = next(x for x in bench_table.describe(found).splitlines() if x.startswith("update"))
    assert line.split()[-2:] == ["45.6%", "7.1%"]


def test_tpus_have_the_peaks_of_their_chips():
    assert DEVICE_KINDS["TPU v5 lite"].flops == CHIPS["v5e"].flops
    assert DEVICE_KINDS["TPU v6 lite"].hbm_bandwidth == CHIPS["v6e"].hbm_bandwidth


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'supervised'; --mode=bench measures rl stages"):
        bench.run_bench(settings("base"), tmp_path)
    with pytest.raises(ValueError, match="prompt_limit is 1; no training problem fits"):
        bench.run_bench(settings(prompt_limit=1), tmp_path)
