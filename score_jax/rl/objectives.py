"""What a run maximises: the returns of each turn, as values of one `Objective`.

Stage I, Stage II, single-turn and standard multi-turn RL differ by their numbers. With
rewards r1, r2 and gamma = 0 the turns' returns are

    Stage I    turn 1: 0                     turn 2: r2
    Stage II   turn 1: r1                    turn 2: r2 + alpha (r2 - r1)

and every turn t pays beta[t] for each nat of KL(policy || reference). Returns stay
per turn to the end: one scalar for both would pay a policy to fail first. How the
gradient is estimated is another matter: rl.estimators. alpha and beta may move while
a stage trains: rl.coefficients.

Source: arXiv:2409.12917, sections 4 and 5; docs/method.md derives what alpha does.
"""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float

from score_jax.checks import NotNegative, Share, check_fields
from score_jax.rl.dialogue import DialoguePlan


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What a run maximises. Tuples hold one value per turn."""

    reward_weights: tuple[NotNegative, ...]  # stage I: (0, 1); II: (1, 1); single turn: (1,)
    beta: tuple[NotNegative, ...]  # reward per nat of KL(policy || reference)
    alpha: NotNegative = 0.0  # progress bonus on answers after the first, in rewards
    gamma: Share = 0.0  # share of a later turn's reward that reaches the turn before it
    bonus_gamma: Share = 0.0  # share of a later turn's bonus that does; 0 in SCoRe
    bonus_weights: tuple[NotNegative, ...] = ()  # of each turn's bonus; (): 1
    repeat_penalty: NotNegative = 0.0  # rewards taken for an answer that the dialogue had before

    def __post_init__(self):
        check_fields(self, "objective")
        if len(self.reward_weights) != len(self.beta) or not self.beta:
            raise ValueError(
                f"objective.beta is {self.beta}; give one value per turn, "
                f"as many as objective.reward_weights {self.reward_weights}"
            )
        if self.bonus_weights and len(self.bonus_weights) != self.turns:
            raise ValueError(
                f"objective.bonus_weights is {self.bonus_weights}; give one value per turn, or ()"
            )

    @property
    def turns(self) -> int:
        """Number of turns of a dialogue."""
        return len(self.reward_weights)

    @property
    def weights_of_bonus(self) -> tuple[float, ...]:
        """One value per turn."""
        return self.bonus_weights or (1.0,) * self.turns

    def check_plan(self, plan: DialoguePlan) -> None:
        """Checks that what is trained is paid for, and that what is paid for is trained.

        Args:
          plan: complete, of as many turns.

        Raises:
          ValueError: a coefficient would be without effect, or a trained turn without loss.
        """
        paid = bonus = False  # whether a reward, or a bonus, reaches this turn
        for index in reversed(range(self.turns)):
            own = self.reward_weights[index] > 0
            gains = index > 0 and plan.roles[index] == "answer" and self.weights_of_bonus[index] > 0
            bonus = self.alpha > 0 and (gains or (self.bonus_gamma > 0 and bonus))
            paid = own or (self.gamma > 0 and paid)
            if plan.trained[index] and not (paid or bonus or self.beta[index]):
                raise ValueError(
                    f"dialogue.trained[{index}] is True, but no reward, bonus or KL reaches turn "
                    f"{index + 1}; set it False, or a weight in objective"
                )
            if self.beta[index] and not plan.trained[index]:
                raise ValueError(
                    f"objective.beta[{index}] is {self.beta[index]}, but turn {index + 1} is not "
                    "trained; set it to 0"
                )
            reached = any(plan.trained[: index + 1] if self.gamma else plan.trained[index:][:1])
            if own and not reached:
                raise ValueError(
                    f"objective.reward_weights[{index}] is {self.reward_weights[index]}, but turn "
                    f"{index + 1} is not trained; set it to 0"
                )
        if not any(plan.trained):
            raise ValueError(f"dialogue.trained is {plan.trained}; nothing would be learnt")


def discounted(
    rewards: Float[Array, "B R"], weights: tuple[float, ...], gamma: float
) -> Float[Array, "B R"]:
    """Each turn's own weighted reward plus gamma times the next turn's return."""
    returns = [rewards[:, -1] * weights[-1]]
    for turn in range(rewards.shape[1] - 2, -1, -1):
        returns.insert(0, rewards[:, turn] * weights[turn] + gamma * returns[0])
    return jnp.stack(returns, axis=1)


def progress(rewards: Float[Array, "B R"], roles: tuple[str, ...]) -> Float[Array, "B R"]:
    """What each answer gained over the answer before it; 0 for the first, and for verdicts.

    SCoRe pays the bonus to the turn that made the progress alone: discounted back
    (`bonus_gamma`) it rewards failing first.

    Source: arXiv:2409.12917, section 5.2.
    """
    gains, before = [], rewards[:, 0]
    for turn, role in enumerate(roles):
        answer = role == "answer"
        gains.append(rewards[:, turn] - before if answer else jnp.zeros_like(before))
        before = rewards[:, turn] if answer else before
    return jnp.stack(gains, axis=1)


def turn_returns(
    objective: Objective,
    rewards: Float[Array, "B R"],
    *,
    alpha: Float[Array, ""] | float,
    roles: tuple[str, ...],
) -> Float[Array, "B R"]:
    """The return that the tokens of each turn are credited with, before any KL.

    Args:
      alpha: in place of the objective's, which it may have begun with.
    """
    returns = discounted(rewards, objective.reward_weights, objective.gamma)
    weights = objective.weights_of_bonus
    return returns + alpha * discounted(progress(rewards, roles), weights, objective.bonus_gamma)
