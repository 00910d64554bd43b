"""Contents are told apart, and only contents: names and places say nothing."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sentencepiece import sentencepiece_model_pb2

from score_jax.checks import RENAMED_FIELDS
from score_jax.data import sources
from score_jax.data.lazy import Lazy
from score_jax.distributed import processes
from score_jax.model.config import ModelConfig, RopeScaling
from score_jax.model.lora import merge
from score_jax.model.weights.export import export
from score_jax.model.weights.peft import export_adapter
from score_jax.records import Problem
from score_jax.report.json_files import write_json
from score_jax.stages import identity
from score_jax.stages.build import build, load_reference
from score_jax.stages.handoff import check_contents, check_folder, config_fields
from score_jax.text.tokenizer import JsonTokenizer
from tests.small_tokenizers import make
from tests.stage_configs import stages, train
from tests.tiny_stages import lines

PROBLEMS = [
    Problem(id="a", prompt="7 + 5?", answer="12"),
    Problem(id="b", prompt="add", tests=("assert add(1, 2) == 3", "assert add(0, 0) == 0")),
    Problem(id="c", prompt="8 - 5?", answer="3", task="numeric"),
]


def changed(place, **fields):
    """PROBLEMS with one of them changed."""
    return [dataclasses.replace(p, **fields) if i == place else p for i, p in enumerate(PROBLEMS)]


OTHER_PROBLEMS = {
    "another id": changed(0, id="A"),
    "another prompt": changed(0, prompt="7 + 6?"),
    "another answer": changed(0, answer="13"),
    "tests in another order": changed(1, tests=PROBLEMS[1].tests[::-1]),
    "tests in one": changed(1, tests=("\n".join(PROBLEMS[1].tests),)),
    "another task": changed(2, task="exact"),
    "a test shown": changed(1, shown=PROBLEMS[1].tests[:1]),
    "another order": PROBLEMS[::-1],
    "one less": PROBLEMS[:2],
    "one twice": [*PROBLEMS, PROBLEMS[0]],
    "answer and id changed over": changed(0, id="12", answer="a"),
}


@pytest.mark.parametrize("case", OTHER_PROBLEMS)
def test_other_problems_are_told_apart(case):
    assert identity.fingerprint_problems(OTHER_PROBLEMS[case]) != identity.fingerprint_problems(
        PROBLEMS
    )


def test_the_same_problems_are_the_same_however_they_are_held():
    lazy = Lazy(3, lambda place: dataclasses.replace(PROBLEMS[place]))
    assert identity.fingerprint_problems(lazy) == identity.fingerprint_problems(PROBLEMS)
    assert identity.fingerprint_problems(PROBLEMS).startswith("3 by ")


TREE = {
    "a": np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32),
    "b": np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32),
    "c": np.random.default_rng(2).normal(size=(4, 5)).astype(np.float32),
}


def edited(name, edit):
    value = TREE[name].copy()
    edit(value)
    return {**TREE, name: value}


def flip_lowest_bit(x):
    x.view(np.uint32)[1, 2] ^= 1


def swap(x, i, j):
    x[[i, j]] = x[[j, i]]


OTHER_TREES = {
    "the lowest bit": edited("b", flip_lowest_bit),
    "two rows changed over": edited("b", lambda x: swap(x, 0, 2)),
    "two layers changed over": edited("a", lambda x: swap(x, 1, 2)),
    "two numbers changed over": edited("c", lambda x: swap(x[1], 0, 4)),
    "all signs": {**TREE, "b": -TREE["b"]},
    "two signs": edited("b", lambda x: np.multiply(x[0, :2], -1, out=x[0, :2])),
    "two matrices changed over": {**TREE, "b": TREE["c"], "c": TREE["b"]},
    "turned over": {**TREE, "a": TREE["a"].swapaxes(0, 0)[::-1].copy()},
    "columns changed over": edited("b", lambda x: swap(x.T, 1, 3)),
}


def sums(tree):
    return [int(identity.checksum(tree, jnp.uint32(salt))) for salt in identity.SALTS]


@pytest.mark.parametrize("case", OTHER_TREES)
def test_other_parameters_are_told_apart(case):
    pairs = zip(sums(OTHER_TREES[case]), sums(TREE), strict=True)
    assert all(one != other for one, other in pairs)


def test_the_same_parameters_are_the_same_on_host_and_device():
    assert sums(jax.tree.map(jnp.asarray, TREE)) == sums(TREE)
    assert len(set(sums(TREE))) == 2


MODEL = ModelConfig(vocab_size=9, layers=2, width=8, heads=2, kv_heads=1, head_dim=4, mlp_dim=8)
LINEAR = RopeScaling(kind="linear", factor=2.0)


@pytest.mark.parametrize(
    ("fields", "same"),
    [
        ({"rope_base": 2e4}, False),
        ({"norm_eps": 1e-5}, False),
        ({"window": 4}, False),
        ({"rope_scaling": LINEAR}, False),
        ({"logit_cap": 30.0}, False),
        ({"query_scale": 0.4}, False),
        ({"heads": 1}, False),
        ({"dtype": "bfloat16", "unroll": 2, "remat": "full", "max_length": 99}, True),
        ({"attention": "splash"}, True),
        ({"query_scale": 0.5}, True),  # 4 ** -0.5, as by default
        ({"rope_local_base": 5.0, "local_layers": (True, False)}, True),  # without a window
    ],
)
def test_a_shape_is_what_is_computed(fields, same):
    other = dataclasses.replace(MODEL, **fields)
    assert (identity.fingerprint_shape(other) == identity.fingerprint_shape(MODEL)) is same


def test_a_tokenizer_is_its_values():
    tokenizer, layout = make("chatml"), {"indent": 2, "ensure_ascii": True}
    laid_out = JsonTokenizer(json.dumps(json.loads(tokenizer.content), **layout))
    assert laid_out.contents() == tokenizer.contents() != make("llama3").contents()
    value = json.loads(tokenizer.content)
    value["model"]["merges"] = value["model"]["merges"][:-1]
    assert JsonTokenizer(json.dumps(value)).contents() != tokenizer.contents()
    assert make("gemma").contents() == make("gemma").contents()


@pytest.mark.parametrize("part", identity.PART_SOURCES)
def test_hosts_with_other_contents_under_one_name_are_refused(part, monkeypatch):
    mine = dict.fromkeys(identity.PART_SOURCES, "x")
    monkeypatch.setattr(
        processes, "all_gather_objects", lambda value: [value, value, {**value, part: "y"}]
    )
    field = identity.PART_SOURCES[part][0]
    with pytest.raises(ValueError, match=rf"config.{field} gives host 2 other .* y, not x\); give"):
        identity.check_hosts_agree(mine)


def problem_file(path, last="3"):
    rows = [{"id": str(n), "prompt": f"{n} + 1?", "answer": str(n + 1)} for n in range(8)]
    rows.append({"id": "last", "prompt": "2 + 1?", "answer": last})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_models(*folders):
    """Models of one shape, each with weights of its own."""
    programs = build(stages("stage1")[-1].settings)
    for seed, folder in enumerate(folders):
        params = programs.init_params(jax.random.key(seed))
        export(params, programs.decoder.config, programs.chat, folder)


def other_weights(root):
    shutil.copytree(root / "other", root / "model", dirs_exist_ok=True)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model folder, a file of problems, and a stage's folder as begun with them."""
    root = tmp_path_factory.mktemp("begun")
    write_models(root / "model", root / "other")
    problem_file(root / "problems.jsonl")
    stage = go_on(root)
    folder = root / "runs/stage1"
    write_json(folder / "config.json", config_fields(stage.config))
    (folder / "checkpoints/2").mkdir(parents=True)
    return root


