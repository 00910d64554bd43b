"""One tiny rollout and the update of either stage, whose numbers `test_pinned_step.py` holds.

`python -m tests.pin_step` writes them to pinned_step.json. Do so only in a commit that means
to change what a step computes, and say in its message which numbers moved and why.
"""

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.model.decoder import Decoder
from score_jax.records import Grade, Problem, Task
from score_jax.rl import estimators, learner
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.keys import run_key
from score_jax.rl.learner import LearnerConfig
from score_jax.rl.metrics import flat
from score_jax.rl.objectives import Objective
from score_jax.rl.optimizer import OptimizerConfig, make_optimizer
from score_jax.rl.rollout import RolloutPrograms, collect_rollout
from score_jax.rl.sampling import sample_dialogues
from score_jax.rl.sampling_plan import SamplingConfig
from tests.guarded import guarded
from tests.tiny import MODEL, random_params

PINNED = Path(__file__).parent / "pinned_step.json"

DECODER = Decoder(replace(MODEL, vocab_size=10))  # a token is a digit; 0 ends a turn
SAMPLING = SamplingConfig(group_size=4, prompt_limit=4, turn_limit=5)
# Adam's first update tells little but signs unless epsilon is as large as the gradient.
OPTIMIZER = OptimizerConfig(learning_rate=0.1, eps=0.1, clip_norm=2.0)
STAGES = {
    "stage1": Objective(reward_weights=(0.0, 1.0), beta=(0.11, 0.01)),
    "stage2": Objective(reward_weights=(1.0, 1.0), beta=(0.05, 0.01), alpha=10.0),
}
PROBLEMS = [Problem(id="a", prompt="34", answer="1"), Problem(id="b", prompt="621", answer="0")]
DRAWS = np.array([5, 9])
SEED = 6  # its rows stop and are cut, in both turns, and change in every way between them
TASK = Task(
    name="parity", prompt=lambda problem: f"9{problem.prompt}", instruction="78", grade=None
)


class DigitChat:
    """One digit, one token."""

    stops = (0,)

    def encode_prompt(self, text):
        return [int(digit) for digit in text]

    encode_plain = encode_instruction = encode_prompt

    def decode(self, ids):
        return "".join(map(str, ids))

    def answer(self, text):
        return text


PLAN = DialoguePlan().complete(2, SAMPLING.turn_limit)
LEARNER = learner.Learner(
    decoder=DECODER,
    optimizer=make_optimizer(OPTIMIZER, 1),
    max_tokens=PLAN.drawn_tokens,
    config=LearnerConfig(microbatches=2, logits_chunk=3, baseline_decay=0.75),
)
ENCODER = Encoder(chat=DigitChat(), tasks={"": TASK}, plan=PLAN, prompt_limit=4)


class Parity:
    """Right is an attempt whose digits have a sum as odd as the problem's answer."""

    def submit(self, task_name, items, cut):
        self.items = items
        return self

    def result(self):
        rewards = [
            float(sum(map(int, text)) % 2 == int(problem.answer)) for problem, text in self.items
        ]
        return [Grade(verdict="correct" if r else "wrong", reward=r) for r in rewards]


def policy():
    """Another model than the reference, so that no KL is 0."""
    return random_params(DECODER.config, seed=0)


def reference():
    return random_params(DECODER.config, seed=1)


def roll_out():
    """Eight graded dialogues on the device, and the reference's scores of them."""
    draw = partial(sample_dialogues, DECODER, plan=PLAN, stops=DigitChat.stops, config=SAMPLING)
    score = partial(learner.score_episodes, LEARNER, keep_hidden=True)
    return collect_rollout(
        RolloutPrograms(
            encoder=ENCODER,
            to_global=jax.device_put,
            own_rows=lambda rows: rows,
            prepare=lambda params: params,
            sample=lambda *arguments: [guarded(jax.jit(draw))(*arguments)],
            score=guarded(jax.jit(score)),
        ),
        Parity(),
        params=policy(),
        reference=reference(),
        key=run_key(SEED, "train", stage="pinned"),
        draws=DRAWS,
        problems=PROBLEMS,
    )


def learn(objective, rollout):
    """The first update of a stage: state, metrics, and each row's returns and advantages."""

    @guarded
    @jax.jit
    def run(params, base, rows, scores):
        state = learner.begin(LEARNER, params, objective)
        state, metrics = learner.update(
            LEARNER, state, base, rows, scores, plan=PLAN, objective=objective
        )
        groups = estimators.group_rows(rows.ids, rows.present, jnp.zeros(2))
        returns, advantages = estimators.turn_advantages(
            objective,
            LEARNER.estimator,
            rows.rewards,
            groups,
            alpha=objective.alpha,
            roles=PLAN.roles,
        )
        weights = estimators.token_weights(LEARNER.estimator.length_norm, rows, PLAN)
        parts = {"returns": returns, "advantages": advantages, "weights": weights}
        return state, metrics, parts

    return jax.device_get(run(policy(), reference(), rollout.episodes, rollout.scores))


def of_rollout(rollout):
    """What is pinned of a rollout, row by row."""
    rows = jax.device_get(rollout.episodes)
    fields = ("tokens", "turn", "sampled", "length", "truncated", "logprobs", "rewards")
    found = {name: getattr(rows, name).tolist() for name in fields}
    return found | {"draw": rows.ids.draw.tolist()}


def of_update(objective, rollout):
    """What is pinned of a stage's update."""
    state, metrics, parts = learn(objective, rollout)
    before = jax.device_get(policy())
    moved = {  # each tensor's mean move, so that none can be left out of the update
        f"moved{jax.tree_util.keystr(path)}": np.abs(new - old).mean()
        for (path, new), old in zip(
            jax.tree_util.tree_leaves_with_path(state.params), jax.tree.leaves(before), strict=True
        )
    }
    # Between sampler and learner there is nothing but rounding, which is no number to pin.
    told = {name: x for name, x in flat(metrics).items() if not name.startswith("mismatch/")}
    found = {
        **parts,
        "baseline": state.baseline,
        "embedding": state.params["embedding"][3, :4],
        **moved,
        **told,
    }
    return {name: np.asarray(value, float).tolist() for name, value in found.items()}


def compute():
    """All that is pinned."""
    rollout = roll_out()
    return {"rollout": of_rollout(rollout)} | {
        name: of_update(objective, rollout) for name, objective in STAGES.items()
    }


def rounded(value):
    """To the six digits that a float32 has, for people and for short lines."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.6g}") if type(value) is float else value


if __name__ == "__main__":
    text = json.dumps(rounded(compute()), indent=1)
    rows = re.sub(r"\[[^\[\]]*\]", lambda row: " ".join(row.group().split()), text)
    PINNED.write_text(rows + "\n")
