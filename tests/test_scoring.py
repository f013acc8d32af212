"""From scores of rows to averages of domains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from malora_cli.evals.scoring import averaged, differences
from malora_cli.results.evaluation import Compared, Scores
from malora_cli.results.statistics import Measured


def scored(*right: int, rows: int = 20) -> Any:
    """A model that is right on the rows of these numbers."""
    return SimpleNamespace(measured=Measured.of_scores([float(row in right) for row in range(rows)]))


def test_domains_are_corrected_among_themselves_as_tasks_are() -> None:
    models = {"a": scored(*range(6)), "b": scored(*range(10)), "c": scored(1, 2)}
    others = dict.fromkeys(models, scored())
    tasks = {name: Compared(model=Scores(score=0.5), against=Scores(score=0.0)) for name in models}
    domains, overall = averaged({f"domain {name}": [name] for name in models}, tasks, models, others)
    told = {name: domain.difference for name, domain in domains.items() if domain.difference is not None}
    by_task = differences(models, others)
    for name, difference in by_task.items():  # a domain of one task says what the task says
        assert told[f"domain {name}"].p_holm == pytest.approx(difference.p_holm)
    assert by_task["a"].p is not None
    assert by_task["a"].p < 0.05 < (told["domain a"].p_holm or 0)
    assert not told["domain a"].told_apart
    assert overall.difference is not None
    assert overall.difference.p_holm is None, "one test needs no correction"


def test_averages_of_a_model_alone_have_no_differences() -> None:
    tasks = {"a": Compared(model=Scores(score=0.5))}
    domains, overall = averaged({"d": ["a"]}, tasks, {"a": scored(1, 2)}, None)
    assert domains["d"].difference is None
    assert overall.difference is None
    assert domains["d"].model.low is not None
