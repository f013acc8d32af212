"""Whether a recipe can be trained where it is started: processes, packages and settings that exclude each other."""

from __future__ import annotations

import os
from collections.abc import Sequence

from malora_cli.errors import RecipeError, RunError
from malora_cli.recipe import Recipe
from malora_cli.train.ranks import world_size
from malora_cli.train.remedies import REMEDIES


def check_surroundings(recipe: Recipe) -> None:
    """Make sure that training can run here, before anything is written.

    Raises:
        RecipeError: A setting does not go with another, with the processes there are, or with the packages.
        RunError: The launcher asks for what is not supported.
    """
    if recipe.train.batch_size % world_size():
        raise RecipeError(
            f"got {recipe.train.batch_size}; {world_size()} processes share the rows of a step, so it must "
            "be a multiple of their number",
            where="train.batch_size",
        )
    for name, remedy in recipe.remedies.chosen.items():
        if remedy.one_process is not None and world_size() > 1:
            raise RecipeError(remedy.one_process, where=f"remedies.{name}", fix="Train in one process, or without it.")
    surgeons = [name for name in recipe.remedies.chosen if REMEDIES[name].splits_gradients]
    if len(surgeons) > 1:
        raise RecipeError(
            f"{' and '.join(surgeons)} would each combine the tasks' gradients", where="remedies", fix="Take one."
        )
    if recipe.train.shard and world_size() == 1:
        raise RecipeError(
            "there is one process, and nothing to spread weights over",
            where="train.shard",
            fix="Train in several, by --nproc or torchrun, or without it.",
        )
    for wanted, where, why in (
        (recipe.train.conflict_rows, "train.conflict_rows", "gradients of single tasks cannot be taken of them"),
        (recipe.model.quantise, "model.quantise", "packed ones cannot be taken apart"),
    ):
        if recipe.train.shard and wanted is not None:
            raise RecipeError(f"train.shard spreads weights, and {why}", where=where, fix="Set one of them to null.")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        raise RunError(
            "DeepSpeed keeps optimiser states as pickles, which are never read here",
            where="accelerate's configuration",
            fix="Spread weights and optimiser states by train.shard (FSDP2) instead.",
        )
    _check_trackers(recipe.train.report_to)


def _check_trackers(wanted: Sequence[str]) -> None:
    """Make sure that there is a package for each; only transformers knows, which takes seconds to import."""
    if not wanted:
        return
    from transformers.integrations import get_available_reporting_integrations

    for tracker in wanted:
        if tracker not in get_available_reporting_integrations():
            raise RecipeError(
                f"the package of '{tracker}' is not installed",
                where="train.report_to",
                fix=f"Install it: pip install {tracker}",
            )
