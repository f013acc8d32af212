"""A comparison in the form that every section of its page looks at: how methods look, how figures are written."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean, median

from malora_cli.reports.charts import Axis
from malora_cli.reports.comparison.runs import Conflict, Routing, conflict_of, routing_of
from malora_cli.reports.html import MINUS, percent, points, signed
from malora_cli.reports.paths import shared
from malora_cli.reports.view import COLOURS
from malora_cli.results.comparison import Comparison, Effect, MethodResult, MethodRun, Verdict

#: A shape in the text, and what matplotlib calls it. U+FE0E asks for a letter, not for a picture of a cross.
_SHAPES = (("●", "o"), ("■", "s"), ("▲", "^"), ("◆", "D"), ("▼", "v"), ("★", "*"), ("✚", "P"), ("✖\ufe0e", "X"))
_WORDS = {
    Verdict.BETTER: "better",
    Verdict.WORSE: "worse",
    Verdict.EQUAL: "equal",
    Verdict.OPEN: "cannot be told apart",
    Verdict.NONE: "no verdict",
}
#: Differences this many times the median are beyond the end of a line: they would flatten all others.
_FAR = 4.0


@dataclass(frozen=True)
class Method:
    """A method and how it looks, which is the same all over the page."""

    name: str
    index: int
    result: MethodResult | None = field(compare=False)  # it has no hash

    @property
    def slot(self) -> int:
        """Which of the colours is this method's."""
        return self.index % COLOURS

    @property
    def colour(self) -> str:
        """The colour, as CSS; light and dark pages give it different values."""
        return f"var(--task-{self.slot})"

    @property
    def _shape(self) -> tuple[str, str]:
        """A shape that neighbours do not have; of one colour, methods have different ones."""
        return _SHAPES[(self.index + self.index // COLOURS) % len(_SHAPES)]

    @property
    def glyph(self) -> str:
        """Its shape in the text."""
        return self._shape[0]

    @property
    def marker(self) -> str:
        """The same shape in a chart."""
        return self._shape[1]


@dataclass(frozen=True)
class Span:
    """Where a difference and its interval lie on a line through zero, as shares of its length.

    Args:
        at: The difference.
        low: Lower end of the interval.
        high: Upper end.
        beyond: -1 or 1 where the difference lies beyond the left or the right end.
    """

    at: float
    low: float
    high: float
    beyond: int = 0

    def sign(self, glyph: str) -> str:
        """A mark for the difference, with an arrow where its place is farther out."""
        return f"{'‹' if self.beyond < 0 else ''}{glyph}{'›' if self.beyond > 0 else ''}"


def _round_up(value: float) -> float:
    """The next number that is easily read."""
    power = 10.0 ** math.floor(math.log10(value))
    return next((step * power for step in (1, 1.5, 2, 3, 5, 7.5) if step * power >= value), 10 * power)


@dataclass(frozen=True)
class Scale:
    """A line through zero, as long to the left as to the right."""

    reach: float

    @classmethod
    def over(cls, effects: Iterable[Effect], margin: float) -> Scale:
        """One that has room for some effects with their intervals and for the margin; not for very few far out."""
        needed = [abs(effect.value) + (effect.half or 0.0) for effect in effects]
        usual = min(max(needed, default=0.0), _FAR * median(needed or [0.0]))
        return cls(_round_up(max(1.25 * margin, usual) or 1.0))

    def place(self, value: float) -> float:
        """Where a difference lies, from 0 to 1."""
        return min(max(0.5 + value / self.reach / 2, 0.0), 1.0)

    def span(self, effect: Effect) -> Span:
        """Where an effect lies; one without an interval is a point."""
        value, half = effect.value, effect.half or 0.0
        at, low, high = map(self.place, (value, value - half, value + half))
        return Span(at, low, high, beyond=(value > self.reach) - (value < -self.reach))


@dataclass(frozen=True)
class ComparisonView:
    """Everything that the page of a comparison shows.

    Args:
        comparison: Its record.
        runs: Where the folders of its runs lie; None where they are not looked at.
    """

    comparison: Comparison
    runs: Path | None = None

    @cached_property
    def methods(self) -> dict[str, Method]:
        """All methods by name, best first; those that have come to nothing stand last."""
        it = self.comparison
        results = {result.method: result for result in it.methods}
        names = dict.fromkeys([*results, *(trial.method for trial in it.trials), *(one.method for one in it.failures)])
        return {name: Method(name, index, results.get(name)) for index, name in enumerate(names)}

    @property
    def known(self) -> list[tuple[Method, MethodResult]]:
        """The methods that have a result, best first."""
        return [(method, method.result) for method in self.methods.values() if method.result is not None]

    @property
    def measured(self) -> list[tuple[Method, MethodResult, float]]:
        """Those of them that have an endpoint."""
        return [(method, result, result.value) for method, result in self.known if result.value is not None]

    @cached_property
    def tasks(self) -> list[str]:
        """Names of the tasks, those of one domain next to each other."""
        domains = self.comparison.domains
        order = list(dict.fromkeys(domains.values()))
        return sorted(self.comparison.rows, key=lambda name: order.index(domains[name]) if name in domains else -1)

    @cached_property
    def routing(self) -> dict[Method, Routing]:
        """How the methods that have routers use their experts."""
        if self.runs is None:
            return {}
        found = {method: routing_of(result.runs, self.runs) for method, result in self.known}
        return {method: routing for method, routing in found.items() if routing is not None}

    @property
    def as_losses(self) -> ComparisonView:
        """The same with losses as its endpoint, for what is always told of losses."""
        return replace(self, comparison=self.comparison.model_copy(update={"endpoint": "loss"}))

    def lacks(self, result: MethodResult) -> bool:
        """Whether a method lacks seeds: it is shown and not compared."""
        return len({run.seed for run in result.runs}) < len(self.comparison.seeds)

    @staticmethod
    def run(path: str) -> str:
        """A run's folder; its name alone where the path is absolute, since pages are passed on."""
        return shared(path, Path())

    def told(self, why: str) -> str:
        """Why a run failed, without the place of the runs' folder on somebody's machine."""
        return why if self.runs is None else why.replace(f"{self.runs.absolute()}{os.sep}", "")

    @cached_property
    def conflict(self) -> dict[Method, Conflict]:
        """How far tasks pulled against each other, of the methods whose runs measured it."""
        if self.runs is None:
            return {}
        found = {method: conflict_of(result.runs, self.runs) for method, result in self.known}
        return {method: conflict for method, conflict in found.items() if conflict}

    @property
    def is_score(self) -> bool:
        """Whether the endpoint is a score, of which more is better."""
        return self.comparison.endpoint == "score"

    @property
    def one_seed(self) -> bool:
        """Whether there is a single seed, which allows no verdict."""
        return len(self.comparison.seeds) < 2

    def endpoint(self, run: MethodRun) -> float | None:
        """The endpoint of one run: the mean over its tasks."""
        found = run.scores if self.is_score else run.losses
        return fmean(found.values()) if found else None

    def written(self, value: float | None) -> str:
        """An endpoint; a dash where there is none."""
        if value is None:
            return "–"
        return percent(value) if self.is_score else f"{value:.4f}"

    def gap(self, value: float) -> str:
        """A difference of two endpoints, with its sign."""
        return points(value) if self.is_score else signed(value, digits=4)

    def around(self, half: float | None) -> str:
        """Half the width of an interval; nothing where there is none."""
        if half is None:
            return ""
        return f"±{100 * half:.1f}" if self.is_score else f"±{half:.4f}"

    def level(self, result: MethodResult) -> str:
        """Half the width of the interval of a method's endpoint, by its farther end."""
        if result.value is None or result.low is None or result.high is None:
            return ""
        return self.around(max(result.value - result.low, result.high - result.value))

    def interval(self, effect: Effect) -> str:
        """Both ends of a difference's interval."""
        if effect.half is None:
            return "–"
        return f"{self.gap(effect.value - effect.half)} to {self.gap(effect.value + effect.half)}"

    def end(self, reach: float) -> str:
        """What stands at the right end of a line through zero."""
        return f"+{100 * reach if self.is_score else reach:.4g}"

    def start(self, reach: float) -> str:
        """What stands at its left end."""
        return self.end(reach).replace("+", MINUS)

    def verdict(self, effect: Effect) -> str:
        """A verdict in words."""
        return _WORDS[effect.verdict]

    def direction(self, effect: Effect) -> int:
        """1 where a method is better, -1 where it is worse, else 0."""
        return {Verdict.BETTER: 1, Verdict.WORSE: -1}.get(effect.verdict, 0)

    @property
    def unit(self) -> str:
        """What endpoints are written in."""
        return "percent" if self.is_score else "nats a token"

    @property
    def gap_unit(self) -> str:
        """What differences are written in."""
        return "points" if self.is_score else "nats a token"

    @property
    def measure(self) -> str:
        """What the endpoint is called."""
        return "score" if self.is_score else "loss"

    def axis(self, values: list[float], title: str = "") -> Axis:
        """An axis of endpoints."""
        return Axis.over(values, title=title, form=(lambda y: f"{100 * y:.4g}%") if self.is_score else "{:.4g}".format)
