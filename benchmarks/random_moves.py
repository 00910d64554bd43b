"""What random moves of the embedded base policy's weights cost its first attempts.

A policy in a narrow optimum falls when its weights move at all, whatever moves them, and
its fall under RL then says little of the method. This measures greedy first attempts on
all 836 validation problems, where the weights stand and after random moves of one length:
Gaussian directions over all weights alike ("all"), or each tensor by the same share of its
own norm ("each tensor").

    python -m benchmarks.random_moves            # 1.2% of the norm, about as far as RL goes
    python -m benchmarks.random_moves 0.03 40    # another length, more draws
"""

import dataclasses
import sys

import jax
import numpy as np

from configs import common
from score_jax.data import equations
from score_jax.records import Problem
from score_jax.rl.dialogue import DialoguePlan
from score_jax.stages.build import StagePrograms, build, load_reference
from score_jax.stages.resolve import resolve_stages
from score_jax.tasks import registry
from score_jax.types import Params


def norm(tree: Params) -> float:
    """The length of all weights as one vector."""
    return float(np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree))))


def move(params: Params, rng: np.random.Generator, share: float, *, each: bool) -> Params:
    """Weights a random step away, `share` of the norm long: of all weights, or of each tensor."""
    noise = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), params)
    whole = share * norm(params) / norm(noise)

    def moved(leaf: np.ndarray, step: np.ndarray) -> np.ndarray:
        return leaf + step * (share * norm(leaf) / norm(step) if each else whole)

    return jax.tree.map(moved, params, noise)


def first_attempts(programs: StagePrograms, problems: list[Problem]):
    """The function (params) -> percent of first attempts that are right, greedily."""
    sampling = dataclasses.replace(
        programs.settings.sampling, group_size=1, second_attempts=1, temperature=0.0, row_limit=0
    )
    task, plan = (
        registry.get(programs.settings.task),
        DialoguePlan().complete(1, sampling.turn_limit),
    )
    program = programs.sample(sampling, plan)
    encoder = programs.encoder(plan, sampling.prompt_limit, {task.name: task})
    prompts = encoder.prompts(problems, np.arange(len(problems)))

    def measure(params: Params) -> float:
        placed = programs.for_sampling(
            jax.tree.map(jax.device_put, params, programs.model_shardings)
        )
        episodes = jax.device_get(program(placed, programs.to_global(prompts), jax.random.key(0)))
        rows = zip(problems, episodes.tokens, episodes.turn, strict=True)
        rewards = [
            task.grade(problem, programs.chat.tokenizer.decode(ids[turn == 1].tolist())).reward
            for problem, ids, turn in rows
        ]
        return 100 * float(np.mean(rewards))

    return measure


def main(share: float = 0.012, draws: int = 20) -> None:
    """Prints accuracy, and mean, spread and worst of what the moves cost, in points."""
    config = common.get_config()
    config.name = "random_moves"
    programs = build(resolve_stages(config, {})[-1].settings)
    problems = list(equations.problems("equations", "validation", 0, 0))
    params = jax.device_get(load_reference(programs))
    measure = first_attempts(programs, problems)
    start = measure(params)
    print(f"greedy first attempts on {len(problems)} problems: {start:.1f}%")
    for label, each in (("all", False), ("each tensor", True)):
        moves = (move(params, np.random.default_rng(n), share, each=each) for n in range(draws))
        costs = np.array([start - measure(moved) for moved in moves])
        print(
            f"{draws} moves of {100 * share:.1f}%, {label}: mean cost {costs.mean():.1f} points "
            f"(standard deviation {costs.std(ddof=1):.1f}, worst {costs.max():.1f})",
            flush=True,
        )


if __name__ == "__main__":
    main(*(kind(text) for kind, text in zip((float, int), sys.argv[1:], strict=False)))
