"""What ``malora eval`` evaluates, how far it has come, and its table."""

from __future__ import annotations

import csv
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from malora_cli.characters import plural
from malora_cli.cli._common import find_and_tell, read_recipe, recipe_of_run, tell_of_code
from malora_cli.cli._terminal import SafeConsole, say
from malora_cli.cli._voice import aside, begin, phases_shown_by
from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.choosing import check_code, choose_tasks
from malora_cli.modeling.finding import check_base
from malora_cli.named import granted, vocabulary
from malora_cli.recipe import Recipe, recipe_of_model
from malora_cli.results import EvalResult, RunRecord, Scores, find_run
from malora_cli.results.evaluation import Compared, Difference, TaskEval

#: Below this a probability is not spelled out.
_CLEARLY = 0.001


class LineProgress:
    """A line for every task that a model has answered, as where nobody looks on."""

    def __init__(self) -> None:
        self._now: tuple[str, str, int, float] | None = None

    def begin(self, subject: str, task: str, rows: int) -> None:
        """A model begins on the rows of a task."""
        self.end()
        begin(f"{subject}: {task}: {plural(rows, 'row')}")
        self._now = (subject, task, rows, time.perf_counter())

    def answered(self, rows: int) -> None:
        """Lines are of whole tasks."""

    def end(self) -> None:
        """Tell of the task that is done."""
        if self._now is not None:
            subject, task, rows, since = self._now
            aside(f"{subject}: {task}: {plural(rows, 'row')} in {time.perf_counter() - since:,.0f} s")
        self._now = None


class LiveProgress:
    """A bar with the time left, for each model and task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("loading", total=None)

    def begin(self, subject: str, task: str, rows: int) -> None:
        """A model begins on the rows of a task."""
        self._progress.reset(self._task, total=rows, description=f"{subject}: {task}")

    def answered(self, rows: int) -> None:
        """So many more of them are answered."""
        self._progress.advance(self._task, rows)

    def end(self) -> None:
        """The bar goes with its console."""

    def phase(self, what: str) -> None:
        """What is done before the first rows."""
        self._progress.update(self._task, description=what)


@contextmanager
def progress_on(console: SafeConsole) -> Iterator[LineProgress | LiveProgress]:
    """How far an evaluation has come: a bar on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield LineProgress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        live = LiveProgress(progress)
        with phases_shown_by(live.phase):
            yield live


def run_named(run: Path | None, runs: Path, mix: str | None, *, err: bool) -> RunRecord | None:
    """The run that a user means; None where what is named is no run, but a mix is, so that it may be a model.

    Args:
        run: What is named.
        runs: Where run folders lie.
        mix: What names the tasks, if not the run.
        err: Whether which run is taken is said on standard error.

    Raises:
        RunError: It is no run, and no mix says what to ask of a model.
    """
    try:
        return find_and_tell(run, runs, err=err)
    except RunError as error:
        if run is None or "=" in str(run):
            raise
        if mix is None:
            fix = f"`ls {runs}` lists the runs; for a model add --mix MIX, which names the tasks."
            raise RunError(error.what, where=str(run), fix=fix) from error
        return None


def recipe_named(
    record: RunRecord | None, model: Path | None, moved: Sequence[str], *, mix: str | None, trust: bool
) -> Recipe:
    """The recipe by which a run, or a model, is evaluated.

    Raises:
        MaloraError: The recipe, the mix or an override is wrong.
    """
    if record is None:
        loaded = recipe_of_model(str(model), str(mix), [*moved, *granted(trust)], vocabulary=vocabulary())
        tell_of_code(loaded)
        return loaded.recipe
    recipe = recipe_of_run(record, moved, trust=trust)
    return recipe if mix is None else read_recipe(record.recipe_path, [*moved, f"mix={mix}", *granted(trust)]).recipe


def folder_for(record: RunRecord | None, recipe: Recipe, mix: str | None, runs: Path) -> Path:
    """Where an evaluation is kept: with its run, beside the run's own where the tasks are others."""
    if record is None:
        return runs / "evals" / str(recipe.output.name)
    return record.eval_dir if mix is None else record.eval_dir / Path(mix).stem


