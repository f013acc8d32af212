"""The command that a comparison was asked for with, for whoever wants to repeat it."""

from __future__ import annotations

from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import Planner
from malora_cli.places import absolute
from malora_cli.recipe import shipped_files


def command_of(planner: Planner, plan: Plan) -> list[str]:
    """What asks for the same comparison, with every option that decides what comes of it.

    Files outside the folder where it is called are named without their folders, as a page that is passed on does.
    """
    shipped = {path: name for name, path in shipped_files("recipes").items()}
    recipe = shipped.get(planner.path) or _passed_on(str(planner.path))
    what, rates = planner.suffix.lstrip("-") or "baselines", plan.tuning
    command = ["malora", "compare", what, recipe, *(_setting(override) for override in planner.overrides)]
    command += [] if planner.contenders else ["--methods", ",".join(plan.methods)]
    command += ["--seeds", ",".join(map(str, plan.seeds)), "--baseline", plan.baseline]
    command += ["--tune", rates if isinstance(rates, str) else f"lr={','.join(map(repr, rates))}"]
    command += ["--endpoint", plan.endpoint, "--margin", f"{plan.margin:g}"]
    command += [] if plan.match == "none" else ["--match", plan.match]
    command += ["--single-task"] if plan.single_task else []
    for method, overrides in plan.settings.items():
        command += [part for override in overrides for part in ("--for", f"{method}:{_setting(override)}")]
    return command


def _setting(override: str) -> str:
    key, equals, value = override.partition("=")
    return f"{key}{equals}{_passed_on(value)}"


def _passed_on(text: str) -> str:
    path = absolute(text)
    return text if path is None else path.name
