"""From answers to scores with their intervals, and to differences of two models on the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log

from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.evals.questions import Question
from malora_cli.results.evaluation import Compared, Difference, Scores, average
from malora_cli.results.statistics import (
    Interval,
    Measured,
    Paired,
    compare,
    compare_macro,
    holm,
    interval,
    macro,
)


@dataclass(frozen=True)
class Scored:
    """The answers of one model to the questions of one task, with what each is worth.

    Args:
        metric: The task's.
        questions: The questions.
        answers: An answer to each.
        marks: What each is worth.
        nats: Nats and tokens of the first reference of each; empty where that was not measured.
    """

    metric: Metric
    questions: Sequence[Question]
    answers: Sequence[Answer]
    marks: Sequence[Mark]
    nats: Sequence[tuple[float, int]]

    @classmethod
    def of(
        cls,
        metric: Metric,
        questions: Sequence[Question],
        answers: Sequence[Answer],
        nats: Sequence[tuple[float, int]] = (),
    ) -> Scored:
        """What answers are worth by a metric."""
        return cls(metric, questions, answers, metric.marks(answers), nats)

    @cached_property
    def measured(self) -> Measured:
        """The marks as counts that add up."""
        return self.metric.measured(self.marks, [question.cluster for question in self.questions])

    @property
    def scores(self) -> Scores:
        """What the model reached."""
        outcomes = Counter(mark.outcome for mark in self.marks if mark.outcome)
        return Scores(
            score=self.measured.score,
            **_ends(interval(self.measured)),
            loss=self._loss,
            bits_per_byte=self._bits_per_byte,
            unread=sum(mark.unread for mark in self.marks) / len(self.marks),
            outcomes=dict(outcomes.most_common()),
        )

    def line(self, number: int, which: str) -> dict[str, object]:
        """What is kept of one answer, see `results.predictions`; ``which`` names the model."""
        answer, mark = self.answers[number], self.marks[number]
        found: dict[str, object] = {which: answer.text, f"{which}_score": mark.score}
        if self.nats:
            found[f"{which}_nats"], found["tokens"] = self.nats[number]
        details = {"choices": answer.nats, "priors": answer.prior_nats, "unread": mark.unread, "outcome": mark.outcome}
        return found | {f"{which}_{name}": value for name, value in details.items() if value}

    @property
    def _loss(self) -> float | None:
        return sum(nats for nats, _ in self.nats) / sum(tokens for _, tokens in self.nats) if self.nats else None

    @property
    def _bits_per_byte(self) -> float | None:
        if not self.nats:
            return None
        length = sum(question.bytes for question in self.questions)
        return sum(nats for nats, _ in self.nats) / log(2) / length


def differences(models: Mapping[str, Scored], others: Mapping[str, Scored]) -> dict[str, Difference]:
    """The difference of each task, p-values corrected over all of them by Holm."""
    found = {task: compare(others[task].measured, models[task].measured) for task in models}
    corrected = holm([paired.p for paired in found.values()])
    return {task: _difference(paired, p) for (task, paired), p in zip(found.items(), corrected, strict=True)}


def averaged(
    members: Mapping[str, Sequence[str]],
    tasks: Mapping[str, Compared],
    models: Mapping[str, Scored],
    others: Mapping[str, Scored] | None,
) -> tuple[dict[str, Compared], Compared]:
    """Macro-averages of every domain, and over the domains, with intervals of these very averages.

    The p-values of the domains are corrected among themselves, as those of the tasks are.

    Args:
        members: Names of the tasks of every domain.
        tasks: Every task's scores.
        models: Its answers by the model.
        others: Its answers by what the model is compared with.
    """
    domains = {}
    for domain, names in members.items():
        weights = dict.fromkeys(names, 1 / len(names))
        domains[domain] = _with_intervals(average([tasks[name] for name in names]), weights, models, others)
    overall = {name: 1 / len(names) / len(members) for names in members.values() for name in names}
    return _corrected(domains), _with_intervals(average(list(domains.values())), overall, models, others)


def _corrected(found: Mapping[str, Compared]) -> dict[str, Compared]:
    """The same with the p-values of the differences, if there are any, corrected over all of them by Holm."""
    differences = {name: one.difference for name, one in found.items() if one.difference is not None}
    corrected = holm([difference.p for difference in differences.values() if difference.p is not None])
    told = {
        name: {"difference": difference.model_copy(update={"p_holm": p})}
        for (name, difference), p in zip(differences.items(), corrected, strict=True)
    }
    return {name: one.model_copy(update=told.get(name, {})) for name, one in found.items()}


def _with_intervals(
    mean: Compared, weights: Mapping[str, float], models: Mapping[str, Scored], others: Mapping[str, Scored] | None
) -> Compared:
    shares = list(weights.values())
    after = [models[name].measured for name in weights]
    changed: dict[str, object] = {"model": mean.model.model_copy(update=_ends(macro(after, shares)))}
    if others is not None and mean.against is not None:
        before = [others[name].measured for name in weights]
        changed["against"] = mean.against.model_copy(update=_ends(macro(before, shares)))
        changed["difference"] = _difference(compare_macro(before, after, shares), None)
    return mean.model_copy(update=changed)


def _difference(paired: Paired, p_holm: float | None) -> Difference:
    return Difference(
        value=paired.difference,
        **_ends(paired.interval),
        p=paired.p,
        p_holm=p_holm,
        wins=paired.wins,
        ties=paired.ties,
        losses=paired.losses,
        detectable=paired.detectable,
    )


def _ends(found: Interval | None) -> dict[str, float]:
    return {} if found is None else {"low": found.low, "high": found.high}
