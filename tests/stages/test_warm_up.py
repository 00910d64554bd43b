"""A supervised stage whose policy is the base model, and so the reference, of later ones."""

import dataclasses
import json
import shutil
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from score_jax.data import sources
from score_jax.rl.dialogue import TooLong
from score_jax.stages import examples, memory
from score_jax.stages.build import build, load_reference
from score_jax.stages.handoff import load_policy, on_its_base
from score_jax.stages.identity import exported_step, fingerprint_problems
from score_jax.stages.memory import MemoryShortError
from score_jax.stages.resolve import planned, resolve_stages
from score_jax.stages.sections import WeightsConfig
from score_jax.tasks import registry
from tests.stage_configs import stages, train
from tests.tiny_stages import get_config, lines

WARM_UP = {
    "name": "warm_up",
    "program": "supervised",
    "steps": 4,
    "batch": 8,
    "examples.source": "answers",
    "objective.reward_weights": (1.0,),
    "objective.beta": (0.0,),
    "learner.weight_noise": 0.0,
    "checkpoint.select": "last",
}
ON_IT = {"weights.source": "stage:warm_up", "steps": 2}
FIRST = {"name": "one", "start": "base", **ON_IT}
SECOND = {"name": "two", **ON_IT}
CHAIN = {"stages": (WARM_UP, FIRST, SECOND), "evaluation__samples": 0}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, cache):
    """A warm-up and two stages of RL on it."""
    folder = tmp_path_factory.mktemp("warm")
    train(folder, **CHAIN)
    return folder


def read(path):
    return json.loads(path.read_text())


def test_what_is_warmed_up_is_the_reference_of_both_stages(workdir):
    warm, _, last = stages(**CHAIN)
    learnt = load_policy(warm, workdir).params
    raw = load_reference(build(warm.settings))
    reference = load_policy(last, workdir).reference
    jax.tree.map(np.testing.assert_array_equal, reference, learnt)
    assert max(
        np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (raw, learnt)), strict=True)
    )
    one, two = (read(workdir / name / "identity.json") for name in ("one", "two"))
    assert one["fingerprints"]["weights"] == two["fingerprints"]["weights"]
    assert one["sources"]["weights.source"] == str(workdir / "warm_up/export")
    first = lines(workdir / "one/metrics.jsonl")[0]
    assert first["kl/turn1"] == pytest.approx(0, abs=1e-6)  # of the step before any update


def test_the_base_model_of_the_later_stages_measures_as_the_warmed_up_one(workdir):
    warm, one = (read(workdir / name / "evaluation.json")["models"] for name in ("warm_up", "one"))
    assert one["base"]["greedy"] == warm["warm_up"]["greedy"]


def test_a_finished_chain_exports_nothing_again(workdir, capsys):
    weights = workdir / "warm_up/export/model.safetensors"
    before = weights.stat().st_mtime_ns
    train(workdir, **CHAIN)
    shown = capsys.readouterr().out
    assert "exported" not in shown and shown.count("already finished") == 3
    assert weights.stat().st_mtime_ns == before and "stale" not in shown


@pytest.mark.parametrize("left", ["nothing", "half a folder"])
def test_a_run_that_was_stopped_while_it_exported_goes_on(workdir, tmp_path, capsys, left):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    for name in ("one", "two", "warm_up/export"):
        shutil.rmtree(copy / name)
    (copy / "warm_up/export.json").unlink()
    if left == "half a folder":
        (copy / "warm_up/export").mkdir()
        (copy / "warm_up/export/tokenizer.model").write_text("half")
    train(copy, **CHAIN)
    assert "exported warm_up at step 4" in capsys.readouterr().out
    for name in ("one", "two"):
        for file, part in (("identity", "fingerprints"), ("evaluation", "outcomes")):
            again, whole = (read(root / name / f"{file}.json") for root in (copy, workdir))
            assert again[part] == whole[part]


