"""What the settings of every method have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from malora_cli.recipe import MethodSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class AdapterSettings(MethodSettings):
    """Settings of a method that PEFT builds an adapter from."""

    #: What the configuration is told beyond the settings; variants of a method set it.
    variant: ClassVar[dict[str, Any]] = {}
    #: Names of adapter weights that keep their initial values, for methods whose configuration cannot say so.
    frozen: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""

    def _arguments(self, targets: list[str] | str) -> dict[str, Any]:
        return {
            **self.model_dump(exclude={"name", "target_modules"}),
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            **self.variant,
        }
