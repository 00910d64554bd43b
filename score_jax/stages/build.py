"""Makes a stage's jitted programs with their shardings, from its settings.

Training, evaluation and planning all use the programs made here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from score_jax.distributed import sharding
from score_jax.model import lora
from score_jax.model.decoder import Decoder, compute_params
from score_jax.model.weights import embedded, load
from score_jax.records import Task
from score_jax.rl.learner import all_trained, score_episodes, update
from score_jax.rl.mismatch import MISMATCH_LIMITS
from score_jax.rl.optimizer import make_optimizer
from score_jax.rl.rollout import Sampler
from score_jax.rl.sampling import SamplingConfig, TurnTemplate, sample_dialogues
from score_jax.rl.sft import supervised_update
from score_jax.stages.base_model import load_chat, model_config
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text.chat import Chat
from score_jax.types import Params, TrainState


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


@dataclass(frozen=True, kw_only=True)
class StagePrograms:
    """A stage's jitted programs, and the objects on the host that they are used with."""

    settings: Settings
    mesh: Mesh
    decoder: Decoder
    chat: Chat
    task: Task
    measured_task: Task  # of evaluation
    init_params: Program  # (key) -> params of the whole model
    init_adapter: Program | None  # () -> an adapter that changes nothing; None: no adapter
    merge: Program | None  # (reference params, adapter) -> params of the whole model
    init_state: Program  # (trained parameters) -> fresh TrainState
    score: Program  # (reference params, episodes) -> Scores
    update: Program  # (state donated, reference params, episodes, scores) -> state, metrics
    sft_update: Program  # (state donated, episodes) -> state, metrics
    state_shardings: TrainState
    model_shardings: Params  # of the whole model, also where only an adapter is trained
    sample_shardings: Params
    gathered_shardings: Params  # intermediate: model_shardings -> these -> sample_shardings

    @property
    def mismatch_limit(self) -> float:
        """The largest allowed mean difference of sampler and learner, in nats per token."""
        limit = self.settings.mismatch_limit
        return MISMATCH_LIMITS[self.decoder.config.dtype] if limit is None else limit

    def fresh(self, reference: Params) -> Params:
        """The parameters that training starts from: the base model, or an adapter equal to zero."""
        return reference if self.init_adapter is None else self.init_adapter()

    def policy(self, trained: Params, reference: Params) -> Params:
        """The whole model's parameters, to sample from, measure and export."""
        return trained if self.merge is None else self.merge(reference, trained)

    @cached_property
    def reshard(self) -> Program:
        """The program (params) -> params in sampling's sharding and dtype; once per rollout."""

        def convert(params: Params) -> Params:
            params = compute_params(self.decoder.config, params)
            return jax.lax.with_sharding_constraint(params, self.gathered_shardings)

        jitted = jax.jit(
            convert, in_shardings=(self.model_shardings,), out_shardings=self.sample_shardings
        )
        return Program(jitted, self.mesh)

    def for_sampling(self, params: Params) -> Params:
        """Parameters as `sample` takes them; the same arrays where nothing has to change."""
        same = jax.tree.leaves(
            jax.tree.map(
                lambda x, there: x.sharding.is_equivalent_to(there, x.ndim),
                params,
                self.sample_shardings,
            )
        )
        if all(same) and self.decoder.config.dtype == "float32":
            return params
        return self.reshard(params)

    @cached_property
    def samplers(self) -> dict[tuple[SamplingConfig, TurnTemplate], Program]:
        """Sampling programs made so far, so that each is compiled once."""
        return {}

    def sample(self, config: SamplingConfig, turns: int, task: Task | None = None) -> Program:
        """The sampling program (params of `for_sampling`, prompts, key) -> Episodes.

        Args:
          task: its instruction is put between the turns; None: the stage's task.
        """
        template = self.turn_template(turns, task)
        if (config, template) not in self.samplers:
            self.samplers[config, template] = self.make_sampler(config, template)
        return self.samplers[config, template]

    def make_sampler(self, config: SamplingConfig, template: TurnTemplate) -> Program:
        """Jits the sampling program."""
        rows, whole = sharding.rows(self.mesh), sharding.replicated(self.mesh)
        draw = partial(sample_dialogues, self.decoder, template=template, config=config)
        jitted = jax.jit(
            draw, in_shardings=(self.sample_shardings, rows, whole), out_shardings=rows
        )
        return Program(jitted, self.mesh, sharding.SAMPLE_RULES)

    def turn_template(self, turns: int, task: Task | None = None) -> TurnTemplate:
        """The turn template of a task's dialogues; None: of the stage's task."""
        instruction = tuple(self.chat.encode_instruction((task or self.task).instruction))
        return TurnTemplate(stops=self.chat.stops, instruction=instruction, turns=turns)

    def sampler(self) -> Sampler:
        """The programs that a training rollout runs."""
        settings = self.settings
        return Sampler(
            to_global=self.to_global,
            own_rows=self.own_rows,
            prepare=self.for_sampling,
            sample=self.sample(settings.sampling, settings.objective.turns),
            score=self.score,
        )

    def to_global(self, rows: Any) -> Any:
        """Makes global arrays of every host's rows."""
        return sharding.rows_to_global(self.mesh, rows)

    def own_rows(self, rows: Any) -> Any:
        """This host's part of rows that all hosts hold."""
        return jax.tree.map(lambda x: x[sharding.own_rows(self.mesh, len(x))], rows)

    def abstract_state(self) -> TrainState:
        """Shapes and shardings of the train state, for restoring a checkpoint."""
        if self.init_adapter is None:
            trained = jax.eval_shape(self.init_params.jitted, jax.random.key(0))
        else:
            trained = jax.eval_shape(self.init_adapter.jitted)
        shapes = jax.eval_shape(self.init_state.jitted, trained)
        return jax.tree.map(
            lambda shape, place: jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place),
            shapes,
            self.state_shardings,
        )


