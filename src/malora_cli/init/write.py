"""The mix and the recipe of some guesses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from malora_cli.init.infer import Guess
from malora_cli.projects import MIX, RECIPE, Noted, document, relative
from malora_cli.projects import write_project as write_files


def write_project(folder: Path, guesses: Sequence[Guess], base: str, method: str) -> list[Path]:
    """Write a mix of some tasks and a recipe that trains on it.

    Args:
        folder: Where to.
        guesses: The tasks.
        base: The base model.
        method: The method.

    Returns:
        What was written.

    Raises:
        RunError: A file is in the way, or cannot be written.
        RecipeError: What would be written does not load.
    """
    return write_files(folder / RECIPE, folder / MIX, (_recipe(base, method), _mix(folder, guesses)))


def _recipe(base: str, method: str) -> str:
    return document(
        "What is trained and how: malora train recipe.yaml. `malora recipes schema` says what else there is.",
        {
            "model": {"base": base},
            "method": {"name": Noted(method, "`malora methods` lists them")},
            "mix": MIX,
            "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3},
            "eval": {"rows": 100},
        },
    )


def _mix(folder: Path, guesses: Sequence[Guess]) -> str:
    tasks = {guess.name: _task(folder, guess) for guess in guesses}
    head = "What is learned: a task a file. What was guessed from its rows says why."
    return document(head, {"weighting": "uniform", "tasks": tasks})


def _task(folder: Path, guess: Guess) -> dict[str, Any]:
    task: dict[str, Any] = {
        "domain": Noted("all", "scores are averaged within a domain, then over domains"),
        "train": relative(guess.train, folder),
    }
    if guess.test is not None:
        task["test"] = relative(guess.test, folder)
    task["format"] = guess.format
    if guess.columns:
        task["columns"] = guess.columns
    task |= {"metric": guess.metric, "max_new_tokens": guess.max_new_tokens}
    if guess.drop:
        task["bad_rows"] = "drop"
    return {key: Noted(value, guess.reasons[key]) if key in guess.reasons else value for key, value in task.items()}
