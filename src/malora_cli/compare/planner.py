"""The runs of a comparison: one recipe, with only the method, the seed and the learning rate changed."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import gcd
from pathlib import Path
from typing import NamedTuple

from malora_cli.errors import RecipeError
from malora_cli.recipe import LoadedRecipe, Recipe, Vocabulary, load_recipe
from malora_cli.recipe.overrides import parse_overrides
from malora_cli.registry import unknown
from malora_cli.results import RunRecord

_LOG = logging.getLogger(__name__)
#: Validation rows of each task that a trial of the tuning measures at least, where there are as many.
TRIAL_ROWS = 200
#: Settings of ``train`` that every run of a comparison shares; the others are a method's own affair.
_BUDGET = (
    "stop",
    "steps",
    "epochs",
    "batch_size",
    "schedule",
    "warmup_ratio",
    "max_length",
    "seed",
    "init_seed",
    "dropout_seed",
)
#: Settings of ``eval`` that say which rows are evaluated and how many at once.
_EVALUATING = ("rows", "batch_size", "batch_tokens")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a comparison.

    Args:
        method: Its method.
        seed: Its ``train.seed``.
        loaded: Its recipe.
        overrides: What makes that recipe of the one compared.
        task: The one task that it is trained on; None is all.
    """

    method: str
    seed: int
    loaded: LoadedRecipe
    overrides: tuple[str, ...]
    task: str | None = None

    @property
    def tasks(self) -> set[str]:
        """Names of the tasks that it is evaluated on."""
        return set(self.loaded.recipe.mix.tasks) if self.task is None else {self.task}

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.loaded.name

    @property
    def folder(self) -> Path:
        """Its folder."""
        return self.loaded.recipe.output.folder / self.name

    @property
    def record(self) -> RunRecord:
        """What lies in its folder, which may not be there yet."""
        return RunRecord(self.folder)

    @property
    def log(self) -> Path:
        """Where it writes what it has to say when it is trained in a process of its own."""
        return self.folder.with_name(f"{self.name}.log")

    def train_command(self, *, resume: bool = False) -> list[str]:
        """The command that trains it, from where the comparison was started."""
        return ["malora", "train", str(self.loaded.path), *self.overrides, *(["--resume"] if resume else [])]

    def eval_command(self, *, allow_code: bool) -> list[str]:
        """The command that evaluates it, from there.

        Args:
            allow_code: Let it run code that models write.
        """
        recipe = self.loaded.recipe
        only = ["--tasks", self.task] if self.task is not None else []
        grants = ["eval.trust_metric_code=true"] if recipe.eval.trust_metric_code else []
        grants += ["--trust-remote-code"] if recipe.model.trust_remote_code else []
        grants += ["--allow-code"] if allow_code else []
        return ["malora", "eval", str(self.folder), *self._changed(), *only, *grants]

    def _changed(self) -> list[str]:
        """What was set otherwise when it was trained, of what an evaluation goes by."""
        if not (record := self.record).exists:
            return []
        before, now = record.recipe, self.loaded.recipe.model_dump(mode="json")
        names = [("model", "base"), ("model", "device"), *(("eval", name) for name in _EVALUATING)]
        return [
            f"{section}.{name}={json.dumps(now[section][name])}"
            for section, name in names
            if now[section][name] != (before.get(section) or {}).get(name)
        ]


class Errand(NamedTuple):
    """What is missing of a run, for a process of its own.

    Args:
        run: The run.
        train: Whether it is to be trained, or goes on.
        evaluate: Whether it is to be evaluated then.
        allow_code: Whether code that models write may run in that.
    """

    run: PlannedRun
    train: bool
    evaluate: bool
    allow_code: bool = False

    @property
    def told(self) -> str:
        """What it does, in a word."""
        return "training" if self.train else "evaluating"

    @property
    def done(self) -> str:
        """What is said when that is done."""
        return "evaluated" if self.evaluate else "trained"

    def commands(self) -> list[list[str]]:
        """The commands that do it, one after another, from where the comparison was started."""
        resume = (self.run.folder / "manifest.json").is_file()
        train, evaluate = self.run.train_command(resume=resume), self.run.eval_command(allow_code=self.allow_code)
        return [*([train] if self.train else []), *([evaluate] if self.evaluate else [])]