def test_a_finished_stage_on_another_export_says_so(workdir, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    record = read(copy / "one/identity.json")
    assert record["sources"]["weights.step"] == 4
    record["sources"]["weights.step"] = 2
    (copy / "one/identity.json").write_text(json.dumps(record))
    train(copy, **CHAIN)
    assert "[one] stale: its base model" in (shown := capsys.readouterr().out)
    assert "was of step 2, and is of step 4 now" in shown and "[two] stale" not in shown


def test_a_file_beside_another_source_says_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "models"):
        folder.mkdir(exist_ok=True)
        (folder / "export.json").write_text('{"step": 9}')
    for source in ("embedded", "random", "hub:org/name", "models/mine"):
        assert exported_step(source) is None
    assert exported_step("models/export") == 9


def test_a_base_model_that_is_not_trained_yet_is_told(tmp_path):
    with pytest.raises(ValueError, match=r"'stage:warm_up', and .*/export does not exist yet"):
        train(tmp_path, mode="evaluate", **CHAIN)


def test_a_later_stages_long_prompt_is_told_before_the_warm_up(tmp_path):
    wrong = CHAIN | {"stages": (WARM_UP, FIRST, SECOND | {"evaluation.prompt_limit": 3})}
    with pytest.raises(ValueError, match=r"config.evaluation.prompt_limit is 3; problem"):
        train(tmp_path, **wrong)
    assert not (tmp_path / "warm_up/checkpoints").exists()


def test_a_later_stage_that_does_not_fit_is_told_before_the_warm_up(tmp_path, monkeypatch):
    known = memory.check

    def small(programs, calls):
        if programs.settings.name == "two":
            raise MemoryShortError("two does not fit")
        return known(programs, calls)

    monkeypatch.setattr(memory, "check", small)
    with pytest.raises(MemoryShortError, match="two does not fit"):
        train(tmp_path, **CHAIN)
    assert not (tmp_path / "warm_up/checkpoints").exists()


def test_a_model_that_no_folder_can_hold_is_refused_before_it_is_trained(tmp_path):
    fields = CHAIN | {"model__embedding_scale": True}
    with pytest.raises(ValueError, match=r"model.embedding_scale is True, .* cannot be exported"):
        train(tmp_path, **fields)
    assert not (tmp_path / "warm_up/checkpoints").exists()


def test_the_command_line_changes_the_first_base_model_alone():
    own = {"weights.source": "/models/mine", "weights.adapter": "/adapters/mine"}
    config = get_config()
    config.stages = CHAIN["stages"]
    found = [stage.settings.weights for stage in resolve_stages(config, own)]
    assert [weights.source for weights in found] == ["/models/mine", *["stage:warm_up"] * 2]
    config.weights.source, config.weights.adapter = own.values()
    shared = resolve_stages(config, {})[1]
    assert on_its_base(shared, Path("runs")).settings.weights == WeightsConfig(
        source="runs/warm_up/export"  # which has the adapter in it
    )


def test_outside_a_list_there_is_no_stage_to_name():
    with pytest.raises(ValueError, match=r"weights.source is 'stage:x', but the config lists no"):
        stages("stage2", weights__source="stage:x")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ((FIRST,), r"stages\[0\] has the weights.source 'stage:warm_up'; name a stage before it"),
        (
            (WARM_UP, FIRST | {"start": "previous"}),
            r"it starts from 'warm_up', whose base .*'random'",
        ),
        (
            (WARM_UP, FIRST, {"name": "two"}),
            r"'random', but it starts from 'one', whose base model is",
        ),
    ],
)
def test_a_start_with_another_base_model_is_refused(entries, message):
    with pytest.raises(ValueError, match=message):
        stages(stages=entries)


def test_a_name_means_the_entrys_latest_run():
    config = get_config()
    config.stages, config.rounds = (WARM_UP | {"start": "base"}, FIRST), 2
    found = {s.settings.name: s.settings.weights.source for s in resolve_stages(config, {})}
    assert found == {
        "warm_up_1": "random",
        "one_1": "stage:warm_up_1",
        "warm_up_2": "random",
        "one_2": "stage:warm_up_2",
    }


