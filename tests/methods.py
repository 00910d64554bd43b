"""Methods as a config lists them, and what each of their stages learns, written out by hand.

`gains` gives what the tokens of each turn maximise, from the turns' rewards r, their log-ratios
d to the reference (whose mean is the KL), and their outcomes o, all by turn from 1. `keeps` gives
for supervised stages which first and last rewards a dialogue must have, and the turns with loss.

Sources: PAPER, arXiv:2409.12917; PAG, 2506.10406; CoCoS, 2505.23060; UFO, 2507.14295.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.enumerable import World

ONE, TWO = World(turns=1), World(turns=2)
THREE, FOUR = (World(vocabulary=3, limit=1, turns=turns) for turns in (3, 4))
BETA1, BETA2, ALPHA, PENALTY = 0.2, 0.6, 10.0, 0.3
GAMMA = 0.5  # of CoCoS
INTERLEAVED = 11 * BETA1  # beta1 + beta2 of the paper's first version: beta2 = 10 beta1


@dataclass(frozen=True)
class Method:
    """A list of stages, and what is expected of them."""

    stages: tuple[dict, ...]
    starts: dict[str, str]  # every stage in its order: what it starts from; "": the base model
    gains: dict[str, Callable] = field(default_factory=dict)  # by entry of the list
    keeps: dict[str, tuple[Callable, tuple[int, ...]]] = field(default_factory=dict)
    rounds: int = 1
    world: World = TWO


COLLECT = {"name": "collect", "program": "collect", "sampling.group_size": 1}
TUNE = {
    "name": "tune",
    "program": "supervised",
    "start": "base",
    "examples.source": "rollouts",
    "examples.stage": "collect",
}
STAGE1 = {
    "name": "stage1",
    "objective.reward_weights": (0.0, 1.0),
    "objective.beta": (BETA1 + BETA2, BETA1),
}
STAGE2 = {
    "name": "stage2",
    "objective.reward_weights": (1.0, 1.0),
    "objective.beta": (BETA1, BETA1),
    "objective.alpha": ALPHA,
}
SECOND = {"dialogue.trained": (False, True)}
EXACT = {"estimator.kl": "exact"}


def stage1(r, d, _):
    return -(BETA1 + BETA2) * d[1], r[2] - BETA1 * d[2]


def stage2(r, d, _):
    return r[1] - BETA1 * d[1], r[2] + ALPHA * (r[2] - r[1]) - BETA1 * d[2]


def cocos(r, *_):
    """One scalar for all turns: the sum over t of gamma^(T-t) (r_t - r_(t-1)), where r_0 = 0."""
    return (GAMMA**2 * r[1] + GAMMA * (r[2] - r[1]) + r[3] - r[2],) * 3


def corrected(first, last):
    return first == 0 and last == 1


def ends_right(_, last):
    return last == 1


STAR_ROUNDS = {
    "collect_1": "", "tune_1": "",
    "collect_2": "tune_1", "tune_2": "",
    "collect_3": "tune_2", "tune_3": "",
}  # fmt: skip

METHODS = {
    "STaR": Method(
        stages=(COLLECT, {**TUNE, "examples.keep": "wrong_then_right"}),
        rounds=3,
        starts=STAR_ROUNDS,
        keeps={"tune": (corrected, (1, 2))},
    ),
    "STaR, D+": Method(
        stages=(COLLECT, {**TUNE, "examples.keep": "ends_right"}),
        rounds=3,
        starts=STAR_ROUNDS,
        keeps={"tune": (ends_right, (1, 2))},
    ),
    "Pair-SFT": Method(
        stages=(COLLECT, {**TUNE, **SECOND, "examples.keep": "pairs"}),
        starts={"collect": "", "tune": ""},
    ),
    "Pair-SFT, D+": Method(
        stages=(COLLECT, {**TUNE, **SECOND, "examples.keep": "pairs_and_right"}),
        starts={"collect": "", "tune": ""},
    ),
    "single-turn RL": Method(
        stages=(
            {
                "name": "single_turn",
                "objective.reward_weights": (1.0,),
                "objective.beta": (BETA1,),
                "evaluation.turns": 2,
            },
        ),
        starts={"single_turn": ""},
        gains={"single_turn": lambda r, d, _: (r[1] - BETA1 * d[1],)},
        world=ONE,
    ),
    "multi-turn RL": Method(
        stages=(
            {
                "name": "multi_turn",
                "objective.reward_weights": (0.0, 1.0),
                "objective.beta": (BETA1, BETA1),
                "objective.gamma": 1.0,
            },
        ),
        starts={"multi_turn": ""},
        gains={"multi_turn": lambda r, d, _: (r[2] - BETA1 * d[1], r[2] - BETA1 * d[2])},
    ),
    "SCoRe": Method(
        stages=({**STAGE1, **EXACT}, {**STAGE2, **EXACT}),
        starts={"stage1": "", "stage2": "stage1"},
        gains={"stage1": stage1, "stage2": stage2},
    ),
    "SCoRe without Stage I": Method(
        stages=(STAGE2,), starts={"stage2": ""}, gains={"stage2": stage2}
    ),
    "SCoRe, alpha = 0": Method(
        stages=(STAGE1, {**STAGE2, "objective.alpha": 0.0}),
        starts={"stage1": "", "stage2": "stage1"},
        gains={"stage2": lambda r, d, _: (r[1] - BETA1 * d[1], r[2] - BETA1 * d[2])},
    ),
    "STaR in Stage II": Method(
        stages=(
            STAGE1,
            COLLECT,
            {**TUNE, **SECOND, "start": "previous", "examples.keep": "wrong_then_right"},
        ),
        starts={"stage1": "", "collect": "stage1", "tune": "stage1"},
        keeps={"tune": (corrected, (2,))},
    ),
    "interleaved": Method(
        stages=({**STAGE1, "objective.beta": (INTERLEAVED, BETA1)}, STAGE2),
        rounds=2,
        starts={
            "stage1_1": "",
            "stage2_1": "stage1_1",
            "stage1_2": "stage2_1",
            "stage2_2": "stage1_2",
        },
        gains={"stage1": lambda r, d, _: (-INTERLEAVED * d[1], r[2] - BETA1 * d[2])},
    ),
    "offline first attempts": Method(
        stages=(
            {
                **STAGE1,
                "objective.beta": (0.0, BETA1),
                "dialogue.sources": ("given", "sampled"),
                "data.first_attempts": "attempts.jsonl",
            },
        ),
        starts={"stage1": ""},
        gains={"stage1": lambda r, d, _: (0.0, r[2] - BETA1 * d[2])},
    ),
    "balanced beta": Method(
        stages=({**STAGE1, **EXACT, "coefficients.beta": "balance", "coefficients.balance": 0.5},),
        starts={"stage1": ""},
    ),
    "target KL": Method(
        stages=({**STAGE1, **EXACT, "coefficients.beta": "target", "coefficients.rate": 0.4},),
        starts={"stage1": ""},
    ),
    "PPO": Method(
        stages=(
            {
                **STAGE2,
                "objective.alpha": 1.0,
                "estimator.clip": 0.2,
                "learner.minibatches": 2,
                "sampling.group_size": 12,
            },
        ),
        starts={"stage2": ""},
    ),
    "PPO, clipped higher": Method(  # DAPO, arXiv:2503.14476, section 3.1
        stages=(
            {
                **STAGE2,
                "objective.alpha": 1.0,
                "estimator.clip": 0.2,
                "estimator.clip_high": 0.28,
                "learner.minibatches": 2,
                "sampling.group_size": 12,
            },
        ),
        starts={"stage2": ""},
    ),
    "verify, then revise": Method(  # PAG: every turn is rewarded
        stages=(
            {
                "name": "pag",
                "dialogue.roles": ("answer", "verify", "answer"),
                "objective.reward_weights": (1.0, 1.0, 1.0),
                "objective.beta": (BETA1, 0.0, BETA2),
                "objective.alpha": 2.0,
            },
        ),
        starts={"pag": ""},
        gains={
            "pag": lambda r, d, _: (
                r[1] - BETA1 * d[1],
                r[2],
                r[3] + 2 * (r[3] - r[1]) - BETA2 * d[3],
            )
        },
        world=THREE,
    ),
    "three turns": Method(
        stages=(
            {
                "name": "three",
                "objective.reward_weights": (1.0, 1.0, 1.0),
                "objective.beta": (BETA1, BETA1, BETA2),
                "objective.alpha": ALPHA,
            },
        ),
        starts={"three": ""},
        gains={
            "three": lambda r, d, _: (
                r[1] - BETA1 * d[1],
                r[2] + ALPHA * (r[2] - r[1]) - BETA1 * d[2],
                r[3] + ALPHA * (r[3] - r[2]) - BETA2 * d[3],
            )
        },
        world=THREE,
    ),
    "four turns": Method(
        stages=(
            {
                "name": "four",
                "objective.reward_weights": (0.0, 0.0, 0.5, 1.0),
                "objective.beta": (0.0, BETA1, 0.0, BETA2),
                "objective.gamma": 0.8,
            },
        ),
        starts={"four": ""},
        gains={
            "four": lambda r, d, _: (
                0.8**2 * 0.5 * r[3] + 0.8**3 * r[4],
                0.8 * 0.5 * r[3] + 0.8**2 * r[4] - BETA1 * d[2],
                0.5 * r[3] + 0.8 * r[4],
                r[4] - BETA2 * d[4],
            )
        },
        world=FOUR,
    ),
    "CoCoS": Method(  # without what earlier turns have earned, which moves nothing: see `cocos`
        stages=(
            {
                "name": "cocos",
                "objective.reward_weights": (GAMMA**2, 0.0, 0.0),
                "objective.beta": (0.0, 0.0, 0.0),
                "objective.alpha": 1.0,
                "objective.bonus_gamma": 1.0,
                "objective.bonus_weights": (0.0, GAMMA, 1.0),
            },
        ),
        starts={"cocos": ""},
        gains={
            "cocos": lambda r, *_: (
                GAMMA**2 * r[1] + GAMMA * (r[2] - r[1]) + r[3] - r[2],
                GAMMA * (r[2] - r[1]) + r[3] - r[2],
                r[3] - r[2],
            )
        },
        world=THREE,
    ),
    "discounted progress": Method(
        stages=(
            {
                "name": "discounted",
                "objective.reward_weights": (1.0, 1.0, 1.0),
                "objective.beta": (0.0, 0.0, 0.0),
                "objective.alpha": 2.0,
                "objective.bonus_gamma": GAMMA,
            },
        ),
        starts={"discounted": ""},
        gains={
            "discounted": lambda r, *_: (
                r[1] + 2 * (GAMMA * (r[2] - r[1]) + GAMMA**2 * (r[3] - r[2])),
                r[2] + 2 * ((r[2] - r[1]) + GAMMA * (r[3] - r[2])),
                r[3] + 2 * (r[3] - r[2]),
            )
        },
        world=THREE,
    ),
    "repetition penalty": Method(  # UFO; outcome 0 is an empty attempt, which answers nothing
        stages=({**STAGE2, "objective.alpha": 0.0, "objective.repeat_penalty": PENALTY},),
        starts={"stage2": ""},
        gains={
            "stage2": lambda r, d, o: (
                r[1] - BETA1 * d[1],
                r[2] - PENALTY * ((o[1] == o[2]) & (o[2] > 0)) - BETA1 * d[2],
            )
        },
    ),
}
