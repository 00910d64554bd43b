"""Traces every program of a stage with all shape annotations of the method checked.

A program of its own: the annotations are checked as the modules are imported.
"""

import jax
import jax.numpy as jnp
import jaxtyping

CHECKED = [
    f"score_jax.{name}"
    for name in (
        "numerics", "objectives", "scoring", "step", "sampling", "supervised", "intervals",
        "model.attention", "model.layers", "model.decoder",
    )
]  # fmt: skip

with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    from score_jax import numerics
    from score_jax.build import build
    from score_jax.types import Prompts
    from tests.chains import links

VARIANTS = (
    {},
    {"objective__kl": "k3", "learner__microbatches": 2},
    {"objective__kl": "k2", "objective__normalise": True},
    {"objective__kl": "reward", "objective__baseline": "running"},
    {"objective__baseline": "batch", "objective__length_norm": "sequence", "lora__rank": 2},
    {"objective__clip": 0.2, "learner__minibatches": 2},
)


def trace(**fields):
    """Shapes only; nothing is compiled."""
    built = build(links("stage2", **fields)[-1].settings)
    settings = built.settings
    state = built.abstract_state()
    reference = jax.eval_shape(built.init_params.jitted, jax.random.key(0))
    problems, limit = settings.batch, settings.sampling.prompt_limit
    prompts = {"tokens": (problems, limit), "length": (problems,), "problem": (problems,)}
    shapes = {name: jax.ShapeDtypeStruct(size, jnp.int32) for name, size in prompts.items()}
    sample = built.sample(settings.sampling, settings.objective.turns)
    key = jax.eval_shape(jax.random.key, 0)
    episodes = sample.lower(reference, Prompts(**shapes), key).out_info
    scores = built.score.lower(reference, episodes).out_info
    after, _ = built.update.lower(state, reference, episodes, scores).out_info
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, state)
    assert all(jax.tree.leaves(same)), same


def main():
    """Traces the variants; then shows that a wrong shape would have been noticed."""
    for fields in VARIANTS:
        trace(**fields)
        print("traced", fields)
    try:
        numerics.sum_by_turn(jnp.zeros((2, 3)), jnp.zeros((2, 4), jnp.int32), 2)
    except jaxtyping.TypeCheckError:
        print("noticed")


if __name__ == "__main__":
    main()