def evaluation_named(against: str | None, runs: Path, tasks: Sequence[str] | None) -> Path | None:
    """The evaluation that ``--against`` means: a file, or that of a run; None is the base model.

    Of a run it is the one of the most tasks and rows, among those that are asked for; of equals the newest.

    Raises:
        RunError: There is none.
    """
    if against in (None, "base"):
        return None
    path = Path(str(against))
    if path.is_file():
        return path
    record = find_run(path, runs)
    found = [(file, EvalResult.load(file)) for file in record.eval_dir.glob("*.json")]
    whole = [(file, result) for file, result in found if result.of_test_rows and result.step == record.manifest.steps]
    if not whole:
        fix = f"Run: malora eval {quote(str(record.path))}"
        raise RunError("this run has not been evaluated", where=str(record.path), fix=fix)
    return max(whole, key=lambda pair: (*_covered(pair[1], tasks), pair[0].name))[0]


def _covered(result: EvalResult, tasks: Sequence[str] | None) -> tuple[int, int]:
    """How many tasks of those named, and rows of them, are in an evaluation; of all where a domain or all is named."""
    named = tasks if tasks is not None and not any(name == "all" or ":" in name for name in tasks) else result.tasks
    rows = [result.tasks[name].rows for name in named if name in result.tasks]
    return len(rows), sum(rows)


def check_wanted(recipe: Recipe, record: RunRecord | None, other: Path | None, *, gate: bool, csv: Path | None) -> None:
    """Make sure that what is to become of the result can be done, before anything slow happens.

    Raises:
        MaloraError: A gate has nothing to compare with, or a file cannot be written.
    """
    alone = record is None and not (Path(recipe.model.base) / "adapter_config.json").is_file()
    if gate and alone and other is None:
        raise RecipeError("nothing to compare with", where="--gate", fix="Add --against RUN or FILE.")
    if csv is not None and (csv.is_dir() or not csv.parent.is_dir()):
        raise RunError(f"it cannot be written ({'a folder' if csv.is_dir() else 'folder not found'})", where=str(csv))


def check_subject(
    recipe: Recipe, record: RunRecord | None, tasks: Sequence[str] | None, *, step: int | None, allow_code: bool
) -> None:
    """Make sure that the tasks, the checkpoint and the base model are there, as far as no library is needed for it.

    Raises:
        MaloraError: One is not, or a task runs code, which nobody has allowed.
    """
    mix = choose_tasks(recipe.mix, tasks)
    if not allow_code:
        check_code(mix, allowed=False)
    if record is not None:
        record.adapter_at(step)
    if record is not None or not (Path(recipe.model.base) / "adapter_config.json").is_file():
        check_base(recipe.model)


def gate_line(result: EvalResult) -> tuple[str, bool]:
    """The verdict of ``--gate`` as a line, and whether it is passed."""
    worse = [
        f"{name} by {-task.difference.value:.3f} (p(Holm) {_p(task.difference)})"
        for name, task in result.tasks.items()
        if task.difference is not None and task.difference.is_worse
    ]
    if not worse:
        return f"gate: passed, no task is significantly worse than {result.against_name}", True
    return f"gate: failed, significantly worse than {result.against_name}: {', '.join(worse)}", False


def write_csv(result: EvalResult, path: Path) -> None:
    """Every figure of the table, unrounded.

    Raises:
        RunError: It cannot be written.
    """
    scores, differences = list(Scores.model_fields), list(Difference.model_fields)
    heads = ["kind", "name", "domain", "metric", "rows", *(f"model_{name}" for name in scores)]
    heads += [*(f"against_{name}" for name in scores), *(f"difference_{name}" for name in differences)]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, heads)
            writer.writeheader()
            for kind, name, compared in _every(result):
                writer.writerow({"kind": kind, "name": name} | _figures(compared))
    except OSError as error:
        raise RunError(f"it cannot be written ({error.strerror})", where=str(path)) from error


