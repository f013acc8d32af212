"""Whether a run may begin in a folder or go on in it, and from where."""

from __future__ import annotations

import itertools
import os
import shlex
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from malora_cli.errors import RunError
from malora_cli.recipe import LoadedRecipe
from malora_cli.recipe.problems import show
from malora_cli.results import Manifest, RunRecord, TaskData
from malora_cli.train import checkpoints, processes

#: Settings of ``train`` that say how a run is watched, not what is learned.
WATCHING = frozenset(
    {
        "log_every",
        "eval_every",
        "eval_rows",
        "conflict_rows",
        "conflict_every",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
        "keep_best_of_tasks",
        "report_to",
        "not_finite",
        "max_skipped",
    }
)
#: What of these is learned by after all where a remedy goes by held-out losses.
_WATCHED = frozenset(("eval_every", "eval_rows"))
#: What a resumed run may change besides: how long it is, and with that the course of its learning rate.
_LENGTH = frozenset(("steps", "epochs"))


def how_to_go_on(record: RunRecord) -> str:
    """The command that resumes a run, to stand at the end of a message."""
    again = shlex.join(["malora", "train", str(record.recipe_path), "--resume"])
    return f"go on from the newest checkpoint with: {again}"


def check_free(record: RunRecord) -> None:
    """Make sure that the run's folder is free and can be made, before anything slow happens."""
    if record.path.exists():
        taken = (record.path.with_name(f"{record.name}-{number}") for number in itertools.count(2))
        rename = f"take another name: output.name={next(path.name for path in taken if not path.exists())}"
        if record.exists:
            raise RunError(
                "this run folder exists already, and runs are never overwritten",
                where=str(record.path),
                fix=f"Go on with it by --resume, or {rename}",
            )
        raise RunError("something else lies here", where=str(record.path), fix=f"Remove it, or {rename}")
    parent = next(path for path in [record.path.parent, *record.path.parent.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise unwritable(record.path, PermissionError(f"{parent} is not writable"))


def unwritable(path: Path, error: OSError) -> RunError:
    """What is raised where the run folder cannot be made or written."""
    return RunError(f"the run folder cannot be written ({error})", where=str(path), fix="Set output.folder to another.")


def resume_point(record: RunRecord, loaded: LoadedRecipe) -> Path | None:
    """The newest checkpoint of the run that a recipe goes on with; None to begin anew when there is none yet."""
    if not record.exists:
        remove = "Remove what lies there, and leave" if record.path.exists() else "Leave"
        raise RunError("there is no run to resume", where=str(record.path), fix=f"{remove} --resume out to start it.")
    if record.finished:
        raise RunError("this run is finished", where=str(record.path), fix=f"Evaluate it: malora eval {record.path}")
    may_change = WATCHING | _LENGTH
    if any(remedy.goes_by_evaluations for remedy in loaded.recipe.remedies.chosen.values()):
        may_change -= _WATCHED
    check_same_recipe(record, loaded, may_change=may_change)
    checkpoint = checkpoints.newest_intact(record.checkpoints_dir)
    if checkpoint is not None and checkpoints.processes_of(checkpoint) != processes.world_size():
        raise RunError(
            f"the run was trained in {checkpoints.processes_of(checkpoint)} processes, and these are "
            f"{processes.world_size()}",
            where=str(record.path),
            fix="Resume it in as many.",
        )
    return checkpoint


def continued(record: RunRecord, manifest: Manifest) -> Manifest:
    """The manifest of a run that goes on, which must stand on the rows and the base model that it began with."""
    before = record.manifest
    changed = [
        *(f"the training rows of '{name}'" for name in _changed(before.train_data, manifest.train_data)),
        *(f"the test rows of '{name}'" for name in _changed(before.test_data, manifest.test_data)),
        *(["the base model"] if before.base_model_sha256 != manifest.base_model_sha256 else []),
    ]
    if changed:
        raise RunError(
            f"no longer what this run began with: {', '.join(changed)}",
            where=str(record.path),
            fix="Undo that, or start another run: output.name=NAME.",
        )
    return manifest.model_copy(update={"created": before.created})


def _changed(before: dict[str, TaskData], now: dict[str, TaskData]) -> list[str]:
    return [name for name in now if now[name].sha256 != before[name].sha256]


def check_same_recipe(record: RunRecord, loaded: LoadedRecipe, *, may_change: Collection[str] = WATCHING) -> None:
    """Make sure that a run is what a recipe asks for, as far as what is learned goes.

    Args:
        record: The run.
        loaded: The recipe.
        may_change: Settings of ``train`` that may differ; those of ``eval`` and ``output`` always may.

    Raises:
        RunError: It differs; every setting is named with both values.
    """
    allowed = {f"train.{setting}" for setting in may_change}
    changed = [
        f"{path} (was {show(before)}, is {show(now)})"
        for path, before, now in _differences(record.recipe, loaded.recipe.model_dump(mode="json"))
        if path not in allowed and not path.startswith(("eval.", "output."))
    ]
    if changed:
        raise RunError(
            f"the recipe differs from the run's own in {', '.join(sorted(changed))}",
            where=str(record.recipe_path),
            fix="Undo that, or start another run: output.name=NAME.",
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield path, old, new
