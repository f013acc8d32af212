"""What the routers of one model share: the token mask, the weight of the balance loss, and a tally of their choices.

The balance loss reaches the gradient through the backward pass of the gates, see ``balancing``. Its weight is not known
in the forward pass (a trainer divides, or scales for float16, later), so `scale_balance_with` records in the backward
pass what the trainer did to the loss, which comes before any layer's turn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from malora_cli.adapters.kernel import Load, Seen, mean_over_processes, numbers, sent

if TYPE_CHECKING:
    from malora_cli.adapters.balancing import Loads

#: What of a tally is kept on disk.
_KEPT = ("assigned_LE", "gate_LE", "tokens_L", "entropy_L")


class RoutingTally:
    """Sums over tokens of what every router chose, on the device, until it is read.

    What is added waits, and then is summed for many routers at once: on a GPU a call costs more than such a sum.

    Args:
        routers: Number of routers L.
        experts: Experts a router N.
    """

    def __init__(self, routers: int, experts: int, device: torch.device) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(routers, *shape, device=device)

        with torch.inference_mode(False):  # what is made within it cannot be added to outside
            self._sums = {name: zeros(experts) for name in ("assigned_LE", "gate_LE", "balance_LE")}
            self._sums |= {name: zeros() for name in ("tokens_L", "calls_L", "entropy_L")}
        self._waiting: dict[str, list[tuple[int, Tensor | int]]] = {name: [] for name in self._sums}

    def add(self, router: int, load: Load, seen: Seen | None) -> None:
        """Add one forward pass of one router; ``seen`` is None in training, where nothing reports it."""
        self._add("assigned_LE", router, load.assigned_E)
        self._add("tokens_L", router, load.tokens)
        if seen is not None:
            self._add("gate_LE", router, seen.gate_E)
            self._add("entropy_L", router, seen.entropy)

    def add_balance(self, router: int, balance_E: Tensor) -> None:
        """Add the balance loss of one router by expert, which is known in the backward pass."""
        self._add("balance_LE", router, balance_E)
        self._add("calls_L", router, 1)

    def _add(self, name: str, router: int, value: Tensor | int) -> None:
        self._waiting[name].append((router, value))
        if len(self._waiting[name]) >= len(self._sums[name]):
            self.sum(name)

    @torch.no_grad()
    def sum(self, name: str) -> Tensor:
        """One of the sums, with all that waited for it."""
        sums, waiting = self._sums[name], self._waiting[name]
        if waiting:
            rows = sent(torch.tensor([router for router, _ in waiting]), sums.device)
            sums.index_add_(0, rows, _stacked([value for _, value in waiting], sums))
            waiting.clear()
        return sums

    def sums(self) -> list[Tensor]:
        """All of them, to be added up over processes."""
        return [self.sum(name) for name in self._sums]

    def kept(self) -> dict[str, list[Any]]:
        """The sums as plain lists, to be kept on disk; `of` reads them back."""
        return {name: self.sum(name).tolist() for name in _KEPT}

    @classmethod
    def of(cls, kept: Mapping[str, list[Any]], device: torch.device) -> RoutingTally:
        """A tally that was kept."""
        tally = cls(len(kept["tokens_L"]), len(kept["assigned_LE"][0]), device)
        for name in _KEPT:
            tally.sum(name).copy_(torch.tensor(kept[name]))
        return tally

    @property
    def assigned_LE(self) -> Tensor:
        """Tokens that chose each expert."""
        return self.sum("assigned_LE")

    @property
    def tokens_L(self) -> Tensor:
        """Real tokens that each router saw."""
        return self.sum("tokens_L")

    @property
    def share_LE(self) -> Tensor:
        """Share of the (token, slot) assignments each expert got; rows sum to 1."""
        return self.assigned_LE / self.assigned_LE.sum(1, keepdim=True).clamp(min=1)

    @property
    def mean_gate_LE(self) -> Tensor:
        """Mean gate of each expert over tokens; of evaluations only."""
        return self.sum("gate_LE") / self.tokens_L.clamp(min=1).unsqueeze(1)

    @property
    def mean_entropy_L(self) -> Tensor:
        """Mean over tokens of the entropy of each router's softmax, 0 (certain) to 1 (uniform); of evaluations only."""
        return self.sum("entropy_L") / self.tokens_L.clamp(min=1)

    @property
    def balance(self) -> float | None:
        """Balance loss, mean over backward passes and over the routers that had any; None where none had."""
        calls_L, balance_L = self.sum("calls_L"), self.sum("balance_LE").sum(1)
        used_L = calls_L > 0
        return float((balance_L[used_L] / calls_L[used_L]).mean()) if used_L.any() else None


