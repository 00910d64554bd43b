"""A sampler that says what it is told to, in place of a model."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from score_jax.rl.dialogue import Encoder
from score_jax.rl.sampling import fan_out
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.types import Episodes

CUT = "…"  # at the end of a text: the turn was cut there


@dataclass(frozen=True, kw_only=True)
class Scripted:
    """Draws each row's turns from a script, a `rl.rollout.Sampler`."""

    encoder: Encoder
    texts: Sequence[Sequence[str]]  # of each row, of each turn that it draws; fewer: it ends there

    def by_turn(self, params, prompts, key) -> list[Episodes]:
        """The dialogues after each turn that is drawn."""
        return [self(params, prompts, key, turns=n) for n in self.encoder.plan.drawn]

    def __call__(self, params, prompts, key, /, turns=99) -> Episodes:
        """The rows of a plan, as many for each prompt as the script has.

        Args:
          turns: that are known; those after them are not drawn yet.
        """
        group_size = len(self.texts) // len(prompts.length)
        rows = fan_out(jax.tree.map(jnp.asarray, prompts), SamplingConfig(group_size=group_size))
        rows, length = jax.tree.map(np.asarray, rows), self.encoder.row_length()
        count, known_turns = len(rows.drawn), turns
        turns = rows.drawn.shape[1]
        tokens, turn = np.zeros((2, count, length), np.int32)
        present, truncated = rows.present.copy(), np.zeros((count, turns), bool)
        lengths = np.zeros(count, np.int32)
        for row, texts in enumerate(self.texts):
            drawn = np.flatnonzero(rows.drawn[row])
            present[row, drawn[len(texts) :]] = False
            line, owner = (x[row, : rows.length[row]].tolist() for x in (rows.tokens, rows.turn))
            before = ""
            for index, text in zip(drawn, texts, strict=False):
                if index >= known_turns:
                    break
                if index != drawn[0]:
                    known = slice(int(not before.endswith(CUT)), rows.forced_length[row, index])
                    line += rows.forced[row, index, known].tolist()
                    owner += rows.forced_turn[row, index, known].tolist()
                truncated[row, index] = text.endswith(CUT)
                own = self.encoder.chat.encode_plain(text.removesuffix(CUT))
                own += [] if text.endswith(CUT) else [self.encoder.chat.stops[0]]
                line, owner, before = line + own, owner + [index + 1] * len(own), text
            tokens[row, : len(line)], turn[row, : len(line)] = line, owner
            lengths[row] = len(line)
        sampled = np.take_along_axis(np.pad(rows.drawn, ((0, 0), (1, 0))), turn, axis=1)
        trained = np.take_along_axis(np.pad(rows.trained, ((0, 0), (1, 0))), turn, axis=1)
        arrays = Episodes(
            tokens=tokens,
            length=lengths,
            turn=turn,
            sampled=sampled,
            trained=sampled & trained,
            logprobs=-sampled.astype(np.float32),  # a nat each
            present=present,
            truncated=truncated,
            rewards=np.zeros((count, turns), np.float32),
            ids=rows.ids,
        )
        return jax.tree.map(jnp.asarray, arrays)
