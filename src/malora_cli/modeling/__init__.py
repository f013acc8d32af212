"""Base models: where they come from, how they are loaded, wrapped by a method and counted.

Finding one takes neither torch nor transformers; what loads and wraps it is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from malora_cli.modeling.finding import BaseModel, base_of_run, known_commit, resolve_base

if TYPE_CHECKING:
    from malora_cli.modeling.adapter import (
        ParameterCount,
        check_adapter,
        count_parameters,
        load_adapter,
        parameter_table,
        round_experts,
        save_adapter,
        wrap,
    )
    from malora_cli.modeling.base import empty_base, load_base, load_config, load_tokenizer

__all__ = [
    "BaseModel",
    "ParameterCount",
    "base_of_run",
    "check_adapter",
    "count_parameters",
    "empty_base",
    "known_commit",
    "load_adapter",
    "load_base",
    "load_config",
    "load_tokenizer",
    "parameter_table",
    "resolve_base",
    "round_experts",
    "save_adapter",
    "wrap",
]


_OF_BASE = ("empty_base", "load_base", "load_config", "load_tokenizer")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{'base' if name in _OF_BASE else 'adapter'}"), name)
