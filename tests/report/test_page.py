"""The page as a browser gets it: complete, self-contained, escaped, and honest about gaps."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from score_jax.data import store
from score_jax.report.page import write_report
from tests.data.test_store import dialogue as stored

EVIL = "</pre></script><script>alert('x')</script><img src=x onerror=alert(1)>&'\""
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags are closed in order."""

    def __init__(self, html: str):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def dialogue(problem, second, verdicts, text="x = 3"):
    return {
        "step": 1,
        "problem": problem,
        "prompt": f"Solve {text}",
        "answer": "4",
        "attempts": [text, second],
        "verdicts": verdicts,
        "rewards": [0.0, 0.5],
        "lengths": [3, 3],
        "truncated": [False, True],
        "extracted": ["3", text],
    }


def write_run(workdir, *, evil=""):
    """Two stages with everything that a finished run leaves."""
    metrics = {"accuracy/turn1": 0.5, "accuracy/turn2": 0.6, "delta": 0.1, "answer_changed": 0.3}
    measured = {key: {"value": v, "low": v - 0.02, "high": v + 0.02} for key, v in metrics.items()}
    base = {key: {"value": 0.0, "low": -0.01, "high": 0.01} for key in metrics}
    rows = [{"step": n, **metrics, "time/sample": 1.0, "loss": None, evil + "x": 1} for n in (1, 2)]
    for name in ("stage1", "stage2"):
        folder = workdir / name
        folder.mkdir(parents=True)
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(lines)
        fields = {"attempts": (evil + "x = 3", evil + "x = 4"), "prompt": f"Solve {evil}x = 3"}
        kept = stored(step=1, problem="train/1", extracted=("3", evil + "x = 3"), **fields)
        store.write(folder / "rollouts", [kept], step=1)
        config = {"name": name, "objective": {"alpha": 10, "note": evil}}
        (folder / "config.json").write_text(json.dumps(config))
    handoff = {"parent": "stage1", "step": 60, "metrics": {"reward": 0.46}, "reset": ["optimizer"]}
    (workdir / "stage2/handoff.json").write_text(json.dumps(handoff))
    shown = {
        "base": [dialogue("test/1", evil + "x = 3", ["wrong", "wrong"])],
        "stage2": [
            dialogue("test/1", "x = 4" + evil, ["wrong", "correct"], evil + "x = 3"),
            dialogue("test/2", "x = 3", ["correct", "correct"]),
        ],
    }
    evaluation = {
        "stage": "stage2",
        "step": 2,
        "seed": 7,
        "task": evil + "equations",
        "problems": 1000,
        "models": {
            "base": {"greedy": base, "sampled": base},
            "stage2": {"greedy": measured | {"fix_rate": None}},
        },
        "histogram": {"base": {"edges": [0, 0.5, 1], "counts": [9, 1]}},
        "transcripts": shown,
    }
    (workdir / "stage2/evaluation.json").write_text(json.dumps(evaluation))
    chain = {"stages": ["stage1", "stage2"], "command": "python -m score_jax.main " + evil}
    (workdir / "run.json").write_text(json.dumps(chain))


def read(workdir) -> tuple[str, Page]:
    html = write_report(workdir).read_text(encoding="utf-8")
    return html, Page(html)


def test_a_finished_run_shows_every_section(tmp_path):
    write_run(tmp_path)
    _, page = read(tmp_path)
    said = (
        "Second attempts are right in 60.0% [58.0, 62.0] of 1,000 held-out problems; "
        "they gain +10.0 points [8.0, 12.0]; the base model gains 0.0."
    )
    assert said in page.text
    ids = {value for name, value in page.attributes if name == "id"}
    assert {"results", "curves", "edits", "dialogues", "speed", "run"} <= ids
    for text in (
        "No alarms",
        "Hand-off: Stage I → Stage II",
        "objective.alpha",
        "test/1",
        "seed 7",
    ):
        assert text in page.text
    assert page.tags.count("article") == 2 + 2  # held-out cards, and one dialogue per stage


def heads(html):
    """Title and note of each card."""
    found = re.findall(r'<h3>([^<]*)</h3><span class="note">([^<]*)</span>', html)
    return dict(found)


