"""Whether a run may begin in a folder or go on in it, and from where. Without torch, but for its checkpoints."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from malora_cli.characters import plural
from malora_cli.errors import RunError
from malora_cli.places import PLACES
from malora_cli.recipe import COMMAND_LINE, LoadedRecipe
from malora_cli.recipe.differences import differences
from malora_cli.recipe.problems import show
from malora_cli.results import Manifest, RunRecord, TaskData, check_not_written, why_unwritable
from malora_cli.train.ranks import world_size

#: Settings of ``train`` that say how a run is watched, not what is learned.
WATCHING = frozenset(
    {
        "log_every",
        "eval_every",
        "eval_on_start",
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
#: What of these is learned by after all where a remedy goes by validation losses.
_WATCHED = frozenset(("eval_every", "eval_on_start", "eval_rows"))
#: What a resumed run may change besides: how long it is, and with that the course of its learning rate.
_LENGTH = frozenset(("steps", "epochs"))


def how_to_go_on(record: RunRecord) -> str:
    """The command that resumes a run, to stand at the end of a message."""
    return f"go on from the newest checkpoint with: {resume_command(record)}"


def resume_command(record: RunRecord) -> str:
    """The command that resumes a run, from where it was started."""
    command = ["malora", "train", str(record.recipe_path), "--resume"]
    if world_size() > 1:
        command += ["--nproc", str(world_size())]
    return shlex.join([*command, *grants(record)])


def grants(record: RunRecord) -> list[str]:
    """What a command says beside a run so that code is run that the run's recipe names, as it was when it began."""
    found = []
    with suppress(RunError):  # what cannot be read grants nothing
        if (record.recipe.get("model") or {}).get("trust_remote_code") is True:
            found.append("--trust-remote-code")
        if (record.recipe.get("eval") or {}).get("trust_metric_code") is True:
            found.append("eval.trust_metric_code=true")
    return found


def run_of(loaded: LoadedRecipe, *, resume: bool) -> RunRecord:
    """The run that a recipe means: where one goes on by its own recipe, the folder that this lies in.

    So a run goes on that was moved, or from another folder; what the command line says of its place goes before.
    """
    own = RunRecord(loaded.path.parent)
    placed = COMMAND_LINE in (loaded.provenance.get("output.folder"), loaded.provenance.get("output.name"))
    if resume and not placed and loaded.path.name == own.recipe_path.name and own.exists:
        return own
    return RunRecord(loaded.recipe.output.folder / loaded.name)


def check_place(record: RunRecord, *, resume: bool) -> bool:
    """Make sure that a run may begin in its folder or go on in it, which is left as it is.

    Returns:
        Whether it goes on: there is nothing to go on with where it was killed before it had written what it is.

    Raises:
        RunError: It may not.
    """
    check_not_written(record)
    if resume and record.finished:
        raise RunError("this run is finished", where=str(record.path), fix=f"Evaluate it: malora eval {record.path}")
    if resume and not record.exists and not (record.free and record.path.exists()):
        remove = "Remove what lies there, and leave" if record.path.exists() else "Leave"
        raise RunError("no run to resume", where=str(record.path), fix=f"{remove} --resume out to start it.")
    if not resume:
        _check_free(record)
    if (why := why_unwritable(record.path)) is not None:
        raise unwritable(record.path, why)
    for folder in (record.checkpoints_dir, record.adapter_dir, record.trouble_dir):
        if folder.exists() and not folder.is_dir():
            raise RunError("not a folder, and a run has one of this name", where=str(folder), fix="Move it away.")
    return resume and record.exists


def _check_free(record: RunRecord) -> None:
    rename = f"take another name: output.name={record.free_name()}"
    if record.exists:
        raise RunError(
            "this run folder exists already, and runs are never overwritten",
            where=str(record.path),
            fix=f"Go on with it by --resume, or {rename}",
        )
    if not record.free:
        raise RunError("something else lies here", where=str(record.path), fix=f"Remove it, or {rename}")


def unwritable(path: Path, why: str | None) -> RunError:
    """What is raised where the run folder cannot be made or written."""
    return RunError(f"the run folder cannot be written ({why})", where=str(path), fix="Set output.folder to another.")


