"""Gates that are held fixed: how they are named, and what they are for the rows of a run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from malora_cli.errors import RecipeError
from malora_cli.recipe import MixSettings
from malora_cli.registry import did_you_mean

_WHERE = "--gates"
_MIX, _UNIFORM, _EACH, _FIT = "mix", "uniform", "each", "fit"
_TASK, _DOMAIN = "task:", "domain:"


@dataclass(frozen=True)
class Gates:
    """One choice of gates, the same for every token.

    Args:
        text: As it was asked for.
        shares: What each task counts for in the mean, summing to 1; None gives every expert the same gate.
        fit: Fit the up-projection to the routed mixture by least squares, in place of the mean gates.
    """

    text: str
    shares: Mapping[str, float] | None
    fit: bool = False

    @property
    def name(self) -> str:
        """A name for a folder."""
        return folder_name(self.text)

    @property
    def tasks(self) -> list[str]:
        """The tasks that they are meant for."""
        return [task for task, share in (self.shares or {}).items() if share]


def parse_gates(text: str, mix: MixSettings, task_share: Mapping[str, float]) -> list[Gates]:
    """The gates that a text stands for, several for ``each``.

    Args:
        text: ``mix``, ``task:NAME``, ``domain:NAME``, a blend such as ``task:a=0.7,task:b=0.3``, ``uniform``, ``fit``
            or ``fit:`` with any of these but the last two, or ``each`` or ``fit:each``, which is every task and the
            mix.
        mix: The run's.
        task_share: Share of the mix of each task, as the run had it.

    Raises:
        RecipeError: It names no gates.
    """
    if text in (_EACH, f"{_FIT}:{_EACH}"):
        fit = text.removesuffix(_EACH)
        names = [*(f"{fit}{_TASK}{task}" for task in mix.tasks), f"{fit}{_MIX}"]
        return _distinct([gates for name in names for gates in parse_gates(name, mix, task_share)])
    if text == _UNIFORM:
        return [Gates(text, None)]
    if text == _FIT:
        return [Gates(text, _shares_of(_MIX, mix, task_share), fit=True)]
    if text.startswith(f"{_FIT}:"):
        inner, *others = parse_gates(text.removeprefix(f"{_FIT}:"), mix, task_share)
        if inner.shares is None or inner.fit or others:
            raise RecipeError(f"'{text}' is fitted to no rows", where=_WHERE, fix="Write fit or fit:task:NAME.")
        return [replace(inner, text=text, fit=True)]
    if "=" in text:
        return [Gates(text, _blend(text, mix, task_share))]
    return [Gates(text, _shares_of(text, mix, task_share))]


def folder_name(text: str) -> str:
    """Gates as the name of a folder, without what leads out of it."""
    return re.sub(r"[^\w.=]+", "-", text.removeprefix(_TASK)).strip("-.") or "gates"


def _distinct(found: list[Gates]) -> list[Gates]:
    """Make sure that each has a folder of its own.

    Raises:
        RecipeError: Two have one name, as a task that is called "mix".
    """
    for gates in found:
        if sum(other.name == gates.name for other in found) > 1:
            fix = "Export them one at a time, each with --out."
            raise RecipeError(f"two exports would be called '{gates.name}'", where=_WHERE, fix=fix)
    return found


def _blend(text: str, mix: MixSettings, task_share: Mapping[str, float]) -> dict[str, float]:
    """The shares of a blend, divided by their sum."""
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = part.strip().rpartition("=")
        try:
            share = float(number)
        except ValueError:
            share = -1.0
        if not 0 <= share < float("inf"):
            fix = "Write task:A=0.7,task:B=0.3."
            raise RecipeError(f"'{part}' has no share, a number not below 0", where=_WHERE, fix=fix)
        for task, own in _shares_of(name, mix, task_share).items():
            found[task] = found.get(task, 0.0) + share * own
    return _normalised(found, text)


def _shares_of(name: str, mix: MixSettings, task_share: Mapping[str, float]) -> dict[str, float]:
    """The shares of one name."""
    if name == _MIX:
        tasks = list(mix.tasks)
    elif name.startswith(_DOMAIN):
        tasks = [task for task, own in mix.tasks.items() if own.domain == name.removeprefix(_DOMAIN)]
    else:
        tasks = [task for task in mix.tasks if name == f"{_TASK}{task}"]
    if not tasks:
        domains = dict.fromkeys(f"{_DOMAIN}{task.domain}" for task in mix.tasks.values())
        known = [_MIX, *(f"{_TASK}{task}" for task in mix.tasks), *domains, _EACH, _FIT, _UNIFORM]
        raise RecipeError(f"'{name}' names no gates; {did_you_mean(name, known)}", where=_WHERE)
    if len(tasks) == 1:
        return {tasks[0]: 1.0}
    return _normalised({task: task_share.get(task, 0.0) for task in tasks}, name)


def _normalised(shares: Mapping[str, float], text: str) -> dict[str, float]:
    total = sum(shares.values())
    if total <= 0:
        raise RecipeError(f"the shares of '{text}' are all 0", where=_WHERE)
    return {task: share / total for task, share in shares.items()}
