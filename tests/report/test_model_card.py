"""The model card as a hub's client reads it."""

import json

import pytest

from score_jax.report import model_card

RATES = {"accuracy/turn1": 0.4, "accuracy/turn2": 0.55, "delta": 0.15, "delta_i_to_c": 0.2,
         "delta_c_to_i": 0.05}  # fmt: skip


def write_run(workdir, sources):
    """What a run leaves, as far as the card tells it."""
    own = workdir / "stage2"
    own.mkdir(parents=True)
    greedy = {
        key: {"value": value, "low": value - 0.1, "high": value + 0.1}
        for key, value in RATES.items()
    }
    measured = {
        "problems": 500,
        "data": "hub:org/rows@cd",
        "models": {"stage2": {"step": 7, "greedy": greedy}},
    }
    for path, value in {
        workdir / "run.json": {
            "stages": ["stage1", "stage2"],
            "command": "a | b",
            "commit": "12ab",
        },
        own / "identity.json": {"sources": sources},
        own / "evaluation.json": measured,
        own / "config.json": {"seed": 3},
    }.items():
        path.write_text(json.dumps(value))


def card(workdir, sources, **options):
    """The written card, and what huggingface_hub reads at its head."""
    client = pytest.importorskip("huggingface_hub")
    write_run(workdir / "name", sources)
    usual = {"step": 7, "instructions": ("Look again.",), "license": "", "library": "peft"}
    model_card.write(workdir, workdir / "name", "stage2", **usual | options)
    read = client.ModelCard.load(workdir / "README.md")
    return read.text, read.data


HUB = {"weights.source": "hub:org/base@12", "weights.adapter": "x", "data": "hub:org/rows@ab"}


def test_a_card_tells_what_the_model_is_and_how_it_was_measured(tmp_path):
    text, data = card(tmp_path, HUB, license="apache-2.0")
    assert (data.base_model, data.library_name, data.license) == ("org/base", "peft", "apache-2.0")
    assert data.datasets == ["org/rows"] and "self-correction" in data.tags
    assert "# name: Stage II\n" in text and "    Look again.\n" in text
    rows = dict(
        [cell.strip() for cell in line.strip("|").split(" | ")][:2]
        for line in text.splitlines()
        if line.startswith("| ") and " | " in line.strip("| ")
    )
    assert rows["base model"] == "`hub:org/base@12`" and rows["problems"] == "`hub:org/rows@ab`"
    assert rows["measured on"] == "`hub:org/rows@cd`"
    assert rows["last command of the run"] == r"`a \| b`" and rows["seed"] == "3"
    assert rows["checkpoint"] == "step 7 of Stage II"
    assert "500 problems that it was not trained on" in text
    assert "40.0 [30.0, 50.0] | 55.0 [45.0, 65.0] | +15.0 [5.0, 25.0]" in text
    assert "No licence was stated" not in text


def test_a_card_says_what_it_does_not_know(tmp_path):
    text, data = card(tmp_path, {"weights.source": "/models/a", "data": "rows.jsonl"}, step=8)
    assert data.base_model is None and data.datasets is None and data.license is None
    assert "None: this policy has not been evaluated." in text  # step 7 was, this is step 8
    assert "No licence was stated at export." in text


@pytest.mark.parametrize(
    ("parent", "told"),
    [({}, "warm_up, step 40"), ({"parent": "alone", "step": 7}, "alone, step 7, warm_up, step 40")],
)
def test_a_card_names_what_a_warmed_up_base_model_was_made_of(tmp_path, parent, told):
    before = tmp_path / "name/warm_up"
    before.mkdir(parents=True)
    (before / "identity.json").write_text(json.dumps({"sources": HUB}))
    (before / "handoff.json").write_text(json.dumps(parent))
    made = {"weights.source": str(before / "export"), "weights.step": 40}
    text, data = card(tmp_path, made)
    assert data.base_model == "org/base"
    assert f"| fine-tuned first | {told} |" in text
    assert "| base model | `hub:org/base@12` |" in text and "| stages | Stage I, Stage II |" in text


def test_a_card_of_no_checkpoint_says_so(tmp_path):
    text, _ = card(tmp_path, HUB, step=0)
    assert "The base model as it was" in text and "Trained with" not in text


def test_a_card_of_one_turn_asks_nothing_more(tmp_path):
    text, _ = card(tmp_path, HUB, instructions=())
    assert "It was trained on first attempts alone." in text and "ask again" not in text
