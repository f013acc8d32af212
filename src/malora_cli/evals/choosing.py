"""Which tasks of a mix are evaluated."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from malora_cli.errors import RecipeError
from malora_cli.evals.metrics._base import Metric
from malora_cli.evals.sandbox import open_sandbox
from malora_cli.recipe import MixSettings
from malora_cli.registry import unknown

_DOMAIN = "domain:"
#: How names of tasks of lm-evaluation-harness begin.
LM_EVAL = "lm_eval:"
_WHERE = "--tasks"


def choose_tasks(mix: MixSettings, names: Collection[str] | None) -> MixSettings:
    """The mix with only the tasks named, in its own order; all of them when none are.

    Args:
        mix: The mix.
        names: Names of tasks; ``domain:NAME`` is all tasks of a domain, ``all`` is all. Where some are the harness's,
            none of the mix need be.

    Raises:
        RecipeError: A name is not in the mix, or there is none.
    """
    own, theirs = parted(names)
    if own is None:
        return mix
    if not own and not theirs:
        raise RecipeError("no task is named", where=_WHERE, fix=f"Its tasks: {', '.join(mix.tasks)}.")
    chosen = {task for name in own for task in _named(mix, name)}
    return mix.model_copy(update={"tasks": {name: mix.tasks[name] for name in mix.tasks if name in chosen}})


def parted(names: Collection[str] | None) -> tuple[list[str] | None, list[str]]:
    """The names of our own tasks, None for all, and those of the harness."""
    theirs = [name for name in names or () if name.startswith(LM_EVAL)]
    own = None if names is None else [name for name in names if name not in theirs]
    return own, theirs


def _named(mix: MixSettings, name: str) -> list[str]:
    """The tasks that a name stands for."""
    if name in mix.tasks:
        return [name]
    if name == "all":
        return list(mix.tasks)
    if name.startswith(_DOMAIN):
        domain = name.removeprefix(_DOMAIN)
        domains = dict.fromkeys(task.domain for task in mix.tasks.values())
        if domain not in domains:
            raise RecipeError(unknown("domain", domain, domains), where=_WHERE)
        return [task for task, settings in mix.tasks.items() if settings.domain == domain]
    raise RecipeError(unknown("task", name, mix.tasks), where=_WHERE)


def check_code(mix: MixSettings, *, allowed: bool) -> str | None:
    """Make sure that no generated code is run that nobody has allowed to, and that there is a sandbox for it.

    Returns:
        Name of the sandbox's backend; None where no task's metric runs code.

    Raises:
        RecipeError: A task's metric runs code, and nobody has allowed it.
        RunError: No sandbox works here.
    """
    running = [name for name, task in mix.tasks.items() if cast(Metric, task.metric).runs_code]
    if running and not allowed:
        others = ",".join(name for name in mix.tasks if name not in running)
        leave = f", or leave it out: --tasks {others}" if others else ""
        raise RecipeError(
            f"task '{running[0]}' is scored by running code that the model writes",
            where=_WHERE,
            fix=f"Add --allow-code, which runs it in a sandbox{leave}.",
        )
    if not running:
        return None
    with open_sandbox(workers=1) as sandbox:
        return sandbox.backend
