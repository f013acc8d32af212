"""The recipe closed over the methods, formats and metrics there are, and its JSON Schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache, reduce
from operator import or_
from typing import Any

from pydantic import Field, create_model

from malora_cli.recipe.schema import Recipe
from malora_cli.recipe.settings import MethodSettings


@dataclass(frozen=True)
class Vocabulary:
    """The names that recipes may use, handed in by the rooms that own them.

    Args:
        methods: Settings of each adapter method, by its name.
        formats: Names of the prompt formats.
        metrics: Names of the metrics.
    """

    methods: Mapping[str, type[MethodSettings]]
    formats: Collection[str]
    metrics: Collection[str]


def recipe_type(vocabulary: Vocabulary) -> type[Recipe]:
    """``Recipe`` with its method narrowed to those of the vocabulary, told apart by name."""
    return _recipe_type(tuple(vocabulary.methods.values()))


# One class for one set of methods: instances of two classes are never equal, whatever they hold.
@cache
def _recipe_type(methods: tuple[type[MethodSettings], ...]) -> type[Recipe]:
    description = Recipe.model_fields["method"].description
    union: Any = reduce(or_, methods)
    # pydantic takes a discriminator for two methods and more; a single one is told by its own `name`.
    field = Field(description=description, discriminator="name") if len(methods) > 1 else Field(description=description)
    return create_model("Recipe", __base__=Recipe, __doc__=Recipe.__doc__, method=(union, field))


def recipe_schema(vocabulary: Vocabulary) -> dict[str, Any]:
    """JSON Schema of a recipe file as people write it: short forms allowed, names listed.

    Editors complete and check recipes with it.
    """
    schema = recipe_type(vocabulary).model_json_schema()
    _also_text(schema["properties"], "mix")
    for method in vocabulary.methods.values():
        # In Python a method's name may have a default; in a file it is what the section is told apart by.
        definition = schema["$defs"][method.__name__]
        definition["required"] = sorted({"name", *definition.get("required", ())})
    task = schema["$defs"]["TaskSettings"]["properties"]
    _also_text(task, "train")
    _also_text(task, "test")
    task["format"]["enum"] = sorted(vocabulary.formats)
    source = schema["$defs"]["SourceSettings"]["properties"]
    source["format"]["anyOf"][0]["enum"] = sorted(vocabulary.formats)
    task["metric"]["enum"] = sorted(vocabulary.metrics)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _also_text(properties: dict[str, Any], name: str) -> None:
    """Let the property be plain text too: the short form that the loader spells out."""
    field = properties[name]
    kinds = field.pop("anyOf", None) or [{"$ref": field.pop("$ref")}]
    field["anyOf"] = [{"type": "string", "minLength": 1}, *kinds]
