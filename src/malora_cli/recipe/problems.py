"""Everything that is wrong with a recipe, one line each: where, dotted path, value, constraint, nearest name."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from malora_cli.errors import RecipeError
from malora_cli.recipe.schema import Recipe
from malora_cli.recipe.settings import MetricSettings
from malora_cli.recipe.vocabulary import Vocabulary
from malora_cli.registry import did_you_mean
from malora_cli.yaml_lines import DataPath, Document, Problem

_LONGEST_VALUE = 60
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?")
#: What pydantic puts into a location besides keys: that it is about a key, and which side of a union it took.
_MARKS = ("[key]", "[column]", "[columns]")

#: What other programs call a setting of ours.
_CALLED_ELSEWHERE = {
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "gradient_accumulation_steps": "micro_batch_size",
    "lr": "learning_rate",
    "max_seq_length": "max_length",
    "rank": "r",
}
#: Names that stand in a line even where the nearest is known.
_FEW_NAMES = 120

_CONSTRAINTS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
    "model_attributes_type": "must be a mapping",
    "string_too_short": "must not be empty",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have {min_length} or more entries",
    "too_long": "must have {max_length} or fewer entries",
}


class InvalidRecipeError(RecipeError):
    """All that is wrong with a recipe, its mix and its overrides.

    Args:
        problems: What is wrong, in the order to show it.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(str(problem) for problem in problems)
        super().__init__("\n".join(self.problems))


def show(value: Any) -> str:
    """A value as a line of a message shows it: as YAML spells it, cut where it is long."""
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def describe_errors(
    error: ValidationError,
    document: Document,
    recipe: type[Recipe],
    vocabulary: Vocabulary,
    *,
    skip: Collection[str] = (),
) -> list[Problem]:
    """One problem for each of pydantic's errors, in the order of the schema.

    Args:
        error: What validating ``document`` raised.
        document: The recipe's data with the mix in it.
        recipe: The type it was validated as.
        vocabulary: The names it may use.
        skip: Sections to pass over.
    """
    problems = []
    for details in error.errors(include_url=False, include_input=False):
        # The default of a field that follows another could not be worked out; that other one is reported.
        path = _path(details, document.data, vocabulary)
        if details["type"] == "default_factory_not_called" or path[0] in skip:
            continue
        kind = _settings_at(recipe, path[:-1], document.data, vocabulary)
        text = _text(details, path, document, kind, vocabulary)
        problems.append(Problem(document.origin(path), path, text))
    return problems


def _path(details: ErrorDetails, data: Any, vocabulary: Vocabulary) -> DataPath:
    """Where the error is in the data: pydantic's location without the marks it puts in, and the sides of a union."""
    location = list(details["loc"])
    if location[0] == "method":
        if details["type"].startswith("union_tag"):
            location.append("name")
        elif len(vocabulary.methods) > 1 and len(location) > 1:
            del location[1]  # the tag of the union
    path: list[str] = []
    for part in location:
        # Within a number, a text or a list, a word can only be the name of what it was tried as.
        tried_as = isinstance(part, str) and not isinstance(_value_at(data, tuple(path)), dict)
        if part not in _MARKS and not tried_as:
            path.append(str(part))
    return tuple(path)


def _text(
    details: ErrorDetails, path: DataPath, document: Document, kind: type[BaseModel] | None, vocabulary: Vocabulary
) -> str:
    given = path in document.origins
    value = _value_at(document.data, path)
    if not given and details["type"] in ("missing", "union_tag_not_found"):
        return f"missing; required{_purpose(path, kind, vocabulary)}"
    constraint = _constraint(details, path, document, kind)
    if details["type"] == "extra_forbidden":  # its value is right or wrong by no rule
        return constraint
    # Rules over a whole section name the values they are about.
    if isinstance(value, dict) and details["type"] == "value_error" and "[key]" not in details["loc"]:
        return constraint
    if "[key]" in details["loc"]:
        return f"got the name {show(path[-1])}; {constraint}"
    return f"got {show(value)}; {constraint}" if given else f"missing; {constraint}"


