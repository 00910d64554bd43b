"""Every field of a config, with its unit and default.

Stage files start from this and change what is theirs. The section comments name the
frozen dataclass that documents and checks each field.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The common ground of all stages: the embedded model and task on any CPU."""
    config: Any = ConfigDict()
    config.name = ""  # the stage's folder in the workdir
    config.parent = ""  # config file of the stage before; "": start from the base model
    config.stages = ()  # of a method: a dict of fields for each stage (stages.methods)
    config.rounds = 1  # how often the list of stages is run
    config.start = ""  # in a list: "previous" (usual), "base", or a stage's name
    config.program = "rl"  # or "supervised"; "collect": rollouts are kept, nothing is learnt;
    # "prompting": nothing is trained, evaluation.dialogue is measured
    config.task = "equations"  # a name of score_jax.tasks
    config.seed = 0
    config.steps = 100
    config.batch = 64  # problems per step over all hosts
    # Nats a token by which sampler and learner may differ on average in a turn; None: by dtype.
    config.mismatch_limit = config_dict.placeholder(float)

    config.data = ConfigDict(  # keyword arguments of data.sources.load
        {
            "source": "procedural",
            "split": "train",
            "count": 0,
            "task": "",  # of the problems; procedural ones are of equations ("") or receipts
            "first_attempts": "",  # JSONL file (id, and attempt or tokens): attempts that are given
            "skip_long": False,  # leave problems out whose prompts pass the limit
            "skip_bad": False,  # and those whose gold answer their grader does not accept
        }
    )
    config.examples = ConfigDict({"source": "equations"})  # stages.examples; supervised only
    config.tokenizer = ConfigDict({"source": "embedded", "chat": "plain"})  # TokenizerConfig
    config.weights = ConfigDict({"source": "embedded", "adapter": ""})  # WeightsConfig
    config.model = config_dict.placeholder(ConfigDict)  # ModelConfig; None: as the weights say
    config.lora = ConfigDict(  # LoraConfig
        {
            "rank": 0,  # of the adapter that is trained; 0: no adapter, all is trained
            "alpha": 32.0,  # its product is scaled by alpha / rank
            "targets": ("query", "key", "value", "out", "gate", "up", "down"),
        }
    )
    # ComputeConfig; "": as the model says
    config.compute = ConfigDict({"dtype": "", "remat": "", "attention": ""})
    config.mesh = ConfigDict(  # MeshConfig
        {"slices": -1, "data": -1, "fsdp": 1, "sampling_tensor": 1, "tensor": 1}
    )

    config.sampling = ConfigDict(  # SamplingConfig
        {
            "group_size": 4,  # dialogues per problem
            "second_attempts": 1,  # second attempts per first attempt
            "redraws": 0,  # batches drawn at most in the place of groups without signal; 0: none
            "decode_segments": 1,  # lengths of the cache; long turns want about 4
            "row_sizes": 2,  # sizes of the loop's arrays: all rows, half of them, a quarter
            "draft_tokens": 0,  # guessed from the row's earlier turns at a time; 0: none
            "draft_yield": 1.5,  # tokens per guess and row below which guessing stops
            "prompt_limit": 12,  # tokens
            "turn_limit": 50,  # tokens of one turn
            "row_limit": 96,  # tokens of a whole dialogue; 0: no further limit
            "temperature": 1.0,
        }
    )
    config.dialogue = ConfigDict(  # DialoguePlan; one value per turn, () for what is usual
        {
            "sources": (),  # sampled (usual), given, forced
            "roles": (),  # answer (usual), verify
            "instructions": (),  # before each turn; "" (usual): the task's own
            "texts": (),  # of forced turns
            "trained": (),  # usually all that are sampled
            "limits": (),  # tokens; usually sampling.turn_limit
        }
    )
    config.objective = ConfigDict(  # Objective: what is maximised; one value per turn in tuples
        {
            "reward_weights": (1.0, 1.0),
            "beta": (0.01, 0.01),  # reward per nat of KL(policy || reference)
            "alpha": 0.0,  # progress bonus, in rewards
            "gamma": 0.0,  # share of a turn's reward that reaches the turn before it
            "bonus_gamma": 0.0,  # share of a turn's bonus that does
            "bonus_weights": (),  # of each turn's bonus; usually 1
            "repeat_penalty": 0.0,  # rewards taken for an answer that the dialogue had before
        }
    )
    config.estimator = ConfigDict(  # EstimatorConfig: how its gradient is estimated
        {
            "kl": "exact",  # reward, exact, k2, k3
            "baseline": "leave_one_out",  # none, running, batch, leave_one_out[_attempt]
            "normalise": "none",  # or batch
            "length_norm": "sum",  # sum, constant, sequence
            "mask_truncated": False,  # no token of a turn that was cut at its limit is learnt from
            "clip": config_dict.placeholder(float),  # ratios are cut below 1 - this; None: nowhere
            "clip_high": config_dict.placeholder(float),  # and above 1 + this; None: clip
            # Of the learner's odds over the sampler's, by token; auto: 2 in bfloat16, else None.
            "importance_cap": config_dict.FieldReference("auto", field_type=object),
        }
    )
    config.coefficients = ConfigDict(  # CoefficientsConfig: how alpha and beta move
        {
            "alpha": "constant",  # or linear
            "alpha_end": 0.0,
            "beta": "constant",  # linear, balance, target
            "beta_turns": (1,),
            "beta_end": 0.0,
            "balance": 1.0,  # beta times KL, in returns of the last turn
            "target_kl": 0.1,  # nats of a turn
            "rate": 0.1,
            "decay": 0.9,
            "beta_range": (1e-4, 10.0),
        }
    )
    config.optimizer = ConfigDict(  # OptimizerConfig
        {
            "kind": "adam",  # or "muon"
            "adam_share": 0.2,  # of muon's learning rate, for what Adam updates beside it
            "learning_rate": 2e-4,
            "schedule": "constant",  # constant, cosine, linear
            "warmup": 5,  # updates; the first has a fifth of the rate
            "b1": 0.9,
            "b2": 0.95,
            "eps": 1e-8,
            "weight_decay": 0.0,
            "clip_norm": 1.0,
        }
    )
    config.learner = ConfigDict(  # LearnerConfig
        {
            "microbatches": 1,
            "minibatches": 1,
            "pack": True,  # several dialogues in one row; False: padded to the limit
            "logits_chunk": 0,  # positions per row whose logits are made at a time; 0: automatic
            "baseline_decay": 0.9,
            "weight_noise": 0.0,  # supervised only: random step before each gradient
        }
    )
    config.grading = ConfigDict(  # GradingConfig
        {
            "workers": 2,
            "deadline_seconds": 5.0,
            "batch_deadline_seconds": 60.0,
            "recycle_after": 10_000,
            "cache_size": 100_000,
        }
    )
    config.checkpoint = ConfigDict({"every": 20, "keep": 2, "select": "best"})  # CheckpointConfig
    config.evaluation = ConfigDict(  # EvaluationConfig
        {
            "task": "",  # "": config.task
            "prompt_limit": 0,  # tokens; 0: sampling.prompt_limit
            "problems": 1000,
            "batch": 500,
            "turns": 2,
            "dialogue": ConfigDict({"sources": (), "roles": (), "instructions": (), "texts": ()}),
            "samples": 2,  # sampled dialogues per problem; from 2 on votes are measured
            "temperature": 1.0,  # of these
            "seed": 0,
            "data": ConfigDict({"split": "test"}),
            # Further evaluations: a name and the fields that differ (docs/evaluation.md). A set's
            # dialogue is put over the one above field by field, its data replace those above.
            "sets": ConfigDict(),
            "every": 0,  # steps between two looks at validation problems in training; 0: none
            "validation": ConfigDict({"split": "validation"}),
            "validation_problems": 200,
        }
    )
    config.log = ConfigDict(  # LogConfig
        {
            "rollouts": -1,  # dialogues kept of a step, with tokens and verdicts; -1: all
            "rollouts_every": 1,  # steps
            "tensorboard": True,
            "wandb": "",
            "progress": True,
            "samples": 4,  # dialogues of a step that TensorBoard and wandb show
            "samples_every": 10,  # steps
            "report_minutes": 10.0,  # between two writings of report.html; 0: at the end only
        }
    )
    config.alarms = ConfigDict(  # AlarmsConfig: docs/alarms.md; a bound of None: no such alarm
        {
            "window": 10,  # steps in a mean
            "answer_changed": 0.02,  # share of changed answers, below which it is raised
            "delta_fall": 0.05,  # accuracy that the gain lost since the window before
            "accuracy_fall": 0.1,  # accuracy that turn 1 lost since the stage's first window
            "kl": 10.0,  # nats of one turn
            "no_signal": 0.9,  # share of problems whose rewards at the last turn are all alike
            "truncated_growth": 0.1,  # share of a turn's attempts, above the first window's
            "stop": (),  # names of alarms that end the run
        }
    )
    config.profile = ConfigDict(  # ProfileConfig
        {
            "steps": 0,  # recorded by the profiler, on all hosts; 0: none
            "start": 2,  # steps done before
            "every": 0,  # steps from one window to the next; 0: only one
        }
    )
    # ExportConfig: the model card's licence, and org/name on a hub that --mode=export uploads to
    config.export = ConfigDict({"license": "", "push": ""})
    return config
