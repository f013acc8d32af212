"""Multi-task fine-tuning of causal language models with MALoRA and its rivals.

``from malora_cli import MaloraConfig`` gives the PEFT configuration; the import of the package itself stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from malora_cli.adapters.config import HydraLoraConfig, MaloraConfig, MoloraConfig

__version__ = "0.1.0"
__all__ = ["HydraLoraConfig", "MaloraConfig", "MoloraConfig", "__version__"]


def __getattr__(name: str) -> Any:
    if name in ("HydraLoraConfig", "MaloraConfig", "MoloraConfig"):
        # Importing the tuner is what makes PEFT know the methods.
        from malora_cli.adapters import config, tuner  # noqa: F401

        return getattr(config, name)
    raise AttributeError(f"module 'malora_cli' has no attribute '{name}'")