def _stacked(values: list[Tensor | int], sums: Tensor) -> Tensor:
    """What is added to some rows of sums: numbers, or one for each expert, of which a router may have fewer."""
    if sums.dim() == 1:
        return numbers(values, sums)
    rows = [sent(value, sums.device) for value in values if isinstance(value, Tensor)]
    return torch.stack([F.pad(row, (0, sums.shape[1] - len(row))) if len(row) < sums.shape[1] else row for row in rows])


def layer_of(module: str) -> tuple[str, int]:
    """The list of layers that a module stands in, and the layer's number, by its name; ``("", 0)`` where none."""
    match = re.search(r"\.(\d+)(\.|$)", module)
    return (module[: match.start()], int(match[1])) if match else ("", 0)


def layer_number(module: str) -> int:
    """Number of the layer that a module stands in, by its name in the model; 0 where there is none."""
    return layer_of(module)[1]


@dataclass(frozen=True)
class RowAdapters:
    """The adapter that each row of a batch takes.

    Args:
        names: One for each row; ``__base__`` is none.
        beams: Copies of each row that beam search makes.
    """

    names: list[str]
    beams: int = 1

    def of(self, rows: int) -> list[str]:
        """The names for an input of so many rows, which is a batch as it was given or one of all beams.

        Raises:
            ValueError: The names are of another number of rows.
        """
        if rows == len(self.names):
            return self.names
        if rows != len(self.names) * self.beams:
            raise ValueError(f"adapter_names has {len(self.names)} names for a batch of {rows} rows")
        return [name for name in self.names for _ in range(self.beams)]


#: Is shown a linear's number, its input and its gates, in every forward pass.
Observer = Callable[[int, Tensor, Tensor], None]


