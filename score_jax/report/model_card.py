"""The README.md of an exported model: what it is, from what, and how it was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from score_jax.report import panels
from score_jax.report.findings import stage_label
from score_jax.report.json_files import read_json
from score_jax.report.page import template

NAME = "README.md"


def write(
    folder: Path,
    workdir: Path,
    stage: str,
    *,
    step: int,
    instructions: tuple[str, ...],
    license: str,
    library: Literal["transformers", "peft"],
) -> None:
    """Writes the model card of a stage's policy into its folder.

    Args:
      workdir: of the run; what it does not hold yet is left out of the card.
      step: of the checkpoint.
      instructions: what is said before each later turn.
      license: its identifier on a hub, such as apache-2.0; "": none is stated.
      library: that opens the folder.
    """
    own = workdir / stage
    sources = sources_of(own)
    run = read_json(workdir / "run.json") or {}
    names = run.get("stages", [stage])
    evaluation = measured(read_json(own / "evaluation.json") or {}, stage, step)
    base, adapter, between = first_base(sources)
    facts = {
        "stages": ", ".join(map(stage_label, names[: names.index(stage) + 1]))
        if stage in names
        else "",
        "checkpoint": f"step {step} of {stage_label(stage)}" if step else "",
        "base model": code(base),
        "adapter added to it": code(adapter),
        "fine-tuned first": ", ".join(between),
        "problems": code(sources.get("data", "")),
        "measured on": code(evaluation.get("data", "")),
        "seed": str((read_json(own / "config.json") or {}).get("seed", "")),
        "config": code(run.get("config", "")),
        "last command of the run": code(run.get("command", "")),
        "commit of score_jax": code(run.get("commit", "")),
    }
    text = template("card.md.j2").render(
        step=step,
        title=f"{workdir.resolve().name}: {stage_label(stage)}",
        library=library,
        license=license,
        base=base,
        data=str(sources.get("data", "")),
        facts=[(name, value) for name, value in facts.items() if value],
        problems=evaluation.get("problems", 0),
        tables=panels.results(evaluation),
        headings=list(panels.main_metrics(evaluation).values()),
        instructions=instructions,
    )
    (folder / NAME).write_text(text, encoding="utf-8")


def sources_of(folder: Path) -> dict[str, Any]:
    """Where a stage's weights, tokenizer and problems came from, as its identity.json says."""
    return (read_json(folder / "identity.json") or {}).get("sources", {})


def first_base(sources: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """The weights that all began with, the adapter added to them, and what a run made of them.

    A base model that another stage of a run has trained (weights.step) was made from one, too, and
    that stage may have begun where one before it ended.
    """
    between: list[str] = []
    while "weights.step" in sources:
        folder = Path(sources["weights.source"]).parent
        between = [*trained_up_to(folder, sources["weights.step"]), *between]
        sources = sources_of(folder)
    return str(sources.get("weights.source", "")), sources.get("weights.adapter", ""), between


def trained_up_to(folder: Path, step: int) -> list[str]:
    """A stage's checkpoint, behind those of the stages before it that it began from."""
    handed = read_json(folder / "handoff.json")
    earlier = trained_up_to(folder.parent / handed["parent"], handed["step"]) if handed else []
    return [*earlier, f"{folder.name}, step {step}"]


def measured(evaluation: Mapping[str, Any], stage: str, step: int) -> Mapping[str, Any]:
    """The measurements, if they are of this checkpoint; else none."""
    return evaluation if evaluation.get("models", {}).get(stage, {}).get("step") == step else {}


def code(text: Any) -> str:
    """Text that stands in a table as it is; "" if it is empty."""
    return f"`{' '.join(str(text).split()).replace('|', chr(92) + '|')}`" if text else ""
