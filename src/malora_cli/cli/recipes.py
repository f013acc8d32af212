"""``malora recipes``: the recipes that come with the package, and the schema of one's own."""

from __future__ import annotations

import json
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add ``malora recipes`` and its commands."""
    recipes = typer.Typer(no_args_is_help=True, help="List and copy the shipped recipes; print their JSON Schema.")
    recipes.command("ls")(list_recipes)
    recipes.command("cp")(copy_recipe)
    recipes.command("schema")(print_schema)
    app.add_typer(recipes, name="recipes")


def list_recipes() -> None:
    """List the shipped recipes with what each is for.

    Example: malora recipes ls
    """
    from rich.text import Text

    from malora_cli.cli._terminal import plain_table, result_console
    from malora_cli.recipe import description_of, shipped_files

    table = plain_table(("recipe", "what it is for"))
    for name, path in shipped_files("recipes").items():
        table.add_row(Text(name, "bold"), Text(description_of(path)))
    result_console().print(table)


def copy_recipe(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of a shipped recipe, as `malora recipes ls` shows it.")
    ],
    destination: Annotated[
        Path, typer.Argument(metavar="DEST", help="File to write, or a folder to write it in.", show_default=False)
    ] = Path(),
) -> None:
    """Copy a shipped recipe to make it your own. An existing file is never overwritten.

    Example: malora recipes cp quickstart mine.yaml
    """
    from malora_cli.cli._terminal import say
    from malora_cli.errors import RecipeError
    from malora_cli.recipe import shipped_files
    from malora_cli.registry import did_you_mean

    known = shipped_files("recipes")
    if name not in known:
        raise RecipeError(f"no recipe '{name}' is shipped; {did_you_mean(name, known)}")
    path = destination / f"{name}.yaml" if destination.is_dir() else destination
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            file.write(known[name].read_bytes())
    except FileExistsError:
        free = _free_name(path)
        fix = f"Choose another name, such as `malora recipes cp {name} {free}`."
        raise RecipeError("there is a file already", where=str(path), fix=fix) from None
    except OSError as error:
        raise RecipeError(f"cannot be written ({error.strerror})", where=str(path)) from error
    say(f"Wrote {path}. Train it with: malora train {quote(str(path))}")


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
    from malora_cli.cli._common import vocabulary
    from malora_cli.cli._terminal import say
    from malora_cli.recipe import recipe_schema

    for line in json.dumps(recipe_schema(vocabulary()), indent=2).splitlines():
        say(line)
