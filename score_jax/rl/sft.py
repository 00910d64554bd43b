"""Supervised fine-tuning on worked dialogues: pre-training, STaR, Pair-SFT.

Cross-entropy on the tokens of the turns that are learnt, in the rows that RL uses too.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Key

from score_jax.data.equations import WorkedDialogue
from score_jax.model.decoder import Decoder
from score_jax.records import Problem, Task
from score_jax.rl.learner import LearnerConfig, accumulated_gradient
from score_jax.rl.sampling import TurnTemplate
from score_jax.rl.scoring import hidden_states, score_tokens
from score_jax.text.chat import Chat
from score_jax.types import Episodes, Params, TrainState


def encode_dialogue(
    chat: Chat, template: TurnTemplate, prompt: str, dialogue: WorkedDialogue
) -> tuple[list, list]:
    """Token ids of a dialogue, and the turn of each token that is learnt (0: not learnt)."""
    ids = chat.encode_prompt(prompt)
    turns = [0] * len(ids)
    for number, parts in enumerate(dialogue.attempts, 1):
        if number > 1:
            ids += template.instruction
            turns += [0] * len(template.instruction)
        for part in parts:
            piece = chat.tokenizer.encode(part.text)
            ids += piece
            turns += [number if part.learn else 0] * len(piece)
        ids.append(template.stops[0])
        turns.append(number if parts[-1].learn else 0)
    return ids, turns


def encode_dialogues(
    chat: Chat, task: Task, template: TurnTemplate, dialogues: Sequence[WorkedDialogue], length: int
) -> Episodes:
    """Rows of supervised training; log-probabilities and rewards are 0.

    Raises:
      ValueError: a dialogue is longer than a row.
    """
    count = len(dialogues)
    tokens, turn = np.zeros((2, count, length), np.int32)
    lengths = np.zeros(count, np.int32)
    for row, dialogue in enumerate(dialogues):
        problem = Problem(id="", prompt=dialogue.prompt)
        ids, turns = encode_dialogue(chat, template, task.ask(problem), dialogue)
        if len(ids) > length:
            raise ValueError(
                f"sampling.prompt_limit and turn_limit allow {length} tokens; a dialogue on "
                f"{dialogue.prompt!r} has {len(ids)}: raise them"
            )
        tokens[row, : len(ids)], turn[row, : len(ids)] = ids, turns
        lengths[row] = len(ids)
    columns: dict[str, Any] = {  # numpy until they are made global
        "tokens": tokens,
        "length": lengths,
        "turn": turn,
        "logprobs": np.zeros((count, length), np.float32),
        "truncated": np.zeros((count, template.turns), bool),
        "draw": np.zeros(count, np.int32),
        "rewards": np.zeros((count, template.turns), np.float32),
    }
    return Episodes(**columns)


def random_move(params: Params, key: Key[Array, ""], share: float) -> Params:
    """Parameters a random step away.

    Args:
      share: length of each tensor's step, of the tensor's own norm (in expectation).
    """
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    return tree.unflatten(
        leaf + share * jnp.sqrt(jnp.mean(leaf**2)) * jax.random.normal(own, leaf.shape)
        for own, leaf in zip(keys, leaves, strict=True)
    )


def supervised_update(
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    episodes: Episodes,
    *,
    config: LearnerConfig,
    max_policy_tokens: int,
    noise: float = 0.0,
    seed: int = 0,
) -> tuple[TrainState, dict[str, Array]]:
    """One optimiser update on worked dialogues.

    With noise the gradient is that of the loss a random step away, another one for every
    update: what is learnt is a place whose surroundings are good as well, not a narrow one.

    Args:
      noise: length of that step, of each tensor's norm.
      seed: of the random steps.

    Returns:
      The new state, and the loss in nats per token over the whole batch.

    Source: LPF-SGD, arXiv:2201.08025, with one random step per update and tensors as filters.
    """
    tokens = jnp.sum(episodes.turn > 0)

    def loss(params: Params, part: Episodes) -> tuple[Float[Array, ""], dict[str, Array]]:
        hidden = hidden_states(decoder, params, part.tokens)
        scores = score_tokens(
            decoder,
            params,
            hidden,
            part,
            max_policy_tokens=max_policy_tokens,
            logits_chunk=config.logits_chunk,
        )
        value = -scores.logprobs.sum() / tokens
        return value, {"loss": value}

    params = state.params
    if noise:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        params = random_move(params, key, noise)
    gradient, sums = accumulated_gradient(loss, params, episodes, config.microbatches)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        opt_state=opt_state,
    )
    return state, {**sums, "gradient_norm": optax.tree.norm(gradient)}
