"""What the longest step that can come will cost, measured before training begins."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from peft import PeftModel
from torch import nn
from torch.distributed.fsdp import FSDPModule

from malora_cli.adapters.routing import let_go_of_gates, unbalanced
from malora_cli.data.batch import Batch, Packer, TrainExample
from malora_cli.data.mixture import Mixture
from malora_cli.data.statement import longest_step
from malora_cli.modeling.adapter import balance_factor
from malora_cli.modeling.loss import moved, token_nats
from malora_cli.modeling.memory import Attempt, forget_peak, halved, peak_bytes
from malora_cli.modeling.modes import as_trained
from malora_cli.recipe import Recipe, TrainSettings
from malora_cli.results.files import WINDOWS
from malora_cli.train import processes
from malora_cli.train.materials import Materials, prepare_model
from malora_cli.train.trouble import ONE_ROW, SMALLER, not_in_one_process, smaller

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepCost:
    """A measured step.

    Args:
        tokens: Tokens of it, over all processes.
        seconds: From the first forward to the optimiser's end.
        peak_bytes: Most memory in use until its end: of the device, or of the whole process on CPU.
        packer: The micro-batches in which it fitted into memory.
    """

    tokens: int
    seconds: float
    peak_bytes: int
    packer: Packer

    def training_seconds(self, tokens: float) -> float:
        """Seconds that training on so many tokens takes at this pace."""
        return self.seconds / self.tokens * tokens


def measured(recipe: Recipe, materials: Materials) -> StepCost:
    """The longest step of a recipe, on a model that is made for it.

    Raises:
        MaloraError: The model cannot be loaded, or memory does not suffice for one row at a time.
    """
    model = prepare_model(recipe, materials)
    return measure_longest_step(model, materials.mixture, materials.packer, recipe.train)


def measure_longest_step(model: PeftModel, mixture: Mixture, packer: Packer, settings: TrainSettings) -> StepCost:
    """Go through the longest step once, with an optimiser that changes nothing.

    Weights, gradients and random state are as before afterwards. Where memory does not suffice, micro-batches halve, as
    they will in training, and those of all processes where it does not in one.

    Raises:
        RunError: Memory does not suffice for one row at a time, or for a model that is spread over the processes.
    """
    _LOG.info("measuring the longest step")
    examples = longest_step(mixture)
    # No process gets longer rows than these.
    part = examples[: len(examples) // processes.world_size()]
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    was_training = model.training
    model.train()
    # Nothing is exchanged: a process that runs out of memory is absent from the rest of its forward pass.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), unbalanced(model):
        while True:
            with Attempt() as attempt:
                seconds = _seconds(model, part, packer, trained)
            if attempt.out_of_memory and isinstance(model, FSDPModule):  # whose weights travel in every forward pass
                raise not_in_one_process("the longest step", SMALLER)
            if not processes.most(attempt.out_of_memory, device):
                break
            model.zero_grad(set_to_none=True)
            let_go_of_gates(model)
            packer = halved(packer, "the longest step", fix=ONE_ROW)
            if processes.writes():
                warnings.warn(smaller("the longest step", packer, balanced=balance_factor(model) > 0), stacklevel=2)
    model.train(was_training)
    return StepCost(sum(len(example.input_ids) for example in examples), seconds, _peak_bytes(device), packer)


def _seconds(
    model: nn.Module, examples: Sequence[TrainExample], packer: Packer, trained: Sequence[nn.Parameter]
) -> float:
    device = trained[0].device
    _step(model, packer(examples[-1:]), trained)  # what is compiled or chosen once is not of the step
    forget_peak(device)  # nor is what an attempt before took
    started = time.perf_counter()
    _step(model, packer(examples), trained)
    return time.perf_counter() - started


def _step(model: nn.Module, batches: Sequence[Batch], trained: Sequence[nn.Parameter]) -> None:
    device = trained[0].device
    optimiser = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0, fused=True)  # as in training
    for batch in batches:
        with as_trained(model):
            nats_K = token_nats(model, moved(batch, device))
        (nats_K.mean() if len(nats_K) else nats_K.sum()).backward()
    # A gradient that is no number would go into the weights, even at a learning rate of 0.
    optimiser.zero_grad(set_to_none=False)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _peak_bytes(device: torch.device) -> int:
    if (of_gpu := peak_bytes(device)) is not None:
        return of_gpu
    if WINDOWS:
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
