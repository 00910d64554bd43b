"""What a trial's folder was begun for stands in it, and is compared by field."""

import json

import pytest

from score_jax.stages.resolve import resolve_stages
from score_jax.stages.trial_record import TRAINING, check_unchanged
from tests.tiny_stages import get_config


def stages(**fields):
    config = get_config()
    config.update_from_flattened_dict(fields)
    return resolve_stages(config, {})


def test_the_same_trial_may_go_on(tmp_path):
    for _ in range(2):
        check_unchanged(tmp_path, stages(), {"votes": {"samples": 4}})
    recorded = json.loads((tmp_path / "trial.json").read_text())
    assert recorded["comparison"] == {"sets.votes.samples": 4}


@pytest.mark.parametrize(
    ("fields", "sets", "told"),
    [
        ({"steps": 77}, {}, r"config\.steps is 77, but .* was begun with \d"),
        ({}, {"own": {"turns": 3}}, r"config\.comparison\.sets\.own\.turns is 3, but .* with None"),
    ],
)
def test_another_trial_is_refused_with_the_field_that_differs(fields, sets, told, tmp_path):
    check_unchanged(tmp_path, stages(), {})
    with pytest.raises(ValueError, match=told):
        check_unchanged(tmp_path, stages(**fields), sets)


def test_a_field_that_came_later_and_is_empty_changes_nothing(tmp_path):
    check_unchanged(tmp_path, stages(), {})
    recorded = json.loads((tmp_path / "trial.json").read_text())
    for fields in recorded.values():
        fields.pop("weights.adapter", None)
    (tmp_path / "trial.json").write_text(json.dumps(recorded))
    check_unchanged(tmp_path, stages(), {})
    later = {"weights.source": "/models/x", "weights.adapter": "/adapters/x"}
    with pytest.raises(ValueError, match=r"weights.adapter is /adapters/x, but .* with None"):
        check_unchanged(tmp_path, stages(**later), {})


def test_what_changes_no_result_may_differ(tmp_path):
    check_unchanged(tmp_path, stages(), {})
    check_unchanged(tmp_path, stages(**{"grading.deadline_seconds": 1.5}), {})


def test_a_trial_that_trains_nothing_may_go_on_with_other_training(tmp_path):
    check_unchanged(tmp_path, stages(), {})  # as it was written down when all fields counted
    for rate in (1e-2, 2e-2):
        other = stages(**{"optimizer.learning_rate": rate, "steps": 77})
        check_unchanged(tmp_path, other, {}, unread=TRAINING)
    with pytest.raises(ValueError, match=r"config\.seed is 9, but .* was begun with 0"):
        check_unchanged(tmp_path, stages(seed=9), {}, unread=TRAINING)
