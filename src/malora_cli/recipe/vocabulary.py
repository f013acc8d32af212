"""The recipe closed over the methods, remedies, formats and metrics there are, and its JSON Schema."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, reduce
from operator import or_
from typing import Any

from pydantic import Field, create_model

from malora_cli.recipe.remedies import RemedySettings, remedies_type
from malora_cli.recipe.schema import Recipe
from malora_cli.recipe.settings import OWN_METRIC, MethodSettings, MetricSettings


@dataclass(frozen=True)
class Vocabulary:
    """The names that recipes may use, handed in by the rooms that own them.

    Args:
        methods: Settings of each adapter method, by its name.
        formats: Names of the prompt formats.
        metrics: Settings of each metric, by its name.
        remedies: Settings of each remedy, by its name.
    """

    methods: Mapping[str, type[MethodSettings]]
    formats: Collection[str]
    metrics: Mapping[str, type[MetricSettings]]
    remedies: Mapping[str, type[RemedySettings]] = field(default_factory=dict)


def recipe_type(vocabulary: Vocabulary) -> type[Recipe]:
    """``Recipe`` with its method narrowed to those of the vocabulary, told apart by name, and with its remedies."""
    return _recipe_type(tuple(vocabulary.methods.values()), tuple(vocabulary.remedies.items()))


# One class for one vocabulary: instances of two classes are never equal, whatever they hold.
@cache
def _recipe_type(
    methods: tuple[type[MethodSettings], ...], remedies: tuple[tuple[str, type[RemedySettings]], ...]
) -> type[Recipe]:
    description = Recipe.model_fields["method"].description
    union: Any = reduce(or_, methods)
    # pydantic takes a discriminator for two methods and more; a single one is told by its own `name`.
    method = Field(description=description, discriminator="name" if len(methods) > 1 else None)
    section = remedies_type(dict(remedies))
    chosen = Field(default_factory=section, description=Recipe.model_fields["remedies"].description)
    return create_model(
        "Recipe", __base__=Recipe, __doc__=Recipe.__doc__, method=(union, method), remedies=(section, chosen)
    )


def recipe_schema(vocabulary: Vocabulary) -> dict[str, Any]:
    """JSON Schema of a recipe file as people write it: short forms allowed, names listed.

    Editors complete and check recipes with it.
    """
    schema = recipe_type(vocabulary).model_json_schema()
    _also_text(schema["properties"], "mix")
    schema["properties"]["method"] = {
        "description": schema["properties"]["method"].pop("description"),
        "anyOf": [{"type": "string", "enum": sorted(vocabulary.methods)}, schema["properties"]["method"]],
    }
    for method in vocabulary.methods.values():
        # In Python a method's name may have a default; in a file it is what the section is told apart by.
        definition = schema["$defs"][method.__name__]
        definition["required"] = sorted({"name", *definition.get("required", ())})
    task = schema["$defs"]["TaskSettings"]["properties"]
    _also_text(task, "train")
    _also_text(task, "test")
    _also_text(task, "validation")
    task["format"]["enum"] = sorted(vocabulary.formats)
    source = schema["$defs"]["SourceSettings"]["properties"]
    source["format"]["anyOf"][0]["enum"] = sorted(vocabulary.formats)
    task["metric"] = {"description": task["metric"]["description"], "anyOf": _metrics(schema, vocabulary)}
    for remedy in schema["$defs"]["RemediesSettings"]["properties"].values():
        remedy["anyOf"] = [{"const": False} if kind == {"type": "null"} else kind for kind in remedy["anyOf"]]
        del remedy["default"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _metrics(schema: dict[str, Any], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """A metric's name, or a mapping with one and its options; what they are goes into the definitions."""
    ways: list[dict[str, Any]] = [{"type": "string", "enum": sorted({*vocabulary.metrics} - {OWN_METRIC})}]
    if OWN_METRIC in vocabulary.metrics:
        ways.append({"type": "string", "pattern": f"^{OWN_METRIC}:."})
    for name, metric in vocabulary.metrics.items():
        ways.append({"$ref": f"#/$defs/{metric.__name__}"})
        definition = schema["$defs"][metric.__name__] = metric.model_json_schema()
        definition["required"] = sorted({"name", *definition.get("required", ())})
        definition["properties"]["name"] = {
            "const": name,
            "description": MetricSettings.model_fields["name"].description,
        }
    del schema["$defs"][MetricSettings.__name__]
    return ways


def _also_text(properties: dict[str, Any], name: str) -> None:
    """Let the property be plain text too: the short form that the loader spells out."""
    field = properties[name]
    kinds = field.pop("anyOf", None) or [{"$ref": field.pop("$ref")}]
    field["anyOf"] = [{"type": "string", "minLength": 1}, *kinds]
