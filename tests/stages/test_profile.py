"""The profiler runs in its windows of steps and at no other."""

import jax
import pytest

from score_jax.stages.chain import run_mode
from score_jax.stages.profile import Profile
from score_jax.stages.resolve import resolve_stages
from score_jax.stages.sections import ProfileConfig
from tests import tiny_stages
from tests.tiny_stages import FILE


def test_profile_windows_open_and_close_at_their_steps(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: calls.append(folder.name))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    profile = Profile(ProfileConfig(steps=2, start=1, every=4), tmp_path)
    for step in range(7):
        calls.append(step)
        profile.begin_step(step, lambda: calls.append("settled"))
    profile.close()
    begin, end = ["settled", "host0"], ["settled", "stop"]
    assert calls == [0, 1, *begin, 2, 3, *end, 4, 5, *begin, 6, "stop"]


def test_one_profile_window_and_none():
    one = ProfileConfig(steps=3, start=2)
    assert [step for step in range(20) if one.records(step)] == [2, 3, 4]
    assert not any(ProfileConfig().records(step) for step in range(20))
    with pytest.raises(ValueError, match=r"profile.every is 2; set 0, or more than profile.steps"):
        ProfileConfig(steps=2, every=2)


@pytest.mark.slow
def test_a_profile_is_written(tmp_path):
    config = tiny_stages.get_config()
    config.update_from_flattened_dict({"profile.steps": 1, "profile.start": 1, "steps": 3})
    stages = resolve_stages(config, {})
    run_mode("train", stages, tmp_path, config=f"{FILE}:stage1", command="")
    assert list((tmp_path / "stage1/profile/host0").rglob("*.xplane.pb"))
