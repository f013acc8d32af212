"""What happens after every step, beside training: telling of it, and stopping where that was asked for."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from malora_cli.recipe import TrainSettings
from malora_cli.results import EvalEvent, Event
from malora_cli.train import processes
from malora_cli.train.stopping import StopRequest


@dataclass(frozen=True)
class Pace:
    """What the trainer does how often and whom it tells, beside the arguments of transformers.

    Args:
        settings: The recipe's.
        trouble: Folder for the rows of steps that went wrong.
        report: Receives every log step and evaluation.
        tick: Receives the number of every step that is done.
        evaluating: Told that the validation rows are about to be measured.
        past: Evaluations that a resumed run made before.
    """

    settings: TrainSettings
    trouble: Path
    report: Callable[[Event], None]
    tick: Callable[[int], None]
    evaluating: Callable[[], None]
    past: Sequence[EvalEvent] = ()


class EachStep(TrainerCallback):
    """Tells of every step; the last one is evaluated and saved even where it is no multiple of the intervals.

    Args:
        tick: Called with the number of each step that is done.
        may_end: Whether an evaluation may end the run.
    """

    def __init__(self, tick: Callable[[int], None], *, may_end: bool) -> None:
        self.tick, self.may_end = tick, may_end

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Take the intervals of the recipe, which a resumed run may have changed, over those of the checkpoint."""
        state.logging_steps, state.eval_steps, state.save_steps = args.logging_steps, args.eval_steps, args.save_steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Tell of the step, and ask for everything after the last one."""
        self.tick(state.global_step)
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True
        # What a log step sums up must not be torn apart by a run that ends and goes on from the checkpoint.
        ends = control.should_save or (self.may_end and control.should_evaluate)
        control.should_log = control.should_log or ends
        return control


class StopAtStep(TrainerCallback):
    """Saves and ends the training at the end of the step in which it was told to stop.

    Args:
        request: Knows whether it was.
    """

    def __init__(self, request: StopRequest) -> None:
        self.request = request

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Look whether it is time; one process that was told is enough."""
        if processes.most(self.request.signal is not None, args.device):
            self.request.signal = self.request.signal or signal.SIGTERM
            control.should_save = control.should_log = control.should_training_stop = True
        return control
