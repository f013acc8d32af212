"""From a YAML file and overrides to a checked recipe that knows where each value came from."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from malora_cli.errors import RecipeError
from malora_cli.places import follow
from malora_cli.recipe.files import read_document, shown_path
from malora_cli.recipe.mix import existing, inline_mix, resolve_sources, spell_out_tasks
from malora_cli.recipe.overrides import COMMAND_LINE, Override, apply_override, parse_overrides
from malora_cli.recipe.problems import InvalidRecipeError, describe_errors, show
from malora_cli.recipe.schema import Recipe
from malora_cli.recipe.settings import file_name_from
from malora_cli.recipe.vocabulary import Vocabulary, recipe_type
from malora_cli.yaml_lines import DataPath, Document, Origin, Problem, read_yaml, write_yaml

DEFAULT = "default"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and its history.

    Args:
        recipe: The recipe, with the mix inside and the run's name filled in.
        path: The file it was read from.
        provenance: Where each value was given, by its dotted path: ``"recipes/quickstart.yaml:12"``,
            ``"command line"`` or ``"default"``.
    """

    recipe: Recipe
    path: Path
    provenance: Mapping[str, str]

    @property
    def name(self) -> str:
        """Name of the run folder."""
        return self.recipe.output.name or file_name_from(self.path.stem)

    def with_dtype(self, dtype: str) -> LoadedRecipe:
        """The same with a number format in the place of ``model.dtype: auto``; any other stays."""
        if self.recipe.model.dtype != "auto":
            return self
        model = self.recipe.model.model_copy(update={"dtype": dtype})
        provenance = {**self.provenance, "model.dtype": f"auto, {self.provenance['model.dtype']}"}
        return replace(self, recipe=self.recipe.model_copy(update={"model": model}), provenance=provenance)

    def to_yaml(self) -> str:
        """The recipe with everything spelled out; ``load_recipe`` reads it back to an equal one."""
        return write_yaml(self.recipe.model_dump(mode="json"))


def load_recipe(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    vocabulary: Vocabulary,
    was: Path | None = None,
    model_only: bool = False,
) -> LoadedRecipe:
    """Read a recipe, put its mix inside, apply overrides and check everything.

    A run's own ``recipe.yaml`` is read the same way, but for one thing: it never grants ``model.trust_remote_code``,
    nor ``eval.trust_metric_code``. Run folders are passed on, and to evaluate one is not to trust the code it names.

    Args:
        path: The YAML file.
        overrides: ``section.setting=value`` texts, later ones over earlier ones. Paths in them are relative to the
            current folder, paths in a file to the folder of that file.
        vocabulary: The names a recipe may use.
        was: Of a run's own recipe, where the run lay when it was written.
        model_only: No data are going to be read and nothing is going to be scored: what only that takes may be missing.

    Raises:
        InvalidRecipeError: Something is wrong in it; every problem has its line.
        RecipeError: The file is no recipe at all.
    """
    document = read_document(path, "recipe")
    if "tasks" in document.data and "mix" not in document.data:
        raise _is_a_mix(path)
    if was is not None:
        follow(document.data, was, path.resolve().parent)
    return _checked(document, path, overrides, vocabulary, model_only=model_only)


def recipe_of_model(model: str, mix: str, overrides: Sequence[str] = (), *, vocabulary: Vocabulary) -> LoadedRecipe:
    """The recipe by which a model is evaluated that no recipe has trained: its own settings, a mix, and defaults.

    Args:
        model: The model, as ``model.base`` takes it.
        mix: The mix, as a recipe names it; paths are relative to the current folder.
        overrides: As in `load_recipe`.
        vocabulary: The names a recipe may use.

    Raises:
        InvalidRecipeError: The mix or an override is wrong; every problem is named.
    """
    data = {"model": {"base": model}, "method": {"name": "lora"}, "mix": mix, "train": {"steps": 1}}
    document = read_yaml(write_yaml(data), lambda _line: Origin(COMMAND_LINE, Path.cwd()))
    return _checked(document, Path(f"{file_name_from(Path(model).name)}.yaml"), overrides, vocabulary)


def _checked(
    document: Document, path: Path, overrides: Sequence[str], vocabulary: Vocabulary, *, model_only: bool = False
) -> LoadedRecipe:
    """The recipe of a document, with overrides."""
    parsed, problems = parse_overrides(overrides)
    document.problems += problems
    has_mix = _assemble(document, parsed, data=not model_only)
    _fill_name(document, path)
    kind = recipe_type(vocabulary)
    try:
        recipe = _validate(kind, document.data, vocabulary)
    except ValidationError as error:
        # Without its file nothing can be said about the mix, and what YAML already refused is told once.
        wrong = describe_errors(error, document, kind, vocabulary, skip=() if has_mix else ("mix",))
        told = {problem.path for problem in document.problems}
        raise InvalidRecipeError([*document.problems, *(p for p in wrong if p.path not in told)]) from None
    if _is_of_a_run(path):
        _require_grants(document, recipe, metrics=not model_only)
    if document.problems:
        raise InvalidRecipeError(document.problems)
    return LoadedRecipe(recipe, path, _provenance(recipe, document))


