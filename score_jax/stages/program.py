"""Jitted programs with the mesh and axis tables that they are traced under."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.spmd import logical_to_mesh_sharding
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key

from score_jax.distributed import sharding
from score_jax.rl.decoding import CACHE_AXES, SamplingState
from score_jax.rl.sampling import Drawing
from score_jax.types import Cache, Episodes, Params, Prompts


@dataclass(frozen=True)
class Program:
    """A jitted function with the mesh and the axis table that it is traced under."""

    jitted: Any
    mesh: Mesh
    rules: sharding.Rules = sharding.TRAIN_RULES

    def __call__(self, *arguments: Any) -> Any:
        """Runs it."""
        with self.traced():
            return self.jitted(*arguments)

    def lower(self, *arguments: Any) -> Any:
        """Lowers it for shapes instead of arrays."""
        with self.traced():
            return self.jitted.lower(*arguments)

    @contextmanager
    def traced(self) -> Iterator[None]:
        """The context for tracing; float32 products outside the model are computed in float32."""
        with (
            jax.set_mesh(self.mesh),
            nn.logical_axis_rules(self.rules),
            jax.default_matmul_precision("highest"),
        ):
            yield


@dataclass(frozen=True)
class SamplingPrograms:
    """The two programs of a rollout; the second runs once for each turn.

    Apart, so that the host has a turn's attempts while the next turn is drawn.
    """

    drawing: Drawing
    mesh: Mesh
    param_shardings: Params

    @cached_property
    def prefill(self) -> Program:
        """The program (params, prompts) -> the prompts' cache, rows that are being drawn."""
        return self.program(
            self.drawing.begin,
            (self.param_shardings, sharding.rows(self.mesh)),
            (self.prompt_shardings, self.drawn_shardings),
        )

    @cached_property
    def decode(self) -> Program:
        """The program (params, prompts, key, cache, rows donated, turn) -> rows, Episodes."""
        rows, whole = sharding.rows(self.mesh), sharding.replicated(self.mesh)
        held = (self.prompt_shardings, self.drawn_shardings)

        def draw_turn(*arguments: Any) -> tuple[SamplingState, Episodes]:
            state = self.drawing.turn(*arguments)
            return state, self.drawing.episodes(arguments[1], state)

        return self.program(
            draw_turn,
            (self.param_shardings, rows, whole, *held, whole),
            (self.drawn_shardings, rows),
            donate_argnums=4,
        )

    @cached_property
    def numbers(self) -> list[Array]:
        """The number of each turn that is drawn, on all devices."""
        turns = self.drawing.plan.drawn
        make = self.program(
            lambda: [jnp.int32(turn) for turn in turns], (), sharding.replicated(self.mesh)
        )
        return make()

    def program(self, function: Any, ins: Any, outs: Any, **options: Any) -> Program:
        """Jits a function for sampling."""
        jitted = jax.jit(function, in_shardings=ins, out_shardings=outs, **options)
        return Program(jitted, self.mesh, sharding.SAMPLE_RULES)

    @property
    def prompt_shardings(self) -> Cache:
        """Of the prompts' cache, as a prefix of its tree."""
        table: Any = logical_to_mesh_sharding(P(*CACHE_AXES), self.mesh, sharding.SAMPLE_RULES)
        return Cache(
            keys=table, values=table, positions=self.row_sharding, shards=self.drawing.shards
        )

    @property
    def drawn_shardings(self) -> SamplingState:
        """Of the rows that are being drawn, as a prefix of their tree."""
        own = {field.name: self.row_sharding for field in fields(SamplingState)}
        own |= {"cache": self.prompt_shardings, "slot": sharding.replicated(self.mesh)}
        return SamplingState(**own)

    @property
    def row_sharding(self) -> Any:
        """Of arrays whose first dimension is rows, where they are drawn."""
        return NamedSharding(self.mesh, P(sharding.SAMPLE_ROW_AXES))

    def by_turn(self, params: Params, prompts: Prompts, key: Key[Array, ""]) -> list[Episodes]:
        """The dialogues after each drawn turn; the last are whole.

        Args:
          params: of `StagePrograms.for_sampling`.
          key: of `keys.run_key`.
        """
        prompt, state = self.prefill(params, prompts)
        found = []
        for turn in self.numbers:
            state, episodes = self.decode(params, prompts, key, prompt, state, turn)
            found.append(episodes)
        return found

    def __call__(self, params: Params, prompts: Prompts, key: Key[Array, ""], /) -> Episodes:
        """The whole dialogues."""
        return self.by_turn(params, prompts, key)[-1]
