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
    config.program = "rl"  # or "supervised"
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
            "task": "",
            "skip_long": False,  # leave problems out whose prompts pass the limit
            "skip_bad": False,  # and those whose gold answer their grader does not accept
        }
    )
    config.practice = ConfigDict(  # PracticeConfig; program "supervised" only
        {
            "careful": 0.8,  # share of careful second attempts at first
            "careful_at_last": 0.12,
            "settling": 0.2,  # share of the steps that end with the latter
            "right": 0.25,  # share of right first attempts; wrong ones are not learnt
            "weight_noise": 0.0,  # random step before each gradient, of each tensor's norm
        }
    )
    config.tokenizer = ConfigDict({"source": "embedded", "chat": "plain"})  # TokenizerConfig
    config.weights = ConfigDict({"source": "embedded"})  # WeightsConfig
    config.model = config_dict.placeholder(ConfigDict)  # ModelConfig; None: as the weights say
    config.lora = ConfigDict(  # LoraConfig
        {
            "rank": 0,  # of the adapter that is trained; 0: no adapter, all is trained
            "alpha": 32.0,  # its product is scaled by alpha / rank
            "targets": ("query", "key", "value", "out", "gate", "up", "down"),
        }
    )
    config.compute = ConfigDict({"dtype": "", "remat": ""})  # ComputeConfig; "": as the model says
    config.mesh = ConfigDict(  # MeshConfig
        {"slices": -1, "data": -1, "fsdp": 1, "sampling_tensor": 1, "tensor": 1}
    )

    config.sampling = ConfigDict(  # SamplingConfig
        {
            "group_size": 4,  # dialogues per problem
            "second_attempts": 1,  # second attempts per first attempt
            "decode_segments": 1,  # loops, each over more of the cache; long turns want about 4
            "prompt_limit": 12,  # tokens
            "turn_limit": 50,  # tokens of one turn
            "row_limit": 96,  # tokens of a whole dialogue; 0: no further limit
            "temperature": 1.0,
        }
    )
    config.objective = ConfigDict(  # Objective; one value per turn in tuples
        {
            "reward_weights": (1.0, 1.0),
            "beta": (0.01, 0.01),  # reward per nat of KL(policy || reference)
            "alpha": 0.0,  # progress bonus, in rewards
            "gamma": 0.0,  # share of a turn's reward that reaches the turn before it
            "kl": "exact",  # reward, exact, k2, k3
            "baseline": "leave_one_out",  # none, running, batch, leave_one_out[_attempt]
            "normalise": False,
            "length_norm": "sum",  # sum, constant, sequence
            "clip": config_dict.placeholder(float),
            # Of the learner's odds over the sampler's, by token; auto: 2 in bfloat16, else None.
            "importance_cap": config_dict.FieldReference("auto", field_type=object),
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
        {"microbatches": 1, "minibatches": 1, "logits_chunk": 128, "baseline_decay": 0.9}
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
            "samples": 2,
            "temperature": 1.0,
            "seed": 0,
            "data": ConfigDict({"split": "test"}),
            "every": 0,  # steps between two looks at validation problems in training; 0: none
            "validation": ConfigDict({"split": "validation"}),
            "validation_problems": 200,
        }
    )
    config.log = ConfigDict(  # LogConfig
        {
            "transcripts": 8,
            "transcripts_every": 10,  # steps
            "tensorboard": True,
            "wandb": "",
            "progress": True,
        }
    )
    config.profile = ConfigDict(  # ProfileConfig
        {
            "steps": 0,  # recorded by the profiler, on all hosts; 0: none
            "start": 2,  # steps done before
            "every": 0,  # steps from one window to the next; 0: only one
        }
    )
    return config
