"""Weights and optimiser states spread over the processes by PyTorch's FSDP2, and brought together to be saved.

accelerate does so on GPUs only; PyTorch's own function does on any device, in as few lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from malora_cli.modeling.adapter import adapted_module
from malora_cli.train import processes


def shard(model: PeftModel) -> None:
    """Spread a model, in place: a block of it is in one piece only while it computes."""
    base: Any = model.get_base_model()
    mesh = init_device_mesh(base.device.type, (processes.world_size(),))
    blocks = [module for module in base.modules() if type(module).__name__ in (base._no_split_modules or ())]
    for module in blocks:
        fully_shard(module, mesh=mesh)
    # What is in no block stays in one piece from the forward to the backward pass: the head runs again between the two.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def exchange_gradients(model: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass ends with the gradients of all processes together, where they are spread."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def whole(tensor: Tensor) -> Tensor:
    """The tensor in one piece; where it is spread, all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of the tensor; all of it where it is not spread."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def adapter_weights(model: nn.Module) -> dict[str, Tensor] | None:
    """Everything that is trained, in one piece by name; None where nothing is spread."""
    if not isinstance(model, FSDPModule):
        return None
    named = model.named_parameters()
    return {name: whole(parameter.detach()) for name, parameter in named if adapted_module(name) is not None}


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Its state by parameter number, every tensor in one piece."""
    state = optimizer.state_dict()
    whole_state = {
        index: {slot: whole(value) if isinstance(value, Tensor) else value for slot, value in slots.items()}
        for index, slots in state["state"].items()
    }
    return {**state, "state": whole_state}


def spread_like(optimizer: Optimizer, state: Mapping[int, Mapping[str, Tensor]]) -> dict[int, dict[str, Tensor]]:
    """A state in one piece, spread as the optimiser's parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        index: {slot: _like(parameters[index], value) for slot, value in slots.items()}
        for index, slots in state.items()
    }


def _like(parameter: Tensor, value: Tensor) -> Tensor:
    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
