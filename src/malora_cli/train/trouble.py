"""What goes wrong in a step: memory that does not suffice, and a loss or a gradient that is no number."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from malora_cli.characters import plural
from malora_cli.data.batch import Packer, collate
from malora_cli.data.mixture import Mixture
from malora_cli.errors import DivergedError, RunError
from malora_cli.modeling.loss import example_nats
from malora_cli.results import write_json
from malora_cli.train import processes, sharding

#: What to do where one row of a step does not fit.
ONE_ROW = "Set train.max_length lower, or train.gradient_checkpointing to true."
#: What to do where several processes cannot go on with smaller micro-batches by themselves.
SMALLER = "Set train.micro_batch_tokens or train.micro_batch_size lower."


def not_in_one_process(where: str, fix: str) -> RunError:
    """What one of several processes ends with: the others wait for what it can no longer give."""
    return RunError("a micro-batch does not fit into memory", where=where, fix=fix)


def smaller(where: str, packer: Packer, *, balanced: bool) -> str:
    """The line that tells of smaller micro-batches.

    Args:
        where: What did not fit.
        packer: The micro-batches of now.
        balanced: Whether routers are trained with a balance loss.
    """
    sizes = plural(packer.rows, "row") + (f" or {packer.tokens} tokens" if packer.tokens is not None else "")
    routers = "; routers balance over one micro-batch at a time, and so over fewer rows" if balanced else ""
    return (
        f"{where} does not fit into memory; from here on micro-batches are of at most {sizes}, and the optimiser sees "
        f"the same rows as before{routers}"
    )


@dataclass(frozen=True)
class Row:
    """One row of the step in question; ``row`` counts from 1 in its source, ``nats`` is None where it is no number."""

    task: str
    source: str
    row: int
    tokens: int
    nats: float | None


def rows_of_step(model: nn.Module, mixture: Mixture, step: int) -> list[Row]:
    """The rows of an optimiser step, each with its loss under the model as it stands, dropout aside.

    Args:
        model: The model.
        mixture: The rows in their order.
        step: Steps done before.
    """
    positions = step * mixture.batch_size + np.arange(mixture.batch_size)
    tasks, rows = mixture.order.at(positions)
    found = []
    for task, row, example in zip(tasks.tolist(), rows.tolist(), mixture.__getitems__(positions.tolist()), strict=True):
        [(nats, _)] = example_nats(model, [collate([example])])
        split = mixture.tasks[task].train
        [number] = split.source_rows([row])
        loss = nats if math.isfinite(nats) else None
        found.append(Row(mixture.tasks[task].name, split.source, number, len(example.input_ids), loss))
    return found


def write_down(rows: list[Row], what: str, step: int, path: Path) -> None:
    """Keep the rows of a step that went wrong in the run folder."""
    write_json(path, {"step": step + 1, "what": what, "rows": [asdict(row) for row in rows]})


def culprits(rows: list[Row]) -> str:
    """The rows whose own loss is no number, or all tasks of the step where none is by itself."""
    guilty = [row for row in rows if row.nats is None]
    if guilty and len(guilty) < len(rows):
        return ", ".join(f"row {row.row} of task '{row.task}'" for row in guilty[:3]) + (" ..." if guilty[3:] else "")
    tasks = ", ".join(dict.fromkeys(f"'{row.task}'" for row in rows))
    return f"rows of {tasks}"


def not_finite(what: str, rows: list[Row], step: int, path: Path) -> DivergedError:
    """What a run ends with: nothing that comes after could be a number.

    Args:
        what: ``"loss"`` or ``"gradient"``.
        rows: The rows of the step.
        step: Steps done before.
        path: Where the rows are written down.
    """
    return DivergedError(
        f"the {what} is not a finite number ({culprits(rows)}; all rows of the step: {path})",
        where=f"step {step + 1}",
        fix="Train again under another name (output.name=NAME) with a lower train.learning_rate, or set "
        "train.not_finite to skip.",
    )


def check_weights(model: nn.Module, step: int) -> None:
    """Make sure that what is trained is worth saving, in all processes.

    Raises:
        DivergedError: A weight is no finite number.
    """
    trained = {name: sharding.local(p.detach()) for name, p in model.named_parameters() if p.requires_grad}
    wrong = next((name for name, weight in trained.items() if not torch.isfinite(weight).all()), None)
    if processes.most(wrong is not None, next(iter(trained.values())).device):
        which = wrong or "those of another process"
        raise DivergedError(
            f"the weights are NaN or infinite ({which}), so they are not saved",
            where=f"step {step}",
            fix="Train again under another name (output.name=NAME) with a lower train.learning_rate.",
        )
