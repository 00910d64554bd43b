"""SCoRe in one file: two attempts are drawn, graded and learnt from, first Stage I, then Stage II.

    python examples/score_loop.py [--steps 40] [--problems 64] [--seed 0]

The embedded model learns to correct itself on the embedded task; no downloads, some minutes on
two CPU cores. It is the method and nothing else, written with the package's own functions, and
draws the same dialogues as configs/stage1.py and configs/stage2.py until the first update.

What it leaves out, and the package has: several devices and hosts (meshes, shardings), grading
in worker processes that outlive a hostile answer, checkpoints and resuming, the choice of the
best checkpoint, rollouts on the disk, logs and the report, evaluation with intervals, published
models (bfloat16, LoRA, recomputation, microbatches), other estimators of the KL, other
baselines, clipping, importance weights, schedules of alpha and beta, checks of configs, of
problems and of disk space, and the alarms.

Source: arXiv:2409.12917, sections 5.1 and 5.2.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.data import equations
from score_jax.data.stream import Stream
from score_jax.model.decoder import Decoder
from score_jax.model.weights import embedded
from score_jax.rl import metrics
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.estimators import EstimatorConfig, group_rows, token_weights, turn_advantages
from score_jax.rl.keys import run_key
from score_jax.rl.learner import Learner, begin, descend, score_episodes
from score_jax.rl.logprobs import spread_to_tokens
from score_jax.rl.objectives import Objective
from score_jax.rl.optimizer import OptimizerConfig, make_optimizer
from score_jax.rl.rollout import attempt_texts
from score_jax.rl.sampling import sample_dialogues
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.tasks import registry
from score_jax.text.chat import Chat, get_format
from score_jax.types import Batch, Episodes, Params, TrainState

TASK = registry.get("equations")
STAGES = {
    "stage1": Objective(reward_weights=(0.0, 1.0), beta=(0.11, 0.01)),
    "stage2": Objective(reward_weights=(1.0, 1.0), beta=(0.05, 0.01), alpha=10.0),
}
SAMPLING = SamplingConfig(group_size=4, prompt_limit=12, turn_limit=50, row_limit=96)
PLAN = DialoguePlan().complete(turns=2, limit=SAMPLING.turn_limit)  # both turns are drawn
ESTIMATOR = EstimatorConfig(kl="exact", baseline="leave_one_out")
OPTIMIZER = OptimizerConfig(learning_rate=2e-4, warmup=5, b2=0.95)

DECODER = Decoder(embedded.model_config(TASK.name))
CHAT = Chat(embedded.tokenizer(TASK.name), get_format("plain"))
ENCODER = Encoder(chat=CHAT, tasks={TASK.name: TASK}, plan=PLAN, prompt_limit=SAMPLING.prompt_limit)


@jax.jit
def sample(params: Params, prompts, key) -> Episodes:
    """Draws G dialogues of two turns for each prompt; the instruction between them is forced."""
    return sample_dialogues(
        DECODER, params, prompts, key, plan=PLAN, stops=CHAT.stops, config=SAMPLING
    )


def grade(problems: dict, episodes: Episodes) -> np.ndarray:
    """The reward of each turn of each dialogue: 1 where its final answer is right, else 0."""
    answers = attempt_texts(CHAT, jax.device_get(episodes))
    draws = np.asarray(episodes.ids.draw).tolist()
    return np.array(
        [
            [TASK.grade(problems[draw], text).reward for text in attempts]
            for draw, attempts in zip(draws, answers, strict=True)
        ],
        np.float32,
    )


def make_learner(steps: int) -> Learner:
    """What all updates of a stage share."""
    return Learner(
        decoder=DECODER,
        optimizer=make_optimizer(OPTIMIZER, steps),
        max_tokens=PLAN.drawn_tokens,
        estimator=ESTIMATOR,
    )


@partial(jax.jit, static_argnames=("stage", "steps"))
def learn(state: TrainState, reference: Params, episodes: Episodes, stage: str, steps: int):
    """One update: an advantage for each turn, and the KL to the base model at every token."""
    objective, learner = STAGES[stage], make_learner(steps)
    groups = group_rows(episodes.ids, episodes.present, state.baseline)
    returns, advantages = turn_advantages(
        objective, ESTIMATOR, episodes.rewards, groups, alpha=objective.alpha, roles=PLAN.roles
    )
    beta = jnp.broadcast_to(jnp.asarray(objective.beta), returns.shape)
    batch = Batch(
        episodes=episodes,
        advantages=spread_to_tokens(advantages, episodes.turn),
        weights=token_weights(ESTIMATOR.length_norm, episodes, PLAN),
        beta=spread_to_tokens(beta, episodes.turn),
        scores=score_episodes(learner, reference, episodes, keep_hidden=True),
    )
    return descend(learner, state, reference, batch)


def train(steps: int, problems: int, seed: int) -> list[dict[str, float]]:
    """Runs both stages; returns the accuracy of both turns and the KL at every step."""
    reference = params = jax.tree.map(jnp.asarray, embedded.load(TASK.name))
    stream = Stream(equations.problems(TASK.name, "train", 0, 0), batch=problems, seed=seed)
    history = []
    for stage, objective in STAGES.items():
        state = begin(make_learner(steps), params, objective)
        key = run_key(seed, "train", stage=stage)
        for step in range(steps):
            draws, _, asked = stream.next()
            episodes = sample(state.params, ENCODER.prompts(asked, draws), key)
            rewards = grade(dict(zip(draws.tolist(), asked, strict=True)), episodes)
            state, found = learn(
                state, reference, episodes.replace(rewards=jnp.asarray(rewards)), stage, steps
            )
            kl = metrics.flat(jax.device_get({"kl": found["kl"]}))
            first, second = (rewards >= 1).mean(0).tolist()
            history.append({"turn1": first, "turn2": second, **kl})
            print(f"{stage} {step + 1:3}: {first:.1%} -> {second:.1%}, KL {kl['kl/turn1']:.3f}")
        params = state.params
    return history


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=40, help="of each stage")
    parser.add_argument("--problems", type=int, default=64, help="per step")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train(options.steps, options.problems, options.seed)
