"""A policy that says what a script says has the numbers that were counted by hand."""

import pytest

from score_jax.stages.build import StagePrograms
from tests.scripted import Scripted
from tests.stages.test_evaluate import evaluate, open_pool, open_tiny

# Whether the attempts of two problems are right, four dialogues each, two turns.
RIGHT = [["01", "01", "10", "11"], ["00", "01", "10", "00"]]


def texts(asked):
    """The script: the gold answer, or a wrong one of as many characters, the same each time."""
    for problem, samples in zip(asked.problems, RIGHT, strict=True):
        number = problem.answer.removeprefix("x=")
        wrong = f"x={'1' if number[0] != '1' else '2'}{number[1:]}"
        yield from (tuple(problem.answer if c == "1" else wrong for c in s) for s in samples)


@pytest.fixture
def found(compiled, monkeypatch):
    fields = {"task": "equations", "evaluation__samples": 4, "evaluation__problems": 2}
    programs, params, asked = open_tiny(**fields)
    script = list(texts(asked))

    def sample(self, sampling, plan):
        encoder = evaluate.encoder_of(programs, asked)
        own = script if sampling.group_size == 4 else script[::4]
        return Scripted(encoder=encoder, texts=own)

    monkeypatch.setattr(StagePrograms, "sample", sample)
    with open_pool(programs, asked) as pool:
        return evaluate.measure_model(programs, params, asked, pool, step=0)


def test_metrics_of_a_script(found):
    """Of eight dialogues: three fixed, two broken, one right twice, two wrong twice."""
    assert found["outcomes"]["sampled"] == [" ".join(samples) for samples in RIGHT]
    values = {name: m["value"] for name, m in found["sampled"].items() if m}
    expected = {
        "accuracy/turn1": 3 / 8,
        "accuracy/turn2": 4 / 8,
        "delta": 1 / 8,
        "delta_i_to_c": 3 / 8,
        "delta_c_to_i": 2 / 8,
        "fix_rate": 3 / 5,
        "break_rate": 2 / 3,
        "answer_changed": 5 / 8,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)
    assert values["delta"] == values["delta_i_to_c"] - values["delta_c_to_i"]


def test_edit_distances_of_a_script(found):
    """A changed answer differs from the other by one character: 1 / (2 x its length)."""
    lengths = [len(dialogue["answer"]) for dialogue in found["transcripts"]]
    by_hand = (3 * 1 / (2 * lengths[0]) + 2 * 1 / (2 * lengths[1])) / 8
    assert found["sampled"]["edit_distance_ratio"]["value"] == pytest.approx(by_hand)


def test_votes_of_a_script(found):
    """Firsts w w r r and w w r w, seconds r r w r and w r w w, wrong answers being one."""
    assert list(found["scaling"]) == ["2", "4"]
    two, four = ({k: v["value"] for k, v in found["scaling"][b].items()} for b in ("2", "4"))
    assert two == pytest.approx(
        {
            "parallel": (1 / 2 + 1 / 2) / 2,  # {w w} {r r}; {w w} {r w}, the tie to the first
            "pass_parallel": ((1 - 1 / 6) + 3 / 6) / 2,
            "sequential": (3 / 4 + 1 / 4) / 2,
            "sequential_all": (2 / 4 + 1 / 4) / 2,  # ties to the first attempt
            "pass_sequential": (3 / 4 + 1 / 4) / 2,
            "gain": 0,
        }
    )
    assert four == pytest.approx(
        {
            "parallel": 0,  # a tie to the first; one of four
            "pass_parallel": 1,
            "sequential": (1 / 2 + 0) / 2,  # {r r} {w r}; {w r} {w w}
            "sequential_all": (1 / 2 + 0) / 2,  # {w r w r} {r w r r}; {w w w r} {r w w w}
            "pass_sequential": (1 + 3 / 6) / 2,
            "gain": 1 / 4,
        }
    )
