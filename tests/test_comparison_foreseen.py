"""What a comparison is going to take and to find, by what earlier ones beside it have measured."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ndtri

from malora_cli.cli import main
from malora_cli.results import RunRecord, checkpoint_name
from malora_cli.results.comparison import Comparison, Effect
from malora_cli.results.verdicts import detectable_over_runs, foreseen_detectable
from train_runs import workplace

QUICK = ("train.steps=3", "train.eval_every=3", "eval.rows=4")
METHODS = ("lora", "malora")
EARLIER = ("--methods", "lora,malora", "--seeds", "0,1", "--tune", "none")


def effect(by_seed: list[float], rows: float) -> Effect:
    """One with an interval over rows of a half-width."""
    value = float(np.mean(by_seed))
    return Effect(
        value=value,
        by_seed=by_seed,
        rows_low=value - rows,
        rows_high=value + rows,
        seeds_low=None,
        seeds_high=None,
        p=1.0,
    )


def test_the_spread_of_one_effect_says_what_it_said_of_itself() -> None:
    by_seed = [0.01, -0.02, 0.04]
    own = detectable_over_runs(np.asarray(by_seed))
    assert foreseen_detectable([effect(by_seed, 0.0)], 3) == pytest.approx(own)
    assert foreseen_detectable([effect(by_seed, 0.0)] * 2, 3) != pytest.approx(own), "a pooled spread is less uncertain"
    more = foreseen_detectable([effect(by_seed, 0.0)], 12)
    assert more is not None
    assert own is not None
    assert more < own / 2, "more than twice as small with four times the seeds"


def test_rows_count_where_they_are_the_larger_part() -> None:
    found = foreseen_detectable([effect([0.01, 0.0100001], 0.1), effect([0.01, 0.0100001], 0.3)], 5)
    assert found == pytest.approx(0.2 * (ndtri(0.975) + ndtri(0.8)) / ndtri(0.975))


def test_one_seed_foresees_nothing() -> None:
    assert foreseen_detectable([effect([0.1], 0.1)], 3) is None
    assert foreseen_detectable([effect([0.1, 0.2], 0.1)], 1) is None
    assert foreseen_detectable([], 3) is None


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The recipe of a comparison that was carried out."""
    recipe = workplace(tmp_path_factory.mktemp("earlier"), tiny_model)
    assert baselines(recipe, *EARLIER) == 0
    return recipe


def baselines(recipe: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "baselines", str(recipe), *QUICK, *arguments])
    return int(caught.value.code or 0)


