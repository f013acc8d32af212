"""Where the rows of a dataset are, what their columns are, and the tasks that are made of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from malora_cli.errors import DataError
from malora_cli.places import is_there
from malora_cli.projects import relative

#: What text has where it can be the id of a dataset or a model on the hub.
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", re.ASCII)
_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".bz2", ".xz", ".zst")
#: Names of readers that stand where a path could.
_READERS = ("json", "csv", "parquet", "arrow")
#: What each name of a speaker stands for without being told.
_USUAL = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_USUAL |= {"observation": "tool", "tool": "tool"}
_PAIRS = ("chosen", "rejected")
#: How the loss was measured where a configuration was imported from.
METRIC = "likelihood"


@dataclass(frozen=True)
class Source:
    """Rows, as a mix names them, and what was seen of them.

    Args:
        settings: The source in a mix.
        columns: Its columns; None where they were not looked at, as on the hub.
        first: Its first row, likewise.
        rows: How many it has, likewise.
    """

    settings: Mapping[str, Any]
    columns: tuple[str, ...] | None = None
    first: Mapping[str, Any] = field(default_factory=dict)
    rows: int | None = None

    def has(self, column: str) -> bool:
        """Whether a column may be there."""
        return self.columns is None or column in self.columns


@dataclass
class Task:
    """A task of the mix that is being made.

    Args:
        name: Its name.
        settings: What the mix says of it.
        rows: Its training rows; None where they were not counted.
    """

    name: str
    settings: dict[str, Any]
    rows: int | None = None


@dataclass
class Mixed:
    """The mix that is being made.

    Args:
        tasks: Its tasks.
        settings: What it says besides.
        stop: What ends the training, where that is not a number of steps or passes.
    """

    tasks: list[Task]
    settings: dict[str, Any] = field(default_factory=lambda: {"weighting": "proportional"})
    stop: str | None = None

    @property
    def rows(self) -> int | None:
        """Training rows of a pass; None where they were not counted."""
        counts = [task.rows for task in self.tasks]
        return None if None in counts else sum(count or 0 for count in counts)


@dataclass(frozen=True)
class Places:
    """Where the files lie that a configuration names.

    Args:
        file: The configuration.
        out: The folder of the mix.
        more: Folders where tools look besides the current one and that of the configuration.
    """

    file: Path
    out: Path
    more: tuple[Path, ...] = ()

    def local(self, given: str) -> Path | None:
        """The file, folder or pattern that a path means; None where nothing is there."""
        path = Path(os.path.expanduser(given))  # noqa: PTH111 (pathlib's raises for an unknown user)
        for folder in (*self.more, Path(), self.file.parent):
            try:
                there = is_there(str(folder / path))
            except (OSError, ValueError):  # it cannot be a path at all
                return None
            if there:
                return folder / path
        return None

    def model(self, given: str) -> str:
        """A model as the recipe names it."""
        found = self.local(given)
        return given if found is None or not found.is_dir() else _named(found, self.out)

    def source(self, given: str, key: str, **more: Any) -> Source:
        """The rows at a path or of a hub dataset.

        Args:
            given: The path or the id.
            key: The key that gives it, for messages.
            more: What else the source is told, such as ``split``; None leaves it out.

        Raises:
            DataError: Nothing is there, it cannot be read, or it holds preference pairs.
        """
        told = {name: value for name, value in more.items() if value is not None}
        found = self.local(given)
        if found is None:
            if not _HUB_ID.fullmatch(given) or given.endswith(_FILES):
                raise DataError(f"{key}: file or folder not found: '{given}'", where=str(self.file))
            return Source({"path": given, **told})
        if not found.is_dir():
            told.pop("config", None)
            if told.get("split") == "train":  # all that a file has
                del told["split"]
        return self._seen({"path": _named(found, self.out), **told}, {"path": str(found), **told})

    def _seen(self, settings: Mapping[str, Any], here: Mapping[str, Any]) -> Source:
        from malora_cli.data.sources import load_rows
        from malora_cli.recipe import SourceSettings

        rows = load_rows(SourceSettings(**here), split="train")
        columns = tuple(rows.columns)
        if set(_PAIRS) <= set(columns):
            what = "pairs of a better and a worse answer; only supervised fine-tuning is imported"
            raise DataError(what, where=str(here["path"]))
        return Source(settings, columns, dict(rows.dataset[0]), len(rows.dataset))


def files_given(path: str, files: Any, wrong: Any) -> str:
    """The one path that a path and files within it mean, as ``datasets.load_dataset`` takes them.

    Args:
        path: A folder, a hub dataset or the name of a reader, such as ``json``.
        files: Files of it: one, or a list.
        wrong: What is raised with a rule that is broken.
    """
    if not files:
        return path
    listed = [files] if isinstance(files, str) else files
    if not isinstance(listed, list) or len(listed) != 1 or not isinstance(listed[0], str):
        raise wrong("several files; name them by one pattern, such as data/*.jsonl, or a dataset for each")
    return listed[0] if path in _READERS else f"{path}/{listed[0]}"


def labels(datasets: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of tasks for datasets that a path and files within it say."""
    given = []
    for one in datasets:
        path, files = one.get("path"), one.get("data_files")
        named = files[0] if isinstance(files, list) and files else files
        given.append(str(named if path in _READERS and named else path or "task"))
    return task_names(given)


