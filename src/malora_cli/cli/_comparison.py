"""What ``malora compare baselines`` is asked for, and its table."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Literal

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from malora_cli.characters import plural
from malora_cli.cli._statement import duration
from malora_cli.cli._terminal import plain_table, result_console, say, say_json
from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import Errand, Planner
from malora_cli.results.comparison import Comparison, Effect, MethodResult, Verdict

if TYPE_CHECKING:
    from malora_cli.compare.dry_run import DryRun
    from malora_cli.compare.foreseen import Hours

_BASELINE = "baseline"


def print_plan(planner: Planner, plan: Plan, *, as_json: bool) -> None:
    """What a comparison is going to do, how long that takes and what it can find, as far as that is known."""
    from malora_cli.compare.dry_run import dry_run_of
    from malora_cli.compare.foreseen import told_visible

    known = dry_run_of(planner, plan)
    if as_json:
        say_json(_document(planner, plan, known))
        return
    parameters, trials = known.parameters, known.trials
    table = plain_table(("method",), ("params", "learning rates", "trials", "runs"))
    for method in plan.methods:
        shown = " ".join(f"{rate:.3g}" for rate in known.rates[method])
        table.add_row(Text(method), _parameters(parameters[method]), shown, str(trials[method]), str(len(plan.seeds)))
    result_console().print(table)
    deviation = {m: count / parameters[plan.baseline] - 1 for m, count in parameters.items() if m != plan.baseline}
    say(f"parameters against {plan.baseline}: " + ", ".join(f"{m} {share:+.1%}" for m, share in deviation.items()))
    say(_amount(planner, plan, known))
    say(f"time:     {_time(known.hours, planner)}")
    needed, free = decimal(known.bytes_missing), decimal(known.bytes_free)
    say(f"disk:     about {needed} with the checkpoints that are kept; {free} are free")
    say(f"power:    {told_visible(plan, known.visible, planner.folder.parent)}")
    say(f"endpoint: {plan.endpoint} of test rows, mean over tasks; baseline: {plan.baseline}; margin: {plan.margin:g}")
    say(f"plan:     sha256 {plan.sha256[:16]}, to be kept in {planner.folder}")


def _document(planner: Planner, plan: Plan, known: DryRun) -> dict[str, Any]:
    """The same as data."""
    methods = [
        {
            "method": method,
            "parameters": known.parameters[method],
            "learning_rates": known.rates[method],
            "trials": known.trials[method],
            "runs": len(plan.seeds),
        }
        for method in plan.methods
    ]
    return {
        "folder": str(planner.folder),
        "plan_sha256": plan.sha256,
        "baseline": plan.baseline,
        "endpoint": plan.endpoint,
        "margin": plan.margin,
        "seeds": plan.seeds,
        "methods": methods,
        "single_task_runs": known.single_task_runs,
        "steps": planner.own.recipe.train.steps,
        "training_seconds": known.hours.seconds,
        "detectable": None if known.visible is None else known.visible.difference,
        "disk_bytes": known.bytes_missing,
        "free_bytes": known.bytes_free,
    }


def _amount(planner: Planner, plan: Plan, known: DryRun) -> str:
    """How many runs there are, and how many steps in all."""
    trials, alone = sum(known.trials.values()), known.single_task_runs
    reported, steps = len(plan.methods) * len(plan.seeds), planner.own.recipe.train.steps
    length = "" if steps is None else f", {plural((trials + reported + alone) * steps, 'training step')}"
    length += f" ({plural(alone, 'run')} on one task alone among them)" if alone else ""
    more = " (more where a best rate lies at an edge)" if trials else ""
    return f"{plural(trials, 'trial')}{more} and {plural(reported, 'reported run')}{length}"


def _time(hours: Hours, planner: Planner) -> str:
    """How long training takes, and which runs say so."""
    measured = ", ".join(f"{method} {pace.seconds:.2f} in {pace.run}" for method, pace in hours.paces.items())
    known = f"; seconds a step: {measured}" if measured else ""
    if not hours.runs:
        return "nothing is left to train"
    if hours.seconds is not None:
        left = f"for {plural(hours.runs, 'run')} not finished"
        return f"{duration(hours.seconds)} of training {left}, one after another, evaluations aside{known}"
    if not hours.unknown:
        return f"not known, since train.steps is not set{known}"
    place = planner.folder.parent
    return f"not known yet, since {place} has no finished run of {', '.join(hours.unknown)} with these settings{known}"


def missing_lines(
    planner: Planner, plan: Plan, phase: Literal["tune", "report"], *, allow_code: bool = False
) -> list[str]:
    """The commands of the runs of a phase that are not finished.

    Args:
        planner: Makes the recipes.
        plan: What is compared.
        phase: Trials of the learning rates, or the reported runs.
        allow_code: Let evaluations run code that models write.

    Raises:
        RunError: Reported runs are asked for, and learning rates are not tuned yet.
    """
    from malora_cli.compare.baselines import Study

    errands = [
        Errand(run, train=not run.record.finished, evaluate=phase == "report", allow_code=allow_code)
        for run in Study(planner, plan).missing(phase)
    ]
    return [" && ".join(map(shlex.join, errand.commands())) for errand in errands]


def print_comparison(comparison: Comparison, *, as_json: bool) -> None:
    """The table of a comparison and what may be concluded from it, or its record as JSON."""
    if as_json:
        result_console().out(comparison.model_dump_json(indent=2), highlight=False)
        return
    result_console().print(summary_table(comparison))
    for line in [*comparison.sentences, *comparison.notes]:
        say(line)
    for failure in comparison.failures:
        say(f"failed: {failure.method}, seed {failure.seed}: {failure.why}")


def summary_table(comparison: Comparison) -> Table:
    """A row for every method, best first."""
    endpoint = "nats/token" if comparison.endpoint == "loss" else "score"
    heads = ["params", "rate", endpoint, f"against {comparison.baseline}", "", "+/=/-"]
    other = ["score"] if comparison.endpoint == "loss" else []
    table = plain_table(("method",), (*heads, *other, "s/step"))
    for it in comparison.methods:
        row: list[str | Text] = [_parameters(it.parameters), _rate(it), _level(it), *_against(comparison, it)]
        scores = [_number(it.mean("scores"))] if other else []
        pace = it.seconds_per_step
        table.add_row(Text(it.method), *row, *scores, "-" if pace is None else f"{pace:.2f}")
    return table


def _rate(it: MethodResult) -> str:
    flag = {True: "", False: "*", None: ""}[it.tuned.bracketed]
    return f"{it.tuned.learning_rate:.2g}{flag}"


def _level(it: MethodResult) -> str:
    if it.value is None:
        return "-"
    if it.low is None or it.high is None:
        return f"{it.value:.3f}"
    return f"{it.value:.3f} ±{max(it.value - it.low, it.high - it.value):.3f}"


def _against(comparison: Comparison, it: MethodResult) -> list[Text]:
    if it.method == comparison.baseline:
        return [Text(_BASELINE), Text(""), Text("")]
    if it.effect is None:
        short = len(it.runs) < len(comparison.seeds)
        return [Text("runs missing" if short else "no baseline"), Text(""), Text("")]
    return [Text(_difference(it.effect)), _sign(it.effect.verdict), Text("/".join(map(str, it.tally())))]


def _difference(effect: Effect) -> str:
    return f"{effect.value:+.3f}" + ("" if effect.half is None else f" ±{effect.half:.3f}")


def _sign(verdict: Verdict) -> Text:
    return Text(verdict.sign, style={Verdict.BETTER: "green", Verdict.WORSE: "red"}.get(verdict, "dim"))


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
