"""Groups without signal and what is drawn in their place, by scripts with known rewards."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.data.stream import Stream
from score_jax.records import Problem
from score_jax.rl import rollout, selection
from score_jax.rl.metrics import flat
from score_jax.rl.objectives import Objective
from score_jax.rl.rollout import RolloutPrograms
from score_jax.rl.sampling_plan import SamplingConfig
from tests.rl.test_rollout import ENCODER, LastDigit, grades
from tests.scripted import Scripted

PROBLEMS = [Problem(id=str(n), prompt="3", answer="1") for n in range(40)]
# What both dialogues of a draw say: nothing to learn, all right, or a signal in one turn.
WRONG, RIGHT = [("2", "2"), ("2", "2")], [("1", "1"), ("1", "1")]
FIRST, SECOND = [("1", "1"), ("2", "1")], [("2", "2"), ("2", "1")]
BOTH = (True, True)


def collected(script, redraws, paid=BOTH, events=None):
    """The rollout of two draws, of a script of what each draw of the stream says.

    Returns the rollout, and the prompts of every batch that was drawn.
    """
    stream = Stream(PROBLEMS, batch=2, seed=0)
    seen, events = [], [] if events is None else events

    def sample(params, prompts, key):
        seen.append(prompts)
        events.append(("sample",))
        texts = [texts for draw in prompts.ids.draw.tolist() for texts in script[draw]]
        return Scripted(encoder=ENCODER, texts=texts).by_turn(params, prompts, key)

    def score(reference, episodes):
        events.append(("score",))
        return reference, np.asarray(episodes.ids.draw)

    programs = RolloutPrograms(
        encoder=ENCODER,
        to_global=lambda tree: jax.tree.map(jnp.asarray, tree),
        own_rows=lambda rows: rows,
        prepare=lambda params: params,
        sample=sample,
        score=score,
    )

    def draw(devices):
        draws, indices, problems = stream.next()
        return rollout.collect_rollout(
            devices, LastDigit(), params=None, reference=None, key=jax.random.key(0),
            draws=draws, problems=problems, indices=indices, policy_step=7,
        )  # fmt: skip

    config = SamplingConfig(group_size=2, redraws=redraws)
    found = selection.collect_with_signal(programs, draw, "base", config, paid=paid)
    return found, seen


def draws_of(found):
    return found.episodes.ids.draw.tolist()[::2]


@pytest.mark.parametrize(
    ("script", "redraws", "batches", "chosen"),
    [
        ([FIRST, SECOND], 3, 1, [0, 1]),  # enough at once
        ([WRONG, FIRST, RIGHT, SECOND], 3, 2, [1, 3]),
        ([WRONG, FIRST, SECOND, FIRST], 3, 2, [1, 2]),  # the first that are drawn
        ([WRONG, RIGHT, RIGHT, WRONG, FIRST, SECOND], 3, 3, [4, 5]),
        ([WRONG, RIGHT, RIGHT, WRONG, FIRST, SECOND], 1, 2, [0, 1]),  # as many as allowed
        ([WRONG, RIGHT, RIGHT, FIRST], 1, 2, [0, 3]),  # filled from the first batch
        ([WRONG] * 8, 3, 4, [0, 1]),
    ],
)
def test_which_draws_end_in_the_batch_and_in_which_order(script, redraws, batches, chosen):
    found, seen = collected(script, redraws)
    assert len(seen) == batches and draws_of(found) == chosen
    ids = found.episodes.ids
    assert ids.sample.tolist() == [0, 1, 0, 1] and ids.policy_step.tolist() == [7] * 4
    said = [texts for draw in chosen for texts in script[draw]]
    assert found.graded.attempts == said
    rights = [[float(text == "1") for text in texts] for texts in said]
    assert found.episodes.rewards.tolist() == rights == found.local.rewards.tolist()
    stream = Stream(PROBLEMS, batch=2, seed=0)
    assert found.problems == [PROBLEMS[stream.index(d)] for d in chosen for _ in range(2)]
    assert found.scores[0] == "base" and found.scores[1].tolist() == ids.draw.tolist()


def test_only_turns_that_are_paid_give_a_signal():
    script = [FIRST, FIRST, SECOND, SECOND]
    assert draws_of(collected(script, 1, (False, True))[0]) == [2, 3]
    assert draws_of(collected(script, 1, (True, False))[0]) == [0, 1]


def test_the_reference_scores_what_was_chosen_alone():
    events = []
    collected([WRONG, FIRST, RIGHT, SECOND], 3, events=events)
    assert events == [("sample",), ("sample",), ("score",)]


def test_each_dialogue_is_drawn_under_the_ids_that_it_has_without_the_filter():
    """Its key is folded from them: ordinals of the stream, one batch behind the other."""
    _, seen = collected([WRONG] * 6, 2)
    assert [prompts.ids.draw.tolist() for prompts in seen] == [[0, 1], [2, 3], [4, 5]]
    stream = Stream(PROBLEMS, batch=2, seed=0)
    for prompts in seen:
        assert prompts.ids.problem.tolist() == stream.next()[1]


def test_what_was_drawn_is_told_beside_what_was_chosen():
    found, _ = collected([WRONG, FIRST, RIGHT, SECOND], 3)
    told = flat(selection.selection_metrics(found))
    assert told == {
        "dialogues/drawn": 8, "redraws": 1, "groups/signal": 0.5, "groups/kept": 0.5,
        "drawn/no_signal": 0.5, "drawn/accuracy/turn1": 3 / 8, "drawn/accuracy/turn2": 5 / 8,
        "drawn/reward/turn1": 3 / 8, "drawn/reward/turn2": 5 / 8,
    }  # fmt: skip
    assert len(found.drawn) == 2 and found.graded.seconds.keys() == {"sample", "grade", "select"}


def test_hosts_that_hold_parts_of_a_batch_see_all_of_it(monkeypatch):
    """The second and third hold the same rows, as those that split a model do."""
    found, _ = collected([FIRST, SECOND], 1)
    whole = selection.rows_of_all_hosts(programs_of(np.arange(4)), found)
    parts = [(np.array(rows), whole.take(rows)) for rows in ([2, 3], [0, 1], [0, 1])]
    monkeypatch.setattr(selection.processes, "all_gather_objects", lambda value: parts)
    again = selection.rows_of_all_hosts(programs_of(np.array([2, 3])), found)
    assert again.attempts == whole.attempts == [*FIRST, *SECOND]
    assert again.grades == whole.grades and again.problems == whole.problems
    jax.tree.map(np.testing.assert_array_equal, again.episodes, whole.episodes)


def programs_of(own):
    """A host that holds these rows."""
    return RolloutPrograms(
        encoder=ENCODER, to_global=None, prepare=None, sample=None, score=None,
        own_rows=lambda rows: rows[own],
    )  # fmt: skip


def test_a_turn_that_rows_lack_gives_no_signal():
    right = grades("1")[0]
    table = [(right, None), (right, None), (None, None), (right, right)]
    assert selection.signals(table, 2, BOTH) == [False, False]


@pytest.mark.parametrize(
    ("fields", "paid"),
    [
        ({"reward_weights": (0.0, 1.0)}, (False, True)),
        ({"reward_weights": (1.0, 1.0), "alpha": 10.0}, (True, True)),
        ({"reward_weights": (1.0, 0.0), "alpha": 1.0}, (True, True)),
        ({"reward_weights": (1.0, 0.0), "alpha": 1.0, "bonus_weights": (1.0, 0.0)}, (True, False)),
        ({"reward_weights": (0.0, 0.0), "beta": (0.1, 0.1)}, (False, False)),
    ],
)
def test_a_turn_is_paid_by_its_reward_or_its_bonus(fields, paid):
    objective = Objective(**{"beta": (0.0, 0.0)} | fields)
    assert selection.paid_turns(objective, ("answer", "answer")) == paid


def test_redraws_that_would_all_be_in_vain_are_refused():
    roles, nothing = ("answer", "answer"), Objective(reward_weights=(0.0, 0.0), beta=(0.1, 0.1))
    paying = Objective(reward_weights=(1.0, 1.0), beta=(0.0, 0.0))
    for size, objective, message in (
        (1, paying, r"sampling.redraws is 2, but a group of one"),
        (2, nothing, r"sampling.redraws is 2, but the objective pays no turn"),
    ):
        with pytest.raises(ValueError, match=message):
            selection.check_redraws(SamplingConfig(group_size=size, redraws=2), objective, roles)
        selection.check_redraws(SamplingConfig(group_size=size), objective, roles)
