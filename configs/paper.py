"""The comparison that the paper claims: its methods, later ones and arms, in one run.

Run:     python -m score_jax.main --config=configs/paper.py
         or configs/paper.py:receipts, the second embedded task
         --config.comparison.only='("score","multi_turn")' for some of the methods,
         --config.comparison.seeds=1 --config.steps=12 for a first look
Gives:   comparison.html, comparison.json and figures/ in the workdir; the same command goes on
         where it was stopped.
Cost:    two hours on one core for the six methods with five seeds, and 5 to 15 minutes for each
         other one.
Expect:  docs/results.md.
Source:  arXiv:2409.12917, sections 6 and 7; its two tables stand beside ours on the page.

Every method is tuned alike: as many variants (rates, unless the method says others), each
trained once with seed 0 and measured on the same validation problems, greedily. What was
chosen is trained with further seeds, and measured once on the test problems.
"""

from typing import Any

from ml_collections import ConfigDict

from configs import methods

MAIN = ("self_refine", "star_plus", "pair_sft", "single_turn", "multi_turn", "score")
AGAINST = "multi_turn"  # the method that all are compared with, problem by problem


def get_config(preset: str = "") -> ConfigDict:
    """All methods on the embedded model and task, or on a preset of configs/presets.py."""
    config: Any = methods.shared(preset)
    config.name = "paper"
    config.evaluation.validation_problems = 0  # all
    config.evaluation.problems = 2000
    config.log.update(
        {"rollouts": 16, "rollouts_every": 10, "tensorboard": False, "report_minutes": 0.0}
    )
    config.comparison = ConfigDict(  # ComparisonConfig
        {
            "methods": ConfigDict(
                {
                    name: ConfigDict(
                        methods.for_preset(method, preset) | {"seeds": 5 if name in MAIN else 1}
                    )
                    for name, method in methods.METHODS.items()
                }
            ),
            "only": (),  # names of the methods that are run; (): all
            "seeds": 0,  # of each method; 0: as many as it says
            "rates": (0.5, 1.0, 2.0),  # times the method's own; its variants, unless it has others
            "against": AGAINST,
            "scaled": ("score", "multi_turn"),  # measured on comparison.sets too, with one seed
            "sets": ConfigDict(  # further measurements, as evaluation.sets
                {
                    "votes": {"samples": 32, "temperature": 0.7, "problems": 500},
                    "attempts": {"turns": 10, "problems": 500, "samples": 0},
                    "wait": {"dialogue": {"instructions": ("", "Wait")}, "samples": 0},
                }
            ),
        }
    )
    return config
