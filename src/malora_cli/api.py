"""The commands from Python: `train`, `evaluate`, `compare`, `load`, and what a recipe and a run have to say.

Nothing is printed but transformers' own bars.

    from malora_cli.api import Recipe, evaluate, load, train

    recipe = Recipe("quickstart", {"train.steps": 20})
    run = train(recipe, on_event=print)
    scores = evaluate(run, limit=20)
    model, tokenizer = load(run)

Errors are `malora_cli.errors.MaloraError`. Ctrl-C in the main thread finishes the step, saves a checkpoint and raises
`StoppedError`, as in ``malora train``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from malora_cli.named import load_named, recipe_file, with_run
from malora_cli.results import Event, RunRecord

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

    from malora_cli.recipe import LoadedRecipe
    from malora_cli.recipe import Recipe as Settings
    from malora_cli.results import EvalResult, TaskEval
    from malora_cli.results.comparison import Comparison, Endpoint

__all__ = ["Recipe", "Run", "compare", "evaluate", "load", "train"]

#: Settings over a recipe's: texts such as ``"train.steps=20"``, or values by their dotted names.
Overrides: TypeAlias = Sequence[str] | Mapping[str, Any]


class Recipe:
    """A recipe that has been read and checked. It does not change: overriding it makes another one.

    Args:
        recipe: A file, or the name of a shipped recipe.
        overrides: Settings over the file's: texts such as ``"train.steps=20"``, or values by their dotted names.

    Raises:
        RecipeError: The recipe, its mix or an override is wrong; every problem is named.
    """

    def __init__(self, recipe: str | Path, overrides: Overrides = ()) -> None:
        self.path = recipe_file(recipe)
        self.overrides = _texts(overrides)
        self._loaded: LoadedRecipe = load_named(self.path, self.overrides)

    def __repr__(self) -> str:
        return f"Recipe('{self.path}', {self.overrides!r})"

    def override(self, overrides: Overrides) -> Recipe:
        """The same with further settings over it."""
        return Recipe(self.path, [*self.overrides, *_texts(overrides)])

    @property
    def settings(self) -> Settings:
        """All settings with their types, as ``recipe.settings.train.steps``; the mix is inside."""
        return self._loaded.recipe

    @property
    def provenance(self) -> Mapping[str, str]:
        """Where each setting was given, by its dotted name: file and line, ``"command line"`` or ``"default"``."""
        return self._loaded.provenance

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain data."""
        return self.settings.model_dump(mode="json")

    def to_yaml(self) -> str:
        """All settings spelled out; a file with this text is read as an equal recipe."""
        return self._loaded.to_yaml()


def _texts(overrides: Overrides) -> list[str]:
    """Overrides as they are typed; of values, JSON, which is YAML."""
    if isinstance(overrides, Mapping):
        return [f"{name}={json.dumps(value)}" for name, value in overrides.items()]
    return list(overrides)


def _over(recipe: Recipe | str | Path, overrides: Overrides) -> tuple[Path, list[str]]:
    """The file of a recipe, and all that is to be set over it; nothing is read."""
    if isinstance(recipe, Recipe):
        return recipe.path, [*recipe.overrides, *_texts(overrides)]
    return recipe_file(recipe), _texts(overrides)