@pytest.fixture
def root(place, tmp_path):
    """A copy of it, elsewhere."""
    return shutil.copytree(place, tmp_path / "copy")


def fields_in(root, **fields):
    """Fields of a stage on the files of a folder."""
    return {
        "weights__source": str(root / "model"),
        "tokenizer__source": "",
        "data__source": "jsonl",
        "data__path": str(root / "problems.jsonl"),
    } | fields


def rewrite(path, edit):
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def other_tokenizer(root):
    path = root / "model" / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    model.pieces[-1].score -= 1
    path.write_bytes(model.SerializeToString())


OTHERS = {  # what lies under the same names now, and what is said
    "weights": (other_weights, "weights.source", r"its weights \("),
    "stops": (
        lambda root: rewrite(
            root / "model" / "generation_config.json", lambda c: c.update(eos_token_id=[3, 11])
        ),
        "weights.source",
        r"its stop ids \(3, 11\) are not what .* begun with \(3, from",
    ),
    "tokenizer": (other_tokenizer, "tokenizer.source", r"its tokenizer \("),
    "an answer": (
        lambda root: problem_file(root / "problems.jsonl", "4"), "data", r"its problems \(9 by "
    ),
    "order": (
        lambda root: (root / "problems.jsonl").write_text(
            "".join(sorted((root / "problems.jsonl").read_text().splitlines(True), reverse=True))
        ),
        "data",
        r"its problems \(9 by ",
    ),
    "fewer": (
        lambda root: (root / "problems.jsonl").write_text(
            "".join((root / "problems.jsonl").read_text().splitlines(True)[:8])
        ),
        "data",
        r"its problems \(8 by .* begun with \(9 by",
    ),
}  # fmt: skip


