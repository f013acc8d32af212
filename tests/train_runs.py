"""Training the tiny recipe in the process of a test, and looking at what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from conftest import write_mix, write_recipe
from malora_cli.cli import main
from malora_cli.named import vocabulary
from malora_cli.recipe import LoadedRecipe, load_recipe
from malora_cli.results import EvalEvent, Event, RunRecord, TrainEvent
from malora_cli.train.run import train


class SilentView:
    """Shows nothing, remembers everything, and can be told to fail at a step."""

    def __init__(self, at_step: Callable[[int], None] = lambda _step: None) -> None:
        self.events: list[TrainEvent | EvalEvent] = []
        self.at_step = at_step

    @contextmanager
    def running(self, steps: int, share: Mapping[str, float], past: Iterable[Event] = ()) -> Iterator[None]:
        yield

    def tick(self, step: int) -> None:
        self.at_step(step)

    def evaluating(self) -> None:
        pass

    def show(self, event: TrainEvent | EvalEvent) -> None:
        self.events.append(event)


def workplace(folder: Path, model: Path) -> Path:
    """The tiny recipe and its data in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_recipe(folder, model, write_mix(folder))


def load(recipe: Path, *overrides: str) -> LoadedRecipe:
    return load_recipe(recipe, overrides, vocabulary=vocabulary())


def train_run(
    recipe: Path, *overrides: str, resume: bool = False, at_step: Callable[[int], None] = lambda _step: None
) -> RunRecord:
    """Train the recipe with overrides."""
    return train(load(recipe, *overrides), SilentView(at_step), resume=resume)


class Killed(BaseException):
    """What stands for a kill: nothing catches it."""


def kill_at(step: int) -> Callable[[int], None]:
    """Ends the process, as far as the run can tell, right after a step."""

    def at_step(done: int) -> None:
        if done == step:
            raise Killed

    return at_step


def adapter(record: RunRecord) -> dict[str, torch.Tensor]:
    return load_file(record.adapter_dir / "adapter_model.safetensors")


def same_weights(first: RunRecord, second: RunRecord) -> bool:
    """Whether two adapters are the same bit for bit."""
    one, two = adapter(first), adapter(second)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def measured(record: RunRecord) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock."""
    clock = {"seconds", "tokens_per_second", "seconds_per_step", "cost_seconds"}
    return [event.model_dump(exclude=clock) for event in record.metrics]


def losses(record: RunRecord) -> list[dict[str, float | None]]:
    """The loss of every task at every log step."""
    return [{name: task.loss for name, task in event.tasks.items()} for event in record.metrics.train()]


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    """Change a JSON file in place."""
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    [line] = capsys.readouterr().err.splitlines()
    assert (caught.value.code, line[:7]) == (2, "error: ")
    return line