class Run:
    """A run folder.

    Args:
        path: The folder.

    Raises:
        RunError: There is no run.
    """

    def __init__(self, path: str | Path) -> None:
        from malora_cli.results import find_run

        self._record = find_run(Path(path), Path("runs"))

    def __repr__(self) -> str:
        return f"Run('{self.path}')"

    @property
    def path(self) -> Path:
        """Its folder."""
        return self._record.path

    @property
    def adapter(self) -> Path:
        """Folder of its trained adapter, in PEFT's format."""
        return self._record.adapter_dir

    @property
    def finished(self) -> bool:
        """Whether it was trained to its end."""
        return self._record.finished

    def metrics(self) -> list[dict[str, Any]]:
        """A row for each task at each log step and each evaluation: kind, step, task, loss (nats a token), tokens."""
        return [
            {"kind": event.kind, "step": event.step, "task": task, "loss": found.loss, "tokens": found.tokens}
            for event in self._record.metrics
            if event.kind != "conflict"
            for task, found in event.tasks.items()
        ]

    def scores(self) -> list[dict[str, Any]]:
        """A row for each task of its newest evaluation: score with its interval, the base's, and the paired change."""
        found = self._record.evaluations()
        return [] if not found else [_row(name, task) for name, task in found[-1].tasks.items()]

    def report(self) -> Path:
        """Write its page again; where that lies."""
        from malora_cli.reports import write_report

        return write_report(self._record)


def _row(name: str, task: TaskEval) -> dict[str, Any]:
    base, change = task.against, task.difference
    return {
        "task": name,
        "domain": task.domain,
        "rows": task.rows,
        "score": task.model.score,
        "low": task.model.low,
        "high": task.model.high,
        "loss": task.model.loss,
        "base": None if base is None else base.score,
        "change": None if change is None else change.value,
        "p_holm": None if change is None else change.p_holm,
    }


def train(
    recipe: Recipe | str | Path,
    overrides: Overrides = (),
    *,
    resume: bool = False,
    on_event: Callable[[Event], None] = lambda _event: None,
) -> Run:
    """Train what a recipe asks for.

    Args:
        recipe: A recipe, a file, or the name of a shipped recipe.
        overrides: Settings over the recipe's, such as ``"train.steps=20"`` or ``{"train.steps": 20}``.
        resume: Go on from the newest checkpoint of the run of this name.
        on_event: Told every log step and evaluation, as `malora_cli.results` has them.

    Returns:
        The finished run.

    Raises:
        MaloraError: Something is missing, wrong or in the way.
    """
    from malora_cli.train.run import train as train_loaded

    return Run(train_loaded(load_named(*_over(recipe, overrides)), _Listener(on_event), resume=resume).path)


class _Listener:
    """A view that shows nothing and passes on what is measured."""

    def __init__(self, on_event: Callable[[Event], None]) -> None:
        self.show = on_event

    @contextmanager
    def running(self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()) -> Iterator[None]:
        yield

    def tick(self, step: int) -> None:
        pass

    def evaluating(self) -> None:
        pass


def evaluate(
    run: Run | str | Path,
    *,
    tasks: Collection[str] | None = None,
    limit: int | None = None,
    split: Literal["test", "validation"] = "test",
    step: int | None = None,
    allow_code: bool = False,
    trust_remote_code: bool = False,
) -> EvalResult:
    """Score a run and its base model on held-out rows.

    Args:
        run: A finished run.
        tasks: Names of tasks, or ``domain:NAME``; None is all.
        limit: Rows a task at most; None is the recipe's ``eval.rows``.
        split: Which rows.
        step: Take the checkpoint of this step instead of the finished adapter.
        allow_code: Whether code that the model wrote may be run, in a sandbox.
        trust_remote_code: Whether Python code that comes with the base model may be run.

    Returns:
        Scores of every task with 95% intervals and paired tests; also kept in the run folder.

    Raises:
        MaloraError: As in `malora eval`.
    """
    from malora_cli.evals.evaluate import Wanted, evaluate_run

    record = _record_of(run)
    wanted = Wanted(tasks=tasks, limit=limit, split=split, allow_code=allow_code)
    return evaluate_run(record, _recipe_of(record, trust=trust_remote_code), wanted, step=step)


