"""Run as a program with eight fake devices: writes what `test_sharding.py` looks at.

    python -m tests.eight_devices TOKENIZER_FOLDER OUT.npz

Sample, score and update of one stage, as `build` makes them, on one device and on two
meshes of 2 x 2 x 2: all of `MESHES`. The same rollout is learnt from with every form of KL.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.distributed.sharding import local_rows
from score_jax.rl.dialogue import DialoguePlan
from score_jax.rl.metrics import flat
from score_jax.stages.build import build
from score_jax.stages.settings import parse
from score_jax.tasks import registry
from tests.tiny import prompts_of

MESHES = {
    "many": {"data": 2, "fsdp": 2, "tensor": 2},
    "swung": {"slices": 2, "fsdp": 2, "sampling_tensor": 2},
}
ESTIMATES = ("k2", "k3", "reward")  # of KL, beside the exact one
MODEL = {
    "vocab_size": 64,
    "layers": 2,
    "width": 16,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "mlp_dim": 32,
}


def settings(tokenizer, **mesh):
    """A stage with every part of the step in use."""
    return parse(
        {
            "name": "sharded",
            "steps": 2,
            "batch": 8,
            "tokenizer": {"source": tokenizer},
            "weights": {"source": "random"},
            "model": MODEL,
            "mesh": mesh,
            "sampling": {"group_size": 2, "prompt_limit": 6, "turn_limit": 5, "decode_segments": 3},
            "objective": {
                "reward_weights": (1.0, 1.0),
                "beta": (0.1, 0.2),
                "alpha": 3.0,
            },
            "estimator": {"kl": "exact"},
            "optimizer": {"learning_rate": 1e-3},
            "learner": {"microbatches": 2, "logits_chunk": 4},
            "grading": {},
            "checkpoint": {},
            "evaluation": {},
            "log": {},
        }
    )


def prompts():
    """Eight problems of three to six tokens."""
    draws = np.random.default_rng(0)
    length = draws.integers(3, 7, 8).astype(np.int32)
    tokens = draws.integers(4, 60, (8, 6)).astype(np.int32)
    lines = [row[:size].tolist() for row, size in zip(tokens, length, strict=True)]
    return prompts_of(lines, plan=DialoguePlan().complete(2, 5), draws=np.arange(8) * 3)


def shares(tree):
    """Of each leaf, the share of its numbers that one device holds."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path): leaf.addressable_shards[0].data.size / leaf.size
        for path, leaf in paths
    }


def one_step(stage, devices):
    """Everything that one step computes, as flat numpy arrays, and facts about placement."""
    programs = build(stage, devices)
    reference = programs.init_params(jax.random.key(1))
    state = programs.init_state(programs.init_params(jax.random.key(2)))
    before = jax.tree.map(np.asarray, reference)
    placed = {"params": shares(state.params), "opt_state": shares(state.opt_state)}
    policy = jax.tree.map(jnp.copy, state.params)
    rollouts = programs.rollout_programs({"": registry.get(stage.task)})
    episodes = rollouts.sample(
        rollouts.prepare(policy), programs.to_global(prompts()), jax.random.key(3)
    )[-1]
    rewards = np.random.default_rng(1).integers(0, 2, (16, 2)).astype(np.float32)
    episodes = episodes.replace(rewards=programs.to_global(rewards))
    local = local_rows(episodes)
    scores = rollouts.score(reference, episodes)
    old = jax.tree.leaves(state.params)
    state, metrics = programs.update(state, reference, episodes, scores)
    arrays = {
        "episodes": local,
        "hidden": np.asarray(scores.hidden),
        "params": jax.tree.map(np.asarray, state.params),
        "metrics": flat(jax.device_get(metrics)),
    }
    for kl in ESTIMATES:
        other = build(replace(stage, estimator=replace(stage.estimator, kl=kl)), devices)
        state = other.init_state(programs.init_params(jax.random.key(2)))
        scores = other.score(reference, episodes)
        state, metrics = other.update(state, reference, episodes, scores)
        arrays[f"moments_{kl}"] = jax.tree.map(np.asarray, state.opt_state)
        arrays[f"metrics_{kl}"] = flat(jax.device_get(metrics))
    same = jax.tree.map(lambda a, b: bool((a == np.asarray(b)).all()), before, reference)
    facts = {
        "shares": placed,
        "after": shares(state.params),
        "row_shards": len({str(s.index) for s in episodes.tokens.addressable_shards}),
        "state_donated": all(leaf.is_deleted() for leaf in old),
        "reference_kept": all(jax.tree.leaves(same)),
    }
    leaves = jax.tree_util.tree_leaves_with_path(arrays)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}, facts


def main(tokenizer, out):
    """Compares nothing: it writes all results."""
    assert len(jax.devices()) == 8, jax.devices()
    sides = {"one": one_step(settings(tokenizer), jax.devices()[:1])}
    sides |= {name: one_step(settings(tokenizer, **mesh), None) for name, mesh in MESHES.items()}
    found = {
        f"{side}{name}": x for side, (arrays, _) in sides.items() for name, x in arrays.items()
    }
    np.savez(out, **found)
    facts = {side: facts for side, (_, facts) in sides.items()}
    Path(out).with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(*sys.argv[1:])