def task_names(given: Sequence[str]) -> list[str]:
    """Names that a mix can have, each once, from names of datasets and files."""
    taken: list[str] = []
    for text in given:
        stem = text.rstrip("/").split("/")[-1].split(".")[0]
        plain = re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_-")[:50] or "task"
        numbers = (f"{plain}_{number}" for number in range(2, len(given) + 2))
        others = [name.casefold() for name in taken]
        taken.append(next(name for name in (plain, *numbers) if name.casefold() not in others))
    return taken


def named_column(column: str) -> str:
    """A column as a template names it."""
    return column if re.fullmatch(r"[A-Za-z_]\w*", column, re.ASCII) else f"row[{json.dumps(column)}]"


def lines_of(columns: Sequence[str], between: str = "\\n") -> str:
    """A column, or several as the lines of one text; empty ones are left out."""
    return columns[0] if len(columns) == 1 else f"{{{{ {_lines_of(columns, between)} }}}}"


def _lines_of(columns: Sequence[str], between: str = "\\n") -> str:
    return f"[{', '.join(map(named_column, columns))}] | select | join('{between}')"


def pair(source: Source, prompt: str, completion: str, system: str | None = None) -> dict[str, Any]:
    """The settings of a task of questions and answers, each a column or a template."""
    columns = {"prompt": prompt, "completion": completion} | ({"system": system} if system else {})
    # A column `system` that nobody named is the prompt of no row to the format `template` alone.
    form = "prompt-completion" if system or not source.has("system") else "template"
    return _task(
        source, form, {role: column for role, column in columns.items() if role != column or form == "template"}
    )


def history(source: Source, past: str, prompt: Sequence[str], completion: str, system: str | None) -> dict[str, Any]:
    """The settings of a task whose rows hold earlier turns, as lists of a question and an answer."""
    now = _lines_of(prompt) if len(prompt) > 1 else named_column(prompt[0])
    turns = f"{{{{ (({named_column(past)} or []) | sum(start=[])) + [{now}, {named_column(completion)}] }}}}"
    return conversation(source, turns, system=system)


def conversation(
    source: Source,
    messages: str,
    *,
    role: str | None = None,
    content: str | None = None,
    answer: str | None = None,
    system: str | None = None,
    tools: str | None = None,
    speakers: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The settings of a task of conversations; what is None was not named, and is not looked for."""
    columns = {"messages": messages, "role": role, "content": content, "answer": answer}
    columns |= {"system": system, "tools": tools}
    given = {name: column for name, column in columns.items() if column is not None and name != column}
    for name in ("system", "tools"):
        if columns[name] is None and source.columns is not None and source.has(name):
            given[name] = "{{ '' }}"  # a column of this name is found by itself, and nobody named it
    others = {name: who for name, who in (speakers or {}).items() if _USUAL.get(name.casefold()) != who}
    return _task(source, "messages", given) | ({"speakers": others} if others else {})


def _task(source: Source, form: str, columns: Mapping[str, str]) -> dict[str, Any]:
    return {"train": source.settings, "format": form} | ({"columns": dict(columns)} if columns else {})


def _named(path: Path, folder: Path) -> str:
    return str(path) if path.is_absolute() else relative(path, folder)


def limited(task: Task, wanted: int | None) -> str:
    """Let a task have so many rows, and say what differs; nothing where it has as many.

    More than there are become passes over them.
    """
    if wanted is None or task.rows == wanted:
        return ""
    if task.rows is not None and wanted > task.rows:
        if (times := round(wanted / task.rows)) < 2:
            return "it has no more rows"
        task.settings["repeats"], task.rows = times, task.rows * times
        return f"tasks.repeats: {times} passes over its rows"
    task.settings["max_rows"], task.rows = wanted, wanted
    return "tasks.max_rows: as many rows, chosen at random by mix.seed"


def interleave(mixed: Mixed, shares: Sequence[float] | None, stop: str) -> None:
    """Draw tasks by shares, or equally, until the first or every one of them is through its rows."""
    mixed.stop = stop
    mixed.settings["weighting"] = "uniform" if shares is None else "explicit"
    for task, share in zip(mixed.tasks, shares or (), strict=False):
        task.settings["weight"] = share


def keep_for_validation(mixed: Mixed, size: float) -> str:
    """Keep training rows for validation, a share of them or so many of all; says what differs."""
    if size <= 0:
        return "5% of the rows, at most 200 a task, are kept for validation; validation: null in the mix keeps none"
    if size < 1:
        mixed.settings["validation"] = {"share": size, "rows": 1_000_000}
        return "validation: this share of each task's prompts, chosen by a hash"
    rows, known = max(1, round(size / len(mixed.tasks))), mixed.rows
    share = 0.05 if not known else min(0.5, max(0.0001, round(size / known, 4)))
    mixed.settings["validation"] = {"share": share, "rows": rows}
    return f"validation: about {rows:,} rows of each task"
