"""Who takes part in a conversation, and how they are asked."""

from __future__ import annotations

from peft.utils import CONFIG_NAME

from malora_cli.adapters.config import MixtureType
from malora_cli.chat.speaker import Speaker
from malora_cli.data.encoding import Encoder
from malora_cli.errors import RecipeError
from malora_cli.evals.subject import Models
from malora_cli.modeling import load_tokenizer
from malora_cli.results import read_json


def check_asked(models: Models, *, experts: bool, against: str | None) -> None:
    """Make sure that what is asked for can be had of these models, before their weights are loaded.

    Raises:
        RecipeError: It cannot.
    """
    if against is not None and models.adapter is None:
        raise RecipeError("this is a base model itself", where="--against", fix="Leave it out.")
    if experts and not _is_routed(models):
        raise RecipeError("this model has no experts: nothing is routed", where="--experts", fix="Leave it out.")


def _is_routed(models: Models) -> bool:
    if models.adapter is None:
        return False
    return read_json(models.adapter / CONFIG_NAME).get("peft_type") in {*MixtureType}


def speakers_of(models: Models, system: str | None, *, experts: bool, with_base: bool) -> list[Speaker]:
    """The models with their weights, each at the beginning of a conversation of its own.

    Args:
        models: What `check_asked` has checked.
        system: System prompt; None leaves it to the chat template.
        experts: Whether the experts are watched.
        with_base: Whether the base model answers as well.

    Raises:
        ModelError: A model cannot be had.
    """
    encoder = Encoder(load_tokenizer(models.base, models.settings))
    model = models.computing
    found = [Speaker("model" if models.adapter is None else "adapter", model, encoder, system, watched=experts)]
    if with_base:
        found.append(Speaker("base", model, encoder, system, plain=True))
    return found
