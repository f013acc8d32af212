"""What the settings of every method have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from malora_cli.recipe import MethodSettings

if TYPE_CHECKING:
    from peft import PeftConfig


class AdapterSettings(MethodSettings):
    """Settings of a method that PEFT builds an adapter from."""

    @abstractmethod
    def peft_config(self, targets: list[str] | str) -> PeftConfig:
        """The configuration of the adapter on the linears with these names, or that match this expression."""

    def _arguments(self, targets: list[str] | str) -> dict[str, Any]:
        return {
            **self.model_dump(exclude={"name", "target_modules"}),
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
        }
