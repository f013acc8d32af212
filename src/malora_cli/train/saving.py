"""A `Trainer` whose checkpoints are safetensors and JSON, each whole or not there at all."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME

from malora_cli.modeling import save_adapter
from malora_cli.recipe import TrainSettings
from malora_cli.train import checkpoints, processes, sharding


class SavingTrainer(Trainer):
    """Writes and reads checkpoints in the place of transformers' own, which are pickles."""

    #: Which checkpoints are kept.
    keep: TrainSettings
    #: Whose they are.
    run_id: str | None

    @abstractmethod
    def checkpoint_extra(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights, optimiser and random state; all processes have to ask for it."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder, keep = Path(self.args.output_dir), self.keep
        scaler = self.accelerator.scaler
        extra = {**self.checkpoint_extra(), "scaler": scaler.state_dict() if scaler is not None else None}
        generators = processes.everyones(checkpoints.random_state())
        weights, optimizer = sharding.adapter_weights(self.model), sharding.optimizer_state(self.optimizer)
        if not processes.writes():
            return
        try:
            scratch = checkpoints.begin(folder, self.state.global_step)
            save_adapter(self.model, scratch, weights)
            checkpoints.save_training_state(scratch, optimizer, self.lr_scheduler, generators, extra)
            self.state.save_to_json(str(scratch / TRAINER_STATE_NAME))
            checkpoints.commit(scratch, self.run_id)
            checkpoints.prune(
                folder, newest=keep.keep_checkpoints, best=keep.keep_best, of_tasks=keep.keep_best_of_tasks
            )
        except (OSError, SafetensorError):  # which is what a full disk is to safetensors
            checkpoints.clear_scratch(folder)
            raise

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """The model was given its adapter when it was made."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_optimizer_and_scheduler(Path(checkpoint), self.optimizer, self.lr_scheduler)

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(checkpoints.load_extra(Path(checkpoint))["scaler"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            checkpoints.load_random_state(Path(checkpoint), processes.rank())