def _keep_one_length(document: Document, overrides: Sequence[Override]) -> None:
    """Let steps that an override sets take the place of the file's epochs, and the other way round."""
    train, given = document.data.get("train"), {override.path for override in overrides}
    if not isinstance(train, dict):
        return
    for own, other in (("steps", "epochs"), ("epochs", "steps")):
        if train.get(own) is not None and ("train", own) in given and ("train", other) not in given:
            train.pop(other, None)
            document.prune(("train", other))


def _is_a_mix(path: Path) -> RecipeError:
    given = shlex.quote(shown_path(path))
    fix = f"Name it in a recipe, as `mix: {given}`, or over a shipped one's: `malora check quickstart mix={given}`."
    return RecipeError("this is a mix, not a recipe", where=shown_path(path), fix=fix)


def _assemble(document: Document, overrides: Sequence[Override], *, data: bool) -> bool:
    """Put the mix and the overrides into the document; says whether there is a mix to check."""
    for override in overrides:
        if override.path == ("mix",):  # before the others, which may go into it
            apply_override(document, override)
    has_mix = inline_mix(document)
    spell_out_tasks(document)
    _spell_out_method(document)
    for override in overrides:
        if override.path != ("mix",) and (has_mix or override.path[0] != "mix"):
            apply_override(document, override)
            _spell_out_method(document)  # before the next one, which may go into it
    _keep_one_length(document, overrides)
    spell_out_tasks(document)
    resolve_sources(document, needed=data)
    _resolve_model_paths(document)
    # A section whose lines are all commented out is null; it says no more than one that is left out.
    for section in [name for name, value in document.data.items() if value is None and name in Recipe.model_fields]:
        del document.data[section]
        document.prune((section,))
    return has_mix


def _spell_out_method(document: Document) -> None:
    """Write ``method: lora`` as ``method: {name: lora}``, which is what it stands for."""
    if isinstance(name := document.data.get("method"), str):
        document.data["method"] = {"name": name}
        document.origins["method", "name"] = document.origin(("method",))


def _resolve_model_paths(document: Document) -> None:
    model = document.data.get("model")
    for name in ("base", "chat_template"):
        if isinstance(model, dict) and isinstance(model.get(name), str):
            model[name] = existing(model[name], document.origin(("model", name)).folder)


def _fill_name(document: Document, path: Path) -> None:
    """Name the run after the recipe's file, so that the resolved recipe keeps the name in its own, other file."""
    output = document.data.setdefault("output", {})
    if isinstance(output, dict) and output.get("name") is None:
        output["name"] = file_name_from(path.stem)
        document.prune(("output", "name"))


def _is_of_a_run(path: Path) -> bool:
    # Where it lies, and where it is that a link leads to: a link in a run folder is the run's as well.
    return any((folder / "manifest.json").is_file() for folder in (path.parent, path.resolve().parent))


def _require_grants(document: Document, recipe: Recipe, *, metrics: bool) -> None:
    """Make sure that whoever typed the command lets code be run that a recipe names, not the file alone."""
    asked: list[tuple[DataPath, str, str]] = []
    if recipe.model.trust_remote_code:
        asked.append((("model", "trust_remote_code"), recipe.model.base, "--trust-remote-code"))
    if recipe.mix.code and metrics:
        asked.append((("eval", "trust_metric_code"), recipe.mix.code[0], "eval.trust_metric_code=true"))
    for place, code, grant in asked:
        origin = document.origin(place)
        if origin.override is None:
            text = f"got true; the recipe of a run does not let Python code of {show(code)} be run; "
            document.problems.append(Problem(origin, place, f"{text}if you trust it, add {grant}"))


def _validate(kind: type[Recipe], data: dict[str, Any], vocabulary: Vocabulary) -> Recipe:
    # Strict, so that `steps: true` is no number; as JSON, because strict Python input would refuse lists for tuples.
    return kind.model_validate_json(json.dumps(data), strict=True, context={"vocabulary": vocabulary})


def _provenance(recipe: Recipe, document: Document) -> dict[str, str]:
    paths = (path for path, _ in leaves(recipe.model_dump(mode="json")))
    return {".".join(path): _where(document, path) for path in paths}


def _where(document: Document, path: DataPath) -> str:
    return document.origins[path].where if path in document.origins else DEFAULT


def leaves(value: Any, path: DataPath = ()) -> Iterator[tuple[DataPath, Any]]:
    """Every value of plain data that is no section, with its path; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, value


__all__ = ["COMMAND_LINE", "DEFAULT", "LoadedRecipe", "leaves", "load_recipe", "recipe_of_model"]
