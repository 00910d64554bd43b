"""A comparison's record and page, from files made by hand."""

import json
import re

import numpy as np
import pytest

from score_jax.report import comparison, comparison_page, figures
from score_jax.report.compare import percent

PROTOCOL = {"hash": "h", "instruction": "again", "script": "s", "turns": 2, "contents": "c"}
PROBLEMS = 4


def measured(stage, seed, outcomes, **protocol):
    """What an evaluation writes, as far as a comparison reads it."""
    pairs = np.array([[int(digit) for digit in word] for word in outcomes])
    greedy = {
        "accuracy/turn1": {"value": float(pairs[:, 0].mean())},
        "accuracy/turn2": {"value": float(pairs[:, 1].mean())},
    }
    return {
        "stage": stage,
        "step": 3,
        "training_seed": seed,
        "problems": len(outcomes),
        "protocol": PROTOCOL | protocol,
        "reference": 7,
        "models": {stage: {"greedy": greedy}},
        "outcomes": {stage: {"greedy": outcomes}},
        "histogram": {stage: {"edges": [0.0, 0.5, 1.0], "counts": [3, 1]}},
    }


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


RUNS = {  # outcomes of four problems: first attempt, second attempt
    "plain": {0: ["00", "11", "00", "11"], 1: ["00", "11", "01", "11"]},
    "score": {0: ["01", "11", "01", "10"], 1: ["01", "11", "01", "11"]},
}


@pytest.fixture
def workdir(tmp_path):
    methods = {}
    for name, runs in RUNS.items():
        for seed, outcomes in runs.items():
            folder = tmp_path / name / f"variant2/seed{seed}" / name
            write(folder / "test.json", measured(name, seed, outcomes))
            rows = [
                {"step": n, "accuracy/turn1": 0.1 * n + seed, "accuracy/turn2": 0.5}
                for n in (1, 2, 3)
            ]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        variants = []
        for number, outcomes in enumerate((["00", "01"], ["01", "11"]), 1):
            path = f"{name}/variant{number}/seed0/{name}/evaluation.json"
            write(tmp_path / path, measured(name, 0, outcomes))
            failed = f"{name}/variant{number}/seed0/failed.json"
            fields = {"rate": float(number)}
            variants.append({"fields": fields, "validation": path, "failed": failed})
        methods[name] = {
            "title": f"the {name}", "budget": 1.0, "dialogues": 80, "updates": 10,
            "stages": [name], "sets": {}, "variants": variants, "taken": 2,
            "runs": [f"{name}/variant2/seed{seed}" for seed in runs],
        }  # fmt: skip
    write(tmp_path / "base/base/test.json", measured("base", 0, ["00", "11", "00", "11"]))
    plan = {
        "config": "c.py", "command": "python -m it", "commit": "abc", "versions": {"jax": "1"},
        "devices": ["cpu:cpu"], "against": "plain", "sets": {}, "methods": methods,
    }  # fmt: skip
    write(tmp_path / "plan.json", plan)
    return tmp_path


def edit(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_means_are_over_seeds_and_problems(workdir):
    """By hand: score's eight dialogues end right seven times and begin right four times."""
    own = comparison.read(workdir)["methods"]["score"]["greedy"]
    found = {heading: own[heading]["value"] for heading in own}
    assert found == pytest.approx(
        {"@t1": 4 / 8, "@t2": 7 / 8, "Delta": 3 / 8, "i->c": 4 / 8, "c->i": 1 / 8}
    )


def test_every_row_keeps_the_identity_of_the_gain(workdir):
    record = comparison.read(workdir)
    rows = [record["base"], *record["methods"].values()]
    rows += [run for own in record["methods"].values() for run in own["runs"]]
    for row in rows:
        values = {h: v["value"] if isinstance(v, dict) else v for h, v in row["greedy"].items()}
        assert values["Delta"] == pytest.approx(values["i->c"] - values["c->i"], abs=1e-12)
        assert values["Delta"] == pytest.approx(values["@t2"] - values["@t1"], abs=1e-12)


def test_a_difference_is_that_of_the_means_on_the_same_problems(workdir):
    record = comparison.read(workdir)["methods"]
    assert record["score"]["against"]["greedy"]["@t2"]["value"] == pytest.approx(7 / 8 - 5 / 8)
    assert record["score"]["against"]["greedy"]["@t1"]["value"] == pytest.approx(4 / 8 - 4 / 8)
    own = record["plain"]["against"]["greedy"]["@t2"]
    assert own["value"] == 0 and own["low"] <= 0 <= own["high"]
    # First seeds: score alone is right at two problems, plain alone at one: a fair coin thrice.
    assert record["score"]["against"]["mcnemar"] == pytest.approx(1.0)


def test_tuning_is_told_with_what_it_took(workdir):
    own = comparison.read(workdir)["methods"]["score"]
    assert [(v["turn1"], v["turn2"]) for v in own["variants"]] == [(0, 0.5), (0.5, 1)]
    assert own["validation_dialogues"] == 4 and own["taken"] == 2


def test_curves_are_means_over_seeds(workdir):
    own = comparison.read(workdir)["methods"]["score"]["curves"]
    assert own["accuracy/turn1"]["steps"] == [1, 2, 3]
    assert own["accuracy/turn1"]["values"] == pytest.approx([0.6, 0.7, 0.8])
    assert "kl/turn1" not in own


def test_stages_follow_each_other_in_a_curve(workdir):
    edit(workdir / "plan.json", lambda p: p["methods"]["score"].update(stages=["score", "score"]))
    own = comparison.read(workdir)["methods"]["score"]["curves"]
    assert own["accuracy/turn2"]["steps"] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("field", "value"), [("contents", "others"), ("turns", 3), ("temperature", 0.7)]
)
def test_other_problems_or_protocols_are_refused(workdir, field, value):
    path = workdir / "score/variant2/seed1/score/test.json"
    edit(path, lambda file: file["protocol"].update({field: value}))
    with pytest.raises(
        ValueError, match=f"score, seed 1, were measured in different ways: {field}"
    ):
        comparison.read(workdir)


