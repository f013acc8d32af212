"""The command that a comparison was asked for with, for whoever wants to repeat it."""

from __future__ import annotations

from math import inf
from typing import Any

import yaml

from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import Planner
from malora_cli.places import absolute
from malora_cli.recipe import shipped_files


def command_of(planner: Planner, plan: Plan, *, allow_code: bool) -> list[str]:
    """What asks for the same comparison, with every option that decides what comes of it.

    Files outside the folder where it is called are named without their folders, as a page that is passed on does.

    Args:
        planner: Makes its recipes.
        plan: What is compared.
        allow_code: Whether code that models write was run.
    """
    shipped = {path: name for name, path in shipped_files("recipes").items()}
    recipe = shipped.get(planner.path) or _passed_on(str(planner.path))
    what, rates = planner.suffix.lstrip("-") or "baselines", plan.tuning
    command = ["malora", "compare", what, recipe, *(_setting(override) for override in planner.overrides)]
    command += [] if planner.contenders else ["--methods", ",".join(_spelled(plan, method) for method in plan.methods)]
    command += ["--seeds", ",".join(map(str, plan.seeds)), "--baseline", plan.baseline]
    command += ["--tune", rates if isinstance(rates, str) else f"lr={','.join(map(repr, rates))}"]
    command += ["--endpoint", plan.endpoint, "--margin", repr(plan.margin)]
    command += [] if plan.match == "none" else ["--match", plan.match]
    command += [*(["--single-task"] if plan.single_task else []), *(["--allow-code"] if allow_code else [])]
    for method, overrides in plan.settings.items():
        command += [part for override in overrides for part in ("--for", f"{method}:{_setting(override)}")]
    return command


def _spelled(plan: Plan, method: str) -> str:
    return f"{method}={plan.variants[method]}" if method in plan.variants else method


def _setting(override: str) -> str:
    key, equals, text = override.partition("=")
    value = yaml.safe_load(text)
    if not isinstance(value, dict | list):
        return f"{key}{equals}{_passed_on(text)}"
    return f"{key}{equals}{yaml.safe_dump(_leaves(value), default_flow_style=True, width=inf, sort_keys=False).strip()}"


def _leaves(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _leaves(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_leaves(inner) for inner in value]
    return _passed_on(value) if isinstance(value, str) else value


def _passed_on(text: str) -> str:
    path = absolute(text)
    return text if path is None else path.name
