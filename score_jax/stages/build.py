"""Makes a stage's jitted programs with their shardings, from its settings.

Training, evaluation and planning all use the programs made here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from score_jax.distributed import sharding
from score_jax.model import lora
from score_jax.model.config import ModelConfig
from score_jax.model.decoder import Decoder, compute_params, split_layers
from score_jax.model.fused_attention import resolve_attention
from score_jax.model.weights import embedded, load
from score_jax.records import Task
from score_jax.rl.dialogue import DialoguePlan, Encoder
from score_jax.rl.learner import Learner, all_trained, begin, imitate, score_episodes, update
from score_jax.rl.mismatch import MISMATCH_LIMITS
from score_jax.rl.optimizer import make_optimizer
from score_jax.rl.rollout import RolloutPrograms
from score_jax.rl.sampling import Drawing
from score_jax.rl.sampling_plan import SamplingConfig
from score_jax.stages.base_model import load_chat, model_config
from score_jax.stages.program import Program, SamplingPrograms
from score_jax.stages.settings import Settings
from score_jax.tasks import registry
from score_jax.text.chat import Chat
from score_jax.types import Params, TrainState

CACHED_PARAMETERS = 2**20  # of a layer, 4 MiB in float32: about what a core's cache holds


@dataclass(frozen=True, kw_only=True)
class StagePrograms:
    """A stage's jitted programs, and the objects on the host that they are used with."""

    settings: Settings
    mesh: Mesh
    decoder: Decoder
    chat: Chat
    learner: Learner
    init_params: Program  # (key) -> params of the whole model
    init_adapter: Program | None  # () -> an adapter that changes nothing; None: no adapter
    merge: Program | None  # (reference params, adapter) -> params of the whole model
    init_state: Program  # (trained parameters) -> fresh TrainState
    score: Program  # (reference params, episodes) -> Scores
    update: Program  # (state donated, reference params, episodes, scores) -> state, metrics
    sft_update: Program  # (state donated, reference params, episodes) -> state, metrics
    state_shardings: TrainState
    model_shardings: Params  # of the whole model, also where only an adapter is trained
    sample_shardings: Params
    gathered_shardings: Params  # intermediate: model_shardings -> these -> sample_shardings
    layer_groups: int  # arrays that hold the layers in sampling (`decoder.split_layers`)
    # Made so far, so that each is compiled once, also where a copy has other evaluation settings.
    samplers: dict[tuple[SamplingConfig, DialoguePlan], SamplingPrograms] = field(
        default_factory=dict
    )

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
            params = jax.lax.with_sharding_constraint(params, self.gathered_shardings)
            return split_layers(params, self.layer_groups) if self.layer_groups > 1 else params

        jitted = jax.jit(
            convert, in_shardings=(self.model_shardings,), out_shardings=self.sample_shardings
        )
        return Program(jitted, self.mesh)

    @cached_property
    def draws_as_trained(self) -> bool:
        """Whether sampling takes the trained parameters as they are: same type, layers, split."""
        if self.layer_groups > 1 or self.decoder.config.dtype != "float32":
            return False
        shapes = jax.eval_shape(self.init_params.jitted, jax.random.key(0))
        same = jax.tree.map(
            lambda x, here, there: here.is_equivalent_to(there, len(x.shape)),
            shapes,
            self.model_shardings,
            self.sample_shardings,
        )
        return all(jax.tree.leaves(same))

    def for_sampling(self, params: Params) -> Params:
        """Parameters as `sample` takes them; the same arrays where nothing has to change."""
        return params if self.draws_as_trained else self.reshard(params)

    def sample(self, config: SamplingConfig, plan: DialoguePlan) -> SamplingPrograms:
        """What draws a plan's dialogues (params of `for_sampling`, prompts, key) -> Episodes."""
        if (config, plan) not in self.samplers:
            self.samplers[config, plan] = self.make_sampler(config, plan)
        return self.samplers[config, plan]

    def make_sampler(
        self, config: SamplingConfig, plan: DialoguePlan, stops: tuple[int, ...] = ()
    ) -> SamplingPrograms:
        """Makes the sampling programs.

        Args:
          stops: ids that end a turn; (): the chat's.
        """
        drawing = Drawing(
            decoder=self.decoder,
            plan=plan,
            stops=stops or self.chat.stops,
            config=config,
            shards=sharding.row_shards(self.mesh, sharding.SAMPLE_ROW_AXES),
            in_place=self.mesh.devices.flat[0].platform == "tpu",  # docs/speed.md
        )
        return SamplingPrograms(drawing, self.mesh, self.sample_shardings)

    def encoder(self, plan: DialoguePlan, prompt_limit: int, tasks: Mapping[str, Task]) -> Encoder:
        """What encodes problems of these tasks as the rows of a plan."""
        return Encoder(chat=self.chat, tasks=tasks, plan=plan, prompt_limit=prompt_limit)

    def rollout_programs(self, tasks: Mapping[str, Task]) -> RolloutPrograms:
        """The programs that a training rollout of problems of these tasks runs."""
        settings = self.settings
        return RolloutPrograms(
            encoder=self.encoder(settings.plan, settings.sampling.prompt_limit, tasks),
            to_global=self.to_global,
            own_rows=self.own_rows,
            prepare=self.for_sampling,
            sample=self.sample(settings.sampling, settings.plan).by_turn,
            score=self.score,
            repeat_penalty=settings.objective.repeat_penalty,
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
        "coefficients": jax.tree.map(lambda _: whole, state.coefficients),
    }
    return TrainState(**shardings)