def test_plans_take_the_weights_that_the_warm_up_begins_with():
    found = stages(**CHAIN)
    assert planned(found).weights == found[0].settings.weights
    assert planned(found).name == "two" and planned(found[:1]) is found[0].settings
    assert on_its_base(found[0], None) == found[0]


def load(problems, *, limit=20, row_limit=0, skip_long=False, turns=1, **options):
    """The rows of the answers to problems, and what encodes them."""
    warm = WARM_UP | {"objective.reward_weights": (1.0,) * turns, "objective.beta": (0.0,) * turns}
    sampling = {"sampling__turn_limit": limit, "sampling__row_limit": row_limit}
    settings = stages(stages=(warm,), task="equations", **sampling)[0].settings
    data = dict(settings.data) | {"skip_long": skip_long}
    own = {"source": "answers", **options}
    settings = dataclasses.replace(
        settings, data=tuple(sorted(data.items())), examples=tuple(sorted(own.items())), batch=2
    )
    programs = build(settings)
    encoder = programs.encoder(settings.plan, 12, {"": registry.get("equations")})
    return examples.load(settings, encoder, None, problems), programs


def taught(rows, programs):
    """The texts that carry loss."""
    return [
        programs.chat.decode([t for t in row[mask].tolist() if t not in programs.chat.stops])
        for row, mask in zip(rows.tokens, rows.trained, strict=True)
    ]


def problems(*worked):
    known = sources.load(source="procedural", split="train", count=len(worked))
    return [dataclasses.replace(p, worked=w) for p, w in zip(known, worked, strict=True)]


def test_the_rows_are_the_worked_answers_closed_by_the_gold_ones():
    asked = problems("", "2x=4", "x=1")
    make, programs = load(asked)
    found = [text for step in range(3) for text in taught(make(step), programs)]  # two epochs
    gold = [p.answer for p in asked]
    expected = [gold[0], f"2x=4\n{gold[1]}", f"x=1\n{gold[2]}"]
    encode = programs.chat.encode_plain
    wanted = sorted(programs.chat.decode(encode(text)) for text in expected)
    assert sorted(found[:3]) == wanted == sorted(found[3:])
    rows = make(0)
    assert not any(np.any(leaf) for leaf in (rows.sampled, rows.logprobs)) and set(
        rows.turn.flat
    ) == {0, 1}
    open_end, programs = load(asked, close=False)
    ends = [text for step in range(3) for text in taught(open_end(step), programs)]
    assert sorted(ends[:3]) == sorted([gold[0], "2x=4", "x=1"])


def test_every_turn_has_the_answer_and_carries_loss_and_what_stands_between_carries_none():
    asked = problems("2x=4")
    make, programs = load(asked, turns=2)
    rows, chat = make(0), programs.chat
    answer = [*chat.encode_plain(f"2x=4\n{asked[0].answer}"), chat.stop]
    task = registry.get("equations")
    opening = chat.encode_prompt(task.ask(asked[0]))
    between = chat.encode_instruction(task.instruction)
    for row, turn, trained in zip(rows.tokens, rows.turn, rows.trained, strict=True):
        whole = [*opening, *answer, *between, *answer]
        assert row[: len(whole)].tolist() == whole and not trained[len(whole) :].any()
        assert row[trained].tolist() == [*answer, *answer]
        assert [int(turn[trained].tolist().count(n)) for n in (1, 2)] == [len(answer)] * 2