def go_on(root, **fields):
    """What a stage does before its first step."""
    stage = stages("stage1", steps=4, **fields_in(root, **fields))[-1]
    folder = root / "runs/stage1"
    check_folder(stage, folder)
    programs = build(stage.settings)
    problems = sources.load(**dict(stage.settings.data))
    check_contents(programs, load_reference(programs), problems, folder, None)
    return stage


@pytest.mark.parametrize("case", OTHERS)
def test_other_contents_under_the_same_names_are_refused(case, root):
    edit, field, message = OTHERS[case]
    before = (root / "runs/stage1/identity.json").read_text()
    go_on(root)  # the copy lies elsewhere and holds the same
    edit(root)
    with pytest.raises(ValueError, match=rf"config.{field} is '.*', but {message}") as caught:
        go_on(root)
    assert "\n" not in str(caught.value) and "choose another --workdir" in str(caught.value)
    now = json.loads((root / "runs/stage1/identity.json").read_text())
    assert now["fingerprints"] == json.loads(before)["fingerprints"]


@pytest.mark.parametrize("moved", ["model", "problems.jsonl"])
def test_the_same_contents_in_another_place_go_on(moved, root):
    (root / moved).rename(root / f"moved_{moved}")
    field = "weights__source" if moved == "model" else "data__path"
    fields = {field: str(root / f"moved_{moved}")}
    go_on(root, **fields)
    told = json.loads((root / "runs/stage1/identity.json").read_text())["sources"]
    assert fields[field] in told.values()


def test_an_adapter_is_a_part_of_the_base_model(root):
    programs = build(stages("stage1", **fields_in(root, lora__rank=2))[-1].settings)
    base, lora = load_reference(programs), programs.settings.lora
    adapter = jax.tree.map(lambda leaf: 0.1 + leaf, programs.init_adapter())
    export_adapter(adapter, lora, programs.decoder.config, root / "adapter", base="x")
    fields = {"weights__adapter": str(root / "adapter")}
    begun = stages("stage1", **fields_in(root, **fields))[-1]
    expected = merge(base, adapter, lora)
    found = load_reference(build(begun.settings))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)
    assert identity.sources(begun.settings)["weights.adapter"] == str(root / "adapter")
    with pytest.raises(ValueError, match=r"with weights.adapter '.*/adapter', but its weights \("):
        go_on(root, **fields)


@pytest.mark.parametrize("mode", ["evaluate", "export", "ask"])
def test_a_policy_beside_another_base_model_is_refused(mode, root):
    other_weights(root)
    with pytest.raises(ValueError, match=r"config.weights.source is .* but its weights \("):
        train(root / "runs", mode=mode, prompt="1 + 1?", **fields_in(root))


@pytest.mark.slow
def test_a_chain_moves_and_its_second_stage_keeps_the_reference(place, tmp_path, compiled):
    root = tmp_path / "files"
    shutil.copytree(place, root, ignore=lambda *_: {"runs"})
    fields = {"steps": 1, "evaluation__problems": 4, "evaluation__samples": 0}
    train(tmp_path / "runs", **fields, **fields_in(root))
    root = root.rename(tmp_path / "moved")
    train(tmp_path / "runs", **fields | {"steps": 2}, **fields_in(root))
    rows = lines(tmp_path / "runs/stage1/metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    other_weights(root)
    with pytest.raises(ValueError, match=r"its weights \(.*/stage1 was begun with"):
        train(tmp_path / "runs", "stage2", **fields | {"steps": 2}, **fields_in(root))
    assert not (tmp_path / "runs/stage2/checkpoints").exists()


def test_a_run_of_an_older_version_goes_by_names(root):
    (root / "runs/stage1/identity.json").unlink()
    problem_file(root / "other.jsonl")
    with pytest.raises(ValueError, match=r"config.data.path is .*other.jsonl, but .* begun with"):
        go_on(root, data__path=str(root / "other.jsonl"))


@pytest.mark.parametrize("policy_only", [False, True])
@pytest.mark.parametrize(("former", "now"), RENAMED_FIELDS.items())
def test_a_folder_begun_under_former_names_is_refused(tmp_path, former, now, policy_only):
    """By one line that names both, not by the first value that differs."""
    stage = stages("stage1")[-1]
    fields = config_fields(stage.config)
    held = {now: fields.pop(now)} if now in fields else {}  # some are of other stages
    value = held.get(now, 0.5)
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(fields | {former: value}))
    with pytest.raises(ValueError, match=rf"earlier version .*\({former} is {now} now\); choose"):
        check_folder(stage, tmp_path, policy_only=policy_only)
    (tmp_path / "config.json").write_text(json.dumps(fields | held))
    check_folder(stage, tmp_path, policy_only=policy_only)