def resume_point(record: RunRecord, loaded: LoadedRecipe) -> Path | None:
    """The newest checkpoint of the run that a recipe goes on with; None to begin anew when there is none yet."""
    from malora_cli.train import checkpoints

    _check_validated(record)
    may_change = WATCHING | _LENGTH
    if any(remedy.goes_by_evaluations for remedy in loaded.recipe.remedies.chosen.values()):
        may_change -= _WATCHED
    check_same_recipe(record, loaded, may_change=may_change, may_move=True)
    checkpoint = checkpoints.newest_intact(record.checkpoints_dir, record.manifest.run_id)
    if checkpoint is not None and checkpoints.processes_of(checkpoint) != world_size():
        raise RunError(
            f"the run was trained in {checkpoints.processes_of(checkpoint)} processes, and these are {world_size()}",
            where=str(record.path),
            fix="Resume it in as many.",
        )
    return checkpoint


def _check_validated(record: RunRecord) -> None:
    """Refuse runs of versions without validation rows: on the way they were measured, and chosen from, on test rows."""
    if not record.knows_validation:
        raise RunError(
            "this run was begun by an older version, which trained on what are validation rows now and measured test "
            "rows",
            where=str(record.path),
            fix="Start another run: output.name=NAME. What it saved can be scored: malora eval RUN --step N.",
        )


def check_length(record: RunRecord, checkpoint: Path, steps: int) -> None:
    """Make sure that a run is not to be shorter than it already is: it would be taken for one of so many steps."""
    from malora_cli.train.checkpoints import step_of

    done = step_of(checkpoint)
    if steps < done:
        raise RunError(
            f"it has been trained for {plural(done, 'step')} already, and the recipe asks for {steps:,}",
            where=str(record.path),
            fix="Set train.steps or train.epochs higher, or start another run: output.name=NAME.",
        )


def continued(record: RunRecord, manifest: Manifest) -> Manifest:
    """The manifest of a run that goes on, which must stand on the rows and the base model that it began with."""
    before = record.manifest
    changed = [
        *(f"the training rows of '{name}'" for name in _changed(before.train_data, manifest.train_data)),
        *(f"the validation rows of '{name}'" for name in _changed(before.validation_data, manifest.validation_data)),
        *(f"the test rows of '{name}'" for name in _changed(before.test_data, manifest.test_data)),
        *([] if before.stands_on(manifest.base_model_sha256, manifest.base_model_commit) else ["the base model"]),
    ]
    if changed:
        raise RunError(
            f"no longer what this run began with: {', '.join(changed)}",
            where=str(record.path),
            fix="Undo that, or start another run: output.name=NAME.",
        )
    return manifest.model_copy(update={"created": before.created, "run_id": before.run_id})


def _changed(before: dict[str, TaskData], now: dict[str, TaskData]) -> list[str]:
    hashes = [{name: data.sha256 for name, data in split.items()} for split in (before, now)]
    return [name for name in hashes[0] | hashes[1] if hashes[0].get(name) != hashes[1].get(name)]


def check_same_recipe(
    record: RunRecord, loaded: LoadedRecipe, *, may_change: Collection[str] = WATCHING, may_move: bool = False
) -> None:
    """Make sure that a run is what a recipe asks for, as far as what is learned goes.

    Args:
        record: The run.
        loaded: The recipe.
        may_change: Settings of ``train`` that may differ; those of ``eval``, ``output`` and the device always may.
        may_move: Whether files may lie elsewhere, where hashes are going to say whether they are the same.

    Raises:
        RunError: It differs; every setting is named with both values.
    """
    allowed = {"model.device", *(f"train.{setting}" for setting in may_change)}
    changed = [
        f"{path} (was {show(before)}, is {show(now)})"
        for path, before, now in differences(record.recipe, loaded.recipe.model_dump(mode="json"))
        if path not in allowed
        and not path.startswith(("eval.", "output."))
        and not (may_move and path.rpartition(".")[2] in PLACES)
    ]
    if changed:
        raise RunError(
            f"the recipe differs from the run's own in {', '.join(sorted(changed))}",
            where=str(record.recipe_path),
            fix="Undo that, or start another run: output.name=NAME.",
        )
