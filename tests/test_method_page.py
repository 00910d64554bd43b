"""What docs/method.md shows does what it says."""

import ast
import re
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from score_jax.rl import estimators
from score_jax.rl.dialogue import row_ids
from score_jax.rl.estimators import group_rows, turn_advantages
from score_jax.stages.settings import parse
from tests.tiny_stages import ROOT

PAGE = (ROOT / "docs/method.md").read_text()


def marked(name):
    """What follows a mark in the page, up to the next heading."""
    return PAGE.split(f"<!-- tested: {name} -->\n")[1].split("\n## ")[0]


@pytest.fixture
def page_code(monkeypatch):
    """The module that the page's block of code is."""
    monkeypatch.setattr(estimators, "BASELINES", dict(estimators.BASELINES))
    (code,) = re.findall(r"```python\n(.*?)```", marked("estimator"), re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/method.md", "exec"), names)
    return SimpleNamespace(**names)


def test_the_pages_estimator_is_named_by_its_config_and_by_no_other(page_code):
    with pytest.raises(ValueError, match=r"estimator.baseline is 'group_mean'; choose one of none"):
        estimators.EstimatorConfig(baseline="group_mean")
    settings = parse(page_code.get_config())
    assert settings.estimator.baseline == "group_mean" and settings.name == "stage2"


def test_the_pages_estimator_is_a_loop_over_groups(page_code):
    """Rows in any order, groups of any size, and a row that lacks its second turn."""
    settings = parse(page_code.get_config())
    draws, samples = [7, 3, 7, 7, 3, 9], [0, 0, 1, 2, 1, 0]
    rng = np.random.default_rng(0)
    rewards = rng.integers(0, 2, (6, 2)).astype(np.float32)
    present = np.ones((6, 2), bool)
    present[3, 1] = False
    groups = group_rows(
        row_ids(draws, draws, samples), jnp.asarray(present), jnp.asarray([100.0, 100.0])
    )
    returns, advantages = turn_advantages(
        settings.objective,
        settings.estimator,
        jnp.asarray(rewards * present),
        groups,
        alpha=10.0,
        roles=("answer", "answer"),
    )
    for row in range(6):
        own = [rewards[row, 0], 11 * rewards[row, 1] - 10 * rewards[row, 0]]
        for turn in range(2):
            if not present[row, turn]:
                assert advantages[row, turn] == 0
                continue
            peers = []
            for other in range(6):
                if draws[other] == draws[row] and present[other, turn]:
                    first, second = rewards[other]
                    peers.append([first, 11 * second - 10 * first][turn])
            assert returns[row, turn] == pytest.approx(own[turn])
            expected = own[turn] - sum(peers) / len(peers)
            assert advantages[row, turn] == pytest.approx(expected, abs=1e-5)


def plan_rows():
    """The rows of the page's table of plans: what each is called, and its fields."""
    table = marked("plans").split("\n\n")[0].splitlines()[2:]
    for line in table:
        _, name, fields, _ = line.split("|")
        pairs = (code.split("=", 1) for code in re.findall(r"`(.*?)`", fields))
        yield name.strip(), {field: ast.literal_eval(value) for field, value in pairs}


PLANS = dict(plan_rows())


@pytest.mark.parametrize("name", PLANS)
def test_each_plan_of_the_page_passes_the_door(name):
    config = common.get_config()
    config.name = "mine"
    config.update_from_flattened_dict(PLANS[name])
    settings = parse(config)
    given = "given" in settings.plan.sources
    assert bool(dict(settings.data)["first_attempts"]) == given
    assert settings.plan.turns == len(settings.objective.reward_weights)
    for field, value in PLANS[name].items():
        *_, section, last = ["", *field.split(".")]
        plan = settings.measured_plan if field.startswith("evaluation.d") else settings.plan
        if section == "dialogue":
            assert getattr(plan, last) == value


def test_the_table_has_the_plans_that_the_page_promises():
    def has(text):
        return any(text in name for name in PLANS)

    assert all(
        map(has, ("SCoRe", "single-turn", "multi-turn", "three turns", "given", "Self-Refine"))
    )
    assert has("says whether the answer is right") and len(PLANS) == 8
