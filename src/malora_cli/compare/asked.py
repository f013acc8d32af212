"""What a comparison is asked for, in words, and the plan that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from malora_cli.compare.options import parse_method_overrides, parse_seeds, parse_tuning, parse_variants
from malora_cli.compare.plan import (
    TUNING_SEED,
    Plan,
    baseline_of,
    check_endpoint,
    check_seeds,
    check_tuned_rates,
    check_validation_rows,
    shared_settings,
)
from malora_cli.compare.planner import Planner
from malora_cli.compare.sets import SETS
from malora_cli.named import vocabulary
from malora_cli.recipe import ModelSettings
from malora_cli.results.comparison import Comparison, Endpoint

if TYPE_CHECKING:
    from malora_cli.compare.run import Crew


@dataclass(frozen=True)
class Asked:
    """What a comparison is asked for, as it was typed.

    Args:
        recipe: The recipe.
        overrides: For every run.
        seeds: Of the reported runs.
        tune: How learning rates are found.
        baseline: Whom the others are compared with; None is the first, or the set's own.
        endpoint: What decides.
        margin: Differences that count as none.
        for_method: Settings of single methods.
        match: Whether ranks are set so that all have as many parameters as the baseline.
        single_task: Whether the baseline is trained on every task alone as well.
    """

    recipe: Path
    overrides: Sequence[str]
    seeds: str
    tune: str
    baseline: str | None
    endpoint: Endpoint
    margin: float
    for_method: Sequence[str]
    match: Literal["parameters", "none"] = "none"
    single_task: bool = False

    def of_methods(self, methods: Sequence[str]) -> tuple[Planner, Plan]:
        """The plan of a comparison of methods, checked before anything slow happens.

        Args:
            methods: Their names; ``NAME=METHOD`` is a method once more, under a name that settings can be given to.

        Raises:
            RecipeError: An option or the recipe is wrong.
        """
        plain = self._planner
        planner = replace(plain, variants=parse_variants(methods, plain.vocabulary.methods))
        names = list(dict.fromkeys(method.partition("=")[0].strip() for method in methods))
        plan = self._plan(planner, names, self.baseline)
        if plan.single_task:
            for task in planner.own.recipe.mix.tasks:
                planner.alone(plan.baseline, task, plan.seeds[0])
        return planner, plan

    def of_set(self, name: str) -> tuple[Planner, Plan]:
        """The same of a set of contenders."""
        found, plain = SETS[name], self._planner
        planner = replace(plain, contenders=found.contenders(plain.read.recipe), suffix=f"-{name}")
        methods = list(planner.contenders)
        return planner, self._plan(planner, methods, self.baseline or found.BASELINE)

    @property
    def model(self) -> ModelSettings:
        """The base model."""
        return self._planner.read.recipe.model

    @cached_property
    def _planner(self) -> Planner:
        return Planner(self.recipe, self.overrides, parse_method_overrides(self.for_method), vocabulary())

    def _plan(self, planner: Planner, methods: Sequence[str], baseline: str | None) -> Plan:
        seeds, tuning = parse_seeds(self.seeds), parse_tuning(self.tune)
        planner.check_names(methods)
        baseline = baseline_of(methods, baseline)
        if tuning != "none":
            check_seeds(seeds, TUNING_SEED)
            check_tuned_rates(planner.by_method)
            check_validation_rows(planner.read.recipe.mix)
        planner.check(methods, seeds)
        check_endpoint(self.endpoint, planner.own.recipe)
        return Plan(
            recipe=shared_settings(planner.own.recipe),
            methods=list(methods),
            settings={method: list(found) for method, found in planner.by_method.items()},
            variants=dict(planner.variants),
            match=self.match,
            single_task=self.single_task,
            seeds=seeds,
            tuning=list(tuning) if isinstance(tuning, tuple) else tuning,
            tuning_seed=TUNING_SEED,
            baseline=baseline,
            endpoint=self.endpoint,
            margin=self.margin,
        )


def matched(planner: Planner, plan: Plan) -> Planner:
    """The planner with the ranks of a plan that wants methods of equal size.

    Raises:
        MaloraError: A method has no such rank, or the base model cannot be had.
    """
    if plan.match == "none":
        return planner
    from malora_cli.compare.matching import matched_ranks

    found = matched_ranks(planner, plan.methods, plan.baseline)
    by_method = {method: [*planner.by_method.get(method, ()), *it.overrides] for method, it in found.items()}
    return replace(planner, by_method={**planner.by_method, **by_method})


def carried_out(planner: Planner, plan: Plan, crew: Crew) -> Comparison:
    """Train and evaluate what is missing, and write the pages of the runs that were evaluated.

    Raises:
        MaloraError: As `Study.carried_out`, or a page cannot be written.
    """
    from malora_cli.compare.baselines import Study
    from malora_cli.reports import write_report

    comparison, evaluated = Study(planner, plan).carried_out(crew)
    for it in evaluated:
        write_report(it.record)
    return comparison
