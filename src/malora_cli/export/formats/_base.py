"""What a format of exports is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from malora_cli.modeling import BaseModel
from malora_cli.recipe import ModelSettings

if TYPE_CHECKING:  # what is going to be written is told without torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from malora_cli.export.static import StaticLora


@dataclass(frozen=True)
class Origin:
    """What is exported, beside its weights.

    Args:
        base: The base model.
        settings: How the run loaded it.
        skeleton: The base model without weights, for the names and kinds of its linears.
        named: What an adapter calls its base: what a server is started with.
        dtype: Number format to write, of those that the format knows; None is its own choice.
        weights: The weights of linears that are not those of the base model's files, by the linears' names: what they
            stand for in 4 or 8 bits, or with an adapter that is no sum.
        task: The task that it is for, if it is for one.
    """

    base: BaseModel
    settings: ModelSettings
    skeleton: PreTrainedModel
    named: str
    dtype: str | None = None
    weights: Mapping[str, Callable[[], Tensor]] = field(default_factory=dict)
    task: str | None = None


class Format(ABC):
    """One format.

    Attributes:
        targets: What it holds: ``lora``, ``dense`` or both.
        dtypes: Number formats that can be asked for; none where it writes what it is given.
    """

    targets: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]] = ()

    def check(  # noqa: B027 - most formats take everything
        self, target: str, base: BaseModel, settings: ModelSettings, config: Mapping[str, Any]
    ) -> None:
        """Make sure that this can be written, before anything slow happens.

        Args:
            target: ``lora`` or ``dense``.
            base: The base model.
            settings: How the run loaded it.
            config: What its ``config.json`` says.

        Raises:
            MaloraError: It cannot.
        """

    @abstractmethod
    def files(self, target: str, base: BaseModel) -> list[str]:
        """Names of the files that `write` makes; a pattern for those of a hub model, which need not be here."""

    @abstractmethod
    def write(self, target: str, lora: StaticLora, origin: Origin, folder: Path) -> None:
        """Write a LoRA, or the base model with it, into a folder that is there.

        Args:
            target: ``lora`` or ``dense``.
            lora: The updates, all of one rank.
            origin: What they are of.
            folder: Where to.
        """
