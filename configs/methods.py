"""The methods of the paper, later ones and arms that tell causes apart, a few lines each.

Run:     python -m score_jax.main --config=configs/methods.py:NAME[:PRESET]
         NAME of METHODS, such as star_plus; PRESET of configs/presets.py
All:     python -m score_jax.main --config=configs/paper.py
Cost:    as configs/stage2.py, unless the method says another budget: all methods of one
         comparison draw as many dialogues, `config.steps` times batch times group_size.
Expect:  docs/results.md.
Source:  with each method; the paper is arXiv:2409.12917.

self_refine trains nothing: it is for --mode=evaluate.
A stage's `share` is its part of `config.steps`. What a method leaves out is as in
configs/common.py, the same for all. `budget` is what it draws beside the others, 1 unless it
is an arm whose point is to draw more; `sets` are measurements of the dialogue that it trains.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import common, presets

BETA1, BETA2, ALPHA = 0.01, 0.1, 10.0  # of MATH, the paper's table of hyper-parameters
STEPS = 84  # halves, thirds and quarters of it are whole
RATE = 2e-4  # of RL on the embedded model, configs/common.py
SUPERVISED_RATE = 5e-4  # of fine-tuning there on whole dialogues
SECOND_RATE = 5e-5  # and on second attempts alone: at more, first attempts are soon lost
# Each of these is the middle of what a comparison tries.

STAGE1 = {
    "name": "stage1",
    "share": 1 / 2,
    "objective.reward_weights": (0.0, 1.0),
    "objective.beta": (BETA1 + BETA2, BETA1),
}
STAGE2 = {
    "name": "stage2",
    "share": 1 / 2,
    "objective.reward_weights": (1.0, 1.0),
    "objective.beta": (BETA1, BETA1),
    "objective.alpha": ALPHA,
}
MULTI_TURN = {
    "name": "multi_turn",
    "objective.reward_weights": (0.0, 1.0),
    "objective.beta": (BETA1, BETA1),
    "objective.gamma": 1.0,  # one episode with one reward: it is credited to both turns
}
SINGLE_TURN = {
    "name": "single_turn",
    "objective.reward_weights": (1.0,),
    "objective.beta": (BETA1,),
}
COLLECT = {"name": "collect", "program": "collect"}
TUNE = {
    "name": "tune",
    "program": "supervised",
    "start": "base",
    "batch": 256,  # dialogues, as many as RL learns from in a step; see `for_preset`
    "examples.source": "rollouts",
    "examples.stage": "collect",
    "optimizer.learning_rate": SUPERVISED_RATE,
    "checkpoint.select": "last",
}
SECOND = {  # loss on the second attempt alone
    "dialogue.trained": (False, True),
    "optimizer.learning_rate": SECOND_RATE,
}
THIRD = {"share": 1 / 3}
VERIFIED = {
    "roles": ("answer", "verify", "answer"),
    "instructions": ("", "Is this right?", ""),
}

METHODS: dict[str, dict[str, Any]] = {
    # Prompting only (section 7's baseline): three ways to ask again.
    "self_refine": {
        "title": "Self-Refine",
        "stages": (),
        "variants": tuple(
            {"evaluation.dialogue.instructions": ("", text)}
            for text in (
                "Please correct it.",
                "There might be an error.",
                "There might be an error. Please correct the error.",
            )
        ),
    },
    # Three rounds: collect with the latest policy, keep by name, fine-tune the base model.
    "star": {
        "title": "STaR",
        "rounds": 3,
        "stages": (COLLECT | THIRD, TUNE | THIRD | {"examples.keep": "wrong_then_right"}),
    },
    "star_plus": {
        "title": "STaR, D+",
        "rounds": 3,
        "stages": (COLLECT | THIRD, TUNE | THIRD | {"examples.keep": "ends_right"}),
    },
    # One round: first attempts of the base model, each with a random right answer behind it.
    "pair_sft": {
        "title": "Pair-SFT",
        "stages": (COLLECT, TUNE | SECOND | {"examples.keep": "pairs"}),
    },
    "pair_sft_plus": {
        "title": "Pair-SFT, D+",
        "stages": (COLLECT, TUNE | SECOND | {"examples.keep": "pairs_and_right"}),
    },
    "single_turn": {"title": "single-turn RL", "stages": (SINGLE_TURN,)},
    "multi_turn": {"title": "multi-turn RL", "stages": (MULTI_TURN,)},
    "score": {"title": "SCoRe", "stages": (STAGE1, STAGE2)},
    # Ablations, section 6.2.
    "score_no_stage1": {
        "title": "SCoRe without Stage I",
        "stages": (STAGE2 | {"share": 1.0},),
    },
    "score_alpha0": {
        "title": "SCoRe, alpha = 0",
        "stages": (STAGE1, STAGE2 | {"objective.alpha": 0.0}),
    },
    "score_star": {
        "title": "STaR in place of RL in Stage II",
        "stages": (
            STAGE1,
            COLLECT | {"share": 1 / 2},
            TUNE
            | SECOND
            | {"share": 1 / 2, "start": "stage1", "examples.keep": "wrong_then_right"},
        ),
    },
    # The paper's first version: the stages in turns, beta2 ten times beta1.
    "interleaved": {
        "title": "SCoRe, interleaved (v1)",
        "rounds": 2,
        "stages": (
            STAGE1 | {"share": 1 / 4, "objective.beta": (11 * BETA1, BETA1)},
            STAGE2 | {"share": 1 / 4},
        ),
    },
    # First attempts drawn from the base model before, in Stage I; no gradient reaches them.
    "offline": {
        "title": "SCoRe, offline first attempts",
        "budget": 1.5,  # of which a third are first attempts, and a third second ones, alone
        "stages": (
            COLLECT | SINGLE_TURN | {"name": "collect", "share": 1 / 2},
            STAGE1
            | {
                "start": "base",
                "objective.beta": (0.0, BETA1),
                "dialogue.sources": ("given", "sampled"),
                "data.first_attempts": "stage:collect",
            },
            STAGE2,
        ),
    },
    # Section 5.1: the first turn's KL weighs as much as the second turn's reward.
    "balanced": {
        "title": "SCoRe, adaptive beta2",
        "stages": (STAGE1 | {"coefficients.beta": "balance"}, STAGE2),
    },
    # Beyond the paper.
    "three_turns": {  # arXiv:2506.10406, section 5: three attempts
        "title": "SCoRe, three turns",
        "sets": {"own": {"turns": 3, "samples": 0}},
        "stages": (
            STAGE1
            | {
                "objective.reward_weights": (0.0, 1.0, 1.0),
                "objective.beta": (BETA1 + BETA2, BETA1, BETA1),
            },
            STAGE2
            | {
                "objective.reward_weights": (1.0, 1.0, 1.0),
                "objective.beta": (BETA1, BETA1, BETA1),
            },
        ),
    },
    "four_turns": {
        "title": "SCoRe, four turns",
        "sets": {"own": {"turns": 4, "samples": 0}},
        "stages": (
            STAGE1
            | {
                "objective.reward_weights": (0.0, 1.0, 1.0, 1.0),
                "objective.beta": (BETA1 + BETA2, BETA1, BETA1, BETA1),
            },
            STAGE2
            | {
                "objective.reward_weights": (1.0, 1.0, 1.0, 1.0),
                "objective.beta": (BETA1, BETA1, BETA1, BETA1),
            },
        ),
    },
    "pag": {  # arXiv:2506.10406: a turn that says whether the answer is right; every turn paid
        "title": "PAG: verify, then revise",
        "sets": {"own": {"turns": 3, "samples": 0, "dialogue": VERIFIED}},
        "stages": (
            {
                "name": "pag",
                **{f"dialogue.{name}": values for name, values in VERIFIED.items()},
                "objective.reward_weights": (1.0, 1.0, 1.0),
                "objective.beta": (BETA1, BETA1, BETA1),
                "objective.alpha": 1.0,
            },
        ),
    },
    "cocos": {  # arXiv:2505.23060: gamma^(T-t) (r_t - r_(t-1)), gamma 0.5
        "title": "CoCoS: discounted progress",
        "stages": (
            {
                "name": "cocos",
                "checkpoint.select": "last",  # the paid rewards leave the second attempt's out
                "objective.reward_weights": (0.5, 0.0),
                "objective.beta": (BETA1, BETA1),
                "objective.alpha": 1.0,
                "objective.bonus_gamma": 1.0,
            },
        ),
    },
    "repeat_penalty": {  # arXiv:2507.14295
        "title": "multi-turn RL, penalty for repeats",
        "stages": (MULTI_TURN | {"objective.repeat_penalty": 0.1},),
    },
    "score_ppo": {  # arXiv:2503.14476, section 3.1; clip range as in arXiv:2506.10406
        "title": "SCoRe, clipped, two updates a step",
        "stages": tuple(
            stage | {"estimator.clip": 0.2, "learner.minibatches": 2} for stage in (STAGE1, STAGE2)
        ),
    },
    "score_dapo": {  # arXiv:2503.14476, sections 3.1, 3.2 and 3.4, on top of score_ppo
        "title": "SCoRe, asymmetric clip, redraws",
        "budget": 2.0,  # at most: a step draws a second batch where groups have no signal
        "stages": tuple(
            stage
            | {
                "estimator.clip": 0.2,
                "estimator.clip_high": 0.28,
                "estimator.mask_truncated": True,
                "learner.minibatches": 2,
                "sampling.redraws": 1,
            }
            for stage in (STAGE1, STAGE2)
        ),
    },
    # Arms that tell causes apart.
    "stage1_on": {  # what of Stage II is just more steps
        "title": "Stage I continued",
        "stages": (STAGE1, STAGE1 | {"name": "stage1_on"}),
    },
    "score_longer": {
        "title": "SCoRe, twice the steps",
        "budget": 2.0,
        "stages": (STAGE1 | {"share": 1.0}, STAGE2 | {"share": 1.0}),
    },
    "multi_turn_longer": {
        "title": "multi-turn RL, twice the steps",
        "budget": 2.0,
        "stages": (MULTI_TURN | {"share": 2.0},),
    },
    "single_turn_longer": {
        "title": "single-turn RL, twice the steps",
        "budget": 2.0,
        "stages": (SINGLE_TURN | {"share": 2.0},),
    },
    **{
        f"score_{name}": {
            "title": f"SCoRe, baseline {baseline}",
            "stages": tuple(
                stage | {"estimator.baseline": baseline, **more} for stage in (STAGE1, STAGE2)
            ),
        }
        for name, baseline, more in (
            ("no_baseline", "none", {}),
            ("running", "running", {}),
            ("batch", "batch", {}),
            ("attempt", "leave_one_out_attempt", {"sampling.second_attempts": 2}),
        )
    },
}


def get_config(name: str = "score") -> ConfigDict:
    """A method on the embedded model and task, or behind a colon on a preset.

    Raises:
      ValueError: there is no such method or preset.
    """
    method, _, preset = name.partition(":")
    if method not in METHODS:
        raise ValueError(f"the method is {method!r}; choose one of {', '.join(METHODS)}")
    return made(shared(preset), method, for_preset(METHODS[method], preset))


def made(config: Any, name: str, own: dict[str, Any]) -> ConfigDict:
    """The config of a method, from what its stages share and what is its own."""
    config.name = name
    config.stages, config.rounds = own["stages"], own.get("rounds", 1)
    config.evaluation.sets = ConfigDict(own.get("sets", {}))
    if not own["stages"]:  # --mode=evaluate
        config.program = "prompting"
        config.update_from_flattened_dict(own["variants"][0])
    return config


def shared(preset: str) -> ConfigDict:
    """What all methods of a comparison have in common."""
    config: Any = common.get_config()
    config.name = "shared"
    config.steps = STEPS
    config.checkpoint.every = 14
    presets.apply(config, preset)
    config.sampling.row_limit = 0  # three turns and more need longer rows
    return config


def for_preset(method: dict[str, Any], preset: str) -> dict[str, Any]:
    """A method with what goes with a preset; see `suited`."""
    if preset in ("", *presets.EMBEDDED):
        return method
    return suited(method, shared(preset), presets.STAGE1_BETAS[presets.split(preset)[1]][0])


def suited(method: dict[str, Any], config: Any, held: float) -> dict[str, Any]:
    """A method with the beta2, microbatches, batch and rate that go with a config.

    Fine-tuning keeps its ratios to RL: as many dialogues a step, and its share of the rate.
    A microbatch has as many rows, also where a batch is learnt from in several updates.

    Args:
      config: what its stages share.
      held: beta of the turn that Stage I holds to the base model.
    """
    batch = config.batch * config.sampling.group_size
    single = method.get("rounds", 1) == 1  # the first version has a beta2 of its own

    def adapted(stage: dict[str, Any]) -> dict[str, Any]:
        parts = stage.get("learner.minibatches", 1)
        if parts > 1:  # as many rows at a time
            fewer = max(1, config.learner.microbatches // parts)
            stage = stage | {"learner.microbatches": fewer}
        if stage.get("program") == "supervised":
            rate = stage["optimizer.learning_rate"] / RATE * config.optimizer.learning_rate
            return stage | {"batch": batch, "optimizer.learning_rate": rate}
        first, *others = stage.get("objective.beta", (None,))
        usual = single and first == BETA1 + BETA2
        return stage | {"objective.beta": (held, *others)} if usual else stage

    return method | {"stages": tuple(map(adapted, method["stages"]))}
