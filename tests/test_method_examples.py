"""The supervised stages of tests/methods.py learn from exactly the dialogues that they keep.

A store of dialogues that a policy drew is filtered by plain loops, and the first update held to
finite differences of the log-likelihood, in float64.
"""

from collections import Counter, defaultdict
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_jax.data import store
from score_jax.records import Grade, Problem
from score_jax.stages import examples
from tests.enumerable import slope, start_state
from tests.method_stages import RIGHT, TOLERANCE, encoder, functions_of, last_run
from tests.methods import METHODS, TWO


def stored(world, folder, counts, seed, problems=("p",)):
    """Keeps dialogues that a policy drew: as many of each problem as `counts` says.

    Returns (problem, row of the world) of each.
    """
    rng, odds = np.random.default_rng(seed), world.odds(world.random_table(2))
    rows = rng.choice(len(odds), size=sum(counts), p=odds / odds.sum())
    ids = np.repeat(np.arange(len(problems)), counts)
    episodes = jax.tree.map(
        np.asarray,
        world.episodes(world.random_table(2), world.rewards(RIGHT[7]), rows),
    )
    episodes = episodes.replace(ids=episodes.ids.replace(problem=ids))
    grade = Grade(verdict="wrong", reward=0.0)
    known = store.from_rows(
        episodes,
        stage=folder.name,
        step=0,
        rows=range(len(rows)),
        problems=[Problem(id=problems[index], prompt="?") for index in ids],
        tasks=["world"] * len(rows),
        prompts=["?"] * len(rows),
        attempts=[["", ""]] * len(rows),
        grades=[[grade, grade]] * len(rows),
    )
    store.write(folder / "rollouts", known, step=0)
    return list(zip(ids.tolist(), rows.tolist(), strict=True))


def rows_of(world, episodes):
    """The rows of the world that episodes are."""
    known = {tuple(line): row for row, line in enumerate(world.tokens.tolist())}
    return [known[tuple(line)] for line in np.asarray(episodes.tokens).tolist()]


def first_batch(settings, workdir, size):
    """The rows of a supervised stage's first step."""
    settings = replace(settings, batch=size)
    return examples.load(settings, encoder(settings), workdir, ())(0)


def imitated(world, table, settings, episodes):
    """The direction in which the first supervised update moves the table."""
    functions = functions_of(world, settings)
    state, rows = start_state(table, settings.objective), jax.tree.map(jnp.asarray, episodes)
    new, _ = jax.jit(functions.imitate)(state, state.params, rows)
    return np.asarray(new.params["table"] - state.params["table"], np.float64)


def likelihood_slope(world, table, rows, turns):
    """The slope of the mean log-likelihood of the tokens of these turns."""
    columns = [turn - 1 for turn in turns]
    tokens = np.isin(world.turn[rows], turns).sum()
    return slope(lambda t: world.turn_logprobs(t)[np.ix_(rows, columns)].sum() / tokens, table)


SUPERVISED = [(name, entry) for name, method in METHODS.items() for entry in method.keeps]


@pytest.mark.parametrize(("name", "entry"), SUPERVISED)
def test_the_first_update_imitates_the_dialogues_that_the_method_keeps(name, entry, tmp_path):
    settings, (keeps, turns) = last_run(name, entry), METHODS[name].keeps[entry]
    rounds = METHODS[name].rounds
    for turn in range(1, rounds + 1):  # only the collection of its own round counts
        folder = tmp_path / (f"collect_{turn}" if rounds > 1 else "collect")
        known = stored(TWO, folder, [40], seed=turn)
    kept = [row for _, row in known if keeps(*TWO.rewards(RIGHT[7])[row])]
    assert 5 < len(kept) < 40
    episodes = first_batch(settings, tmp_path, len(kept))
    assert Counter(rows_of(TWO, episodes)) == Counter(kept)
    table = TWO.random_table(0)
    want = likelihood_slope(TWO, table, kept, turns)
    np.testing.assert_allclose(imitated(TWO, table, settings, episodes), want, atol=TOLERANCE)
    assert np.abs(want[TWO.turn_of_context == 2]).max() > 0.01


