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
from malora_cli.modeling.base import (
    BaseModel,
    base_of_run,
    empty_base,
    known_commit,
    load_base,
    load_config,
    load_tokenizer,
    resolve_base,
)

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
    "save_adapter",
    "wrap",
]