def state_shardings(boxed: Params, init_state: Callable, mesh: Mesh) -> TrainState:
    """The sharding of every leaf of the train state, from the logical axes of what is trained."""
    state = jax.eval_shape(init_state, boxed)
    whole = sharding.replicated(mesh)
    shardings: dict[str, Any] = {  # a sharding stands where the state has an array
        "step": whole,
        "params": sharding.parameter_shardings(state.params, mesh),
        "opt_state": sharding.parameter_shardings(state.opt_state, mesh, constants=1),
        "baseline": whole,
    }
    return TrainState(**shardings)


def sampling_shardings(boxed: Params, mesh: Mesh) -> dict[str, Params]:
    """The parameters' shardings in sampling, and the intermediate ones on the way there."""
    return {
        "sample_shardings": sharding.parameter_shardings(boxed, mesh, sharding.SAMPLE_RULES),
        "gathered_shardings": sharding.parameter_shardings(boxed, mesh, sharding.GATHERED_RULES),
    }


def build(settings: Settings, devices: Sequence[Any] | None = None) -> StagePrograms:
    """Makes the mesh and the jitted programs of one stage; compiles nothing.

    Raises:
      ValueError: a setting does not fit the devices, the model or the tokenizer.
    """
    mesh = sharding.make_mesh(settings.mesh, devices)
    config = model_config(settings)
    chat = load_chat(settings)
    check_vocabulary(settings, chat, config.vocab_size)
    check_rows(settings, mesh)
    decoder = Decoder(config)
    updates = settings.steps * settings.learner.minibatches
    optimizer = make_optimizer(settings.optimizer, updates)

    def init_boxed(key: jax.Array) -> Params:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return decoder.init(key, tokens, tokens)["params"]

    def init_params(key: jax.Array) -> Params:
        return nn.unbox(init_boxed(key))

    def init_state(trained: Params) -> TrainState:
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=trained,
            opt_state=optimizer.init(trained),
            baseline=jnp.zeros(settings.objective.turns),
        )

    whole_model = jax.eval_shape(init_boxed, jax.random.key(0))
    model = sharding.parameter_shardings(whole_model, mesh)
    adapter = adapter_functions(settings, whole_model)
    boxed = jax.eval_shape(adapter.init) if adapter else whole_model
    shardings = state_shardings(boxed, init_state, mesh)
    rows, whole = sharding.rows(mesh), sharding.replicated(mesh)
    sampling, turns = settings.sampling, settings.objective.turns
    max_policy_tokens = int(min(turns * sampling.turn_limit, sampling.row_limit or math.inf))

    def program(function: Callable, ins: Any, outs: Any, **options: Any) -> Program:
        return Program(jax.jit(function, in_shardings=ins, out_shardings=outs, **options), mesh)

    score = partial(
        score_episodes,
        decoder,
        max_policy_tokens=max_policy_tokens,
        config=settings.learner,
        keep_hidden=settings.objective.kl == "exact",
    )
    learn = partial(
        update,
        decoder,
        optimizer,
        objective=settings.objective.resolved(config.dtype),
        config=settings.learner,
        group_size=settings.sampling.group_size,
        second_attempts=settings.sampling.second_attempts,
        turn_limit=settings.sampling.turn_limit,
        compose=adapter.attach if adapter else all_trained,
    )
    sft = supervised_function(settings, decoder, optimizer, max_policy_tokens)
    programs = StagePrograms(
        settings=settings,
        mesh=mesh,
        decoder=decoder,
        chat=chat,
        task=registry.get(settings.task),
        measured_task=registry.get(settings.measured_task),
        init_params=program(init_params, whole, model),
        init_adapter=program(lambda: nn.unbox(adapter.init()), (), shardings.params)
        if adapter
        else None,
        merge=program(adapter.merge, (model, shardings.params), model) if adapter else None,
        init_state=program(init_state, (shardings.params,), shardings),
        score=program(score, (model, rows), rows),
        update=program(learn, (shardings, model, rows, rows), (shardings, whole), donate_argnums=0),
        sft_update=program(sft, (shardings, rows), (shardings, whole), donate_argnums=0),
        state_shardings=shardings,
        model_shardings=model,
        **sampling_shardings(whole_model, mesh),
    )
    check_lengths(programs)
    return programs


