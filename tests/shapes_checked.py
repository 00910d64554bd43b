"""Traces every program of a stage with all shape annotations of the method checked.

A program of its own: the annotations are checked as the modules are imported.
"""

import jax
import jax.numpy as jnp
import jaxtyping

CHECKED = [
    f"score_jax.{name}"
    for name in (
        "rl.logprobs", "rl.objectives", "rl.estimators", "rl.coefficients", "rl.mismatch",
        "rl.keys", "rl.scoring", "rl.learner", "rl.sampling",
        "report.intervals", "model.attention", "model.layers", "model.decoder",
    )
]  # fmt: skip

with jaxtyping.install_import_hook(CHECKED, "beartype.beartype"):
    from score_jax.rl import logprobs
    from score_jax.stages.build import build
    from score_jax.stages.step_programs import calls, result
    from tests.stage_configs import stages

VARIANTS = (
    {},
    {"estimator__kl": "k3", "learner__microbatches": 2},
    {"estimator__kl": "k2", "estimator__normalise": "batch"},
    {"estimator__kl": "reward", "estimator__baseline": "running"},
    {"estimator__baseline": "batch", "estimator__length_norm": "sequence", "lora__rank": 2},
    {"estimator__clip": 0.2, "learner__minibatches": 2},
)


def trace(**fields):
    """Shapes only; nothing is compiled."""
    programs = build(stages("stage2", **fields)[-1].settings)
    update = calls(programs)[-1]
    state = update.arguments[0]
    after, _ = result(update.program, *update.arguments)
    same = jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, after, state)
    assert all(jax.tree.leaves(same)), same


def main():
    """Traces the variants; then shows that a wrong shape would have been noticed."""
    for fields in VARIANTS:
        trace(**fields)
        print("traced", fields)
    try:
        logprobs.sum_by_turn(jnp.zeros((2, 3)), jnp.zeros((2, 4), jnp.int32), 2)
    except jaxtyping.TypeCheckError:
        print("noticed")


if __name__ == "__main__":
    main()
