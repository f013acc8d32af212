"""What a page says of paths: pages are passed on, and where things lie on somebody's machine is not for everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from malora_cli.places import PLACES, absolute
from malora_cli.results import Manifest, TaskData

#: Settings of a recipe that are paths.
_SETTINGS = PLACES | {"folder"}


def shared(text: str, project: Path) -> str:
    """An absolute path from the project's folder, or as its name alone where it lies elsewhere; other text as it is."""
    if (path := absolute(text)) is None:
        return text
    return path.relative_to(project).as_posix() if path.is_relative_to(project) else path.name


def shared_recipe(recipe: Any, project: Path) -> Any:
    """A recipe, or a part of it, with its paths as `shared`."""
    if not isinstance(recipe, dict):
        return recipe
    return {
        key: shared(value, project) if key in _SETTINGS and isinstance(value, str) else shared_recipe(value, project)
        for key, value in recipe.items()
    }


def shared_manifest(manifest: Manifest, project: Path) -> Manifest:
    """A manifest with its paths as `shared`."""

    def sources(data: dict[str, TaskData]) -> dict[str, TaskData]:
        return {name: rows.model_copy(update={"source": shared(rows.source, project)}) for name, rows in data.items()}

    return manifest.model_copy(
        update={
            "base_model": shared(manifest.base_model, project),
            "train_data": sources(manifest.train_data),
            "test_data": sources(manifest.test_data),
        }
    )