def supervised_function(
    settings: Settings,
    decoder: Decoder,
    optimizer: optax.GradientTransformation,
    max_policy_tokens: int,
) -> Callable:
    """The update of supervised training: (state, episodes) -> state, metrics."""
    return partial(
        supervised_update,
        decoder,
        optimizer,
        config=settings.learner,
        max_policy_tokens=max_policy_tokens,
        noise=settings.practice.weight_noise,
        seed=settings.seed,
    )


@dataclass(frozen=True)
class AdapterFunctions:
    """Functions that make an adapter and combine it with the base model."""

    init: Callable[[], Params]  # boxed, with logical axes
    attach: Callable[[Params, Params], Params]  # (adapter, base) -> policy, nothing copied
    merge: Callable[[Params, Params], Params]  # (base, adapter) -> policy


def adapter_functions(settings: Settings, boxed: Params) -> AdapterFunctions | None:
    """The functions of config.lora for a model of the given boxed shapes; None without it."""
    config = settings.lora
    if config is None:
        return None
    return AdapterFunctions(
        init=lambda: lora.init_lora(jax.random.key(settings.seed), boxed, config),
        attach=lambda adapter, base: lora.attach(base, adapter, config),
        merge=lambda base, adapter: lora.merge(base, adapter, config),
    )


def check_vocabulary(settings: Settings, chat: Chat, rows: int) -> None:
    """Checks that the model has an embedding for every id of the tokenizer.

    Raises:
      ValueError: it has fewer.
    """
    if chat.tokenizer.vocab_size > rows:
        raise ValueError(
            f"tokenizer.source is {settings.tokenizer.source!r} with {chat.tokenizer.vocab_size} "
            f"pieces, but the model has embeddings for {rows}; use the model's own"
        )
    if max(chat.stops) >= rows:
        raise ValueError(
            f"eos_token_id of weights.source {settings.weights.source!r} is {max(chat.stops)}, but "
            f"the model has embeddings for {rows}; correct its generation_config.json"
        )


def check_rows(settings: Settings, mesh: Mesh) -> None:
    """Checks that problems and microbatches divide over the devices.

    Raises:
      ValueError: they do not.
    """
    shards = sharding.row_shards(mesh)
    group_size = settings.sampling.group_size if settings.program == "rl" else 1
    parts = settings.learner.microbatches * settings.learner.minibatches
    if settings.batch % shards or settings.batch * group_size % (shards * parts):
        raise ValueError(
            f"config.batch is {settings.batch}; it must divide by the {shards} row shards of "
            f"mesh slice x data x fsdp x sampling_tensor, and its {settings.batch * group_size} "
            f"rows by shards x learner.microbatches x learner.minibatches = {shards * parts}"
        )


def greedy_sampling(settings: Settings, turns: int) -> SamplingConfig:
    """The sampling config of greedy evaluation.

    config.sampling.row_limit holds for the turns of training, or for two; with more turns there
    is no such limit.
    """
    sampling = settings.sampling
    limit = sampling.row_limit if turns <= max(2, settings.objective.turns) else 0
    return replace(
        sampling,
        group_size=1,
        second_attempts=1,
        temperature=0.0,
        prompt_limit=settings.measured_prompt_limit,
        row_limit=limit,
    )


def check_lengths(programs: StagePrograms) -> None:
    """Checks that the longest dialogues of training and evaluation fit the model's context.

    Raises:
      ValueError: they are longer than max_position_embeddings.
    """
    settings, longest = programs.settings, programs.decoder.config.max_length
    asked, turns = registry.get(settings.measured_task), settings.evaluation.turns
    rows = (
        ("objective", programs.turn_template(settings.objective.turns), settings.sampling),
        ("evaluation", programs.turn_template(turns, asked), greedy_sampling(settings, turns)),
    )
    for name, template, sampling in rows:
        length = template.row_length(sampling)
        if longest is not None and length > longest:
            raise ValueError(
                f"sampling.prompt_limit is {sampling.prompt_limit} and sampling.turn_limit "
                f"{sampling.turn_limit}, so that {name}.turns {template.turns} may take {length} "
                f"tokens, but the model's longest text (max_position_embeddings) has {longest}; "
                "lower one of them, or set sampling.row_limit"
            )


def load_reference(programs: StagePrograms) -> Params:
    """Loads the base model's parameters in their shardings; the KL is measured against them."""
    source = programs.settings.weights.source
    if source == "embedded":
        params = embedded.load(programs.settings.task)
        return jax.tree.map(jax.device_put, params, programs.model_shardings)
    if source == "random":
        return programs.init_params(jax.random.key(programs.settings.seed))
    return load.load_params(source, programs.decoder.config, programs.model_shardings)
