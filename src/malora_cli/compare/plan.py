"""What a comparison is to find out, written down and hashed before its first run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.metrics._base import Metric
from malora_cli.places import leave_out_places
from malora_cli.recipe import MixSettings, Recipe
from malora_cli.registry import did_you_mean
from malora_cli.results import read_json, write_json
from malora_cli.results.comparison import Endpoint
from malora_cli.results.files import damaged
from malora_cli.results.record import Record

#: The seed that learning rates are tuned with, unless another is named; no reported run has it.
TUNING_SEED = 1000
#: What may be more than was planned; it is marked as added.
_GROWING = ("methods", "seeds")


class Plan(Record):
    """What a comparison is to find out, written down before its first run."""

    version: Literal[1] = 1
    recipe: dict[str, Any]
    methods: list[str]
    settings: dict[str, list[str]]
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
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    def begun(self, folder: Path) -> Plan:
        """The plan that a comparison began with, which this one may only add methods, seeds and single tasks to.

        Returns:
            This one where none has begun there yet.

        Raises:
            RunError: Another was begun there.
        """
        path = self._path(folder)
        if not path.is_file():
            return self
        first = Plan.load(folder)
        before, now = first.model_dump(mode="json"), self.model_dump(mode="json")
        for key in before:
            grown = (key in _GROWING and set(before[key]) <= set(now[key])) or (key, now[key]) == ("single_task", True)
            if key == "settings":  # a method that is added may have its own
                before, now = before | {key: _of(first.methods, before)}, now | {key: _of(first.methods, now)}
            if before[key] != now[key] and not grown:
                raise RunError(
                    f"another comparison was begun here; '{key}' differs ({_first_difference(before[key], now[key])})",
                    where=str(path),
                    fix="Undo that, or take another name: output.name=NAME.",
                )
        return first

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
        path = cls._path(folder)
        try:
            return cls.model_validate(read_json(path))
        except (OSError, ValueError, TypeError) as error:
            raise damaged(path, "plan", error, fix="Move the folder away to begin anew.") from error

    def keep(self, folder: Path) -> None:
        """Write it down where none is yet."""
        if not self._path(folder).is_file():
            write_json(self._path(folder), self.model_dump(mode="json"))

    @staticmethod
    def _path(folder: Path) -> Path:
        return folder / "plan.json"


def _of(methods: Sequence[str], plan: Mapping[str, Any]) -> dict[str, list[str]]:
    """The settings of some methods in a plan."""
    return {method: found for method, found in plan["settings"].items() if method in methods}


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe all runs of a comparison have, and another machine as well: where files lie is left out."""
    settings = recipe.model_dump(mode="json")
    del settings["output"], settings["model"]["device"], settings["model"]["trust_remote_code"]
    del settings["eval"]["trust_metric_code"], settings["train"]["seed"]
    leave_out_places(settings)
    return settings


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


def _first_difference(before: Any, now: Any, path: str = "") -> str:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys(), key=str):
            if before.get(key) != now.get(key):
                return _first_difference(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))
    return f"{path + ': ' if path else ''}was {json.dumps(before)}, is {json.dumps(now)}"