def test_another_base_model_is_refused(workdir):
    path = workdir / "score/variant2/seed0/score/test.json"
    edit(path, lambda file: file.update(reference=8))
    with pytest.raises(ValueError, match=r"score, seed 0, .*another base model"):
        comparison.read(workdir)


def test_only_a_method_that_prompts_may_ask_otherwise(workdir):
    path = workdir / "score/variant2/seed0/score/test.json"
    edit(path, lambda file: file["protocol"].update(instruction="other", script="o"))
    with pytest.raises(ValueError, match="different ways: instruction 'again' / 'other'"):
        comparison.read(workdir)
    edit(workdir / "plan.json", lambda plan: plan["methods"]["score"].update(updates=0))
    comparison.read(workdir)


def test_unequal_tuning_is_refused(workdir):
    path = workdir / "score/variant1/seed0/score/evaluation.json"
    edit(path, lambda file: file.update(problems=3))
    told = r"dialogues: \{'plain, variant 1': 2, .*, 'score, variant 1': 3, 'score, variant 2': 2\}"
    with pytest.raises(ValueError, match=told):
        comparison.read(workdir)


def test_what_failed_is_told_and_compared_with_nothing(workdir):
    (workdir / "score/variant1/seed0/score/evaluation.json").unlink()
    (workdir / "score/variant2/seed1/score/test.json").unlink()
    for run in ("variant1/seed0", "variant2/seed1"):
        write(workdir / "score" / run / "failed.json", {"error": "the loss is nan"})
    own = comparison.read(workdir)["methods"]["score"]
    assert [v["failed"] for v in own["variants"]] == ["the loss is nan", ""]
    assert own["failed"] == ["score/variant2/seed1"] and own["seeds"] == [0]
    page = comparison_page.write(workdir).read_text()
    assert "rate 1.0: failed" in page and "1, 1 failed" in page


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        ({"accuracy/turn2": 0.5}, "@t2 is 0.5, but the outcomes give 0.75"),
        ({"delta": 0.5, "delta_i_to_c": 0.5, "delta_c_to_i": 0.25}, "Delta is 0.5, but the outc"),
    ],
)
def test_values_that_are_not_those_of_the_outcomes_are_refused(workdir, stored, told):
    """Score's first run: 01 11 01 10, so that Delta is 1/4, i->c 1/2 and c->i 1/4."""
    path = workdir / "score/variant2/seed0/score/test.json"
    values = {name: {"value": value} for name, value in stored.items()}
    edit(path, lambda file: file["models"]["score"]["greedy"].update(values))
    with pytest.raises(ValueError, match=told):
        comparison.read(workdir)
    right = {"delta": 0.25, "delta_i_to_c": 0.5, "delta_c_to_i": 0.25, "accuracy/turn2": 0.75}
    values = {name: {"value": value} for name, value in right.items()}
    edit(path, lambda file: file["models"]["score"]["greedy"].update(values))
    comparison.read(workdir)


def test_alarms_are_counted_by_runs(workdir):
    assert "<li>none in any</li>" in comparison_page.write(workdir).read_text()
    rows = [{"step": 2, "name": "kl", "event": e} for e in ("raised", "cleared", "raised")]
    for seed, more in ((0, "kl"), (1, "answer_changed")):
        path = workdir / f"score/variant2/seed{seed}/score/alarms.jsonl"
        path.write_text(
            "".join(json.dumps(r | {"name": n}) + "\n" for r in rows for n in ("kl", more))
        )
    found = comparison.read(workdir)["methods"]
    assert found["score"]["alarms"] == {"answer_changed": 1, "kl": 2}
    assert found["plain"]["alarms"] == {}
    assert "the score: answer_changed in 1, kl in 2" in comparison_page.write(workdir).read_text()


