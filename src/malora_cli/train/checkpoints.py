"""Checkpoints: what a killed run goes on from. Safetensors and JSON only; each appears whole or not at all."""

from __future__ import annotations

import random
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from malora_cli.errors import RunError
from malora_cli.results import checkpoint_name, checkpoints_in, file_sha256, read_json, write_json
from malora_cli.results.contents import CONTENTS, checkpoint_damage
from malora_cli.results.files import WINDOWS, damaged, flush
from malora_cli.train import sharding

_SCRATCH = ".writing-"
_TENSORS = "training_state.safetensors"
_VALUES = "training_state.json"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return [path for _, path in checkpoints_in(folder)]


def step_of(checkpoint: Path) -> int:
    """The optimiser step a checkpoint was written after."""
    return int(checkpoint.name.removeprefix("step-"))


def prune(folder: Path, *, newest: int, best: int = 0, of_tasks: bool = False) -> None:
    """Remove all but some checkpoints, and what interrupted writes left behind.

    Args:
        folder: Where they lie.
        newest: How many of the newest to keep.
        best: How many to keep besides, of those with the lowest validation loss, mean over tasks.
        of_tasks: Keep for each task that of its own lowest validation loss as well.
    """
    everything = checkpoints(folder)
    losses = validation_losses(everything) if best or of_tasks else {}
    older = {path: sum(tasks.values()) / len(tasks) for path, tasks in losses.items() if path in everything[:-newest]}
    kept = {*everything[-newest:], *sorted(older, key=lambda path: older[path])[:best]}
    if of_tasks:
        kept.update(best_of_tasks(losses).values())
    for path in everything:
        if path not in kept:
            _remove(path)
    clear_scratch(folder)


def validation_losses(paths: Sequence[Path]) -> dict[Path, dict[str, float]]:
    """The validation loss of every task by checkpoint, those of steps without an evaluation left out."""
    found = {}
    for path in paths:
        with suppress(RunError):  # damaged, and not one that is gone on from: it has no loss to be kept for
            found[path] = load_extra(path).get("validation")
    return {path: losses for path, losses in found.items() if losses}


def best_of_tasks(losses: Mapping[Path, Mapping[str, float]]) -> dict[str, Path]:
    """For each task the checkpoint of its lowest validation loss, the earliest of equals.

    Args:
        losses: As `validation_losses` of checkpoints from old to new.
    """
    found: dict[str, Path] = {}
    for path, tasks in losses.items():
        for task, loss in tasks.items():
            if task not in found or loss < losses[found[task]][task]:
                found[task] = path
    return found


def clear_scratch(folder: Path) -> None:
    """Remove what an interrupted write or removal left behind."""
    for path in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


def _remove(checkpoint: Path) -> None:
    """Take a checkpoint away, under another name first: a kill must not leave half of one."""
    scratch = checkpoint.with_name(f"{_SCRATCH}{checkpoint.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        checkpoint.rename(scratch)
    except PermissionError:
        if not WINDOWS:
            raise
        return  # a file of it is still open, and there that keeps it; it goes with the next
    shutil.rmtree(scratch, ignore_errors=True)


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files; None where they are those that were written."""
    return checkpoint_damage(checkpoint, step_of(checkpoint))


def newest_intact(folder: Path, run_id: str | None = None) -> Path | None:
    """The newest checkpoint that is as it was written; damaged ones are warned of and taken away.

    Taken away, since they would count among those to keep, and the run writes them again.

    Args:
        folder: Where they lie.
        run_id: That of the run which goes on.

    Raises:
        RunError: It is another run's.
    """
    clear_scratch(folder)
    for checkpoint in reversed(checkpoints(folder)):
        wrong = damage(checkpoint)
        if wrong is None:
            if read_json(checkpoint / CONTENTS).get("run_id") != run_id:
                fix = "Move it away, and resume again."
                raise RunError("this checkpoint is another run's", where=str(checkpoint), fix=fix)
            return checkpoint
        warnings.warn(f"checkpoint {checkpoint} is damaged ({wrong}); an earlier one is taken", stacklevel=2)
        _remove(checkpoint)
    return None


def begin(folder: Path, step: int) -> Path:
    """A scratch folder for the checkpoint of a step; `commit` makes it one."""
    scratch = folder / f"{_SCRATCH}{checkpoint_name(step)}"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    return scratch


def commit(scratch: Path, run_id: str | None = None) -> Path:
    """Note the hash of every file of a scratch folder, flush it to disk and give it its name, in one rename.

    Args:
        scratch: From `begin`.
        run_id: Whose checkpoint it is.
    """
    final = scratch.with_name(scratch.name.removeprefix(_SCRATCH))
    (scratch / CONTENTS).unlink(missing_ok=True)
    files = {path.relative_to(scratch).as_posix(): file_sha256(path) for path in scratch.rglob("*") if path.is_file()}
    write_json(scratch / CONTENTS, {"run_id": run_id, "step": step_of(final), "files": files})
    flush(scratch)
    if final.is_dir():  # the same step, written again by a resumed run
        shutil.rmtree(final)
    else:
        final.unlink(missing_ok=True)
    return scratch.rename(final)


def random_state() -> dict[str, Any]:
    """What this process's random generators know."""
    kind, keys, *rest = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
    }


