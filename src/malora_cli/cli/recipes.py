"""``malora recipes``: the recipes and mixes that come with the package, and the schema of one's own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from malora_cli.cli import _completion

#: What may stand before the name of a mix, to tell it from a recipe of that name.
_MIX = "data_mixes/"


def register(app: typer.Typer) -> None:
    """Add ``malora recipes`` and its commands."""
    recipes = typer.Typer(
        no_args_is_help=True, help="List and copy the shipped recipes and mixes; print the JSON Schema."
    )
    recipes.command("ls")(list_recipes)
    recipes.command("cp")(copy_recipe)
    recipes.command("schema")(print_schema)
    app.add_typer(recipes, name="recipes")


def list_recipes(
    as_json: Annotated[bool, typer.Option("--json", help="Print names, descriptions and needs as JSON.")] = False,
) -> None:
    """List the shipped recipes and mixes with what each is for.

    Example: malora recipes ls
    """
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console, say_json
    from malora_cli.recipe import description_of, needs_of, shipped_files

    if as_json:
        described = {
            name: {"description": description_of(path), "needs": needs_of(path)}
            for name, path in shipped_files("recipes").items()
        }
        plain = {name: {"description": description_of(path)} for name, path in shipped_files("data_mixes").items()}
        say_json({"recipes": described, "mixes": plain})
        return
    recipes, mixes = plain_table(("recipe", "what it is for", "needs")), plain_table(("mix", "what it is for"))
    for name, path in shipped_files("recipes").items():
        recipes.add_row(Text(name, "bold"), Text(description_of(path)), Text(needs_of(path)))
    for name, path in shipped_files("data_mixes").items():
        mixes.add_row(Text(f"{_MIX}{name}", "bold"), Text(description_of(path)))
    result_console().print(recipes)
    result_console().print(mixes)


def copy_recipe(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of a shipped recipe or mix, as `malora recipes ls` shows it.",
            autocompletion=_completion.shipped,
        ),
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="File to write, or a folder to write it in.", show_default=False)
    ] = Path(),
) -> None:
    """Copy a shipped recipe, or a mix with its rows, to make it your own. An existing file is never overwritten.

    Example: malora recipes cp quickstart mine.yaml
    """
    from malora_cli.cli._terminal import say
    from malora_cli.errors import RecipeError
    from malora_cli.recipe import data_beside, shipped_files
    from malora_cli.registry import did_you_mean

    recipes, mixes = shipped_files("recipes"), shipped_files("data_mixes")
    known = {**mixes, **recipes, **{f"{_MIX}{mix}": path for mix, path in mixes.items()}}
    if name not in known:
        raise RecipeError(f"recipe '{name}' not found among the shipped ones; {did_you_mean(name, known)}")
    source, is_mix = known[name], known[name] in mixes.values()
    path = destination / source.name if destination.is_dir() else destination
    rows = data_beside(source) if is_mix else []
    for target in (path, *(path.parent / file for file in rows)):
        if os.path.lexists(target):  # pathlib's raises for a name that is too long
            free = _free_name(path if target == path else Path(path.stem) / path.name)
            fix = f"Choose another name, such as `malora recipes cp {name} {free}`."
            raise RecipeError("the file exists already", where=str(target), fix=fix)
    _write(path, source)
    for file in rows:
        _write(path.parent / file, source.parent / file)
    quoted = quote(str(path))
    say(f"Wrote {path}. " + (f"In a recipe: mix: {path}" if is_mix else f"Train it with: malora train {quoted}"))


def _write(path: Path, source: Path) -> None:
    from malora_cli.errors import RecipeError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(source.read_bytes())
    except OSError as error:
        raise RecipeError(f"cannot be written ({error.strerror})", where=str(path)) from error


def _free_name(path: Path) -> Path:
    number = 2
    while (free := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return free


def print_schema() -> None:
    """Print the JSON Schema of recipes, with which an editor completes and checks them.

    Example: malora recipes schema > recipe.schema.json

    Editors with the YAML language server then read it from this comment at the top of a recipe:
    # yaml-language-server: $schema=recipe.schema.json
    """
    from malora_cli.cli._terminal import say
    from malora_cli.named import vocabulary
    from malora_cli.recipe import recipe_schema

    for line in json.dumps(recipe_schema(vocabulary()), indent=2).splitlines():
        say(line)
