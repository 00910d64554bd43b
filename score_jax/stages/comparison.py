"""Runs a comparison of methods: tunes all alike, trains what was chosen, measures it once.

Everything is a run of its own in a folder of the workdir, METHOD/variantN/seedN, and is left
out where it is finished, so that an interrupted comparison goes on. Only what was chosen on
validation problems is measured on the test problems, into test.json.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict
from tqdm import tqdm

from score_jax.distributed import processes
from score_jax.distributed.signals import StopRequest, stop_on_signals
from score_jax.distributed.watchdog import Watchdog
from score_jax.report import comparison_page, page
from score_jax.report.comparison import FAILED
from score_jax.report.json_files import read_json, write_json
from score_jax.stages.chain import describe_run, train_chain
from score_jax.stages.examples import NothingKeptError
from score_jax.stages.handoff import StageConfig, load_policy
from score_jax.stages.log import open_bar
from score_jax.stages.measure import evaluate_models, open_pool
from score_jax.stages.preflight import select_and_log
from score_jax.stages.problem_sets import evaluation_spec
from score_jax.stages.resolve import make_stage
from score_jax.stages.settings import build_section
from score_jax.stages.train import DivergenceError
from score_jax.stages.trial_record import TRAINING, check_unchanged
from score_jax.stages.trials import (
    FIRST_SEED,
    ComparisonConfig,
    Method,
    Spent,
    Trial,
    check_budgets,
    check_overrides,
    describe_fields,
    measured_on,
    roles_of,
    with_sets,
)

VALIDATION, TEST = "evaluation", "test"  # names of the measurements' files
BASE = "base"  # folder of the base model's measurements
LAST = "accuracy/turn2"  # what variants are chosen by


def is_comparison(config: Any) -> bool:
    """Whether a config compares methods."""
    return bool(config.get("comparison"))


@dataclass(kw_only=True)
class Comparison:
    """A comparison that is being run."""

    config: ComparisonConfig
    shared: ConfigDict
    overrides: Mapping[str, Any]
    workdir: Path
    record: dict[str, Any]  # of `describe_run`, but for the stages
    request: StopRequest
    watchdog: Watchdog
    bar: tqdm
    methods: dict[str, Method] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)  # number of the variant, by method

    @property
    def base_folder(self) -> Path:
        """Where the base model's measurements stand."""
        return self.workdir / BASE / BASE

    def check_unchanged(self, trial: Trial, *, begin: bool) -> list[StageConfig]:
        """Refuses a folder that was begun for another trial; returns the stages of this one.

        Args:
          begin: of `trial_record.check_unchanged`.
        """
        stages = trial.stages(self.shared, self.overrides, "validation")
        test = trial.stages(self.shared, self.overrides, "test")[-1]
        section: Any = self.shared.comparison
        own = section.methods[trial.name].get("sets", {})
        sets = {**section.get("sets", {}), **own}
        check_unchanged(self.workdir / trial.folder, [*stages, test], sets, begin=begin)
        return stages

    def sets(self, trial: Trial) -> tuple[tuple[str, Any], ...]:
        """The further measurements of a trial on test problems."""
        own = self.config.sets if trial.name in self.config.scaled else ()
        return (*own, *trial.method.sets) if trial.seed == FIRST_SEED else ()

    def trial(self, name: str, variant: int, seed: int) -> Trial:
        """One of a method's trials."""
        method = self.methods[name]
        fields = self.config.variants(method)[variant - 1]
        return Trial(
            name=name, method=method, variant=variant, fields=tuple(fields.items()), seed=seed
        )

    def variants(self, name: str) -> list[Trial]:
        """The trials that a method's variant is chosen by."""
        numbers = range(1, len(self.config.variants(self.methods[name])) + 1)
        return [self.trial(name, number, FIRST_SEED) for number in numbers]

    def tuning(self) -> list[Trial]:
        """The trials of all methods that variants are chosen by."""
        return [trial for name in self.methods for trial in self.variants(name)]

    def final(self) -> list[Trial]:
        """The trials of what was chosen, seed by seed, so that all methods have their first."""
        most = max(method.seeds for method in self.methods.values())
        return [
            self.trial(name, variant, seed)
            for seed in range(FIRST_SEED, FIRST_SEED + most)
            for name, variant in self.taken.items()
            if seed < FIRST_SEED + self.methods[name].seeds
        ]

    def log(self, message: str) -> None:
        """Prints a line and adds it to the comparison's one log, unless that has it already."""
        path = self.workdir / "comparison.log"
        if not processes.is_first():
            return
        if path.is_file() and message in path.read_text(encoding="utf-8").splitlines():
            return
        tqdm.write(message)
        with path.open("a", encoding="utf-8") as file:
            file.write(message + "\n")

    def train(self, trial: Trial) -> None:
        """Trains a trial and measures it on validation problems, unless that is done."""
        stages = self.check_unchanged(trial, begin=True)
        if self.validation(trial) is None and self.failure(trial) is None:
            self.train_and_validate(trial, stages)
        error, values = self.failure(trial), self.validation(trial)
        assert error or values, f"{trial.folder} has failed or been measured"
        told = f"failed: {error}"
        if values is not None:
            told = "validation " + " / ".join(f"{100 * value:.1f}" for value in values.values())
        self.log(f"{trial.folder}: {describe_fields(trial.fields)}, {told}")
        self.bar.update(sum(stage.settings.steps for stage in stages))

    def train_and_validate(self, trial: Trial, stages: list[StageConfig]) -> None:
        """Trains a trial and measures it on validation problems.

        One that can't be trained counts as tried: of its method, the other variants are left.
        """
        folder = self.workdir / trial.folder
        record = self.record | {"stages": [stage.settings.name for stage in stages]}
        try:
            if trial.method.stages:
                train_chain(
                    stages, folder, record, self.request, self.watchdog, measured=self.base_folder
                )
                if processes.is_first():
                    page.write_report(folder)
            else:
                self.measure(stages[-1], folder, VALIDATION)
        except (DivergenceError, NothingKeptError) as error:
            if processes.is_first():
                write_json(folder / FAILED, {"error": str(error)})
            processes.barrier()
        jax.clear_caches()  # else all trials' programs would stay in memory

    def failure(self, trial: Trial) -> str | None:
        """Why a trial could not be trained; None: it could, or has not been tried."""
        found = processes.broadcast_from_first(read_json(self.workdir / trial.folder / FAILED))
        return None if found is None else found["error"]

    def validated(self, trial: Trial) -> Path:
        """The file of a trial's measurements on validation problems."""
        last = trial.stages(self.shared, self.overrides, "validation")[-1].settings.name
        return self.workdir / trial.folder / last / f"{VALIDATION}.json"

    def validation(self, trial: Trial) -> dict[str, float] | None:
        """A trial's greedy accuracies on validation problems; None: it is not measured yet."""
        found = processes.broadcast_from_first(read_json(self.validated(trial)))
        if found is None:
            return None
        greedy = found["models"][found["stage"]]["greedy"]
        return {name: greedy[name]["value"] for name in ("accuracy/turn1", LAST)}

    def choose(self) -> None:
        """Takes each method's variant with the best second attempts; of equals the first."""
        for name in self.methods:
            found = {trial: self.validation(trial) for trial in self.variants(name)}
            values = {t.variant: one[LAST] for t, one in found.items() if one is not None}
            if not values:
                self.log(f"{name}: takes none, all of its variants failed")
                continue
            self.taken[name] = max(values, key=lambda n: (values[n], -n))
            fields = describe_fields(self.trial(name, self.taken[name], FIRST_SEED).fields)
            self.log(f"{name}: takes {fields}, the best of {len(found)} variants")

    def test(self, trial: Trial) -> bool:
        """Measures a trial on the test problems, unless that is done or it has failed.

        Returns:
          Whether anything was measured.
        """
        if self.failure(trial) is not None:
            return False
        stage = trial.stages(self.shared, self.overrides, "test")[-1]
        return self.measure(stage, self.workdir / trial.folder, TEST, sets=self.sets(trial))

    def measure(
        self, stage: StageConfig, folder: Path, file: str, sets: tuple[tuple[str, Any], ...] = ()
    ) -> bool:
        """Measures a stage's policy and writes the results, unless that is done.

        Args:
          file: name of the results in the stage's folder, without an end.
          sets: further measurements, as evaluation.sets; their names stand behind that of the file.

        Returns:
          Whether anything was measured.
        """
        settings = with_sets(stage.settings, sets)
        loaded = None
        for name, own in {**settings.measured_sets, "": settings}.items():
            target = f"{file}_{name}" if name else file
            path = folder / settings.name / f"{target}.json"
            if processes.broadcast_from_first(path.is_file()):
                continue
            loaded = loaded or load_policy(stage, folder)
            programs = dataclasses.replace(loaded.programs, settings=own)
            asked = select_and_log(programs, evaluation_spec(own), folder, name)
            own_measured = folder / settings.name == self.base_folder
            with open_pool(own, [asked.tasks]) as pool:
                evaluate_models(
                    programs,
                    asked,
                    folder / settings.name,
                    None if own_measured else self.base_folder,
                    loaded.reference,
                    loaded.params,
                    loaded.step,
                    pool,
                    file=f"{target}.json",
                )
        jax.clear_caches()
        return loaded is not None

    def base(self, part: Any) -> StageConfig:
        """The base model as a stage that has not been trained."""
        config: Any = measured_on(self.shared, part)
        config.name = BASE
        return make_stage(config, None)

    def plan(self) -> dict[str, Any]:
        """What is compared, for those who read the workdir."""
        methods = {}
        for name, method in self.methods.items():
            trials = self.variants(name)
            stages = trials[0].stages(self.shared, self.overrides, "test")
            settings = [stage.settings for stage in stages]
            sets = self.sets(trials[0])
            spent = Spent.of(settings) if method.stages else Spent(0, 0)
            methods[name] = {
                "title": method.title,
                "budget": method.budget,
                **vars(spent),
                "stages": [one.name for one in settings],
                "sets": roles_of(settings[-1], sets),
                "variants": [
                    {
                        "fields": dict(trial.fields),
                        "validation": str(self.validated(trial).relative_to(self.workdir)),
                        "failed": str(trial.folder / FAILED),
                    }
                    for trial in trials
                ],
                "taken": self.taken.get(name),
                "runs": [str(t.folder) for t in self.final() if t.name == name],
            }
        return {
            **self.record,
            "against": self.config.against or next(iter(self.methods)),
            "sets": roles_of(self.base("test").settings, self.config.sets),
            "methods": methods,
        }

    def write(self) -> None:
        """Writes what is there so far: comparison.json and the page."""
        if processes.is_first():
            write_json(self.workdir / "plan.json", self.plan())
            comparison_page.write(self.workdir)
        processes.barrier()


