"""The evaluation of a run: every task under the base model and under the adapter, on the same rows."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from peft import PeftModel

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.routing import routing_of
from malora_cli.data.batch import Packer, collate
from malora_cli.data.encoding import Encoder
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import DataError, RecipeError, RunError
from malora_cli.evals.metrics._base import Answer, Metric
from malora_cli.evals.predict import MORE_MEMORY, predict
from malora_cli.modeling import base_of_run, load_adapter, load_base, load_tokenizer
from malora_cli.modeling.heldout import HeldOut, held_out
from malora_cli.modeling.memory import fitting
from malora_cli.recipe import MixSettings, Recipe
from malora_cli.registry import did_you_mean
from malora_cli.results import EvalResult, RunRecord, Scores, TaskEval, utc_now, why_unwritable, write_text

_ELSEWHERE = "Free some space there, or evaluate into another folder: --out FOLDER."


def choose_tasks(mix: MixSettings, names: Collection[str] | None) -> MixSettings:
    """The mix with only the tasks named; all of them when none are.

    Raises:
        RecipeError: A name is not in the mix, or there is none.
    """
    if names is None:
        return mix
    if not names:
        raise RecipeError("no task is named", where="--tasks", fix=f"Its tasks: {', '.join(mix.tasks)}.")
    for name in names:
        if name not in mix.tasks:
            raise RecipeError(f"there is no task '{name}'; {did_you_mean(name, mix.tasks)}", where="--tasks")
    return mix.model_copy(update={"tasks": {name: mix.tasks[name] for name in mix.tasks if name in names}})


def evaluate_run(
    record: RunRecord,
    recipe: Recipe,
    *,
    tasks: Collection[str] | None = None,
    limit: int | None = None,
    step: int | None = None,
    base_from: EvalResult | None = None,
    out: Path | None = None,
    on_task: Callable[[str, str], None] = lambda _model, _task: None,
    on_result: Callable[[EvalResult], None] = lambda _result: None,
) -> EvalResult:
    """Evaluate a finished run and write the result and its predictions into the run's ``eval/``.

    Args:
        record: The run.
        recipe: The run's own.
        tasks: Tasks to evaluate; None is all.
        limit: Held-out rows a task at most, over the recipe's ``eval.rows``.
        step: Take the checkpoint of this step instead of the finished adapter.
        base_from: An evaluation whose scores of the base model are taken instead of measured, if its rows are the same.
        out: Folder to write them into instead.
        on_task: Told of each model (``"base"``, ``"adapter"``) and task before it is measured.
        on_result: Given the result before it is written, which may fail.

    Raises:
        MaloraError: The run is not finished, or the model, the data or a task is not there, or the held-out rows are
            others than when it was trained, or the result cannot be written.
    """
    adapter, folder = record.adapter_at(step), out or record.eval_dir
    _check_writable(folder)
    started = time.perf_counter()
    mix = choose_tasks(recipe.mix, tasks)
    rows = limit if limit is not None else recipe.eval.rows
    base = base_of_run(recipe.model, record.manifest)
    encoder = Encoder(load_tokenizer(base, recipe.model))
    loaded = load_tasks(mix, encoder, max_length=recipe.train.max_length)
    _check_same_data(record, loaded)
    model = load_adapter(load_base(base, recipe.model), adapter, cast(AdapterSettings, recipe.method))
    packer = Packer(recipe.eval.batch_size, recipe.train.micro_batch_tokens)
    evaluator = _Evaluator(model, encoder, rows, packer, on_task)
    samples = {task.name: _sample(task, rows) for task in loaded}
    known = base_from.tasks if base_from is not None else {}
    if all(name in known and known[name].sample == sample for name, sample in samples.items()):
        base_scores = {name: known[name].base for name in samples}
    else:
        with model.disable_adapter():
            base_scores = {name: scores for name, (scores, _) in evaluator.measure_all("base", loaded).items()}
    adapted = evaluator.measure_all("adapter", loaded)
    routing = routing_of(model)
    tallies = {name: held.tally for name, (_, held) in adapted.items() if held.tally is not None}
    result = EvalResult(
        run=record.name,
        created=utc_now(),
        step=record.manifest.steps if step is None else step,
        limit=rows,
        seconds=time.perf_counter() - started,
        tasks={
            task.name: TaskEval(
                domain=task.settings.domain,
                metric=str(task.settings.metric),
                rows=adapted[task.name][1].loss.examples,
                sample=samples[task.name],
                base=base_scores[task.name],
                adapter=adapted[task.name][0],
            )
            for task in loaded
        },
        expert_load=routing.load_by_group(tallies) if routing is not None else None,
        gate_entropy=routing.entropy_by_group(tallies) if routing is not None else None,
    )
    try:
        on_result(result)
    finally:  # also where nobody can be shown it
        _keep(folder, result, evaluator.lines())
    return result


def _sample(task: Task, limit: int | None) -> str | None:
    """A hash of which rows of a task are evaluated; None is all of them."""
    sample = task.test.sample(limit)
    if len(sample) == len(task.test):
        return None
    return hashlib.sha256(json.dumps(list(sample)).encode()).hexdigest()[:16]


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


def _check_same_data(record: RunRecord, tasks: Sequence[Task]) -> None:
    """Make sure that the held-out rows are those that the run's manifest names: comparisons go by these hashes."""
    known = record.manifest.test_data
    for task in tasks:
        if task.name not in known or known[task.name].sha256 != task.test.sha256:
            raise DataError(
                "these rows have changed since the run was trained",
                where=f"task '{task.name}': {task.test.source}",
                fix="Put them back, or train again.",
            )