def _every(result: EvalResult) -> Iterator[tuple[str, str, Compared]]:
    yield from (("task", name, task) for name, task in result.tasks.items())
    yield from (("domain", name, domain) for name, domain in result.domains().items())
    yield "all", "all domains", result.overall()


def _figures(compared: Compared) -> dict[str, object]:
    parts = {"model": compared.model, "against": compared.against, "difference": compared.difference}
    found: dict[str, object] = {
        f"{part}_{name}": value
        for part, record in parts.items()
        if record is not None
        for name, value in record.model_dump(mode="json").items()
    }
    if isinstance(compared, TaskEval):
        found |= {"domain": compared.domain, "metric": compared.metric, "rows": compared.rows}
    return found


def print_evaluation(result: EvalResult, console: SafeConsole) -> None:
    """The table of an evaluation, and what is to be known of it."""
    console.print(evaluation_table(result, console.most))
    console.tell_left_out(len(result.tasks), "tasks")
    for note in notes(result):
        say(note)


def evaluation_table(result: EvalResult, most: int | None = None) -> Table:
    """Scores of every task and domain, or of as many, beside those of what the model is compared with."""
    name = "adapter" if result.against == "base" else result.run if result.against is None else "model"
    paired = result.against is not None
    heads = ["rows", result.against_name or "", name, "change", "p(Holm)", "unread", "sees"]
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    table.add_column("task", overflow="fold")
    for number, head in enumerate(heads):
        if paired or number not in (1, 3, 4, 6):
            table.add_column(Text(head), overflow="fold", justify="right")
    for task, it in list(result.tasks.items())[:most]:
        table.add_row(Text(task), *_cells(it, paired=paired))
    table.add_section()
    shown = result.domains() if len(result.domains()) < len(result.tasks) else {}
    for domain, average in [*list(shown.items())[:most], ("all domains", result.overall())]:
        table.add_row(Text(domain), *_cells(average, paired=paired), style="bold")
    return table


def notes(result: EvalResult) -> list[str]:
    """What is to be known of a table of scores, a sentence each."""
    found = []
    alike = [name for name, task in result.tasks.items() if task.difference and not task.difference.told_apart]
    if alike:
        found.append(f"No significant difference from {result.against_name}: {', '.join(alike)}.")
    worse = [name for name, task in result.tasks.items() if task.difference and task.difference.is_worse]
    if worse:
        found.append(f"Significantly worse than {result.against_name}: {', '.join(worse)}.")
    if any(scores.much_unread for task in result.tasks.values() for scores in (task.model, task.against) if scores):
        found.append("* 10% or more of the answers could not be read: the score measures their format.")
    return found


def _cells(compared: Compared, *, paired: bool) -> list[Text]:
    rows = f"{compared.rows:,}" if isinstance(compared, TaskEval) else ""
    own, other, change = compared.model, compared.against, compared.difference
    unread = "-" if not own.unread else f"{own.unread:.1%}"
    if not paired or other is None:
        return [Text(rows), Text(_score(own)), Text(unread)]
    return [
        Text(rows),
        Text(_score(other)),
        Text(_score(own)),
        _change(change),
        Text("" if change is None or change.p is None else _p(change)),
        Text(unread),
        Text("" if change is None or change.detectable is None else f"{change.detectable:.2f}"),
    ]


def _score(scores: Scores) -> str:
    star = "*" if scores.much_unread else ""
    return f"{scores.score:.2f}{star}{_about(scores.score, scores.low, scores.high)}"


def _about(value: float, low: float | None, high: float | None) -> str:
    """The interval around a value, by its farther end."""
    if low is None or high is None:
        return ""
    return f" ±{max(value - low, high - value):.2f}"


def _change(change: Difference | None) -> Text:
    if change is None:
        return Text("")
    told = change.told_apart
    colour = "dim" if not told else "green" if change.value > 0 else "red"
    return Text(f"{change.value:+.2f}{_about(change.value, change.low, change.high)}", style=colour)


def _p(change: Difference) -> str:
    p = change.p if change.p_holm is None else change.p_holm
    assert p is not None
    return f"<{_CLEARLY}" if p < _CLEARLY else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"
