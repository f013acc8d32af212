"""The sections of the report on gates and on what experts share."""

from __future__ import annotations

from pathlib import Path

import pytest

from malora_cli.results import EvalEvent, RunRecord
from report_runs import TASKS, bare_run, evaluation, full_run, geometry, loss, page


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return full_run(tmp_path)


def test_entropy_is_shown_by_task_and_layers(run: RunRecord) -> None:
    entropy = {name: {"layers 0-1": 0.9, "layers 2-3": 0.5} for name in TASKS} | {"cipher": {"layers 0-1": 0.2}}
    evaluation(TASKS, gate_entropy=entropy, created="2026-01-02T05:00:00+00:00").save(run.eval_dir / "b.json")
    shown = page(run)
    assert shown.row("entropy", "sums") == ["90", "50"]
    assert shown.row("entropy", "cipher") == ["20", ""]
    assert "Routers are at 53.3% of the entropy of an even choice; surest about" in shown.text("entropy")


def test_entropy_comes_from_training_where_nothing_was_evaluated(run: RunRecord) -> None:
    event = EvalEvent(step=110, seconds=1.0, tasks={"sums": loss(1.0)}, gate_entropy={"sums": {"layers 0-3": 0.4}})
    run.metrics.append(event)
    assert page(run).row("entropy", "sums") == ["40"]


def test_similarity_is_shown_by_linear(run: RunRecord) -> None:
    geometry().save(run.experts_path)
    shown = page(run)
    text = shown.text("similarity")
    assert "share 75.0% of their down-projections' directions and 5.0% of their up-projections'" in text
    assert "amount to 25.0% of the directions that their down-projections could have, and to 75.0%" in text
    assert shown.row("similarity", "q_proj") == ["layers 0-3", "0.75", "24 of 96", "0.05", "72 of 96"]
    assert 'aria-label="Singular values of the experts in layers 0-3"' in shown.source


def test_a_single_expert_is_compared_with_none(run: RunRecord) -> None:
    geometry(None).save(run.experts_path)
    shown = page(run)
    assert "share nothing: there is one" in shown.text("similarity")
    assert shown.row("similarity", "q_proj") == ["layers 0-3", "", "24 of 96", "", "72 of 96"]


def test_a_run_that_routes_nothing_has_neither_section(tmp_path: Path) -> None:
    shown = page(bare_run(tmp_path))
    assert not {"entropy", "similarity"} & set(shown.texts)