@dataclass(frozen=True)
class Planner:
    """Makes the recipes of a comparison's runs; nothing is run.

    The recipe's own method keeps its settings; the others take their defaults, on the same linears.

    Args:
        path: The recipe.
        overrides: For every run.
        by_method: Further overrides for single methods, which change how it learns, never what from or how long.
        vocabulary: The names a recipe may use.
        variants: Further names of methods, with the method that each is of.
        contenders: What is compared in the place of methods, with the overrides that make it.
        suffix: Behind the recipe's name in that of the comparison.
    """

    path: Path
    overrides: Sequence[str]
    by_method: Mapping[str, Sequence[str]]
    vocabulary: Vocabulary
    variants: Mapping[str, str] = field(default_factory=dict)
    contenders: Mapping[str, Sequence[str]] = field(default_factory=dict)
    suffix: str = ""

    @cached_property
    def read(self) -> LoadedRecipe:
        """The recipe as it stands there, for what no library is needed for."""
        return load_recipe(self.path, self.overrides, vocabulary=self.vocabulary)

    @cached_property
    def own(self) -> LoadedRecipe:
        """The recipe as it is, in the number format that it has here."""
        _LOG.info("loading libraries")  # PyTorch, to begin with
        from malora_cli.modeling.device import settled

        return settled(self.read)

    @property
    def folder(self) -> Path:
        """Where the comparison is kept, beside its runs."""
        return self.own.recipe.output.folder / f"{self.own.name}{self.suffix}.compare"

    def check_names(self, methods: Sequence[str]) -> None:
        """Make sure that there are such methods, and that those with settings of their own are among them.

        Raises:
            RecipeError: One is not.
        """
        known = list(self.contenders) or [*self.vocabulary.methods, *self.variants]
        _check_methods(methods, self.by_method, known)

    def check(self, methods: Sequence[str], seeds: Sequence[int]) -> None:
        """Make sure that the methods and what is set for each can be compared, with these seeds.

        Raises:
            RecipeError: A method is not known, or one would get another budget than the others.
        """
        self.check_names(methods)
        train = self.read.recipe.train
        for name in ("init_seed", "dropout_seed"):
            if len(seeds) > 1 and getattr(train, name) is not None:
                raise RecipeError(
                    f"train.{name} is set, so that runs of several seeds have it in common",
                    where=str(self.path),
                    fix=f"Set train.{name}=null.",
                )
        self.runs(methods, seeds)

    def runs(
        self, methods: Sequence[str], seeds: Sequence[int], rates: Mapping[str, float] | None = None
    ) -> list[PlannedRun]:
        """The reported runs, every method with one seed before any with the next, so that what is done is whole."""
        return [self.run(method, seed, rate=(rates or {}).get(method)) for seed in seeds for method in methods]

    def run(self, method: str, seed: int, *, rate: float | None = None) -> PlannedRun:
        """One reported run.

        Args:
            method: Its method.
            seed: Its ``train.seed``.
            rate: Its learning rate, where that was tuned.
        """
        return self._planned(method, seed, _name(method, rate, seed), _rate(rate))

    def trial(self, method: str, seed: int, rate: float) -> PlannedRun:
        """One run of the tuning, which measures all validation rows, at its end alone: before, all trials are alike."""
        train = self.own.recipe.train
        watched = ["train.keep_best=0"]
        if not _goes_by_evaluations(self.own.recipe):
            watched += [f"train.eval_rows={max(train.eval_rows, TRIAL_ROWS)}", "train.eval_on_start=false"]
            watched += [] if train.steps is None else [f"train.eval_every={train.steps}"]
        return self._planned(method, seed, _name(method, rate, seed), [*watched, *_rate(rate)])

    def alone(self, method: str, task: str, seed: int, *, rate: float | None = None) -> PlannedRun:
        """The run of a method on one task, which sees the same rows of it as in the mixture, as many a step.

        Raises:
            RecipeError: A step of the mixture has no whole number of rows of that task, or not always the same.
        """
        train = self.own.recipe.train
        if train.steps is None:
            raise RecipeError(
                "how many steps the mixture takes is not known beforehand",
                where="--single-task",
                fix="Set train.steps, and train.epochs=null or train.stop=null where they are set.",
            )
        rows = train.batch_size * self._share(task)
        if abs(rows - round(rows)) > 1e-6 or round(rows) < 1:
            raise RecipeError(
                f"a step has {rows:g} rows of task '{task}', so that it cannot be trained alone on the same rows",
                where="--single-task",
                fix="Set train.batch_size so that each task has a whole number of rows.",
            )
        size = round(rows)
        weights = [f"mix.tasks.{name}.weight={float(name == task):g}" for name in self.own.recipe.mix.tasks]
        batch = [f"train.batch_size={size}", f"train.micro_batch_size={gcd(size, train.micro_batch_size)}"]
        further = ["mix.temperature=null", *weights, "mix.weighting=explicit", *batch, *_rate(rate)]
        return replace(self._planned(method, seed, _name(f"{method}-only-{task}", rate, seed), further), task=task)

    def _share(self, task: str) -> float:
        """The share of the rows of a step that a task has."""
        mix = self.own.recipe.mix
        for name, remedy in self.own.recipe.remedies.chosen.items():
            if remedy.changes_shares:
                raise RecipeError(
                    f"{name} changes the shares of the tasks while training, so that none is known beforehand",
                    where="--single-task",
                    fix=f"Leave that remedy out: remedies.{name}=false.",
                )
        if mix.weighting not in ("uniform", "explicit") or mix.unit != "examples":
            raise RecipeError(
                f"tasks weighted {mix.weighting} by {mix.unit} have no share that is known beforehand",
                where="--single-task",
                fix="Set mix.weighting to uniform or explicit, and mix.unit to examples.",
            )
        weights = {name: it.weight if mix.weighting == "explicit" else 1.0 for name, it in mix.tasks.items()}
        return (weights[task] or 0.0) / sum(weight or 0.0 for weight in weights.values())

    def _planned(self, method: str, seed: int, name: str, further: Sequence[str]) -> PlannedRun:
        named = [f"train.seed={seed}", f"output.name={self.own.name}-{name}"]
        made, own = self._made(method), self.by_method.get(method, ())
        targets = self._targets(method, [*made, *own])
        equal = [*self.overrides, *self._format(), *made, *named]
        whole = [*equal, *own, *targets, *further]
        loaded = load_recipe(self.path, whole, vocabulary=self.vocabulary)
        if own:
            plain = load_recipe(self.path, [*equal, *further], vocabulary=self.vocabulary)
            _check_budget(method, plain.recipe, loaded.recipe)
        return PlannedRun(method, seed, loaded, tuple(whole))

    def _format(self) -> list[str]:
        """The override by which runs on other machines have it as well."""
        return [f"model.dtype={self.own.recipe.model.dtype}"] if self.read.recipe.model.dtype == "auto" else []

    def _made(self, method: str) -> list[str]:
        """The overrides that make a contender of the recipe."""
        of = self.variants.get(method, method)
        changed = [] if of == self.own.recipe.method.name else [f"method={{name: {of}}}"]
        return list(self.contenders.get(method, changed))

    def _targets(self, method: str, overrides: Sequence[str]) -> list[str]:
        """The override that keeps to the recipe's linears where others put a whole method in the place of its own."""
        linears = self.own.recipe.method.target_modules
        anew = any(override.startswith("method=") for override in overrides)
        if linears is None or not anew or self.sets(method, "target_modules"):
            return []
        return [f"method.target_modules={json.dumps(linears)}"]

    def sets(self, method: str, setting: str) -> bool:
        """Whether a setting of the method itself was set for it alone."""
        read, _ = parse_overrides(self.by_method.get(method, ()))
        whole = [it.document.data for it in read if it.path == ("method",)]
        return any(it.path == ("method", setting) for it in read) or any(setting in (it or {}) for it in whole)