def foreseen(recipe: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What a dry run says of time and power."""
    capsys.readouterr()
    assert baselines(recipe, *arguments, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    told = {head: rest.strip() for head, _, rest in (line.partition(":") for line in lines)}
    return {head: told[head] for head in ("time", "power")}


def test_where_nothing_was_measured_nothing_is_said(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workplace(tmp_path / "new", tiny_model)
    runs = recipe.parent / "runs"
    assert foreseen(recipe, capsys, "--methods", "lora,malora") == {
        "time": f"not known yet, since {runs} has no finished run of lora, malora with these settings",
        "power": "how small a difference can be seen is not known yet: "
        f"{runs} has no earlier comparison of these tasks",
    }


def test_time_is_reckoned_from_the_newest_runs_of_each_method(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0,1,2", "--single-task", "train.steps=2000"]
    told = foreseen(earlier, capsys, *asked, "output.name=other")["time"]
    paces = {}
    for method in METHODS:
        record = RunRecord(earlier.parent / "runs" / f"tiny-{method}-seed1")
        paces[method] = record.metrics.pace()
        assert f"{method} {paces[method]:.2f} in {record.name}" in told
    trials, reported, alone = 4, 3, 3
    seconds = 2000 * ((trials + reported + alone) * paces["lora"] + (trials + reported) * paces["malora"])
    hours, minutes, rest = (
        int(found[1]) if (found := re.search(rf"(\d+) {unit}\b", told.partition(" of training")[0])) else 0
        for unit in ("h", "min", "s")
    )
    assert hours * 3600 + minutes * 60 + rest == pytest.approx(seconds, abs=60 if hours else 1)
    assert "evaluations aside" in told


def test_time_is_that_of_what_is_missing(earlier: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked, runs = ["--methods", ",".join(METHODS), "--tune", "none"], earlier.parent / "runs"
    assert foreseen(earlier, capsys, *asked, "--seeds", "0,1")["time"] == "nothing is left to train"
    whole = seconds_missing(earlier, capsys, *asked, "--seeds", "0,1,2")
    killed = runs / "tiny-lora-seed2"
    (killed / "checkpoints" / checkpoint_name(2)).mkdir(parents=True)
    left = seconds_missing(earlier, capsys, *asked, "--seeds", "0,1,2")
    shutil.rmtree(killed)
    lora, malora = (RunRecord(runs / f"tiny-{method}-seed1").metrics.pace() for method in METHODS)
    assert lora is not None
    assert malora is not None
    assert (whole, left) == pytest.approx((3 * lora + 3 * malora, lora + 3 * malora)), "of three steps two were done"


def seconds_missing(recipe: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> float:
    capsys.readouterr()
    assert baselines(recipe, *arguments, "--dry-run", "--json") == 0
    return float(json.loads(capsys.readouterr().out)["training_seconds"])


@pytest.mark.parametrize(
    ("changed", "unknown"),
    [
        (["train.batch_size=12"], "lora, malora"),
        (["method.r=2"], "malora"),
        (["--methods", "lora,malora,dora"], "dora"),
    ],
)
def test_runs_whose_steps_cost_something_else_say_nothing(
    earlier: Path, changed: list[str], unknown: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = foreseen(earlier, capsys, "--methods", "lora,malora", *changed, "output.name=other")["time"]
    assert told.startswith("not known yet, since ")
    assert f"no finished run of {unknown} with these settings" in told


def test_the_spread_is_that_of_an_earlier_comparison_of_the_same_rows(
    earlier: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [effect] = [it.effect for it in Comparison.load(earlier.parent / "runs" / "tiny.compare").methods if it.effect]
    for seeds, count in (("0,1", 2), ("0,1,2,3,4", 5)):
        told = foreseen(earlier, capsys, "--methods", "lora,dora", "--seeds", seeds, "output.name=other")["power"]
        expected = foreseen_detectable([effect], count)
        assert told == (
            f"a true difference of {expected:.3f} nats a token or more would be seen 80 times in 100 "
            f"(by the spread in tiny.compare, with {count} seeds)"
        )
    for other in (["eval.rows=3"], ["--endpoint", "score"], ["mix.seed=7"]):
        told = foreseen(earlier, capsys, "--methods", "lora,dora", *other, "output.name=other")["power"]
        assert "not known yet" in told, other
    told = foreseen(earlier, capsys, "--methods", "lora,dora", "--seeds", "0", "output.name=other")["power"]
    assert told == "one seed allows no verdict, whatever the difference"


def test_it_is_said_again_after_the_tuning_and_before_any_test_row_is_read(
    earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("malora_cli.compare.tuning.EXTENSIONS", 0)
    copied = tmp_path / "copied"
    shutil.copytree(earlier.parent, copied)
    recipe = copied / earlier.name
    recipe.write_text(earlier.read_text(encoding="utf-8").replace(str(earlier.parent), str(copied)), encoding="utf-8")
    asked = ["--methods", "lora,malora", "--seeds", "0,1", "--tune", "lr=0.001,0.003", "output.name=tuned"]
    assert baselines(recipe, *asked, "train.steps=1", "train.eval_every=1") == 0
    lines = capsys.readouterr().out.splitlines()
    [said] = [number for number, line in enumerate(lines) if "would be seen 80 times in 100" in line]
    assert lines[said].startswith("[tuning] a true difference of ")
    assert all("trial" not in line and "[tuning]" not in line for line in lines[said + 1 :])
    assert not any("evaluating" in line for line in lines[:said])
    assert any("evaluating" in line for line in lines[said:])
