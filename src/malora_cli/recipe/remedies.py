"""The recipe's section of remedies: which are chosen, each with the settings that its own file declares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, SerializerFunctionWrapHandler, create_model, model_serializer

from malora_cli.recipe.settings import Settings


class RemedySettings(Settings):
    """What every remedy says of itself; each adds its own fields. Its docstring is its description in the schema."""

    #: Whether it changes how often tasks are drawn.
    changes_shares: ClassVar[bool] = False
    #: Whether it goes by the validation losses of evaluations, which a resumed run must then measure as before.
    goes_by_evaluations: ClassVar[bool] = False
    #: Why several processes cannot train with it; None where they can.
    one_process: ClassVar[str | None] = None

    @abstractmethod
    def sentence(self) -> str:
        """What it does and its source, as the report says it."""


class RemediesSettings(Settings):
    """Every remedy under its name, as a mapping of its settings; one that is left out, or false, is not taken."""

    @property
    def chosen(self) -> dict[str, RemedySettings]:
        """The settings of those that are taken, by name."""
        fields = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: settings for name, settings in fields if settings is not None}

    @model_serializer(mode="wrap")
    def _only_chosen(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: settings for name, settings in plain(self).items() if settings is not None}


def _taken(value: Any) -> Any:
    if value is None:  # `pcgrad:` with nothing behind it looks like a choice and must not be none
        raise ValueError("must be a mapping: {} takes its defaults, false leaves it out")
    return None if value is False else value


def remedies_type(remedies: Mapping[str, type[RemedySettings]]) -> type[RemediesSettings]:
    """The section with a field for every remedy there is."""
    fields: dict[str, Any] = {
        name: (
            Annotated[settings | None, BeforeValidator(_taken)],
            Field(default=None, description=(settings.__doc__ or name).splitlines()[0]),
        )
        for name, settings in remedies.items()
    }
    return create_model("RemediesSettings", __base__=RemediesSettings, __doc__=RemediesSettings.__doc__, **fields)
