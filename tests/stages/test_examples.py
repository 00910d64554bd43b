"""The rows of a supervised stage's steps: worked dialogues, and rollouts that were kept."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from score_jax.data import equations, receipts, store
from score_jax.stages import examples
from score_jax.stages.build import build
from score_jax.stages.examples import NothingKeptError
from score_jax.stages.preflight import check_stage
from score_jax.stages.settings import parse
from score_jax.tasks import registry
from tests.data.test_store import dialogue
from tests.stage_configs import stages
from tests.tiny_stages import assert_same_tree


@pytest.fixture(scope="module")
def programs():
    return build(stages("base")[-1].settings)


def load(programs, *, steps=10, seed=0, batch=4, **options):
    own = tuple(({"source": "equations"} | options).items())
    fields = {"steps": steps, "seed": seed, "batch": batch, "examples": own}
    settings = dataclasses.replace(programs.settings, **fields)
    return examples.load(settings, encoder_of(programs), None, ())


def encoder_of(programs):
    settings = programs.settings
    tasks = {"": registry.get("equations")}
    return programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)


def careful_share(programs, rows):
    """Share of the second attempts that begin with the word check."""
    seconds = [row[own == 2] for row, own in zip(rows.tokens, rows.turn, strict=True)]
    return np.mean([programs.chat.decode(ids).startswith("check") for ids in seconds])


def test_the_habit_settles_in_the_last_share_of_the_steps(programs):
    """Of 10 steps the last 3 are settled; each share is 0 or 1, so that one draw tells."""
    make = load(programs, careful=1.0, careful_at_last=0.0, settling=0.3)
    shares = [careful_share(programs, make(step)) for step in range(10)]
    assert shares == [1.0] * 7 + [0.0] * 3


@pytest.mark.parametrize("settling", [0.0, 1.0])
def test_none_or_all_of_the_steps_may_be_settled(programs, settling):
    make = load(programs, steps=4, careful=1.0, careful_at_last=0.0, settling=settling)
    assert {careful_share(programs, make(step)) for step in range(4)} == {1.0 - settling}


def test_seed_and_step_decide_the_rows_and_the_batch_how_many(programs):
    rows = load(programs, seed=3, steps=100, batch=6)(5)
    assert len(rows.tokens) == 6
    assert_same_tree(rows, load(programs, seed=3, steps=100, batch=6)(5))
    rng = np.random.default_rng([3, 5])  # as the embedded base policy was trained
    drawn = equations.dialogues(rng, 6, careful=0.8, right=0.25)
    encoder = encoder_of(programs)
    assert_same_tree(rows, encoder.worked(drawn, rows.tokens.shape[1]))
    for other in (
        load(programs, seed=4, steps=100, batch=6)(5),
        load(programs, seed=3, batch=6)(6),
    ):
        assert not np.array_equal(other.tokens, rows.tokens)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves((rows.sampled, rows.logprobs)))


@pytest.mark.parametrize("field", ["careful", "careful_at_last", "settling", "right"])
@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan"), "x"])
def test_a_share_that_is_none_is_refused_by_name(programs, field, value):
    with pytest.raises(ValueError, match=rf"^examples.{field} is .*; set a "):
        load(programs, **{field: value})


def test_the_source_names_the_task_whose_dialogues_are_made():
    """With that task's own tokenizer, trained in process, in which no work is cut."""
    programs = build(parse(base.get_config("receipts")))
    tasks = {"receipts": registry.get("receipts")}
    settings = dataclasses.replace(programs.settings, batch=4)
    encoder = programs.encoder(settings.plan, settings.sampling.prompt_limit, tasks)
    rows = examples.load(settings, encoder, Path(), ())(0)
    made = receipts.dialogues(np.random.default_rng([0, 0]), 4, careful=0.25, right=0.25)
    for row, own, worked in zip(rows.tokens, rows.turn, made, strict=True):
        for number, parts in enumerate(worked.attempts, 1):
            text = "".join(part.text for part in parts)
            assert programs.chat.decode(row[own == number]) == text
    ids = programs.chat.encode_plain("(32,56)376+252(08,12,06)=628")
    assert len(ids) == len("(32,56)376+252(08,12,06)=628")


