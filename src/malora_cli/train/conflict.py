"""How far the tasks' gradients pull apart: pairwise cosine and magnitude similarity, by group of adapter parameters.

Gradients of all tasks side by side would take the memory of as many adapters. Each is sketched instead, as it comes:
entries get random signs and are summed into a fixed number of slots, which keeps inner products in expectation, to
about ``1 / sqrt(slots)`` of the norms (Charikar, Chen and Farach-Colton, Finding frequent items in data streams, 2002).
Groups of no more entries than slots are kept as they are.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from malora_cli.adapters.routing import let_go_of_gates
from malora_cli.modeling.device import exact, exact_device
from malora_cli.modeling.loss import moved, token_nats
from malora_cli.modeling.modes import as_trained, evaluating
from malora_cli.results import GradientConflict

SLOTS = 2**16
#: The part of a parameter's name that says what it is in its adapter, as ``malora_up`` or ``lora_A``.
_GROUP = re.compile(r"\.((?:malora|lora)_\w+)")


def gradient_conflict(model: nn.Module, batches: Sequence[Iterable[Mapping[str, Any]]]) -> dict[str, GradientConflict]:
    """Compare the gradients of some tasks.

    Args:
        model: The wrapped model; it is left as it is, gradients included.
        batches: Micro-batches of each task.

    Returns:
        The comparison for each group of trainable parameters, and for ``"all"`` of them.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    parameters = list(named.values())
    sketcher = _Sketcher(named)
    device = parameters[0].device
    let_go_of_gates(model)  # of an attempt before, for which memory did not suffice
    sketches = []
    with evaluating(model, checkpointing=True):
        for task in batches:
            sketch = sketcher.empty()
            for batch in task:
                with as_trained(model):
                    nats_K = token_nats(model, moved(batch, device))
                sketcher.add(sketch, torch.autograd.grad(nats_K.sum(), parameters, materialize_grads=True))
            sketches.append(sketch)
    compared = {group: _compared([sketch[group] for sketch in sketches]) for group in sketcher.sizes}
    # Groups are sketched apart, so that their inner products add up.
    whole = [torch.cat(list(sketch.values())) for sketch in sketches]
    return {"all": _compared(whole), **compared}


class _Sketcher:
    """Sums gradients into slots; the signs of all entries are drawn once, a byte each.

    Args:
        parameters: Whose gradients these are, by name.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.groups = [match[1] if (match := _GROUP.search(name)) else "other" for name in parameters]
        self.sizes: Counter[str] = Counter()
        for group, parameter in zip(self.groups, parameters.values(), strict=True):
            self.sizes[group] += parameter.numel()
        self.signs = [
            _signs(parameter, number) if self.sizes[group] > SLOTS else None
            for number, (group, parameter) in enumerate(zip(self.groups, parameters.values(), strict=True))
        ]
        self.device = exact_device(next(iter(parameters.values())).device)

    def empty(self) -> dict[str, Tensor]:
        """Sketches of nothing, by group."""
        return {group: torch.zeros(SLOTS, dtype=torch.float64, device=self.device) for group in self.sizes}

    def add(self, sketch: dict[str, Tensor], gradients: Sequence[Tensor]) -> None:
        """Add the gradients of all parameters."""
        offsets = dict.fromkeys(sketch, 0)
        for gradient, group, signs in zip(gradients, self.groups, self.signs, strict=True):
            flat = exact(gradient.flatten())
            if signs is not None:
                flat = flat * signs
            padded = torch.cat([flat, flat.new_zeros(-len(flat) % SLOTS)]).reshape(-1, SLOTS).sum(0)
            sketch[group] += padded.roll(offsets[group] % SLOTS)
            offsets[group] += gradient.numel()


def _signs(parameter: Tensor, seed: int) -> Tensor:
    """1 or -1 for each entry, int8. They are drawn on the CPU, so that every device has the same."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 2, (parameter.numel(),), generator=generator, dtype=torch.int8)
    return drawn.mul_(2).sub_(1).to(exact_device(parameter.device))


def _compared(sketches: Sequence[Tensor]) -> GradientConflict:
    """Cosines, and ``2 |a| |b| / (|a|^2 + |b|^2)``, which is 1 for equal norms (Yu et al., arXiv 2001.06782)."""
    gradients_NS = torch.stack(list(sketches))
    norm_N = gradients_NS.norm(dim=1)
    product_NN = norm_N.outer(norm_N)
    cosine_NN = (gradients_NS @ gradients_NS.T) / product_NN.clamp(min=1e-300)
    square_N = norm_N**2
    magnitude_NN = 2 * product_NN / (square_N.unsqueeze(0) + square_N.unsqueeze(1)).clamp(min=1e-300)
    return GradientConflict(
        cosine=cosine_NN.clamp(-1, 1).tolist(), magnitude=magnitude_NN.tolist(), norm=norm_N.tolist()
    )