@pytest.mark.parametrize(("name", "firsts"), [("Pair-SFT", {0.0}), ("Pair-SFT, D+", {0.0, 1.0})])
def test_pairs_are_first_attempts_with_any_right_answer_to_the_same_problem(name, firsts, tmp_path):
    settings = last_run(name, "tune")
    known = stored(TWO, tmp_path / "collect", [5, 30], seed=1, problems=("p", "q"))
    answers, expected = defaultdict(list), []
    for problem, row in known:
        answers[problem] += [o for o in TWO.pairs[row] if RIGHT[7][o] == 1]
        if RIGHT[7][TWO.pairs[row][0]] in firsts:
            expected.append((problem, TWO.pairs[row][0]))
    episodes = first_batch(settings, tmp_path, len(expected))
    rows = rows_of(TWO, episodes)
    problems = episodes.ids.problem.tolist()
    made = [(p, *TWO.pairs[row]) for p, row in zip(problems, rows, strict=True)]
    assert Counter((p, first) for p, first, _ in made) == Counter(expected)
    assert all(second in answers[problem] for problem, _, second in made)
    table = TWO.random_table(0)
    want = likelihood_slope(TWO, table, rows, (2,))
    np.testing.assert_allclose(imitated(TWO, table, settings, episodes), want, atol=TOLERANCE)
    assert not want[TWO.turn_of_context == 1].any()


def test_the_right_answer_of_a_pair_is_drawn_evenly(tmp_path):
    known = stored(TWO, tmp_path / "collect", [30], seed=1)
    answers = Counter(o for _, row in known for o in TWO.pairs[row] if RIGHT[7][o] == 1)
    wrong = sum(RIGHT[7][TWO.pairs[row][0]] == 0 for _, row in known)
    dialogues, drawn = list(store.read(tmp_path / "collect/rollouts")), Counter()
    line_of = {tuple(line.tolist()): row for row, line in enumerate(TWO.tokens)}
    for seed in range(100):
        for one in examples.pairs(dialogues, (False,), seed):
            line = [*one.tokens.tolist(), *[0] * (TWO.tokens.shape[1] - len(one.tokens))]
            drawn[TWO.pairs[line_of[tuple(line)]][1]] += 1
    assert drawn.total() == 100 * wrong and drawn.keys() == answers.keys()
    for answer, count in answers.items():
        share = count / answers.total()
        deviation = np.sqrt(share * (1 - share) / drawn.total())
        assert abs(drawn[answer] / drawn.total() - share) < 4 * deviation


def test_a_dialogue_without_a_second_turn_makes_no_pair(tmp_path):
    """Nothing says what stands between its first attempt and a correction."""
    stored(TWO, tmp_path / "collect", [30], seed=1)
    whole = list(store.read(tmp_path / "collect/rollouts"))
    cut = [
        replace(one, tokens=one.tokens[one.turn < 2], turn=one.turn[one.turn < 2]) for one in whole
    ]
    assert not examples.pairs(cut, (False, True), 0)
    assert len(examples.pairs([*cut, *whole], (False, True), 0)) == 30


def test_stored_logprobs_suffice_to_weigh_votes_by_confidence(tmp_path):
    """ReVISE: an answer counts for as much as the policy was sure of its verdict on it."""
    table, known = TWO.random_table(2), stored(TWO, tmp_path / "collect", [30], seed=1)
    votes, expected = Counter(), Counter()
    for one in store.read(tmp_path / "collect/rollouts"):
        answer = tuple(one.tokens[one.turn == 1].tolist())
        votes[answer] += np.exp(one.logprobs[one.turn == 2].sum())
    for _, row in known:
        answer = tuple(TWO.tokens[row, TWO.turn[row] == 1].tolist())
        expected[answer] += np.exp(TWO.turn_logprobs(table)[row, 1])
    assert votes.keys() == expected.keys() and len(votes) > 3
    for answer, weight in votes.items():
        assert weight == pytest.approx(expected[answer], rel=1e-5)
