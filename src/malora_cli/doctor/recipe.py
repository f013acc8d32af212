"""What one recipe needs of this machine: its base model, its data, and room for the weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, try_to_load_from_cache

from malora_cli.characters import plural
from malora_cli.data.sources import files_of
from malora_cli.data.variables import with_values
from malora_cli.doctor.checks import GIB, Check
from malora_cli.doctor.machine import memory
from malora_cli.errors import MaloraError
from malora_cli.modeling import count_parameters, empty_base, resolve_base, wrap
from malora_cli.modeling.device import dtype_of, own_device
from malora_cli.recipe import Recipe, SourceSettings

#: Bytes of a trainable parameter: itself, its gradient and the two moments of AdamW, all float32.
_TRAINED_BYTES = 16
#: Bytes of a frozen parameter.
_FROZEN_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.5}
#: What a list of data that are missing names.
_SHOWN = 3


def of_recipe(recipe: Recipe) -> Iterator[Check]:
    """The checks of a recipe; nothing is fetched, and no weights are loaded.

    Args:
        recipe: The recipe, with its paths resolved.
    """
    yield _data(recipe)
    name = recipe.model.base
    if _is_on_hub(name) and not _is_cached(name, recipe.model.revision, "model"):
        yield _absent("recipe.base", [f"model {name}"])
        return
    try:
        model = wrap(empty_base(resolve_base(recipe.model), recipe.model), recipe.method)  # type: ignore[arg-type]
    except MaloraError as error:
        yield Check("recipe.base", "fail", str(error))
        return
    total = count_parameters(model)
    yield Check("recipe.base", "ok", f"{name}: {total.base:,} parameters, {total.trainable:,} trainable")
    least = (
        total.base * _FROZEN_BYTES[recipe.model.quantise or dtype_of(recipe.model)] + total.trainable * _TRAINED_BYTES
    )
    found = f"weights, gradients and optimiser take {least / GIB:.1f} GiB"
    if own_device(recipe.model.device).type != "cpu":
        yield Check("recipe.memory", "note", f"{found} of the device's memory", _MEASURE)
        return
    _, free = memory()
    do = _MEASURE if least < free else "See docs/low-memory.md, or take a smaller base."
    yield Check("recipe.memory", "ok" if least < free else "fail", f"{found} of {free / GIB:.1f} GiB free", do)


_MEASURE = "malora check RECIPE measures what a step takes."


def _data(recipe: Recipe) -> Check:
    """Whether the rows of all tasks are here, or can be fetched."""
    lacking, fetched = list[str](), list[str]()
    for name, task in recipe.mix.tasks.items():
        for source in filter(None, (task.train, task.test, task.validation)):
            if (why := _why_missing(source)) is not None:
                lacking.append(f"{name}: {why}")
            elif _is_on_hub(source.path) and not _is_cached(source.path, source.revision, "dataset"):
                fetched.append(f"{name}: {source.path}")
    if lacking:
        return Check("recipe.data", "fail", _listed(lacking), "Correct the paths of the mix.")
    if fetched:
        return _absent("recipe.data", fetched)
    return Check("recipe.data", "ok", plural(len(recipe.mix.tasks), "task"))


def _why_missing(source: SourceSettings) -> str | None:
    """Why a source that is no data set of the hub is not there."""
    try:
        path = with_values(source).path
        there = bool(files_of(path)) or Path(path).exists() or _is_on_hub(path)
    except MaloraError as error:
        return str(error)
    return None if there else f"{path} not found"


def _absent(what: str, names: list[str]) -> Check:
    """What has to come from the hub."""
    if constants.HF_HUB_OFFLINE:
        return Check(what, "fail", f"not on this machine: {_listed(names)}", "Unset HF_HUB_OFFLINE to download it.")
    return Check(what, "note", f"not on this machine: {_listed(names)}", "It is downloaded from the hub when needed.")


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))  # a task may name one data set twice
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{'; '.join(names[:_SHOWN])}{more}"


def _is_on_hub(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith(("/", ".", "~", "$")) and not Path(name).exists()


def _is_cached(name: str, revision: str | None, kind: str) -> bool:
    """Whether the hub's cache has a model or a data set."""
    file = "config.json" if kind == "model" else "README.md"
    if isinstance(try_to_load_from_cache(name, file, revision=revision, repo_type=kind), str):
        return True
    owned = f"{kind}s--{name.replace('/', '--')}"
    return any((Path(constants.HF_HUB_CACHE) / owned / "snapshots").glob("*/*"))
