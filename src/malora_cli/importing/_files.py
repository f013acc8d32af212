"""Files of other tools as plain data, and everything that can be wrong with one in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from malora_cli.errors import RecipeError
from malora_cli.recipe.files import read_document
from malora_cli.results import read_json


def read_keys(file: Path, what: str) -> dict[str, Any]:
    """The keys of a YAML file, or of a JSON file, which is YAML too.

    Args:
        file: The file.
        what: What it should be, for messages.

    Raises:
        RecipeError: It cannot be read, or is no mapping.
    """
    if file.suffix == ".json":
        return read_json_mapping(file)
    document = read_document(file, what)
    if document.problems:
        raise RecipeError(str(document.problems[0]))
    return dict(document.data)


def read_json_mapping(file: Path) -> dict[str, Any]:
    """The object of a JSON file.

    Raises:
        RecipeError: It cannot be read, or is no object.
    """
    try:
        data = read_json(file)
    except FileNotFoundError:
        raise RecipeError("file not found", where=str(file)) from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=str(file)) from None
    except ValueError as error:
        what = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
        raise RecipeError(what, where=str(file)) from None
    if not isinstance(data, dict):
        raise RecipeError("not a JSON object", where=str(file))
    return data
