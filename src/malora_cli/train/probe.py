"""What the longest step that can come will cost, measured before training begins."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from malora_cli.data.batch import Packer
from malora_cli.data.mixture import Mixture
from malora_cli.data.statement import longest_step
from malora_cli.modeling.loss import token_nats
from malora_cli.recipe import TrainSettings
from malora_cli.train.trouble import halved, out_of_memory


@dataclass(frozen=True)
class StepCost:
    """A measured step.

    Args:
        tokens: Tokens of it.
        seconds: From the first forward to the optimiser's end.
        peak_bytes: Most memory in use until its end: of the device, or of the whole process on CPU.
    """

    tokens: int
    seconds: float
    peak_bytes: int

    def training_seconds(self, tokens: float) -> float:
        """Seconds that training on so many tokens takes at this pace."""
        return self.seconds / self.tokens * tokens


def measure_longest_step(model: nn.Module, mixture: Mixture, packer: Packer, settings: TrainSettings) -> StepCost:
    """Go through the longest step once, with an optimiser that changes nothing.

    Weights, gradients and random state are as before afterwards. Where memory does not suffice, micro-batches halve, as
    they will in training.

    Raises:
        RunError: Memory does not suffice for one row at a time.
    """
    examples = longest_step(mixture)
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()  # type: ignore[operator]
    was_training = model.training
    model.train()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        while True:
            try:
                _step(model, packer(examples[-1:]), trained)  # what is compiled or chosen once is not of the step
                started = time.perf_counter()
                _step(model, packer(examples), trained)
                break
            except RuntimeError as error:  # that of CUDA is one as well
                if not out_of_memory(error):
                    raise
                packer = halved(packer, "the longest step", error)
                model.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
    model.train(was_training)
    return StepCost(sum(len(example.input_ids) for example in examples), seconds, _peak_bytes(device))


def _step(model: nn.Module, batches: list[Any], trained: list[nn.Parameter]) -> None:
    device = trained[0].device
    optimiser = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    for batch in batches:
        with _precision(model, device):
            nats_K = token_nats(model, {name: tensor.to(device) for name, tensor in batch.items()})
        (nats_K.mean() if len(nats_K) else nats_K.sum()).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _precision(model: nn.Module, device: torch.device) -> AbstractContextManager[Any]:
    """As the trainer runs a forward: in the number format of the base, where that is not float32."""
    dtype = model.dtype
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)  # type: ignore[arg-type]


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