def test_a_share_of_dialogues_begins_with_another_answer_that_is_not_learnt():
    asked = problems(*(f"{n}x={n}" for n in range(1, 9)))
    make, programs = load(asked, turns=2, mistaken=0.25)
    chat, begun_otherwise = programs.chat, Counter()
    gold = {chat.decode(chat.encode_plain(f"{p.worked}\n{p.answer}")) for p in asked}
    for step in range(200):  # 50 epochs of 8 problems
        rows = make(step)
        for row, turn, trained in zip(rows.tokens, rows.turn, rows.trained, strict=True):
            first, second = (chat.decode(row[turn == n][:-1].tolist()) for n in (1, 2))
            assert trained[turn == 2].all() and {first, second} <= gold
            if trained[turn == 1].any():
                assert first == second and trained[turn == 1].all()
            else:
                assert first != second
                begun_otherwise[second, first] += 1
    assert 75 < begun_otherwise.total() < 125  # of 400: within 3 standard deviations of 100
    problems_met = {second for second, _ in begun_otherwise}
    assert problems_met == gold and len(begun_otherwise) > 30  # of 56 pairs
    again = load(asked, turns=2, mistaken=0.25)[0]
    np.testing.assert_array_equal(again(7).tokens, make(7).tokens)  # after a resume, too


def test_a_mistaken_answer_that_leaves_a_row_no_room_is_not_begun_with():
    asked = problems("", "1")
    asked[1] = dataclasses.replace(asked[1], prompt="x=1")
    make, _ = load(asked, turns=2)
    limit = int(max(make(step).length.max() for step in range(2)))  # both with their own answers
    make, programs = load(asked, turns=2, mistaken=1.0, row_limit=limit)
    kept = set()
    for step in range(2):
        rows = make(step)
        assert rows.length.max() <= limit
        for row, turn, trained in zip(rows.tokens, rows.turn, rows.trained, strict=True):
            second = programs.chat.decode(row[turn == 2][:-1].tolist())
            kept.add((len(second) > len(asked[0].answer), bool(trained[turn == 1].any())))
    assert kept == {(False, True), (True, False)}  # the long prompt has no room for the long answer


def test_a_share_that_can_not_be_mistaken_is_refused():
    asked = problems("2x=4", "2x=4")
    with pytest.raises(ValueError, match=r"examples.mistaken is 0.5 with 1 turns.*two turns"):
        load(asked, mistaken=0.5)
    with pytest.raises(ValueError, match=r"examples.mistaken is 2 with 2 turns.*0..1"):
        load(asked, turns=2, mistaken=2)
    alike = [dataclasses.replace(one, answer="x=1") for one in asked]
    with pytest.raises(ValueError, match=r"mistaken is 0.5, but all 2 answers are alike; set 0"):
        load(alike, turns=2, mistaken=0.5)


def test_answers_that_are_too_long_stop_the_run_or_are_left_out(capsys):
    asked = problems("", "2x=4", "2x=4" * 9)
    with pytest.raises(TooLong, match=r"problem .* has \d+ tokens"):
        load(asked)
    make, programs = load(asked, skip_long=True)
    assert "1 of 3 answers are too long for sampling.turn_limit 20" in capsys.readouterr().out
    found = {text for step in range(4) for text in taught(make(step), programs)}
    assert len(found) == 2
    with pytest.raises(ValueError, match=r"turn_limit is 1; every answer is longer: raise it"):
        load(asked, limit=1, skip_long=True)
    with pytest.raises(ValueError, match=r"examples.close is 1; set True or False"):
        load(asked, close=1)


def test_a_file_names_the_field_of_its_worked_answers(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "2x=4", "answer": "x=2", "steps": "so 2*2=4"}\n')
    (problem,) = sources.load(source="jsonl", path=str(path), fields={"worked": "steps"})
    assert problem.worked == "so 2*2=4" and problem.answer == "x=2"


def test_other_worked_answers_are_other_data_for_the_warm_up_alone():
    one, other = problems("2x=4"), problems("2x=6")
    assert fingerprint_problems(one) == fingerprint_problems(other)
    assert fingerprint_problems(one, worked=True) != fingerprint_problems(other, worked=True)
    assert "2x=4" not in registry.get("equations").ask(one[0])