def test_a_source_or_a_field_that_there_is_not_is_named(programs):
    with pytest.raises(ValueError, match=r"examples.source is 'words'; choose one of equations, "):
        load(programs, source="words")
    with pytest.raises(ValueError, match=r"config.examples with source 'equations': .*carful"):
        load(programs, carful=0.5)


STOP, BETWEEN = 1, [60, 61]  # of the made-up dialogues: a stop token, an instruction
REWARDS = [(first, last) for first in (0.0, 0.5, 1.0) for last in (0.0, 0.5, 1.0)]


def spoken(number, problem, rewards, *, turns=2):
    """A dialogue whose tokens tell problem, number and turn; attempts differ in length."""
    tokens, turn = [50 + problem, 49], [0, 0]
    for own in range(1, turns + 1):
        words = [10 * own + number % 10] * (1 + (number + own) % 3) + [STOP]
        piece = (BETWEEN if own > 1 else []) + words
        tokens += piece
        turn += [0] * (len(piece) - len(words)) + [own] * len(words)
    turn = np.asarray(turn, np.int32)
    return dialogue(
        step=number // 4,
        row=number % 4,
        problem=f"p{problem}",
        problem_index=problem,
        draw=number,
        tokens=np.asarray(tokens, np.int32),
        turn=turn,
        sampled=turn > 0,
        trained=turn > 0,
        logprobs=np.where(turn > 0, -1.0, 0.0).astype(np.float32),
        present=np.ones(turns, bool),
        truncated=np.zeros(turns, bool),
        rewards=np.asarray(rewards, np.float32),
        attempts=("?",) * turns,
        verdicts=("wrong",) * turns,
        extracted=(None,) * turns,
        details=("",) * turns,
    )


def keep(folder, dialogues):
    for step in {one.step for one in dialogues}:
        own = [one for one in dialogues if one.step == step]
        store.write(folder / "rollouts", own, step=step)
    return dialogues


@pytest.fixture
def dialogues(tmp_path):
    """Every pair of rewards, on three problems, as the stage `drawn` keeps them."""
    made = [spoken(number, number % 3, rewards) for number, rewards in enumerate(REWARDS)]
    return keep(tmp_path / "drawn", made)


def stored(programs, workdir, *, batch=4, seed=0, trained=(), weights=None, **options):
    own = {"source": "rollouts", "stage": "drawn", "keep": "all"} | options
    settings = programs.settings
    dialogue = dataclasses.replace(settings.dialogue, trained=trained)
    fields = {"batch": batch, "seed": seed, "dialogue": dialogue}
    if weights is not None:
        fields["objective"] = dataclasses.replace(
            settings.objective, reward_weights=weights, beta=(0.0,) * len(weights)
        )
    own = {name: value for name, value in own.items() if value is not None}
    settings = dataclasses.replace(settings, examples=tuple(own.items()), **fields)
    return examples.load(settings, encoder_of(programs), workdir, ())


def draws(make, steps):
    return [int(draw) for step in steps for draw in make(step).ids.draw]


FILTERS = {
    "all": lambda first, last: True,
    "wrong_then_right": lambda first, last: first < 1 and last == 1,
    "right_then_right": lambda first, last: first == 1 and last == 1,
    "ends_right": lambda first, last: last == 1,
}


@pytest.mark.parametrize("name", FILTERS)
def test_a_filter_is_chosen_by_its_name(name, programs, dialogues, tmp_path):
    wanted = [number for number, rewards in enumerate(REWARDS) if FILTERS[name](*rewards)]
    for place in ({}, {"stage": None, "path": str(tmp_path / "drawn/rollouts")}):
        make = stored(programs, tmp_path, keep=name, batch=len(wanted), **place)
        assert sorted(draws(make, [0])) == wanted


def test_the_usual_filter_is_that_of_star(programs, dialogues, tmp_path):
    make = stored(programs, tmp_path, keep=None, batch=2)
    assert sorted(draws(make, [0])) == [2, 5]  # rewards (0, 1) and (0.5, 1)