def _name(what: str, rate: float | None, seed: int) -> str:
    """Name of a run behind that of its recipe; a tuned rate stands in it, so that another one is another run."""
    spelled = "" if rate is None else f"-rate{rate:g}".replace("+", "")
    return f"{what}{spelled}-seed{seed}"


def _rate(rate: float | None) -> list[str]:
    return [] if rate is None else [f"train.learning_rate={rate!r}"]


def _goes_by_evaluations(recipe: Recipe) -> bool:
    """Whether what is measured while training changes what is learned."""
    return any(remedy.goes_by_evaluations for remedy in recipe.remedies.chosen.values())


def _check_methods(methods: Sequence[str], by_method: Mapping[str, Sequence[str]], known: Collection[str]) -> None:
    if not methods:
        raise RecipeError("no method is named", where="--methods", fix=f"Known: {', '.join(known)}.")
    for option, names in (("--methods", methods), ("--for", by_method)):
        for name in names:
            if name not in known:
                raise RecipeError(unknown("method", name, known), where=option)
    if unused := sorted(set(by_method) - set(methods)):
        raise RecipeError(f"'{unused[0]}' is not among the methods compared", where="--for", fix="Add it to --methods.")


def _check_budget(method: str, equal: Recipe, own: Recipe) -> None:
    """Make sure that what one method has to itself is how it learns, not what it learns from or how long."""
    chosen = [*equal.remedies.chosen.items(), *own.remedies.chosen.items()]
    shared = {"train": _BUDGET, "method": (), "remedies": [name for name, r in chosen if r.changes_shares]}
    for section in Recipe.model_fields:
        old, new = getattr(equal, section), getattr(own, section)
        for name in shared.get(section, type(old).model_fields):
            if getattr(old, name) != getattr(new, name):
                raise RecipeError(
                    f"'{section}.{name}' for {method} alone would make the comparison unequal",
                    where="--for",
                    fix=f"Set it for every run: {section}.{name}=VALUE without --for.",
                )
    if own.method.name != equal.method.name:
        raise RecipeError(f"method {method} was turned into '{own.method.name}'", where="--for", fix="Leave it out.")
