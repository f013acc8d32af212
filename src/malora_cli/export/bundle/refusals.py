"""What no bundle is written of, by what a recipe and the base's configuration say, before anything is loaded.

`check_bundle` takes no torch, for dry runs; what it cannot see in a file, `check_config` asks transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.methods._mixture import MixtureSettings
from malora_cli.errors import ModelError, RecipeError
from malora_cli.recipe import ModelSettings

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def check_bundle(model: ModelSettings, method: AdapterSettings, config: Mapping[str, Any]) -> None:
    """Make sure that a bundle can be written of what a recipe trains, as far as files say.

    Args:
        model: The base model's settings.
        method: The method.
        config: What the base model's ``config.json`` says.

    Raises:
        RecipeError: The method routes nothing.
        ModelError: The base is quantised, or no text model of transformers' own.
    """
    if not isinstance(method, MixtureSettings):
        others = "--to dense" if method.name == "dora" else "--to lora or --to dense"
        raise RecipeError(
            f"method '{method.name}' routes nothing, so there is no mixture to bundle",
            where="--to",
            fix=f"Use {others}.",
        )
    if model.quantise is not None or config.get("quantization_config") is not None:
        raise quantised(model.base)
    kind = config.get("model_type", "")
    if config.get("text_config") is not None:
        raise _reads_more(kind, model.base)
    if model.trust_remote_code and "auto_map" in config:
        raise _brings_code(kind, model.base)


def check_config(config: PreTrainedConfig, name: str) -> None:
    """Make sure that a configuration is one of transformers' own text models.

    Args:
        config: The base model's configuration.
        name: What the recipe calls the model.

    Raises:
        ModelError: It is not.
    """
    kind = config.model_type
    if config.get_text_config() is not config:
        raise _reads_more(kind, name)
    if not is_own(type(config)):
        raise _brings_code(kind, name)


def is_own(kind: type) -> bool:
    """Whether a class is one that transformers exports, so that a bundle's code can import it."""
    import transformers

    return getattr(transformers, kind.__name__, None) is kind


def quantised(name: str) -> ModelError:
    """What is raised for a base in 4 or 8 bits."""
    return not_bundled("its weights are quantised, and a bundle holds the weights themselves", name)


def _reads_more(kind: str, name: str) -> ModelError:
    return not_bundled(f"a '{kind}' model reads more than text, and only text models are bundled", name)


def _brings_code(kind: str, name: str) -> ModelError:
    return not_bundled(f"a '{kind}' model brings Python code of its own, which a bundle does not carry", name)


def not_bundled(what: str, name: str) -> ModelError:
    """What is raised for a model of which there is no bundle."""
    return ModelError(what, where=f"model '{name}'", fix="Use --to adapter or --to lora.")