def layer_groups(boxed: Params, config: ModelConfig, mesh: Mesh) -> int:
    """Into how many arrays the layers are cut for sampling: one for each where that is faster.

    It is on GPUs, and on CPUs for layers that do not stay in a core's cache (docs/speed.md).
    """
    platform = mesh.devices.flat[0].platform
    each = sum(x.size for x in jax.tree.leaves(nn.unbox(boxed)["blocks"])) // config.layers
    apart = platform == "gpu" or (platform == "cpu" and each > CACHED_PARAMETERS)
    return config.layers if apart else 1


def sampling_shardings(boxed: Params, mesh: Mesh, groups: int) -> dict[str, Params]:
    """The parameters' shardings in sampling, and the intermediate ones on the way there.

    Args:
      groups: into which the layers are cut.
    """
    there = sharding.parameter_shardings(boxed, mesh, sharding.SAMPLE_RULES)
    return {
        "sample_shardings": there
        if groups == 1
        else {**there, "blocks": (there["blocks"],) * groups},
        "gathered_shardings": sharding.parameter_shardings(boxed, mesh, sharding.GATHERED_RULES),
    }


def build(settings: Settings, devices: Sequence[Any] | None = None) -> StagePrograms:
    """Makes the mesh and the jitted programs of one stage; compiles nothing.

    Raises:
      ValueError: a setting does not fit the devices, the model or the tokenizer.
    """
    mesh = sharding.make_mesh(settings.mesh, devices)
    config = resolve_attention(model_config(settings), mesh.devices.flat[0])
    chat = load_chat(settings)
    check_vocabulary(settings, chat, config.vocab_size)
    check_rows(settings, mesh)
    decoder = Decoder(config)

    def init_boxed(key: jax.Array) -> Params:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return decoder.init(key, tokens, tokens)["params"]

    def init_params(key: jax.Array) -> Params:
        return nn.unbox(init_boxed(key))

    whole_model = jax.eval_shape(init_boxed, jax.random.key(0))
    model = sharding.parameter_shardings(whole_model, mesh)
    groups = layer_groups(whole_model, config, mesh)
    adapter = adapter_functions(settings, whole_model)
    boxed = jax.eval_shape(adapter.init) if adapter else whole_model
    learner = make_learner(settings, decoder, adapter, sharding.row_shards(mesh))
    init_state = partial(begin, learner, objective=settings.objective)
    shardings = state_shardings(boxed, init_state, mesh)
    rows, whole = sharding.rows(mesh), sharding.replicated(mesh)

    def program(function: Callable, ins: Any, outs: Any, **options: Any) -> Program:
        return Program(jax.jit(function, in_shardings=ins, out_shardings=outs, **options), mesh)

    functions = learner_functions(settings, learner)
    programs = StagePrograms(
        settings=settings,
        mesh=mesh,
        decoder=decoder,
        chat=chat,
        learner=learner,
        init_params=program(init_params, whole, model),
        init_adapter=program(lambda: nn.unbox(adapter.init()), (), shardings.params)
        if adapter
        else None,
        merge=program(adapter.merge, (model, shardings.params), model) if adapter else None,
        init_state=program(init_state, (shardings.params,), shardings),
        score=program(functions.score, (model, rows), rows),
        update=program(
            functions.update, (shardings, model, rows, rows), (shardings, whole), donate_argnums=0
        ),
        sft_update=program(
            functions.imitate, (shardings, model, rows), (shardings, whole), donate_argnums=0
        ),
        state_shardings=shardings,
        model_shardings=model,
        **sampling_shardings(whole_model, mesh, groups),
        layer_groups=groups,
    )
    tasks = (settings.task, settings.measured_task)
    check_lengths(programs, *({"": registry.get(task)} for task in tasks))
    return programs


