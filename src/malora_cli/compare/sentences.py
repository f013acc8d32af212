"""What may be concluded from a comparison, in sentences chosen by verdict, never by a number alone."""

from __future__ import annotations

from collections.abc import Sequence

from malora_cli.results.comparison import Comparison, Effect, MethodResult, Verdict

_TEMPLATES = {
    Verdict.BETTER: "{method} is better than {baseline} by {size} {unit} ±{half} ({seen}, p {p}).",
    Verdict.WORSE: "{method} is worse than {baseline} by {size} {unit} ±{half} ({seen}, p {p}).",
    Verdict.EQUAL: "{method} and {baseline} are equal within {margin} {unit} ({seen}).",
    Verdict.OPEN: "{method} against {baseline}: cannot be told apart ({seen}); {visible}.",
    Verdict.NONE: "{method} against {baseline}: {value} {unit} with seed {seed}. One seed speaks of its own runs only: "
    "there is no verdict on the methods.",
}


def sentences(comparison: Comparison) -> list[str]:
    """One sentence a method, best first; and one on the seesaw of each where tasks were trained alone as well."""
    found = [_sentence(comparison, it, it.effect) for it in comparison.methods if it.effect is not None]
    return found + [_seesaw(comparison, it) for it in comparison.methods if it.delta_m is not None]


def _seesaw(comparison: Comparison, it: MethodResult) -> str:
    better = [task for task, effect in it.alone.items() if effect.verdict is Verdict.BETTER]
    worst = max(it.alone, key=lambda task: it.alone[task].value)
    told = (
        f"{it.method} against {comparison.baseline} trained on each task alone: Delta_m {it.delta_m:+.1f}% of the loss"
    )
    if all(effect.verdict is Verdict.NONE for effect in it.alone.values()):
        told, named = f"{told}, of one seed, which allows no verdict", ""
    else:
        told += f", better on {len(better)} of {_count(len(it.alone), 'task')}, worse on {len(it.seesaw)}"
        named = f" ({', '.join(it.seesaw)})" if it.seesaw else ""
    return f"{told}{named}; worst {worst} ({it.alone[worst].value:+.3f})."


def notes(comparison: Comparison, later: Sequence[str]) -> list[str]:
    """What is to be known before anything is concluded; ``later`` is what came after the plan, methods aside."""
    untuned = [it.method for it in comparison.methods if it.tuned.bracketed is None]
    at_edge = [it.method for it in comparison.methods if it.tuned.bracketed is False]
    added = [it.method for it in comparison.methods if it.added]
    shown = [it.method for it in comparison.methods]
    short = [it.method for it in comparison.methods if len(it.runs) < len(comparison.seeds)]
    short += list(dict.fromkeys(it.method for it in comparison.failures if it.method not in shown))
    headless = [comparison.baseline] if comparison.baseline in short or comparison.baseline not in shown else []
    short = [method for method in short if method not in headless]
    found = [
        (untuned, "Learning rates were not tuned: {}. Methods differ in the rate that suits them."),
        (at_edge, "The best learning rate lies at the edge of the grid, not bracketed: {}."),
        (short, "Not compared, since runs are missing: {}."),
        (headless, "Nothing is compared, since runs of the baseline are missing: {}."),
        (added, "Added after the plan was written: {}."),
        (later, "Added after the plan was written: {}."),
    ]
    return [text.format(", ".join(names)) for names, text in found if names]


def _sentence(comparison: Comparison, it: MethodResult, effect: Effect) -> str:
    seeds, tasks = len(effect.by_seed), len(comparison.rows)
    rows = sum(comparison.rows.values())
    p = effect.p if effect.p_holm is None else effect.p_holm
    visible = (
        "no true difference could have been seen"
        if effect.detectable is None
        else f"a true difference of {effect.detectable:.3f} or more would have been seen 80 times in 100"
    )
    return _TEMPLATES[effect.verdict].format(
        method=it.method,
        baseline=comparison.baseline,
        unit=comparison.unit,
        size=f"{abs(effect.value):.3f}",
        value=f"{effect.value:+.3f}",
        half="?" if effect.half is None else f"{effect.half:.3f}",
        margin=f"{comparison.margin:g}",
        p="< 0.001" if p < 0.001 else f"= {p:.3f}",
        seen=f"{_count(seeds, 'seed')}, {_count(tasks, 'task')}, {_count(rows, 'test row')}",
        visible=visible,
        seed=comparison.seeds[0],
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
