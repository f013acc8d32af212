"""What a comparison is to find out, written down and hashed before its first run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.metrics._base import Metric
from malora_cli.places import leave_out_places
from malora_cli.recipe import MixSettings, Recipe
from malora_cli.recipe.differences import differences
from malora_cli.recipe.problems import show
from malora_cli.registry import did_you_mean
from malora_cli.results import read_json, write_json
from malora_cli.results.comparison import Endpoint
from malora_cli.results.files import damaged
from malora_cli.results.record import Record

#: The seed that learning rates are tuned with, unless another is named; no reported run has it.
TUNING_SEED = 1000
#: What may be more than was planned; it is marked as added.
_GROWING = {"methods": "--methods", "seeds": "--seeds"}
#: Settings that say where runs are trained, how they are watched and in what portions they are evaluated.
_LEFT_OPEN = {
    "model": ("device", "trust_remote_code"),
    "train": ("seed", "log_every", "checkpoint_every", "keep_checkpoints", "report_to"),
    "eval": ("batch_size", "batch_tokens", "trust_metric_code"),
}
#: Sections that have all of their settings in every plan: one that is missing was not there yet.
_WHOLE = ("model", "train", "eval")


class Plan(Record):
    """What a comparison is to find out, written down before its first run."""

    version: Literal[1] = 1
    recipe: dict[str, Any]
    methods: list[str]
    settings: dict[str, list[str]]
    variants: dict[str, str] = Field(default_factory=dict)
    match: Literal["parameters", "none"] = "none"
    single_task: bool = False
    seeds: list[int]
    tuning: list[float] | Literal["auto", "none"]
    tuning_seed: int
    baseline: str
    endpoint: Endpoint
    margin: float

    @property
    def sha256(self) -> str:
        """Of the plan itself."""
        plan = self.model_dump(mode="json")
        if not self.variants:  # as before there were any
            del plan["variants"]
        return hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()

    def begun(self, folder: Path) -> Plan:
        """The plan that a comparison began with, which this one may only add methods, seeds and single tasks to.

        Returns:
            This one where none has begun there yet.

        Raises:
            RunError: Another was begun there.
        """
        path = self.path(folder)
        if not path.is_file():
            return self
        first = Plan.load(folder)
        before, now = first._decisive(first), self._decisive(first)
        for key, was in before.items():
            if key in _GROWING and (left_out := [str(one) for one in was if one not in now[key]]):
                raise RunError(
                    f"this comparison began with {' and '.join(left_out)} as well",
                    where=str(path),
                    fix=f"Name all of {_GROWING[key]} {','.join(map(str, was))}, or take another name: "
                    "output.name=NAME.",
                )
            if key not in _GROWING and was != now[key] and (key, now[key]) != ("single_task", True):
                raise RunError(
                    f"another comparison was begun here; '{key}' differs ({_first_difference(was, now[key])})",
                    where=str(path),
                    fix="Undo that, or take another name: output.name=NAME.",
                )
        return first

    def _decisive(self, first: Plan) -> dict[str, Any]:
        """What of it the plan that a comparison began with has to agree with."""
        plan = self.model_dump(mode="json")
        for key in ("settings", "variants"):
            plan[key] = {method: found for method, found in plan[key].items() if method in first.methods}
        plan["recipe"] = {  # what later versions add is compared with the recipes of the runs that are there
            section: {name: value for name, value in found.items() if name in first.recipe[section]}
            if section in _WHOLE
            else found
            for section, found in plan["recipe"].items()
            if section in first.recipe
        }
        _leave_open(plan["recipe"])
        return plan

    def later(self, first: Plan) -> list[str]:
        """What came after the plan that it began with, methods aside."""
        seeds = [f"seed {seed}" for seed in self.seeds if seed not in first.seeds]
        return seeds if self.single_task == first.single_task else [*seeds, "training on single tasks"]

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """The plan that a comparison began with.

        Raises:
            RunError: It is not there or damaged.
        """
        path = cls.path(folder)
        try:
            return cls.model_validate(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise damaged(path, "plan", error, fix="Move the folder away to begin anew.") from error

    def keep(self, folder: Path) -> None:
        """Write it down where none is yet."""
        if not self.path(folder).is_file():
            write_json(self.path(folder), self.model_dump(mode="json"))

    @staticmethod
    def path(folder: Path) -> Path:
        """Where the plan of a comparison lies."""
        return folder / "plan.json"


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe all runs of a comparison have, and another machine as well: where files lie is left out."""
    settings = recipe.model_dump(mode="json")
    del settings["output"]
    _leave_open(settings)
    leave_out_places(settings)
    return settings


def _leave_open(settings: Mapping[str, Any]) -> None:
    """Remove what may differ between the calls of a comparison; the settings are changed."""
    for section, names in _LEFT_OPEN.items():
        for name in names:
            (settings.get(section) or {}).pop(name, None)


def baseline_of(methods: Sequence[str], baseline: str | None) -> str:
    """The method that the others are compared with: the first, where none is named.

    Raises:
        RecipeError: It is not among them, or there is nothing to compare it with.
    """
    if baseline is not None and baseline not in methods:
        raise RecipeError(
            f"'{baseline}' is not among the methods compared; {did_you_mean(baseline, methods)}", where="--baseline"
        )
    if len(methods) < 2:
        raise RecipeError(
            f"{methods[0]} alone has nothing to be compared with", where="--methods", fix="Name two at least."
        )
    return baseline or methods[0]


def check_seeds(seeds: Sequence[int], tuning_seed: int) -> None:
    """Make sure that no reported run is one that a learning rate was chosen by.

    Raises:
        RecipeError: The seed of the tuning is among those reported.
    """
    if tuning_seed in seeds:
        raise RecipeError(
            f"{tuning_seed} is the seed that learning rates are tuned with, so no run with it is reported",
            where="--seeds",
            fix="Leave it out.",
        )


def check_endpoint(endpoint: Endpoint, recipe: Recipe) -> None:
    """Make sure that the endpoint is the sum of what rows have, which verdicts are made of.

    Raises:
        RecipeError: The score of a task is of all its answers together.
    """
    for name, task in recipe.mix.tasks.items():
        if endpoint == "score" and isinstance(task.metric, Metric) and not task.metric.is_mean:
            raise RecipeError(
                f"task '{name}' has {task.metric.name}, which is of all its answers together, no mean over rows",
                where="--endpoint score",
                fix="Compare losses: leave it out.",
            )


def check_tuned_rates(by_method: Mapping[str, Sequence[str]]) -> None:
    """Make sure that no learning rate is set that is going to be tuned.

    Raises:
        RecipeError: One is.
    """
    for method, overrides in by_method.items():
        if any(override.startswith("train.learning_rate") for override in overrides):
            raise RecipeError(
                f"the learning rate of {method} is set, and it is going to be tuned",
                where="--for",
                fix="Leave it out, or add --tune none.",
            )


def check_validation_rows(mix: MixSettings) -> None:
    """Make sure that there is something to tune learning rates by.

    Raises:
        RecipeError: No task keeps validation rows.
    """
    if mix.validation is None and all(task.validation is None for task in mix.tasks.values()):
        raise RecipeError(
            "no task keeps validation rows to choose learning rates by",
            where="--tune",
            fix="Set mix.validation, or a task's own validation, or add --tune none.",
        )


def _first_difference(before: Any, now: Any) -> str:
    for path, was, is_now in differences(before, now):
        return f"{path + ': ' if path else ''}was {show(was)}, is {show(is_now)}"
    return "a file is named there that was not, or no longer is"  # absolute paths are left out
