"""Base models: where they come from, how they are loaded, wrapped by a method and counted."""

from malora_cli.modeling.adapter import (
    ParameterCount,
    check_adapter,
    count_parameters,
    load_adapter,
    parameter_table,
    save_adapter,
    wrap,
)
from malora_cli.modeling.base import BaseModel, empty_base, load_base, load_config, load_tokenizer, resolve_base

__all__ = [
    "BaseModel",
    "ParameterCount",
    "check_adapter",
    "count_parameters",
    "empty_base",
    "load_adapter",
    "load_base",
    "load_config",
    "load_tokenizer",
    "parameter_table",
    "resolve_base",
    "save_adapter",
    "wrap",
]
