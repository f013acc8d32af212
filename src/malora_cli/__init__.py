"""Multi-task fine-tuning of causal language models with MALoRA and its rivals.

``import malora_cli`` makes PEFT know the methods, from the moment that PEFT itself is imported; the import of the
package stays light. ``from malora_cli import MaloraConfig`` gives the PEFT configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from malora_cli.adapters.registration import register_with_peft

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


register_with_peft()