def test_every_method_is_in_one_figure_of_a_few_beside_what_it_is_compared_with():
    many = {f"arm{n}": {"seeds": [0], "failed": []} for n in range(9)}
    main = {name: {"seeds": [0, 1, 2, 3], "failed": ["4"]} for name in ("score", "plain")}
    late = {"late": {"seeds": [], "failed": []}}
    record = {
        "against": "plain",
        "methods": {"arm": {"seeds": [0, 1], "failed": []}} | many | main | late,
    }
    first, second, third, fourth = figures.grouped(record)
    assert list(first) == ["plain", "score"] and list(second) == ["plain", "arm"]
    assert list(third) == ["plain", *(f"arm{n}" for n in range(7))]
    assert list(fourth) == ["plain", "arm7", "arm8"]
    assert figures.grouped({"against": "late", "methods": late}) == [{}]
    assert len(set(figures.colours(third).values())) == len(third) == figures.MOST_LINES


def test_figures_of_other_groups_do_not_stay(workdir):
    def more(plan):
        for number in range(8):
            plan["methods"][f"arm{number}"] = plan["methods"]["score"]

    before = json.loads((workdir / "plan.json").read_text())
    edit(workdir / "plan.json", more)
    page = comparison_page.write(workdir).read_text()
    assert (workdir / "figures/curves2.svg").is_file() and "mean over seeds, 2 of 2" in page
    (workdir / "figures/mine.svg").write_text("<svg/>")  # a reader's own
    write(workdir / "plan.json", before)
    assert "2 of 2" not in comparison_page.write(workdir).read_text()
    assert sorted(p.stem for p in (workdir / "figures").glob("*.svg")) == [
        "curves",
        "histograms",
        "mine",
    ]


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no plan\.json; run a comparison first"):
        comparison.read(tmp_path)


def test_an_unfinished_comparison_has_a_page_of_what_there_is(workdir):
    (workdir / "score/variant2/seed0/score/test.json").unlink()
    (workdir / "score/variant2/seed1/score/test.json").unlink()
    page = comparison_page.write(workdir).read_text()
    assert "the plain" in page and json.loads((workdir / "comparison.json").read_text())


def test_the_page_shows_the_tables_and_every_figure_as_svg_and_png(workdir):
    page = comparison_page.write(workdir).read_text()
    for name in ("curves", "histograms"):
        svg, png = ((workdir / f"figures/{name}.{end}").read_bytes() for end in ("svg", "png"))
        assert b"<svg" in svg and png.startswith(b"\x89PNG")
        assert f"figures/{name}.svg" in page
    row = re.search(r"<tr><td>the score</td>.*?</tr>", page, re.DOTALL)
    assert row and "87.5 [" in row[0] and "25.0 [" in row[0]
    assert "64.4" in page and "MATH500" in page  # the paper's
    assert re.search(r'class="taken">rate 2.0: 50.0 / 100.0', page)
    assert "http" not in page.replace("http://www.w3.org", "")


def test_ours_stand_beside_the_papers_rows_of_the_same_name(workdir):
    edit(workdir / "plan.json", lambda p: p["methods"]["score"].update(title="SCoRe"))
    tables = comparison_page.paper_tables(comparison.read(workdir))
    rows = {title: (theirs, ours) for title, theirs, ours in tables["MATH500, Gemini 1.5 Flash"]}
    assert rows["SCoRe"][0][:3] == ["60.0", "64.4", "4.4"]
    assert rows["SCoRe"][1][:3] == [percent(4 / 8), percent(7 / 8), percent(3 / 8)]
    assert rows["Self-Refine"][1] == ["–"] * 5
    assert rows["base model"][1][:3] == ["50.0", "50.0", "0.0"]


def test_the_tables_are_written_as_markdown_with_the_page(workdir):
    """Score's row by hand: eight dialogues, of which four begin and seven end right."""
    comparison_page.write(workdir)
    lines = (workdir / "comparison.md").read_text().splitlines()
    (row,) = [line.split(" | ") for line in lines if line.startswith("| the score | 2 |")]
    assert [cell.split(" ")[0] for cell in row[2:7]] == ["50.0", "87.5", "37.5", "50.0", "12.5"]
    heading = next(line for line in lines if line.startswith("| method | seeds |"))
    assert "i->c | c->i | @t2 less the plain" in heading
    assert heading.count("|") == lines[lines.index(heading) + 1].count("|") == 10
    assert "| the score | rate 1.0: 0.0 / 50.0; **rate 2.0: 50.0 / 100.0** | 4 | 80 | 10 |" in lines


def test_votes_have_a_row_for_each_number_of_samples():
    def vote(*values):
        bounds = {"low": 0.0, "high": 1.0}
        return {
            key: {"value": value} | bounds
            for key, value in zip(("parallel", "sequential", "gain"), values, strict=True)
        }

    own = {"title": "SCoRe", "scaling": {"votes": {"votes": {"2": vote(0.4, 0.5, 0.1)}}}}
    single = {"title": "single", "scaling": {"votes": {"votes": {"2": {"parallel": {}}}}}}
    record = {"base_scaling": {}, "methods": {"score": own, "single": single}}
    ((title, samples, cells),) = comparison_page.vote_rows(record)
    assert (title, samples) == ("SCoRe", "2")
    assert [cell.split(" ")[0] for cell in cells] == ["40.0", "50.0", "10.0"]
