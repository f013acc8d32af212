"""What TensorBoard, W&B, MLflow or Trackio are told of a run, and where TensorBoard keeps it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatch
from itertools import combinations
from pathlib import Path
from statistics import fmean

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from malora_cli.results import ConflictEvent, EvalEvent, Event, TaskLoss, TrainEvent


@singledispatch
def tracked(event: Event) -> dict[str, float]:
    """The numbers of an event by the names that trackers have for them.

    Transformers puts ``train/`` before a name, and ``eval/`` in the place of ``eval_``.
    """
    raise TypeError(type(event))


@tracked.register
def _(event: TrainEvent) -> dict[str, float]:
    rest = {
        "tokens_per_second": event.tokens_per_second,
        "balance_loss": event.balance_loss,
        **{f"share/{name}": share for name, share in (event.task_share or {}).items()},
        **{f"loss_weight/{name}": weight for name, weight in (event.loss_weight or {}).items()},
    }
    return _losses("loss", event.tasks) | {name: value for name, value in rest.items() if value is not None}


@tracked.register
def _(event: EvalEvent) -> dict[str, float]:
    losses = _losses("eval_loss", event.tasks)
    return losses | ({"eval_loss": fmean(losses.values())} if losses else {})


@tracked.register
def _(event: ConflictEvent) -> dict[str, float]:
    cosine = event.groups["all"].cosine
    pairs = [cosine[a][b] for a, b in combinations(range(len(event.tasks)), 2)]
    if not pairs:
        return {}
    return {"gradients/lowest_cosine": min(pairs), "gradients/opposed_pairs": sum(one < 0 for one in pairs)}


def _losses(prefix: str, tasks: dict[str, TaskLoss]) -> dict[str, float]:
    return {f"{prefix}/{name}": task.loss for name, task in tasks.items() if task.loss is not None}


def keep_in(folder: Path, callbacks: Iterable[TrainerCallback]) -> None:
    """Let TensorBoard write into this folder, unless its environment variable names another.

    Its own choice is a new one a start, named for the time and the machine.
    """
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(folder)
