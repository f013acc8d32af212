"""An evaluation: every task under a model and under what it is compared with, on the same rows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, cast

from malora_cli.adapters.routing import RoutingTally, routing_of
from malora_cli.data.batch import Packer
from malora_cli.data.columns import CLUSTER
from malora_cli.data.encoding import Encoder
from malora_cli.data.splits import Split
from malora_cli.data.task_rows import TaskRows
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import DataError, MaloraError, RecipeError, RunError
from malora_cli.evals.against import answers_in
from malora_cli.evals.choosing import check_code, choose_tasks, parted
from malora_cli.evals.examine import Examiner, Progress
from malora_cli.evals.harness import Harness
from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.evals.questions import Question, questions_of, sample_hash, shown_solved
from malora_cli.evals.scoring import Scored, averaged, differences
from malora_cli.evals.store import answers_root
from malora_cli.evals.subject import Models, Subject
from malora_cli.modeling import BaseModel, load_tokenizer
from malora_cli.recipe import Recipe
from malora_cli.results import EvalResult, RunRecord, TaskEval, utc_now, why_unwritable, write_text

_LOG = logging.getLogger(__name__)
_ELSEWHERE = "Free some space there, or evaluate into another folder: --out FOLDER."
_BASE, _ADAPTER, _MODEL = "base", "adapter", "model"


class Silent:
    """Shows nothing."""

    def begin(self, subject: str, task: str, rows: int) -> None:
        """As `Progress` has it."""

    def answered(self, rows: int) -> None:
        """As `Progress` has it."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of an evaluation beside the recipe.

    Args:
        tasks: Tasks or domains to evaluate; None is all.
        limit: Rows a task at most, over the recipe's ``eval.rows``.
        against: The evaluation that the scores are compared with; None is the base model's.
        shots: Solved training rows in front of each prompt of the base model.
        split: Which rows.
        rescore: Score stored answers anew, without loading a model.
        allow_code: Run code that models write, in a sandbox.
        progress: Is told how far it has come.
        on_result: Given the result before it is written, which may fail.
    """

    tasks: Collection[str] | None = None
    limit: int | None = None
    against: Path | None = None
    shots: int = 0
    split: Literal["test", "validation"] = "test"
    rescore: bool = False
    allow_code: bool = False
    progress: Progress = field(default_factory=Silent)
    on_result: Callable[[EvalResult], None] = lambda _result: None


def evaluate_run(
    record: RunRecord,
    recipe: Recipe,
    wanted: Wanted | None = None,
    *,
    step: int | None = None,
    mix: str | None = None,
    out: Path | None = None,
) -> EvalResult:
    """Evaluate a finished run and write the result and its predictions into the run's ``eval/``.

    Args:
        record: The run.
        recipe: The run's own, with another mix where ``mix`` says so.
        wanted: What is asked for.
        step: Take the checkpoint of this step instead of the finished adapter.
        mix: Where the tasks are from, where they are not the run's own.
        out: Folder to write them into instead.

    Raises:
        MaloraError: The run is not finished, or the model, the data or a task is not there, or the held-out rows are
            others than when it was trained, or the result cannot be written.
    """
    wanted = wanted or Wanted()
    models = Models.of_run(record, recipe, step)
    folder = out or (record.eval_dir if mix is None else record.eval_dir / Path(mix).stem)
    own = Subject(_ADAPTER, models.adapter_key, folder / "answers", models, known=record.eval_dir / "answers")
    evaluation = _Evaluation(recipe, wanted, models.base, folder)
    if mix is None:
        _check_same_data(record, evaluation.splits, wanted.split)
    steps = record.manifest.steps if step is None else step
    return evaluation.carried_out(own, _base_subject(models), name=record.name, step=steps, mix=mix)


def evaluate_model(recipe: Recipe, wanted: Wanted, *, mix: str, out: Path) -> EvalResult:
    """Evaluate a model that no run has made, alone or against an evaluation; an adapter beside its base.

    Args:
        recipe: Its model and its mix.
        wanted: What is asked for.
        mix: Where the tasks are from.
        out: Folder to write the result into.

    Raises:
        MaloraError: As in `evaluate_run`.
    """
    models, name = Models.named(recipe.model), str(recipe.output.name)
    evaluation = _Evaluation(recipe, wanted, models.base, out)
    if models.adapter is None:
        return evaluation.carried_out(_base_subject(models), None, name=name, step=0, mix=mix)
    own = Subject(_ADAPTER, models.adapter_key, out / "answers", models)
    return evaluation.carried_out(own, _base_subject(models), name=name, step=0, mix=mix)


def _base_subject(models: Models) -> Subject:
    """The base model, whose answers are kept for all runs on it."""
    return Subject(_BASE, models.base_key, answers_root() / models.base_key, models, plain=True)


class _Evaluation:
    """One evaluation: its tasks and questions, and what is made of the answers."""

    def __init__(self, recipe: Recipe, wanted: Wanted, base: BaseModel, folder: Path) -> None:
        self.recipe, self.wanted, self.folder = recipe, wanted, folder
        _check_writable(folder)
        self.started = time.perf_counter()
        self.limit = wanted.limit if wanted.limit is not None else recipe.eval.rows
        _, theirs = parted(wanted.tasks)
        self.harness = Harness(theirs, self.limit, recipe.eval.batch_size, recipe.mix.system)
        _check_together(wanted, theirs)
        mix = choose_tasks(recipe.mix, wanted.tasks)
        self.sandbox = check_code(mix, allowed=wanted.allow_code)
        _LOG.info("reading the data")
        self.encoder = Encoder(load_tokenizer(base, recipe.model))
        self.tasks = load_tasks(mix, self.encoder, max_length=recipe.train.max_length) if mix.tasks else []
        self.splits = {task.name: self._split(task) for task in self.tasks}
        self.questions = {name: questions_of(split, self.limit) for name, split in self.splits.items()}

    def _split(self, task: Task) -> Split:
        """The rows of a task that are asked for."""
        if self.wanted.split == "test":
            return task.test
        if not len(task.validation):
            raise DataError("no validation rows", where=f"task '{task.name}'", fix="Give it some: mix.validation.")
        if self.wanted.shots:
            raise RecipeError("solved rows stand in front of test rows only", where="--shots", fix="Leave --split out.")
        _check_facts(task)
        return task.validation

    def _asked(self, subject: Subject, task: Task) -> list[Question]:
        """The questions of a task as a model is asked them: the base model behind solved rows, where these are wanted.

        An adapter is asked as it was trained.
        """
        questions = self.questions[task.name]
        if subject.name != _BASE or not self.wanted.shots:
            return questions
        rows = TaskRows(task.name, task.settings, self.recipe.mix, self.encoder, self.recipe.train.max_length)
        return shown_solved(questions, rows.behind_solved(task.train, self.wanted.shots))

    def carried_out(
        self, subject: Subject, other: Subject | None, *, name: str, step: int, mix: str | None
    ) -> EvalResult:
        """Ask, score, compare, show and keep."""
        if self.wanted.shots and self.wanted.against is not None and subject.name != _BASE:
            fix = "Leave one of them out."
            raise RecipeError("they stand in front of the base, which --against replaces", where="--shots", fix=fix)
        others, against = self._others(other)
        scored, tallies = self._scored(subject)
        if others is not None:  # lm-eval may have shown these other solved rows
            others = {name: replace(one, questions=scored[name].questions) for name, one in others.items()}
        routing = routing_of(subject.models.loaded) if tallies else None
        result = EvalResult(
            run=name,
            created=utc_now(),
            step=step,
            limit=self.limit,
            seconds=time.perf_counter() - self.started,
            against=against,
            mix=mix,
            split=self.wanted.split,
            shots=self.wanted.shots,
            sandbox=self.sandbox,
            tasks=self._compared(scored, others),
            expert_load=routing.load_by_group(tallies) if routing is not None else None,
            gate_entropy=routing.entropy_by_group(tallies) if routing is not None else None,
        )
        domains, overall = averaged(result.members(), result.tasks, scored, others)
        result = result.with_averages(domains, overall)
        try:
            self.wanted.on_result(result)
        finally:  # also where nobody can be shown it
            columns = {subject.name if other is not None else _MODEL: scored}
            if others is not None:
                columns = {_BASE if against == _BASE else "against": others, **columns}
            _keep(self.folder, result, list(_lines(columns)))
        return result

    def _others(self, other: Subject | None) -> tuple[dict[str, Scored] | None, str | None]:
        """What the scores are compared with, and its name."""
        if self.wanted.against is not None:
            answers = answers_in(self.wanted.against, self.questions, {task.name: _metric(task) for task in self.tasks})
            found = {task.name: self._marked(task, *answers.of(task.name)) for task in self.tasks}
            return found, answers.name if answers.name != _BASE else str(self.wanted.against)
        if other is None:
            return None, None
        return self._scored(other)[0], _BASE

    def _scored(self, subject: Subject) -> tuple[dict[str, Scored], dict[str, RoutingTally]]:
        """Scores of all tasks under a model, and what their tokens asked of its experts."""
        batch = _batch(self.recipe)
        examiner = Examiner(subject, self.encoder, batch, self.wanted.rescore, self.wanted.progress)
        scored, tallies = dict[str, Scored](), dict[str, RoutingTally]()
        for task in self.tasks:
            questions = self._asked(subject, task)
            found = examiner.examine(task, _metric(task), questions)
            scored[task.name] = self._marked(task, found.answers, found.nats)
            if found.tally is not None:
                tallies[task.name] = found.tally
        shots = self.wanted.shots or None if subject.name == _BASE else None
        scored |= self.harness.scored(subject, self.encoder, self.wanted.progress, shots=shots)
        return scored, tallies if len(tallies) == len(self.tasks) else {}

    def _marked(self, task: Task, answers: Sequence[Answer], nats: Sequence[tuple[float, int]]) -> Scored:
        """What answers to the questions of a task are worth.

        Raises:
            MaloraError: Its metric cannot be had of them.
        """
        try:
            return Scored.of(_metric(task), self.questions[task.name], answers, nats)
        except MaloraError as error:
            error.where = error.where or f"task '{task.name}'"
            raise

    def _compared(self, scored: Mapping[str, Scored], others: Mapping[str, Scored] | None) -> dict[str, TaskEval]:
        found = differences(scored, others) if others is not None else {}
        domains = {task.name: task.settings.domain for task in self.tasks}
        samples = {name: sample_hash(split, self.limit) for name, split in self.splits.items()}
        return {
            name: TaskEval(
                domain=domains.get(name, "lm_eval"),
                metric=str(own.metric),
                rows=len(own.questions),
                clusters=own.measured.cluster_count,
                sample=samples.get(name),
                model=own.scores,
                against=others[name].scores if others is not None else None,
                difference=found.get(name),
            )
            for name, own in scored.items()
        }


def _lines(columns: Mapping[str, Mapping[str, Scored]]) -> Iterator[str]:
    """One JSON line a row: prompt, reference, and what each model answered."""
    for name, first in next(iter(columns.values())).items():
        for number, question in enumerate(first.questions):
            line: dict[str, object] = {"task": name, "row": question.row, "prompt": question.prompt}
            if question.cluster != question.prompt:
                line["cluster"] = question.cluster
            rights = question.references
            line |= {"reference": rights[0]} if len(rights) == 1 else {"references": rights}
            for which, scored in columns.items():
                line |= scored[name].line(number, which)
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _check_together(wanted: Wanted, theirs: Sequence[str]) -> None:
    """Make sure that what is asked of the harness's tasks can be had.

    Raises:
        RecipeError: It cannot.
    """
    refused = {"--against": wanted.against is not None, "--rescore": wanted.rescore, "--split": wanted.split != "test"}
    for option, given in refused.items():
        if theirs and given:
            raise RecipeError(
                f"{theirs[0]} is asked anew each time, on its own test rows",
                where=option,
                fix=f"Leave {option} out, or evaluate that task alone.",
            )


def _check_facts(task: Task) -> None:
    """Make sure that validation rows hold what the metric wants: those spared by training need not.

    Raises:
        DataError: They do not.
    """
    wanted = (*_metric(task).needs, *([CLUSTER] if CLUSTER in task.settings.columns else []))
    missing = set(wanted) - set(json.loads(task.validation.rows[0]["facts"] or "{}"))
    if missing:
        raise DataError(
            f"its validation rows, which are training rows, have no '{min(missing)}'",
            where=f"task '{task.name}'",
            fix="Name other rows: `validation: FILE` of the task.",
        )


def _metric(task: Task) -> Metric:
    return cast(Metric, task.settings.metric)


def _batch(recipe: Recipe) -> Packer:
    """What goes through the model at once at most; how many tokens is left open where memory is to decide."""
    tokens = recipe.eval.batch_tokens
    return Packer(recipe.eval.batch_size, recipe.train.micro_batch_tokens if tokens == "auto" else tokens)


def _check_writable(folder: Path) -> None:
    """Make sure that an evaluation can be kept in a folder, before anything slow happens.

    Raises:
        RunError: It cannot.
    """
    if (why := why_unwritable(folder)) is not None:
        raise RunError(f"the evaluation cannot be written ({why})", where=str(folder), fix=_ELSEWHERE)


def _keep(folder: Path, result: EvalResult, answers: Sequence[str]) -> None:
    """Write down what was measured; where one file cannot be written, the other one still may."""
    # Finer than `created`, so that no evaluation takes the place of another, and the newest still sorts last.
    name = datetime.now(UTC).strftime("%Y-%m-%dT%H-%M-%S-%f")
    files: dict[str, Callable[[Path], None]] = {
        f"{name}.predictions.jsonl": lambda path: write_text(path, "".join(answers)),
        f"{name}.json": result.save,
    }
    lost: list[OSError] = []
    for file, write in files.items():
        try:
            write(folder / file)
        except OSError as error:
            lost.append(error)
    if lost:
        kept = [str(folder / file) for file in files if (folder / file).is_file()]
        said = f"Only {kept[0]} is kept." if kept else "Nothing of this evaluation is kept."
        raise RunError(
            f"it cannot be written ({lost[0].strerror})", where=str(lost[0].filename), fix=f"{said} {_ELSEWHERE}"
        ) from lost[0]


def _check_same_data(record: RunRecord, splits: Mapping[str, Split], which: str) -> None:
    """Make sure that the held-out rows are those that the run's manifest names: comparisons go by these hashes."""
    known = record.manifest.test_data if which == "test" else record.manifest.validation_data
    for name, split in splits.items():
        if name not in known or known[name].sha256 != split.sha256:
            raise DataError(
                "these rows have changed since the run was trained",
                where=f"task '{name}': {split.source}",
                fix="Put them back, or train again.",
            )