def compare(
    recipe: Recipe | str | Path,
    overrides: Overrides = (),
    *,
    methods: Sequence[str] = ("lora", "molora", "malora"),
    seeds: Sequence[int] = (0, 1, 2),
    rates: Literal["auto", "none"] | Sequence[float] = "auto",
    baseline: str | None = None,
    endpoint: Endpoint = "loss",
    margin: float = 0.01,
    match: Literal["parameters", "none"] = "none",
    single_task: bool = False,
    for_method: Sequence[str] = (),
    jobs: int = 1,
    cpus_on_ray: int | None = None,
    allow_code: bool = False,
    on_event: Callable[[Event], None] = lambda _event: None,
    on_line: Callable[[str], None] = lambda _line: None,
) -> Comparison:
    """Find out which method is best for a recipe's tasks, as ``malora compare baselines`` does.

    The same call goes on where an earlier one was stopped.

    Args:
        recipe: A recipe, a file, or the name of a shipped recipe.
        overrides: Settings over the recipe's, for every run.
        methods: What is compared; ``NAME=METHOD`` adds a method again under a name for ``for_method``.
        seeds: Each method is trained once with each.
        rates: Learning rates to begin with; ``"auto"`` takes four around the recipe's, ``"none"`` the recipe's alone.
        baseline: Whom the others are compared with; None is the first.
        endpoint: What decides: test losses, or scores; mean over tasks.
        margin: Differences of the endpoint that count as none.
        match: Whether ranks are set so that all have as many parameters as the baseline.
        single_task: Whether the baseline is trained on every task alone as well.
        for_method: Settings of single methods, such as ``"lora:method.r=16"``.
        jobs: Runs that are trained at a time.
        cpus_on_ray: Train every run as a task of Ray with so many cores; None does without Ray.
        allow_code: Whether code that models write may be run, in a sandbox.
        on_event: Told every log step and evaluation of every run that is trained here (with one job).
        on_line: Told what happens to each run, a line each.

    Returns:
        The record with its verdicts; also kept beside the runs, with a page.

    Raises:
        MaloraError: Something is missing, wrong or in the way. A run that fails is in the record.
    """
    from malora_cli.compare.asked import Asked, carried_out, matched
    from malora_cli.compare.jobs import side_by_side
    from malora_cli.compare.run import Crew
    from malora_cli.evals.choosing import check_code
    from malora_cli.modeling.finding import check_base
    from malora_cli.reports import write_comparison

    tune = rates if isinstance(rates, str) else f"lr={','.join(map(repr, rates))}"
    told = ",".join(map(str, seeds))
    asked = Asked(*_over(recipe, overrides), told, tune, baseline, endpoint, margin, for_method, match, single_task)
    planner, plan = asked.of_methods(methods)
    check_base(asked.model)
    check_code(planner.own.recipe.mix, allowed=allow_code)
    planner = matched(planner, plan)
    trained = side_by_side("auto" if cpus_on_ray else str(jobs), cpus_on_ray, on_line, asked.model.device)
    crew = Crew(lambda: _Listener(on_event), on_line, allow_code, trained)
    comparison = carried_out(planner, plan, crew)
    write_comparison(planner.folder, comparison, planner.folder.parent)
    return comparison


def load(
    run: Run | str | Path, *, step: int | None = None, trust_remote_code: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The model of a run with its adapter, in evaluation mode, and its tokenizer.

    Args:
        run: A finished run.
        step: Take the checkpoint of this step instead of the finished adapter.
        trust_remote_code: Whether Python code that comes with the base model may be run.

    Raises:
        MaloraError: The run is not finished, or its base model is not there or is another.
    """
    from peft import PeftModel

    from malora_cli.evals.subject import Models
    from malora_cli.modeling import load_tokenizer

    record = _record_of(run)
    models = Models.of_run(record, _recipe_of(record, trust=trust_remote_code), step)
    assert isinstance(models.loaded, PeftModel)
    return models.loaded, load_tokenizer(models.base, models.settings)


def _record_of(run: Run | str | Path) -> RunRecord:
    return (run if isinstance(run, Run) else Run(run))._record


def _recipe_of(record: RunRecord, *, trust: bool) -> Settings:
    return load_named(record.recipe_path, with_run(record, trust=trust)).recipe