def run_comparison(
    shared: Any,
    overrides: Mapping[str, Any],
    workdir: Path,
    *,
    config: str,
    command: str,
    watchdog: Watchdog,
) -> None:
    """Runs a comparison to its end, or from where it was stopped.

    Args:
      shared: the ConfigDict of the comparison.
      overrides: of the command line.
      config: path of the config file.
      command: the command line.

    Raises:
      ValueError: the comparison is invalid, or a method would draw more than its budget.
      Interrupted: a signal was received; the same command goes on.
    """
    comparison = build_section(ComparisonConfig, shared.comparison, "config.comparison")
    methods = comparison.chosen_methods()
    check_overrides(shared, overrides)
    workdir.mkdir(parents=True, exist_ok=True)
    shown = shared.log.progress and processes.is_first()
    with stop_on_signals() as request, open_bar("comparison", 0, shown=shown, unit="step") as bar:
        run = Comparison(
            config=comparison,
            shared=shared,
            overrides=overrides,
            workdir=workdir,
            record=describe_run([], config, command),
            request=request,
            watchdog=watchdog,
            bar=bar,
            methods=methods,
        )
        settings = run.base("test").settings
        whole = settings.steps * settings.batch * settings.sampling.group_size
        steps: dict[str, int] = {}  # of a method's trial, the bar's unit
        for trial in run.tuning():
            own = [stage.settings for stage in trial.stages(shared, overrides, "test")]
            check_budgets({trial.name: Spent.of(own)}, methods, whole)
            steps[trial.name] = sum(stage.steps for stage in own)
            roles_of(own[-1], run.sets(trial))  # refused before anything is run or written
            run.check_unchanged(trial, begin=False)
        bar.reset(total=sum(steps[trial.name] for trial in run.tuning()))
        base = [run.base("validation"), run.base("test")]
        sets = shared.comparison.get("sets", {})
        check_unchanged(workdir / BASE, base, sets, unread=TRAINING)
        for file, part in ((VALIDATION, "validation"), (TEST, "test")):
            sets = comparison.sets if part == "test" and comparison.scaled else ()
            run.measure(run.base(part), workdir / BASE, file, sets=sets)
        run.write()
        for trial in run.tuning():
            run.train(trial)
        run.choose()
        run.write()
        tuned = bar.n
        bar.total = tuned + sum(steps[trial.name] for trial in run.final())
        for trial in run.final():
            run.train(trial)
            if run.test(trial):  # the page takes seconds to write, and a finished run is no news
                run.write()
        run.write()
    processes.log(f"comparison: {workdir / comparison_page.PAGE}")
