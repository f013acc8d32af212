"""A comparison that is killed over and over ends as one that nothing disturbed."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from malora_cli.compare import tuning
from malora_cli.compare.asked import Asked
from malora_cli.compare.baselines import Study
from malora_cli.compare.run import Crew
from malora_cli.evals.store import Store
from malora_cli.results import EvalResult, MetricsLog, RunRecord
from malora_cli.results import comparison as comparison_module
from malora_cli.results.comparison import Comparison
from train_runs import Killed, SilentView, train_run, workplace

QUICK = ("train.steps=2", "train.eval_every=2", "train.checkpoint_every=1", "eval.rows=4")
PHASES = ("tuning", "training", "evaluation")


class Fate:
    """Counts what is done that is not done again, and kills the process at some of it.

    Args:
        chance: Decides how much is done from one kill to the next; None never kills.
    """

    def __init__(self, chance: random.Random | None) -> None:
        self.kills: Counter[str] = Counter()
        self.phase = ""
        self._chance, self._left = chance, 0
        self.born_again()

    def born_again(self) -> None:
        """A new process begins."""
        self._left = self._chance.randint(6, 24) if self._chance is not None else -1

    def told(self, line: str) -> None:
        """What a comparison says before it does something."""
        self.phase = "tuning" if line.startswith("[tuning]") else "evaluation" if "evaluating" in line else "training"

    def passes(self, *_: Any) -> None:
        """One thing is done, or about to be."""
        self._left -= 1
        if self._left == 0:
            self.kills[self.phase] += 1
            raise Killed

    def once_before(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same act, before which the process is killed the first time."""
        ahead = [True]

        def watched(*arguments: Any, **options: Any) -> Any:
            if ahead:
                ahead.clear()
                self.kills["record"] += 1
                raise Killed
            return act(*arguments, **options)

        return watched

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """The same act, before and after which the process may be killed."""

        def watched(*arguments: Any, **options: Any) -> Any:
            self.passes()
            found = act(*arguments, **options)
            self.passes()
            return found

        return watched


def carried_out(recipe: Path, fate: Fate) -> Comparison:
    """A comparison from its plan to its record, begun again after every kill."""
    asked = Asked(recipe, QUICK, "0,1", "lr=0.001,0.01", None, "loss", 0.01, [])
    while True:
        try:
            study = Study(*asked.of_methods(["lora", "malora"]))
            found, _ = study.carried_out(Crew(lambda: SilentView(fate.passes), fate.told))
            return found
        except Killed:
            fate.born_again()


def figures(comparison: Comparison) -> Any:
    """All of a comparison but what depends on the clock."""
    found = json.loads(comparison.model_dump_json())
    clock = ("created", "seconds", "seconds_per_step", "train_seconds")
    for part in (found, *found["trials"], *(run for method in found["methods"] for run in method["runs"])):
        for name in clock:
            part.pop(name, None)
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Any:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(tuning, "EXTENSIONS", 0)
        recipe = workplace(tmp_path_factory.mktemp("undisturbed"), tiny_model)
        return figures(carried_out(recipe, Fate(None)))


def test_killed_in_every_phase_it_ends_as_if_nothing_had_happened(
    tmp_path: Path, tiny_model: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fate = Fate(random.Random(0))
    monkeypatch.setattr(tuning, "EXTENSIONS", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # the base model's answers are made anew as well
    for kind, name in (
        (MetricsLog, "append"),
        (RunRecord, "write_manifest"),
        (Store, "add"),
        (EvalResult, "save"),
    ):
        monkeypatch.setattr(kind, name, fate.around(getattr(kind, name)))
    for name in ("write_json", "write_text"):  # comparison.json and comparison.csv
        monkeypatch.setattr(comparison_module, name, fate.once_before(getattr(comparison_module, name)))
    recipe = workplace(tmp_path / "work", tiny_model)
    comparison = carried_out(recipe, fate)
    assert min(fate.kills[phase] for phase in PHASES) >= 4, fate.kills
    assert fate.kills["record"] == 2
    assert figures(comparison) == undisturbed
    folder = recipe.parent / "runs" / "tiny.compare"
    assert figures(Comparison.load(folder)) == undisturbed
    assert (folder / "comparison.csv").read_text(encoding="utf-8") == comparison.csv()


def test_a_run_that_is_interrupted_before_its_manifest_leaves_its_place_free(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    recipe = workplace(tmp_path / "work", tiny_model)
    with monkeypatch.context() as patched:
        patched.setattr(RunRecord, "write_manifest", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_run(recipe, *QUICK)
    assert not (recipe.parent / "runs").exists()