def save_training_state(
    folder: Path,
    state: dict[str, Any],
    scheduler: LRScheduler,
    generators: Sequence[dict[str, Any]],
    extra: dict[str, Any],
) -> None:
    """Write what the optimiser, the scheduler and the random generators know.

    Args:
        folder: The checkpoint being written.
        state: That of the optimiser; its tensors go to safetensors by parameter number.
        scheduler: Its numbers go to JSON.
        generators: `random_state` of every process, by rank.
        extra: Further JSON values.
    """
    tensors: dict[str, Tensor] = {}
    for index, slots in state["state"].items():
        tensors |= {f"optimizer.{index}.{slot}": torch.as_tensor(value).contiguous() for slot, value in slots.items()}
    for rank, generator in enumerate(generators):
        tensors |= {f"rng.{rank}.{name}": generator[name] for name in ("torch", "cuda") if generator[name] is not None}
    save_file(tensors, folder / _TENSORS)
    scheduled = {key: value for key, value in scheduler.state_dict().items() if key != "lr_lambdas"}
    values = {
        "param_groups": state["param_groups"],
        "scheduler": scheduled,
        "generators": [{name: generator[name] for name in ("python", "numpy")} for generator in generators],
        "extra": extra,
    }
    write_json(folder / _VALUES, values)


def load_optimizer_and_scheduler(folder: Path, optimizer: Optimizer, scheduler: LRScheduler) -> None:
    """Bring optimiser and scheduler to where the checkpoint was written."""
    with _reading(folder):
        values, tensors = read_json(folder / _VALUES), load_file(folder / _TENSORS)
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, slot = rest.partition(".")
                state.setdefault(int(index), {})[slot] = tensor
        state = sharding.spread_like(optimizer, state)
        optimizer.load_state_dict({"state": state, "param_groups": values["param_groups"]})
        scheduler.load_state_dict({**scheduler.state_dict(), **values["scheduler"]})


def processes_of(folder: Path) -> int:
    """How many processes wrote a checkpoint."""
    with _reading(folder):
        return len(read_json(folder / _VALUES)["generators"])


def load_random_state(folder: Path, rank: int) -> None:
    """Bring this process's random generators to where the checkpoint was written."""
    with _reading(folder):
        generator, tensors = read_json(folder / _VALUES)["generators"][rank], load_file(folder / _TENSORS)
        version, keys, gauss = generator["python"]
        random.setstate((version, tuple(keys), gauss))
        kind, numbers, *rest = generator["numpy"]
        np.random.set_state((kind, np.asarray(numbers, dtype=np.uint32), *rest))
        torch.set_rng_state(tensors[f"rng.{rank}.torch"])
        if f"rng.{rank}.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[f"rng.{rank}.cuda"])


def load_extra(folder: Path) -> dict[str, Any]:
    """The further values that were saved with a checkpoint."""
    with _reading(folder):
        return dict(read_json(folder / _VALUES)["extra"])


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Within the block, what is not as it was saved is one line."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        fix = "Remove this checkpoint, and the one before it is taken."
        raise damaged(folder, "training state", error, fix=fix) from error
