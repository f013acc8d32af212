"""The mix and the recipe of some guesses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malora_cli.init.infer import Guess
from malora_cli.projects import MIX, RECIPE, Noted, document, relative
from malora_cli.projects import write_project as write_files
from malora_cli.recipe import SourceSettings
from malora_cli.results import write_text


def write_project(
    folder: Path, guesses: Sequence[Guess], base: str, method: str, minutes: float | None = None
) -> list[Path]:
    """Write a mix of some tasks and a recipe that trains on it.

    Args:
        folder: Where to.
        guesses: The tasks.
        base: The base model.
        method: The method.
        minutes: How long it trains, by a step that is measured; None is one epoch.

    Returns:
        What was written.

    Raises:
        MaloraError: A file is in the way or cannot be written, what would be written does not load, or the step cannot
            be measured. Nothing stays on disk then.
    """
    recipe = folder / RECIPE
    texts = (_recipe(base, method, {"epochs": 1}), _mix(folder, guesses))
    written = write_files(recipe, folder / MIX, texts)
    if minutes is not None:
        from malora_cli.init.pace import steps_in  # which imports what trains

        try:
            write_text(recipe, _recipe(base, method, {"steps": steps_in(minutes, recipe)}))
        except BaseException:
            for path in written:
                path.unlink()
            raise
    return written


def _recipe(base: str, method: str, length: dict[str, Any]) -> str:
    return document(
        "What is trained and how: malora train recipe.yaml. `malora recipes schema` says what else there is.",
        {
            "model": {"base": base},
            "method": {"name": Noted(method, "`malora methods` lists them")},
            "mix": MIX,
            "train": {**length, "batch_size": 16, "learning_rate": 1e-3},
            "eval": {"rows": 100},
        },
    )


def _mix(folder: Path, guesses: Sequence[Guess]) -> str:
    tasks = {guess.name: _task(folder, guess) for guess in guesses}
    head = "What is learned: a task a file. What was guessed from its rows says why."
    return document(head, {"weighting": "uniform", "tasks": tasks})


def _task(folder: Path, guess: Guess) -> dict[str, Any]:
    task: dict[str, Any] = {
        "domain": Noted(guess.name, "tasks of one domain are averaged first: give those that belong together one name"),
        "train": _place(guess.train, folder),
    }
    task |= {role: _place(source, folder) for role, source in guess.held_out.items()}
    task["format"] = guess.format
    if guess.columns:
        task["columns"] = guess.columns
    task |= {"metric": guess.metric, "max_new_tokens": guess.max_new_tokens}
    if guess.drop:
        task["bad_rows"] = "drop"
    return {key: Noted(value, guess.reasons[key]) if key in guess.reasons else value for key, value in task.items()}


def _place(source: SourceSettings, folder: Path) -> str | dict[str, Any]:
    """A source as a mix in ``folder`` names it; a dataset of the hub is no path, and stays."""
    given = source.model_dump(exclude_unset=True, exclude_none=True)
    if Path(source.path).exists():
        given["path"] = relative(Path(source.path), folder)
    return given["path"] if given.keys() == {"path"} else given
