"""``malora methods``: what ``method.name`` may be, and the settings of each."""

from __future__ import annotations

import inspect
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from malora_cli.cli import _completion

if TYPE_CHECKING:
    from malora_cli.adapters.methods._base import AdapterSettings


def register(app: typer.Typer) -> None:
    """Add ``malora methods``."""
    app.command("methods")(list_methods)


def list_methods(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="Show the settings of this method.",
            show_default=False,
            autocompletion=_completion.methods,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all methods with their settings as JSON.")] = False,
) -> None:
    """List the methods with what each is; with NAME its formula, its source and its settings.

    Example: malora methods malora
    """
    from malora_cli.adapters.methods import METHODS
    from malora_cli.cli._terminal import say_json
    from malora_cli.errors import RecipeError
    from malora_cli.registry import unknown

    if name is not None and name not in METHODS:
        raise RecipeError(unknown("method", name, METHODS), where="NAME")
    known = {key: METHODS[key] for key in METHODS if name in (None, key)}
    if as_json:
        say_json({"methods": [_described(key, method) for key, method in known.items()]})
    elif name is None:
        _print_all(known)
    else:
        _print_one(_described(name, METHODS[name]))


def _described(name: str, method: type[AdapterSettings]) -> dict[str, Any]:
    fields = {key: field for key, field in method.model_fields.items() if key != "name"}
    settings = {
        key: {"default": field.get_default(call_default_factory=True), "description": field.description}
        for key, field in fields.items()
    }
    return {"name": name, "summary": _summary(method), "about": inspect.getdoc(method), "settings": settings}


def _summary(method: type[AdapterSettings]) -> str:
    return method.model_fields["name"].description or ""


def _print_all(known: dict[str, type[AdapterSettings]]) -> None:
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console

    table = plain_table(("method", "what it is"))
    for name, method in known.items():
        table.add_row(Text(name, "bold"), Text(_summary(method)))
    result_console().print(table)


def _print_one(described: dict[str, Any]) -> None:
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console, say

    for line in [
        f"{described['name']}: {described['summary']}",
        "",
        *described["about"].replace("``", "`").splitlines(),
        "",
    ]:
        say(line)
    table = plain_table(("method.*", "default", "what it is"))
    for key, setting in described["settings"].items():
        table.add_row(Text(key, "bold"), Text(_spelled(setting["default"])), Text(setting["description"] or ""))
    result_console().print(table)


def _spelled(value: Any) -> str:
    """A default as a recipe spells it."""
    return value if isinstance(value, str) else json.dumps(value)
