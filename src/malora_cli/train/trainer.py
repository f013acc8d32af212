"""A thin `Trainer` that knows which task a token belongs to."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, TrainerControl, TrainingArguments

from malora_cli.adapters.routing import Routing, let_go_of_gates, routing_of, scale_balance_with, unbalanced
from malora_cli.data.batch import Batch, Packer, TrainExample, collate
from malora_cli.data.mixture import Mixture
from malora_cli.data.tasks import Task
from malora_cli.modeling.adapter import balance_factor
from malora_cli.modeling.loss import moved, token_nats
from malora_cli.modeling.memory import Attempt, halved
from malora_cli.recipe import RemediesSettings
from malora_cli.results import Event, TrainEvent
from malora_cli.train import checkpoints, measuring, processes, sharding, trouble
from malora_cli.train.adaptation import Adaptation
from malora_cli.train.callbacks import EachStep, Pace
from malora_cli.train.remedies._base import Remedy
from malora_cli.train.saving import SavingTrainer
from malora_cli.train.task_losses import TaskLosses
from malora_cli.train.tracking import keep_in, tracked


class MaloraTrainer(SavingTrainer):
    """Trains on a mixture and reports the loss of every task.

    Args:
        model: The wrapped model.
        args: transformers' arguments.
        mixture: The training rows in their order.
        tasks: The tasks, in the order of the batches' task numbers.
        packer: Parts the rows of a step into micro-batches.
        remedies: The recipe's.
        pace: What happens how often.
        run_id: What its checkpoints bear, to be told from those of other runs.
        checkpoint: Checkpoint that this run goes on from.
    """

    control: TrainerControl

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        mixture: Mixture,
        tasks: list[Task],
        packer: Packer,
        remedies: RemediesSettings,
        pace: Pace,
        run_id: str | None = None,
        checkpoint: Path | None = None,
    ) -> None:
        may_end = any(remedy.goes_by_evaluations for remedy in remedies.chosen.values())
        super().__init__(
            model=model,
            args=args,
            data_collator=list,  # parted into micro-batches when the step begins
            train_dataset=mixture,
            eval_dataset=tasks,
            callbacks=[EachStep(self._done, may_end=may_end)],
        )
        if self.accelerator.ddp_handler is not None:
            self.accelerator.ddp_handler.gradient_as_bucket_view = True  # or DDP keeps every gradient a second time
        self.remove_callback(PrinterCallback)
        keep_in(Path(args.output_dir).parent / "tensorboard", self.callback_handler.callbacks)
        # The model is spread already, so that neither DDP nor anything else is to be put around it.
        self.is_distributed_loading_by_transformers = pace.settings.shard
        # The loss is divided by the supervised tokens of the whole step, so that its parting changes nothing of it;
        # routers balance over one micro-batch at a time, so their part does depend on it.
        self.loss_is_scaled_for_ga = True
        self.mixture, self.tasks, self.packer, self.pace = mixture, tasks, packer, pace
        self.keep, self.run_id = pace.settings, run_id
        extra = checkpoints.load_extra(checkpoint) if checkpoint else {}
        self.seconds_before, self.skipped = extra.get("seconds", 0.0), extra.get("skipped", 0)
        if "packer" in extra:  # smaller than the recipe's, where memory did not suffice
            self.packer = Packer(*extra["packer"])
        self.task_losses = TaskLosses([task.name for task in tasks], args.device)
        self.adaptation = Adaptation(remedies, mixture, evals=pace.past, seed=pace.settings.seed, device=args.device)
        if "adaptation" in extra:
            self.adaptation.restore(extra["adaptation"])
        self.ledgers = [self.task_losses, *self.adaptation.ledgers]
        self.routing = routing_of(model)
        if self.routing is not None:
            self.routing.tally = self.routing.new_tally(model)
        self._finite = True  # the loss of the step at hand
        self._tokens, self._logged_step = 0, checkpoints.step_of(checkpoint) if checkpoint else 0
        self._started = self._logged = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent training, earlier sessions of a resumed run included."""
        return self.seconds_before + time.perf_counter() - self._started

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        """The mixture is in its order already; a resumed run skips positions, which costs no row."""
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """That of transformers, with what remedies train in groups of its own."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        for group in self.adaptation.parameter_groups():
            optimizer.add_param_group(group)
        return optimizer

    def _done(self, step: int) -> None:
        self.adaptation.after_step(step)
        every = self.pace.settings.conflict_every
        if every is not None and step % every == 0:
            started = time.perf_counter()
            self._compare_gradients(step)
            self._pause_since(started)
        self.pace.tick(step)

    def _compare_gradients(self, step: int) -> None:
        rows = self.pace.settings.conflict_rows
        if rows is None:
            return
        if (event := measuring.conflict(self.model, self.tasks, self.packer, rows=rows, step=step)) is not None:
            self._report(event)

    def _get_num_items_in_batch(self, batch_samples: list[list[TrainExample]], device: torch.device) -> Tensor:
        tokens = sum(example.label_tokens for step in batch_samples for example in step)
        return processes.add_up(torch.tensor(tokens, device=device))

    def training_step(
        self, model: nn.Module, inputs: list[TrainExample], num_items_in_batch: Tensor | None = None
    ) -> Tensor:
        """Gradients of one optimiser step, a micro-batch at a time; their losses are parts of one mean, so they add.

        Where memory does not suffice, the step begins again in micro-batches of half the size, which are kept to.
        """
        before = self._remembered()
        while True:
            with Attempt() as attempt:
                loss = self._gradients(model, inputs, num_items_in_batch)
            if not attempt.out_of_memory:
                break
            self._forget(before)
            self._halve()
        self.adaptation.share_gradients()
        self._finite = not processes.most(not torch.isfinite(loss), loss.device)
        if self._finite:
            return loss
        self._forget(before)
        self._trouble("loss")
        return torch.zeros_like(loss)

    def _gradients(self, model: nn.Module, inputs: list[TrainExample], num_items_in_batch: Tensor | None) -> Tensor:
        surgeon = self.adaptation.surgeon
        if surgeon is None:
            return self._accumulate(model, inputs, num_items_in_batch)
        return self._operate(surgeon, model, inputs, num_items_in_batch)

    def _accumulate(self, model: nn.Module, inputs: list[TrainExample], num_items_in_batch: Tensor | None) -> Tensor:
        parts = self.packer.parted(inputs)
        # Routers of all processes exchange their load in every forward, so all must have as many of them.
        for _ in range(int(processes.most(len(parts), self.args.device)) - len(parts)):
            longest = max(range(len(parts)), key=lambda number: len(parts[number]))
            half = len(parts[longest]) // 2
            parts[longest : longest + 1] = [parts[longest][:half], parts[longest][half:]]
        losses = []
        for number, part in enumerate(parts, start=1):
            # Gradients travel between processes once a step, with those of its last micro-batch.
            last = number == len(parts)
            sharding.exchange_gradients(model, last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                batch = moved(collate(part), self.args.device)  # transformers itself would wait for a GPU
                losses.append(super().training_step(model, batch, num_items_in_batch))
        return torch.stack(losses).sum()

    def _operate(
        self, surgeon: Remedy[Any], model: nn.Module, inputs: list[TrainExample], num_items_in_batch: Tensor | None
    ) -> Tensor:
        """Gradients of one task after another, then together what surgery leaves of them.

        Routers balance over the rows of all tasks: each by itself would have to make even use of all experts.
        """
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        losses, gradients = [], []
        for task in sorted({example.task for example in inputs}):
            rows = [example for example in inputs if example.task == task]
            with unbalanced(model):
                losses.append(self._accumulate(model, rows, num_items_in_batch))
            # In one process alone: DDP would write the next task's gradients into the same memory.
            gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in trained])
            model.zero_grad(set_to_none=True)
        for parameter, gradient in zip(trained, surgeon.combine(gradients, self.state.global_step), strict=True):
            parameter.grad = gradient
        if self.routing is not None and balance_factor(self.model):
            self._balance(model, self.routing, inputs, num_items_in_batch)
        return torch.stack(losses).sum()

    def _balance(
        self, model: nn.Module, routing: Routing, inputs: list[TrainExample], num_items_in_batch: Tensor | None
    ) -> None:
        """Add the gradient of the balance loss over all rows of the step, and of nothing else."""
        for part in self.packer.parted(inputs):
            batch = self._prepare_inputs(collate(part))
            nats_K = token_nats(model, batch)
            share = nats_K.numel() / (1 if num_items_in_batch is None else num_items_in_batch)
            self.accelerator.backward(scale_balance_with(0 * nats_K.sum(), share, routing))

    def _remembered(self) -> tuple[list[Tensor], int]:
        """What `_forget` goes back to."""
        self._clear_gradients()
        return [losses.sums_3N.clone() for losses in self.ledgers], self._tokens

    def _forget(self, before: tuple[list[Tensor], int]) -> None:
        """Take back what the step has left behind so far."""
        self._clear_gradients()
        let_go_of_gates(self.model)
        for losses, sums_3N in zip(self.ledgers, before[0], strict=True):
            losses.sums_3N.copy_(sums_3N)
        self._tokens = before[1]
        if self.routing is not None:
            self.routing.tally = self.routing.new_tally(self.model)

    def _clear_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.adaptation.zero_grad()

    def _halve(self) -> None:
        step = f"step {self.state.global_step + 1}"
        if self.args.world_size > 1:
            fix = "Train again under another name (output.name=NAME) with a lower train.micro_batch_tokens."
            raise trouble.not_in_one_process(step, fix)
        self.packer = halved(self.packer, step, fix=trouble.ONE_ROW)
        warnings.warn(trouble.smaller(step, self.packer, balanced=balance_factor(self.model) > 0), stacklevel=2)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, looked at: a gradient that is no number would make every weight one."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        norm = sharding.whole(norm) if isinstance(norm, Tensor) else norm
        # float16 scales the loss by trial and error, and itself skips the steps whose gradients overflow.
        if norm is not None and not math.isfinite(norm) and self.accelerator.scaler is None:
            self._trouble("gradient")
        elif self._finite:
            self.skipped = 0
        return norm

    def _trouble(self, what: str) -> None:
        """Write down the rows of this step; halt, or go on without it where the recipe says so."""
        step, settings = self.state.global_step, self.pace.settings
        rows = trouble.rows_of_step(self.model, self.mixture, step)
        if self.routing is not None:
            self.routing.tally = self.routing.new_tally(self.model)
        path = self.pace.trouble / f"step-{step + 1:07d}.json"
        if processes.writes():
            trouble.write_down(rows, what, step, path)
        error = trouble.not_finite(what, rows, step, path)
        if settings.not_finite == "halt" or self.skipped >= settings.max_skipped:
            raise error
        self.skipped += 1
        self._clear_gradients()
        if self.accelerator.scaler is not None:  # float16's scaler takes the step, and leaves out what is not finite
            for parameter in self.model.parameters():
                parameter.grad = torch.full_like(parameter, math.inf) if parameter.requires_grad else None
        if processes.writes():
            warnings.warn(f"{error.where}: {error.what}; this step is skipped", stacklevel=2)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | None = None,
    ) -> Tensor:
        """Nats of this micro-batch over the supervised tokens of the whole step."""
        nats_K = token_nats(model, inputs)
        for losses in self.ledgers:
            losses.add(nats_K, inputs["tasks"], inputs["examples"])
        self._tokens += inputs["input_ids"].numel()
        total = nats_K.numel() if num_items_in_batch is None else num_items_in_batch
        # The mean over processes is taken of gradients, and this is to be their sum.
        loss = self.adaptation.weigh(nats_K, inputs).sum() / total * self.args.world_size
        share = nats_K.numel() / total * self.args.world_size
        return loss if self.routing is None else scale_balance_with(loss, share, self.routing)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the estimate of transformers is for full fine-tuning."""
        return 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turn the log step of transformers into one of ours, and hand it on to the trackers."""
        if "learning_rate" not in logs:  # the summary after training
            return
        elapsed = time.perf_counter() - self._logged
        processes.add_up(self.task_losses.sums_3N)
        tokens = int(processes.add_up(torch.tensor(self._tokens, device=self.args.device)))
        event = TrainEvent(
            step=self.state.global_step,
            seconds=self.seconds,
            tasks=self.task_losses.drain(self.state.global_step),
            learning_rate=logs["learning_rate"],
            # float16 scales the loss by trial and error: a step whose gradients overflow is skipped.
            grad_norm=norm if math.isfinite(norm := logs.get("grad_norm", math.nan)) else None,
            tokens_per_second=tokens / elapsed,
            seconds_per_step=elapsed / (self.state.global_step - self._logged_step),
            **self.adaptation.log(),
            **self._drain_routing(),
        )
        self._tokens, self._logged, self._logged_step = 0, self._logged + elapsed, self.state.global_step
        self._report(event, **logs)

    def _report(self, event: Event, **logs: float) -> None:
        """Hand on an event, and to trackers its numbers with those of transformers' own log."""
        self.pace.report(event)
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, {**logs, **tracked(event)})

    def _drain_routing(self) -> dict[str, Any]:
        if self.routing is None or self.routing.tally is None:
            return {}
        tally, self.routing.tally = self.routing.tally, self.routing.new_tally(self.model)
        for sums in tally.sums():
            processes.add_up(sums)
        return {"expert_share": self.routing.load_by_group({"all": tally})["all"], "balance_loss": tally.balance}

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validation loss of every task; tasks that have learned what they will are stopped."""
        started, settings, step = time.perf_counter(), self.pace.settings, self.state.global_step
        self.pace.evaluating()
        event = measuring.evaluation(
            self.model,
            self.tasks,
            self.packer,
            rows=settings.eval_rows,
            step=step,
            seconds=self.seconds,
        )
        event = processes.the_writers(event)  # where machines differ in a last bit, all go by the same numbers
        if event.tasks:  # none where no rows are kept for validation
            self.adaptation.after_evaluation(event)
            self._report(event)
        if settings.conflict_every is None:
            self._compare_gradients(step)
        metrics = tracked(event)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.adaptation.over:
            self.control.should_save = self.control.should_training_stop = True
        self._pause_since(started)
        return metrics

    def _pause_since(self, started: float) -> None:
        """Leave what has passed since ``started`` out of the pace of training."""
        self._logged += time.perf_counter() - started

    def checkpoint_extra(self) -> dict[str, Any]:
        """What a checkpoint keeps beside weights, optimiser and random state; all processes have to ask for it."""
        return {
            "seconds": self.seconds,
            "skipped": self.skipped,
            "validation": self.adaptation.validation_losses(self.state.global_step),
            "packer": [self.packer.rows, self.packer.tokens],
            "adaptation": self.adaptation.state(),
        }

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        started = time.perf_counter()
        trouble.check_weights(self.model, self.state.global_step)
        super()._save_checkpoint(model, trial)
        self._pause_since(started)