def test_each_epoch_has_every_dialogue_once_and_an_order_of_its_own(programs, dialogues, tmp_path):
    """Nine dialogues and batches of four: epochs end within a step."""
    found = draws(stored(programs, tmp_path), range(9))
    epochs = [found[start : start + 9] for start in range(0, 36, 9)]
    assert all(sorted(epoch) == list(range(9)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != list(range(9))


def test_step_and_seed_decide_the_rows_whatever_was_read_before(programs, dialogues, tmp_path):
    one, two = (stored(programs, tmp_path, seed=3) for _ in range(2))
    for step in (5, 0, 2):
        assert_same_tree(one(step), two(step))
    other = draws(stored(programs, tmp_path, seed=4), range(9))
    assert other != draws(one, range(9)) and Counter(other) == Counter(draws(one, range(9)))


def test_rows_are_the_dialogues_as_they_were_drawn(programs, dialogues, tmp_path):
    rows = stored(programs, tmp_path, batch=9)(0)
    for row, number in enumerate(rows.ids.draw):
        one, size = dialogues[number], rows.length[row]
        for name in ("tokens", "turn", "sampled", "logprobs"):
            line = getattr(rows, name)[row]
            np.testing.assert_array_equal(line[:size], getattr(one, name))
            assert not line[size:].any()
        np.testing.assert_array_equal(rows.rewards[row], one.rewards)
        assert rows.ids.problem[row] == one.problem_index


@pytest.mark.parametrize(
    ("trained", "turns"), [((), {1, 2}), ((False, True), {2}), ((True, False), {1})]
)
def test_only_the_turns_that_the_plan_trains_carry_loss(
    trained, turns, programs, dialogues, tmp_path
):
    rows = stored(programs, tmp_path, batch=9, trained=trained)(0)
    for mask, own in zip(rows.trained, rows.turn, strict=True):
        assert mask.tolist() == [int(whose) in turns for whose in own]
        assert mask.any()


def test_all_steps_have_rows_of_one_length_that_holds_the_longest(programs, tmp_path):
    """So that the update is compiled once; a stage with shorter turns may learn from it too."""
    made = [spoken(number, 0, (0.0, 1.0)) for number in range(3)]
    usual = stored(programs, tmp_path, batch=1)
    keep(tmp_path / "drawn", made)
    width = encoder_of(programs).row_length(programs.settings.sampling.row_limit)
    assert usual(0).tokens.shape == (1, width)
    long = np.full(200, 9, np.int32)
    longer = dataclasses.replace(
        made[1], tokens=long, turn=np.minimum(long, 2), logprobs=np.zeros(200, np.float32),
        sampled=long > 0, trained=long > 0,
    )  # fmt: skip
    keep(tmp_path / "drawn", [made[0], longer, made[2]])
    make = stored(programs, tmp_path, batch=1)
    assert {make(step).tokens.shape for step in range(3)} == {(1, 200)}


def split(tokens):
    """Prompt, first attempt, instruction and second attempt of a made-up dialogue."""
    tokens = tokens.tolist()
    first = tokens.index(STOP) + 1
    assert tokens[first : first + 2] == BETWEEN
    return tokens[:2], tokens[2:first], tokens[first + 2 :]


@pytest.mark.parametrize(
    ("kind", "kinds"), [("pairs", (0.0, 0.5)), ("pairs_and_right", (0, 0.5, 1))]
)
def test_each_second_attempt_of_a_pair_is_a_right_answer_to_its_problem(
    kind, kinds, programs, dialogues, tmp_path
):
    """Found by search over all attempts; the loss is on the second attempt alone."""
    right = {
        (prompt[0], tuple(attempt))
        for one in dialogues
        for prompt, *attempts in [split(one.tokens)]
        for attempt, reward in zip(attempts, one.rewards, strict=True)
        if reward == 1
    }
    wanted = [number for number, (first, _) in enumerate(REWARDS) if first in kinds]
    found = set()
    for seed in range(8):
        make = stored(
            programs, tmp_path, keep=kind, batch=len(wanted), seed=seed, trained=(False, True)
        )
        rows = make(0)
        assert sorted(rows.ids.draw.tolist()) == wanted
        for row, number in enumerate(rows.ids.draw):
            size = rows.length[row]
            prompt, first, second = split(rows.tokens[row, :size])
            assert [prompt, first] == [*split(dialogues[number].tokens)][:2]
            assert (prompt[0], tuple(second)) in right
            found.add((prompt[0], tuple(second)))
            start = size - len(second)
            owner = [0, 0, *[1] * len(first), 0, 0, *[2] * len(second)]
            assert rows.turn[row, :size].tolist() == owner
            assert np.flatnonzero(rows.trained[row]).tolist() == list(range(start, size))
            assert not rows.sampled[row].any() and not rows.logprobs[row].any()
    assert found == right  # each right answer to a problem may be the one


def test_problems_without_a_right_answer_make_no_pairs(programs, tmp_path):
    rewards = [(0, 0), (0, 0.5), (0, 0), (0, 1), (0, 0)]
    made = [spoken(number, int(number > 1), own) for number, own in enumerate(rewards)]
    keep(tmp_path / "drawn", made)
    make = stored(programs, tmp_path, keep="pairs", batch=3, trained=(False, True))
    assert sorted(draws(make, [0])) == [2, 3, 4]


@pytest.mark.parametrize("name", ["right_then_right", "pairs"])
def test_where_no_dialogue_is_left_field_and_folder_are_named(name, programs, tmp_path):
    folder = tmp_path / "drawn"
    told = rf"examples.keep is '{name}'; none of the dialogues in {re.escape(str(folder))}/rollouts"
    with pytest.raises(NothingKeptError, match=told):
        stored(programs, tmp_path, keep=name)(0)
    keep(folder, [spoken(number, 0, (0.0, 0.5)) for number in range(4)])
    with pytest.raises(ValueError, match=told + " is: collect more, or choose another filter"):
        stored(programs, tmp_path, keep=name)(0)


@pytest.mark.parametrize(("turns", "weights"), [(2, (1.0,)), (1, (1.0, 1.0)), (3, (0.0, 1.0))])
def test_dialogues_of_another_number_of_turns_are_refused(turns, weights, programs, tmp_path):
    rewards = (1.0,) * turns
    keep(tmp_path / "drawn", [spoken(number, 0, rewards, turns=turns) for number in range(4)])
    told = rf"objective.reward_weights is .*, one value per turn, but .* have {turns} turns; set"
    with pytest.raises(ValueError, match=told):
        stored(programs, tmp_path, weights=weights)(0)


WRONG = {
    "no place": ({"stage": None}, r"examples.stage is '' and examples.path ''; set one of them"),
    "two places": ({"path": "x"}, r"examples.stage is 'drawn' and examples.path 'x'; set one of"),
    "no such filter": (
        {"keep": "right"},
        r"examples.keep is 'right'; choose one of all, .*, ends_right, pairs, pairs_and_right",
    ),
    "another source's field": (
        {"careful": 0.5},
        r"config.examples with source 'rollouts': .* unexpected keyword argument 'careful'",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_section_is_refused_before_anything_is_read(case, programs, tmp_path):
    options, told = WRONG[case]
    with pytest.raises(ValueError, match=told):
        stored(programs, tmp_path, **options)


def test_the_preflight_asks_for_no_rollouts_yet(programs, tmp_path):
    """The stage that collects them may be one of the same run; a wrong section is told there."""
    own = {"examples": (("keep", "pairs"), ("source", "rollouts"), ("stage", "drawn"))}
    settings = dataclasses.replace(programs.settings, **own)
    assert check_stage(settings, tmp_path).training.problems
    wrong = dataclasses.replace(settings, examples=(*own["examples"][:2], ("stage", "")))
    with pytest.raises(ValueError, match=r"examples.stage is '' and examples.path ''"):
        check_stage(wrong, tmp_path)