@dataclass(frozen=True)
class LearnerFunctions:
    """The learner's functions of arrays alone; their arguments are those of StagePrograms."""

    score: Callable
    update: Callable
    imitate: Callable


def make_learner(
    settings: Settings,
    decoder: Decoder,
    adapter: "AdapterFunctions | None",
    row_shards: int = 1,
) -> Learner:
    """The learner of a stage's settings.

    Args:
      row_shards: parts of the rows that devices hold.
    """
    updates, plan = settings.steps * settings.learner.minibatches, settings.plan
    return Learner(
        decoder=decoder,
        optimizer=make_optimizer(settings.optimizer, updates),
        max_tokens=sum(plan.limits) if settings.program == "supervised" else plan.drawn_tokens,
        config=settings.learner,
        estimator=settings.estimator.resolved(decoder.config.dtype),
        compose=adapter.attach if adapter else all_trained,
        seed=settings.seed,
        row_shards=row_shards,
    )


def learner_functions(settings: Settings, learner: Learner) -> LearnerFunctions:
    """Binds what a stage's updates share."""
    return LearnerFunctions(
        score=partial(score_episodes, learner, keep_hidden=learner.estimator.kl == "exact"),
        update=partial(
            update,
            learner,
            plan=settings.plan,
            objective=settings.objective,
            schedule=settings.coefficients,
            steps=settings.steps,
        ),
        imitate=partial(imitate, learner),
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
    parts = settings.learner.microbatches * settings.learner.minibatches
    if settings.batch % shards or settings.rows % (shards * parts):
        raise ValueError(
            f"config.batch is {settings.batch}; it must divide by the {shards} row shards of "
            f"mesh slice x data x fsdp x sampling_tensor, and its {settings.rows} "
            f"rows by shards x learner.microbatches x learner.minibatches = {shards * parts}"
        )


def greedy_sampling(settings: Settings) -> SamplingConfig:
    """The sampling config of greedy evaluation.

    config.sampling.row_limit holds for the turns of training, or for two; with more turns there
    is no such limit.
    """
    sampling, turns = settings.sampling, settings.evaluation.turns
    limit = sampling.row_limit if turns <= max(2, settings.objective.turns) else 0
    return replace(
        sampling,
        group_size=1,
        second_attempts=1,
        temperature=0.0,
        prompt_limit=settings.measured_prompt_limit,
        row_limit=limit,
    )


def check_lengths(
    programs: StagePrograms, trained: Mapping[str, Task], measured: Mapping[str, Task]
) -> None:
    """Checks that the longest dialogues of training and evaluation fit the model's context.

    Args:
      trained: tasks of the training problems, whose instructions stand between the turns.
      measured: of the evaluation's.

    Raises:
      ValueError: they are longer than max_position_embeddings, or row_limit leaves no room for
        a turn.
    """
    settings, longest = programs.settings, programs.decoder.config.max_length
    for name, plan, sampling, tasks in (
        ("objective", settings.plan, settings.sampling, trained),
        ("evaluation", settings.measured_plan, greedy_sampling(settings), measured),
    ):
        encoder = programs.encoder(plan, sampling.prompt_limit, tasks)
        length = encoder.row_length(sampling.row_limit)
        if length <= encoder.width:
            raise ValueError(
                f"sampling.row_limit is {sampling.row_limit}, but what {name}'s rows begin with "
                f"may take {encoder.width} tokens already; raise it, or set 0"
            )
        if longest is not None and length > longest:
            raise ValueError(
                f"sampling.prompt_limit is {sampling.prompt_limit} and sampling.turn_limit "
                f"{sampling.turn_limit}, so that {name}.turns {plan.turns} may take {length} "
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
    adapter = programs.settings.weights.adapter
    return load.load_params(
        source, programs.decoder.config, programs.model_shardings, adapter=adapter
    )
