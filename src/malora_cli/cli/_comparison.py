"""What ``malora compare baselines`` is asked for, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from malora_cli.cli._common import vocabulary
from malora_cli.cli._terminal import plain_table, result_console, say
from malora_cli.compare.plan import TUNING_SEED, Plan, baseline_of, check_seeds, check_tuned_rates, shared_settings
from malora_cli.compare.planner import Planner, parse_method_overrides, parse_seeds, parse_tuning
from malora_cli.results.comparison import Comparison, Effect, Endpoint, MethodResult, Verdict

_BASELINE = "baseline"


def planned(
    recipe: Path,
    overrides: Sequence[str],
    *,
    methods: Sequence[str],
    seeds: str,
    tune: str,
    baseline: str | None,
    endpoint: Endpoint,
    margin: float,
    for_method: Sequence[str],
) -> tuple[Planner, Plan]:
    """What is asked for, checked before anything slow happens.

    Raises:
        RecipeError: An option or the recipe is wrong.
    """
    by_method, tuning, numbers = parse_method_overrides(for_method), parse_tuning(tune), parse_seeds(seeds)
    planner = Planner(recipe, overrides, by_method, vocabulary())
    planner.check(methods)
    if tuning != "none":
        check_seeds(numbers, TUNING_SEED)
        check_tuned_rates(by_method)
    plan = Plan(
        recipe=shared_settings(planner.own.recipe),
        methods=list(methods),
        settings={method: list(found) for method, found in by_method.items()},
        seeds=numbers,
        tuning=list(tuning) if isinstance(tuning, tuple) else tuning,
        tuning_seed=TUNING_SEED,
        baseline=baseline_of(methods, baseline),
        endpoint=endpoint,
        margin=margin,
    )
    return planner, plan


def print_comparison(comparison: Comparison, folder: Path, *, as_json: bool) -> None:
    """The table of a comparison and what may be concluded from it, or its record as JSON."""
    console = result_console()
    if as_json:
        console.out(comparison.model_dump_json(indent=2), highlight=False)
        return
    console.print(summary_table(comparison))
    for line in [*comparison.sentences, *comparison.notes]:
        say(line)
    for failure in comparison.failures:
        say(f"failed: {failure.method}, seed {failure.seed}: {failure.why}")
    say(f"comparison: {folder / 'comparison.json'}")


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
        return [Text("runs missing"), Text(""), Text("")]
    return [Text(_difference(it.effect)), _sign(it.effect.verdict), Text("/".join(map(str, it.tally())))]


def _difference(effect: Effect) -> str:
    return f"{effect.value:+.3f}" + ("" if effect.half is None else f" ±{effect.half:.3f}")


def _sign(verdict: Verdict) -> Text:
    return Text(verdict.sign, style={Verdict.BETTER: "green", Verdict.WORSE: "red"}.get(verdict, "dim"))


def _parameters(count: int) -> str:
    return f"{count / 1e6:.1f}M" if count >= 1e5 else f"{count:,}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
