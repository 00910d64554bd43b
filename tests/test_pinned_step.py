"""A whole tiny rollout and the update of either stage, number by number.

What follows from the sampled tokens is written out once more here, in plain loops; what does
not (tokens, gradient norm, parameters) is compared with pinned_step.json.
"""

import json

import jax
import numpy as np
import pytest

from tests import pin_step
from tests.pin_step import PINNED, PROBLEMS, SAMPLING, STAGES
from tests.tiny import row_logits

WHEN = (
    "is not what was pinned. If no change of the method was meant, this is a fault. If one was, "
    "write the numbers anew by `python -m tests.pin_step`, look at what has moved, and say in the "
    "commit's message which formula it was."
)
EXACT = ("tokens", "turn", "length", "truncated", "draw", "rewards")


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(pin_step.compute()))


@pytest.fixture(scope="module")
def rows(found):
    return {name: np.asarray(value) for name, value in found["rollout"].items()}


@pytest.fixture(scope="module")
def tables(rows):
    """Policy's and reference's log-probabilities in float64; index t predicts token t."""
    found = []
    for params in (pin_step.policy(), pin_step.reference()):
        logits = row_logits(pin_step.DECODER.config)(params, rows["tokens"])
        logits = np.asarray(logits, np.float64)
        table = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        found.append(np.pad(table, ((0, 0), (1, 0), (0, 0)))[:, :-1])
    return found


@pytest.mark.parametrize("part", ["rollout", *STAGES])
def test_every_number_is_the_pinned_one(found, part):
    pinned = json.loads(PINNED.read_text())[part]
    assert pinned.keys() == found[part].keys()
    for name, want in pinned.items():
        message = f"{part}, {name} {WHEN}"
        if name in EXACT:
            assert found[part][name] == want, message
        else:  # the last digits of float32 sums are the processor's own
            np.testing.assert_allclose(
                found[part][name], want, rtol=1e-4, atol=1e-5, err_msg=message
            )


def test_the_rollout_shows_what_it_is_to_pin(rows):
    """Turns that stop and turns that are cut, and every change from one attempt to the next."""
    assert rows["truncated"].any(0).all() and not rows["truncated"].all(0).any()
    assert {tuple(row) for row in rows["rewards"]} == {(0, 1), (1, 0), (1, 1)}


def test_rows_are_prompt_first_attempt_instruction_second_attempt(rows):
    """The stop token is the turn's own where the policy drew it, forced where it was cut."""
    for row, (tokens, turn) in enumerate(zip(rows["tokens"], rows["turn"], strict=True)):
        problem = PROBLEMS[row // SAMPLING.group_size]
        line = [9, *map(int, problem.prompt)]
        owner = [0] * len(line)
        for number in (1, 2):
            own = tokens[turn == number].tolist()
            cut = bool(rows["truncated"][row, number - 1])
            assert cut == (own[-1] != 0) and 0 not in own[:-1]
            line, owner = line + own, owner + [number] * len(own)
            if number == 1:
                between = [0, 7, 8] if cut else [7, 8]
                line, owner = line + between, owner + [0] * len(between)
            right = (sum(own) % 2) == int(problem.answer)
            assert rows["rewards"][row, number - 1] == right
        assert rows["length"][row] == len(line)
        assert tokens[: len(line)].tolist() == line and turn[: len(line)].tolist() == owner
        assert not turn[len(line) :].any()
        assert rows["draw"][row] == pin_step.DRAWS[row // SAMPLING.group_size]


def test_the_samplers_logprobs_are_the_policys(rows, tables):
    chosen = np.take_along_axis(tables[0], rows["tokens"][..., None], -1)[..., 0]
    want = np.where(rows["turn"] > 0, chosen, 0.0)
    np.testing.assert_allclose(rows["logprobs"], want, rtol=1e-4, atol=1e-5)


def returns_by_hand(stage, first, second):
    """Stage I: nothing, r2. Stage II: r1, r2 + 10 (r2 - r1)."""
    return [0.0, second] if stage == "stage1" else [first, second + 10 * (second - first)]


def advantages_by_hand(stage, rewards):
    """Each turn's return less the mean of the same turn's in the problem's other three rows."""
    returns = [returns_by_hand(stage, *row) for row in rewards]
    out = []
    for row, own in enumerate(returns):
        group = range(row // 4 * 4, row // 4 * 4 + 4)
        others = [returns[other] for other in group if other != row]
        out.append([own[turn] - sum(x[turn] for x in others) / 3 for turn in (0, 1)])
    return out


@pytest.mark.parametrize("stage", STAGES)
def test_returns_advantages_and_weights_follow_from_the_rewards(found, rows, stage):
    rewards = rows["rewards"].tolist()
    got = found[stage]
    returns = [returns_by_hand(stage, *row) for row in rewards]
    np.testing.assert_allclose(got["returns"], returns, rtol=1e-6)
    np.testing.assert_allclose(
        got["advantages"], advantages_by_hand(stage, rewards), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(got["weights"], (rows["turn"] > 0) / 8)
    mean = np.mean(returns, 0)
    np.testing.assert_allclose(got["baseline"], 0.25 * mean)  # from 0, by a decay of 0.75
    assert [got[f"return/turn{turn}"] for turn in (1, 2)] == pytest.approx(mean)


# Turn 1's beta, turn 2's.
BETA = {"stage1": (0.11, 0.01), "stage2": (0.05, 0.01)}


@pytest.mark.parametrize("stage", STAGES)
def test_loss_and_kl_follow_from_the_advantages(found, rows, tables, stage):
    policy, reference = tables
    advantages = advantages_by_hand(stage, rows["rewards"].tolist())
    loss, kl = 0.0, [0.0, 0.0]
    for row, at in np.argwhere(rows["turn"] > 0):
        turn = rows["turn"][row, at] - 1
        here, there = policy[row, at], reference[row, at]
        distance = sum(np.exp(p) * (p - q) for p, q in zip(here, there, strict=True))
        kl[turn] += distance / 8
        gain = advantages[row][turn] * here[rows["tokens"][row, at]]
        loss += (BETA[stage][turn] * distance - gain) / 8
    assert found[stage]["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-5)
    assert [found[stage][f"kl/turn{turn}"] for turn in (1, 2)] == pytest.approx(kl, rel=1e-4)


def test_the_policy_is_not_the_reference():
    """Else a KL of 0 would hide what is done with it."""
    pairs = zip(
        jax.tree.leaves(pin_step.policy()), jax.tree.leaves(pin_step.reference()), strict=True
    )
    assert any(np.abs(np.asarray(a) - np.asarray(b)).max() > 0.1 for a, b in pairs)