class _Evaluator:
    """Measures one task at a time and keeps what was answered."""

    def __init__(
        self,
        model: PeftModel,
        encoder: Encoder,
        limit: int | None,
        packer: Packer,
        on_task: Callable[[str, str], None],
    ) -> None:
        self.model, self.encoder, self.limit, self.packer, self.on_task = model, encoder, limit, packer, on_task
        self.answers: dict[tuple[str, int], dict[str, object]] = {}

    def measure_all(self, which: str, tasks: Sequence[Task]) -> dict[str, tuple[Scores, HeldOut]]:
        """Scores and losses of all tasks under the model as it stands."""
        found = {}
        for task in tasks:
            self.on_task(which, task.name)
            found[task.name] = self.measure(which, task)
        return found

    def measure(self, which: str, task: Task) -> tuple[Scores, HeldOut]:
        """Score and loss of one task under the model as it stands."""
        sample = task.test.sample(self.limit)
        examples = task.test.examples(sample, 0)
        loss, self.packer = fitting(
            lambda packer: held_out(self.model, map(collate, packer.parted(examples))),
            self.packer,
            f"the held-out rows of '{task.name}'",
            fix=MORE_MEMORY,
        )
        predictions = predict(
            self.model,
            self.encoder,
            [example.input_ids[: example.prompt_tokens] for example in examples],
            max_new_tokens=task.settings.max_new_tokens,
            batch=Packer(self.packer.rows),
        )
        rows = task.test.rows.select(sample)
        references: list[list[str]] = rows["references"]
        answers = [
            Answer(answer, rights, prompt, json.loads(facts or "{}"))
            for answer, rights, prompt, facts in zip(
                predictions, references, rows["prompt"], rows["facts"], strict=True
            )
        ]
        metric = cast(Metric, task.settings.metric)
        marks = metric.marks(answers)
        for row, prompt, rights, answer, mark in zip(
            sample, rows["prompt"], references, predictions, marks, strict=True
        ):
            line = self.answers.setdefault((task.name, row), {"task": task.name, "row": row, "prompt": prompt})
            line |= {"reference": rights[0]} if len(rights) == 1 else {"references": rights}
            line |= {which: answer, f"{which}_score": mark.score}
        nats = loss.loss.loss
        assert nats is not None  # every row has a supervised token
        return Scores(score=metric.measured(marks).score, loss=nats), loss

    def lines(self) -> list[str]:
        """One JSON line a row: prompt, reference, and what each model answered."""
        return [json.dumps(line, ensure_ascii=False) + "\n" for line in self.answers.values()]
