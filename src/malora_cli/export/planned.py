"""What an export is going to be: its rank and its size, from the configurations alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel
from peft.tuners.lora import LoraLayer

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.routing import routing_of
from malora_cli.errors import RecipeError, RunError
from malora_cli.export.request import Request
from malora_cli.export.static import routed_linears
from malora_cli.modeling import BaseModel, empty_base, wrap
from malora_cli.modeling.weights import weight_files
from malora_cli.recipe import ModelSettings
from malora_cli.results import free_bytes

_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "q8_0": 34 / 32}
_MIB = 2**20
#: Values that q8_0 rounds together.
_BLOCK = 32


@dataclass(frozen=True)
class Planned:
    """An export before it is made.

    Args:
        names: What is written, by name; one of them has the folder to itself.
        rank: Its rank.
        exact_rank: The rank at which nothing but the routing is left out.
        bytes_each: Size of the weights of each, about.
    """

    names: Sequence[str]
    rank: int
    exact_rank: int
    bytes_each: int

    @property
    def bytes(self) -> int:
        """Size of all weights, about."""
        return self.bytes_each * len(self.names)

    def check_room(self, folder: Path) -> None:
        """Make sure that there is room for it.

        Raises:
            RunError: There is not.
        """
        free = free_bytes(folder.absolute().parent)
        if free < self.bytes:
            raise RunError(
                f"the export takes about {self.bytes / _MIB:,.0f} MiB, and {free / _MIB:,.0f} MiB are free",
                where=str(folder),
                fix="Free some space there, or name another folder by --out FOLDER.",
            )


def planned(
    request: Request, method: AdapterSettings, base: BaseModel, settings: ModelSettings, names: Sequence[str]
) -> Planned:
    """What a LoRA or a whole model is going to be.

    Raises:
        RecipeError: A rank is asked for that is above the exact one.
        ModelError: The base model cannot be had.
    """
    shapes = _shapes(wrap(empty_base(base, settings), method))
    exact = max(rank for rank, _, _ in shapes)
    if request.rank is not None and request.rank > exact:
        fix = "Leave it out for the exact LoRA."
        raise RecipeError(f"{request.rank} is above the exact rank, {exact}", where="--rank", fix=fix)
    rank = request.rank or exact
    odd = rank % _BLOCK or any(inner % _BLOCK for _, inner, _ in shapes)
    if request.dtype == "q8_0" and (odd if request.to == "lora" else any(inner % _BLOCK for _, inner, _ in shapes)):
        what = f"rows of q8_0 are multiples of {_BLOCK} long, which the rank ({rank}) or the model's inputs are not"
        raise RecipeError(what, where="--dtype", fix="Use f16.")
    if request.to == "lora":
        values = sum(rank * (inner + outer) for _, inner, outer in shapes)
        size = values * _BYTES[request.dtype or "f32"]
    elif request.form == "gguf" and base.gguf is not None:
        size = base.gguf.stat().st_size + sum(i * o for _, i, o in shapes) * _BYTES[request.dtype or "f16"]
    elif request.dtype is not None:
        size = empty_base(base, settings).num_parameters() * _BYTES[request.dtype]
    else:
        size = sum(file.stat().st_size for file in weight_files(Path(base.location))) if base.commit is None else 0
    return Planned(names, rank, exact, int(size))


def _shapes(model: PeftModel) -> list[tuple[int, int, int]]:
    """Rank, inputs and outputs of every adapted linear."""
    if routing_of(model) is None:
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        return [(layer.r[model.active_adapter], layer.in_features, layer.out_features) for layer in layers]
    found = []
    for layer in routed_linears(model).values():
        found.append((len(layer.factors(model.active_adapter).down_SI), layer.in_features, layer.out_features))
    return found