def test_a_chart_tells_the_unit_of_its_numbers(tmp_path):
    write_run(tmp_path)
    html, _ = read(tmp_path)
    assert heads(html)["Time"] == ""  # a run of an earlier version
    units = {"time/sample": "s", "x": "furlongs", "kl": "nats"}
    (tmp_path / "stage2/units.json").write_text(json.dumps(units))
    html, _ = read(tmp_path)
    assert heads(html)["Time"] == "s" and heads(html)["X"] == "furlongs"
    assert heads(html)["Accuracy"] == "attempts that are right"  # shares have no unit


def test_dialogues_of_damaged_rollouts_are_left_out_and_said(tmp_path):
    write_run(tmp_path)
    (path,) = (tmp_path / "stage2/rollouts").iterdir()
    path.write_bytes(b"")
    _, page = read(tmp_path)
    assert page.tags.count("article") == 2 + 1  # held-out cards, and a dialogue of one stage
    assert f"skipped: {path} is damaged" in page.text


def test_the_page_needs_nothing_from_elsewhere(tmp_path):
    write_run(tmp_path)
    html, page = read(tmp_path)
    stages = [value for name, value in page.attributes if name in ("src", "href", "srcset", "data")]
    assert stages and all(stage.startswith("#") for stage in stages)
    assert "link" not in page.tags and page.tags.count("script") == 1
    assert "@import" not in html and "url(" not in html and "fetch(" not in html


def test_text_of_models_files_and_configs_is_never_markup(tmp_path):
    write_run(tmp_path, evil=EVIL)
    html, page = read(tmp_path)
    assert page.tags.count("script") == 1 and "img" not in page.tags
    assert not any(name.startswith("on") for name, _ in page.attributes)
    assert EVIL not in html
    assert page.text.count(EVIL) > 5  # the reader still sees it, as text


def test_a_run_under_way_gives_a_page_that_says_what_is_missing(tmp_path):
    write_run(tmp_path)
    for name in ("run.json", "stage2/evaluation.json", "stage2/config.json"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "stage1/rollouts")
    _, page = read(tmp_path)
    assert "No held-out measurement yet: Stage II is at step 2." in page.text
    for text in (
        "run.json is missing",
        "stage2/evaluation.json is missing",
        "stage2/config.json is missing",
        "stage1/rollouts is missing",
    ):
        assert text in page.text


@pytest.mark.parametrize(
    "evaluation", [{"stage": "stage1"}, {"models": {}}, {"models": {"base": {"greedy": {}}}}]
)
def test_a_sparse_evaluation_is_no_error(tmp_path, evaluation):
    (tmp_path / "stage1").mkdir()
    (tmp_path / "stage1/evaluation.json").write_text(json.dumps(evaluation))
    _, page = read(tmp_path)
    assert "No held-out measurement yet" in page.text


def test_one_row_of_one_metric_is_enough(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/metrics.jsonl").write_text('{"step": 0, "loss": NaN}\n')
    _, page = read(tmp_path)
    assert "Base model: the loss is not a number" in page.text


def test_an_empty_workdir_is_refused_and_left_alone(tmp_path):
    with pytest.raises(ValueError, match="no stage in it has"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_report_replaces_the_one_before(tmp_path):
    write_run(tmp_path)
    first = write_report(tmp_path)
    (tmp_path / "stage2/evaluation.json").unlink()
    second = write_report(tmp_path)
    assert first == second == tmp_path / "report.html"
    assert "No held-out measurement yet" in second.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*.partial"))


def test_an_alarm_of_training_is_told_with_step_meaning_and_remedy(tmp_path):
    """One that was cleared since is a note."""
    write_run(tmp_path)
    line = {"step": 2, "name": "kl", "metric": "kl/turn2", "value": 12.3, "bound": 10.0}
    events = [line | {"event": "raised", "text": "t"}, line | {"event": "cleared", "text": "t"}]
    path = tmp_path / "stage2/alarms.jsonl"
    for count, kind in ((1, "alarm"), (2, "note")):
        path.write_text("".join(json.dumps(event) + "\n" for event in events[:count]))
        html = write_report(tmp_path).read_text()
        told = "Stage II: the policy runs off from the base model"
        assert f'<div class="finding {kind}"><b>{told}</b>' in html
        assert "Raised at step 2 (kl/turn2: 12.3); alarms.kl is 10." in html
        assert "raise objective.beta of that turn" in html
        assert ("Cleared at step 2" in html) == (kind == "note")