def _constraint(details: ErrorDetails, path: DataPath, document: Document, kind: type[BaseModel] | None) -> str:
    context = details.get("ctx", {})
    value = _value_at(document.data, path)
    match details["type"]:
        case "value_error":
            return str(context["error"])
        case "extra_forbidden":
            return _unknown_key(path, document.data, kind)
        case "literal_error" | "union_tag_invalid":
            allowed = re.findall(r"'([^']*)'", context.get("expected") or context["expected_tags"])
            nearest = did_you_mean(value, allowed) if isinstance(value, str) else ""
            listed = f"must be one of {', '.join(allowed)}"
            if nearest and len(listed) > _FEW_NAMES:
                return f"unknown {path[-2] if path[-1] == 'name' else 'value'}; {nearest}"
            return f"{listed}; {nearest}" if nearest.startswith("did") else listed
        case "union_tag_not_found":
            return "must be a mapping with a name"
        case "int_type" | "float_type" if isinstance(value, str) and _NUMBER.fullmatch(value):
            return f"{_CONSTRAINTS[details['type']]}; leave the quotes out"
        case "model_type" | "model_attributes_type" if isinstance(value, str) and (name := _only_required(kind, path)):
            return f"must be a mapping, as {{{name}: {value}}}"
        case "string_type" if isinstance(value, (int, float)):
            return "must be text; put it in quotes"
        case "string_type":
            return "must be text"
        case kind_of_error if kind_of_error in _CONSTRAINTS:
            return _CONSTRAINTS[kind_of_error].format(**{name: _plain(limit) for name, limit in context.items()})
    return details["msg"].removeprefix("Input ")


def _plain(limit: Any) -> Any:
    """A limit as people write it: 0, not 0.0."""
    return int(limit) if isinstance(limit, float) and limit.is_integer() else limit


def _unknown_key(path: DataPath, data: Any, kind: type[BaseModel] | None) -> str:
    method = _value_at(data, ("method", "name")) if path[0] == "method" else None
    owner = f" of method {show(method)}" if method is not None else ""
    nearest = f"; {_nearest_setting(path, kind)}" if kind else ""
    return f"unknown setting{owner}{nearest}"


def _nearest_setting(path: DataPath, kind: type[BaseModel]) -> str:
    """The setting that is meant: one of this section, or at the top one that lies in a section."""
    name = _CALLED_ELSEWHERE.get(path[-1], path[-1])
    if name != path[-1] and name in kind.model_fields:
        return f"did you mean '{name}'?"
    inner = (section for section in kind.model_fields if name in _fields_of(kind, section)) if len(path) == 1 else ()
    section = next(iter(inner), None)
    return did_you_mean(path[-1], kind.model_fields) if section is None else f"did you mean '{section}.{name}'?"


def _only_required(kind: type[BaseModel] | None, path: DataPath) -> str | None:
    """The one setting of the section at ``path`` that has no default, if there is just one."""
    required = [name for name, field in _fields_of(kind, path[-1]).items() if field.is_required()] if kind else []
    return required[0] if len(required) == 1 else None


def _fields_of(kind: type[BaseModel], section: str) -> dict[str, FieldInfo]:
    """The settings of a section of settings; none where it is no section."""
    inner = kind.model_fields[section].annotation if section in kind.model_fields else None
    return inner.model_fields if isinstance(inner, type) and issubclass(inner, BaseModel) else {}


def _purpose(path: DataPath, kind: type[BaseModel] | None, vocabulary: Vocabulary) -> str:
    if path == ("method", "name"):
        return f"; one of {', '.join(vocabulary.methods)}"
    field = kind.model_fields.get(path[-1]) if kind else None
    return f" ({field.description})" if field and field.description else ""


def _value_at(data: Any, path: DataPath) -> Any:
    for key in path:
        if isinstance(data, list):
            data = data[int(key)]
        elif isinstance(data, dict):
            data = data.get(key)
        else:
            return None
    return data


def _settings_at(recipe: type[Recipe], path: DataPath, data: Any, vocabulary: Vocabulary) -> type[BaseModel] | None:
    """The settings that the mapping at ``path`` is read as; None where it is no section."""
    if path == ("method",):
        name = _value_at(data, ("method", "name"))
        return vocabulary.methods.get(name) if isinstance(name, str) else None
    kind: Any = recipe
    for key in path:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            field = kind.model_fields.get(key)
            kind = field.annotation if field else None
        else:
            kind = get_args(kind)[-1] if get_origin(kind) is dict else None
        if get_origin(kind) is UnionType:  # a section that may be left out
            kind = get_args(kind)[0]
    if kind is MetricSettings and isinstance(name := _value_at(data, (*path, "name")), str):
        kind = vocabulary.metrics.get(name, kind)
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
