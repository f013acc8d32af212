"""The files of a project: ``recipe.yaml``, ``mix.yaml`` and ``.gitignore``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.init.infer import Guess
from malora_cli.results import write_text

RECIPE, MIX, _IGNORED = "recipe.yaml", "mix.yaml", ".gitignore"


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
    """
    texts = {RECIPE: _recipe(base, method), MIX: _mix(folder, guesses), _IGNORED: "runs/\n"}
    texts = {name: text for name, text in texts.items() if name != _IGNORED or not (folder / name).exists()}
    if there := [name for name in texts if (folder / name).exists()]:
        raise RunError("it is there already, and is not overwritten", where=str(folder / there[0]), fix="Move it away.")
    try:
        for name, text in texts.items():
            write_text(folder / name, text)
    except OSError as error:
        raise RunError(f"it cannot be written ({error.strerror})", where=str(folder)) from error
    return [folder / name for name in texts]


def _recipe(base: str, method: str) -> str:
    return f"""# What is trained and how: malora train recipe.yaml. `malora recipes schema` says what else there is.
model:
  base: {_scalar(base)}
method:
  name: {method}  # `malora methods` lists them
mix: {MIX}
train:
  epochs: 1
  batch_size: 16
  learning_rate: 1e-3
eval:
  rows: 100
"""


def _mix(folder: Path, guesses: Sequence[Guess]) -> str:
    lines = [
        "# What is learned: a task a file. What was guessed from its rows says why.",
        "weighting: uniform",
        "tasks:",
    ]
    for guess in guesses:
        lines += [
            f"  {_scalar(guess.name)}:",
            "    domain: all  # scores are averaged within a domain, then over domains",
        ]
        lines.append(f"    train: {_scalar(_relative(guess.train, folder))}")
        if guess.test is not None:
            lines.append(_line("test", _relative(guess.test, folder), guess))
        lines.append(_line("format", guess.format, guess))
        if guess.columns:
            inside = ", ".join(f"{role}: {_scalar(column)}" for role, column in guess.columns.items())
            lines.append(f"    columns: {{{inside}}}")
        lines.append(_line("metric", guess.metric, guess))
        lines.append(_line("max_new_tokens", guess.max_new_tokens, guess))
        if guess.drop:
            lines.append(_line("bad_rows", "drop", guess))
    return "\n".join(lines) + "\n"


def _line(key: str, value: object, guess: Guess) -> str:
    shown = value if isinstance(value, int) else _scalar(str(value))
    return f"    {key}: {shown}  # {' '.join(guess.reasons[key].split())}"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _scalar(text: str) -> str:
    """A text as YAML has it, in quotes where it needs them."""
    plain = re.fullmatch(r"[A-Za-z_./][\w./-]*", text) and text.lower() not in {"true", "false", "null", "yes", "no"}
    return text if plain else json.dumps(text, ensure_ascii=False)