@dataclass
class Routing:
    """Shared by all routed layers of one model. Layers hold a reference; it is no module and has no parameters."""

    names: list[str] = field(default_factory=list)  # of the adapted linears, in the order of the tally's rows
    routers: dict[str, set[int]] = field(default_factory=dict)  # rows of each adapter, which may leave linears out
    token_mask: Tensor | None = None  # of the newest forward pass; kept until the next for recomputation
    loads: Loads | None = None  # of the newest forward pass that trains; None: every router is by itself
    balance_weight: Tensor | float = 1.0  # of the newest loss, see `scale_balance_with` and `following`
    tally: RoutingTally | None = None  # None: nothing is recorded
    row_adapters: RowAdapters | None = None  # None: every row takes the active adapters
    observer: Observer | None = None  # None: nobody is shown the gates
    balanced: bool = True  # whether training adds the balance loss, for which processes exchange their loads

    def mask_of(self, tokens: int, device: torch.device) -> Tensor | None:
        """The mask where it describes these tokens; that of a cache as well, as in generation, does not.

        Args:
            tokens: Their number.
            device: Where a layer wants it, whose model may lie on several.
        """
        mask = self.token_mask
        return sent(mask, device) if mask is not None and mask.numel() == tokens else None

    def new_tally(self, model: nn.Module) -> RoutingTally:
        """An empty tally, on the routers' device, with room for the largest number of experts of any adapter."""
        routers = [p for name, p in model.named_parameters() if ".malora_router." in name]
        return RoutingTally(len(self.names), max(len(p) for p in routers), routers[0].device)

    def layer_groups(self, groups: int = 3) -> dict[str, list[int]]:
        """Rows of the tally by group of consecutive layers, as ``{"layers 0-9": [0, 1, ...], ...}``."""
        number = [layer_number(name) for name in self.names]
        layers = sorted(set(number))
        size = -(-len(layers) // groups)
        chunks = [layers[start : start + size] for start in range(0, len(layers), size)]
        return {
            f"layers {chunk[0]}-{chunk[-1]}" if len(chunk) > 1 else f"layer {chunk[0]}": [
                row for row, layer in enumerate(number) if layer in chunk
            ]
            for chunk in chunks
        }

    def load_by_group(self, tallies: Mapping[str, RoutingTally]) -> dict[str, dict[str, list[float]]]:
        """Experts' shares of the assignments, by tally and layer group, means over the routers that saw a token.

        Expert 3 of one router has nothing to do with expert 3 of another: a mean by number looks even however far
        each router has collapsed. So the experts of every router are ranked first, by their load over all tallies,
        busiest first, and the means are over ranks.
        """
        order_LE = torch.stack([tally.assigned_LE for tally in tallies.values()]).sum(0).argsort(1, descending=True)
        loads = {}
        for name, tally in tallies.items():
            share_LE = tally.share_LE.gather(1, order_LE).cpu()
            loads[name] = {group: share_LE[rows].mean(0).tolist() for group, rows in self._seen_by_group(tally).items()}
        return loads

    def entropy_by_group(self, tallies: Mapping[str, RoutingTally]) -> dict[str, dict[str, float]]:
        """Mean entropy of the routers' softmax, by tally and layer group, over the routers that saw a token."""
        found = {}
        for name, tally in tallies.items():
            entropy = tally.mean_entropy_L.tolist()
            rows_of = self._seen_by_group(tally).items()
            found[name] = {group: fmean(entropy[row] for row in rows) for group, rows in rows_of}
        return found

    def _seen_by_group(self, tally: RoutingTally) -> dict[str, list[int]]:
        """Rows of the routers that saw a token, by layer group; groups without any are left out."""
        seen = tally.tokens_L.tolist()
        rows = {group: [row for row in members if seen[row]] for group, members in self.layer_groups().items()}
        return {group: found for group, found in rows.items() if found}


def routing_of(model: nn.Module) -> Routing | None:
    """The routing of a model that carries a mixture; None for any other model."""
    found = (module.__dict__.get("malora_routing") for module in model.modules())
    return next((routing for routing in found if isinstance(routing, Routing)), None)


@contextmanager
def tallying(model: nn.Module) -> Iterator[RoutingTally]:
    """Record what the routers of a model choose within the block, in place of any tally that is running."""
    routing = routing_of(model)
    if routing is None:
        raise ValueError("the model has no router to tally")
    outer, routing.tally = routing.tally, routing.new_tally(model)
    try:
        yield routing.tally
    finally:
        routing.tally = outer


@contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Show an observer the input and the gates of every routed linear within the block."""
    routing = routing_of(model)
    if routing is None:
        raise ValueError("the model has no router to observe")
    outer, routing.observer = routing.observer, observer
    try:
        yield
    finally:
        routing.observer = outer


def let_go_of_gates(model: nn.Module) -> None:
    """Forget what a forward pass that was cut short has left with the routers of blocks, before memory is made free."""
    for module in model.modules():
        for block in module.__dict__.get("malora_block", {}).values():
            block.let_go()


@contextmanager
def unbalanced(model: nn.Module) -> Iterator[None]:
    """Leave the balance loss out within the block, and with it all that the routers of several processes exchange."""
    routing = routing_of(model)
    if routing is None:
        yield
        return
    outer, routing.balanced = routing.balanced, False
    try:
        yield
    finally:
        routing.balanced = outer


def scale_balance_with(loss: Tensor, share: Tensor | float, routing: Routing) -> Tensor:
    """The same loss; the balance loss of this forward pass then weighs ``share * dTotal/dloss``.

    The weight is the mean over data-parallel processes: their parts of one balance loss must weigh the same, however
    their supervised tokens are distributed.

    Args:
        loss: The scalar that the trainer is about to scale and differentiate.
        share: This micro-batch's share of the supervised tokens of the optimiser's batch; 1 without accumulation.
        routing: The model's routing.
    """

    def record(grad_loss: Tensor) -> None:
        routing.balance_weight = mean_over_processes(grad_loss * share)

    return _followed(loss, record)


def scale_balance_with_tokens(log_probs: Tensor, mask: Tensor, routing: Routing) -> Tensor:
    """The same log-probabilities, for trainers that make their own loss of them, as TRL's do.

    Where that is the mean over tokens, whatever it is divided by, the balance loss weighs as these tokens do. In any
    other loss, such as one of preferences, its weight stays what it was in the forward pass.

    Args:
        log_probs: Of every token, shape of ``mask``.
        mask: True for supervised tokens.
        routing: The model's routing.
    """
    forward_weight = routing.balance_weight

    def record(grad_log_probs: Tensor) -> None:
        least, most = grad_log_probs.aminmax()
        is_mean = (least == most) & (most <= 0)
        weight = torch.where(is_mean, -most * mask.sum(), torch.as_tensor(forward_weight, device=most.device))
        routing.balance_weight = mean_over_processes(weight)

    return _followed(log_probs, record)


def _followed(tensor: Tensor, record: Callable[[Tensor], None]) -> Tensor:
    """The same numbers, whose gradient is recorded on its way back; trainers may go on to change them in place."""
    followed = tensor.clone()  # a hook on a view would be lost with the first change in place
    followed.register_hook(record)
    return followed
