"""Comparisons at equal budget: the plan, carrying it out, and the table."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from malora_cli.adapters.methods import METHODS
from malora_cli.cli import main
from malora_cli.compare.asked import Asked
from malora_cli.compare.command import command_of
from malora_cli.compare.existing import comparison_of
from malora_cli.compare.options import parse_method_overrides, parse_seeds, parse_variants
from malora_cli.compare.outcome import UnlikeError
from malora_cli.compare.plan import Plan
from malora_cli.compare.planner import PlannedRun, Planner
from malora_cli.compare.run import Crew
from malora_cli.compare.table import Row, compare, newest_evaluation
from malora_cli.errors import RecipeError, RunError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.named import vocabulary
from malora_cli.results import EvalResult, RunRecord, read_json
from malora_cli.results.comparison import Comparison
from train_runs import Killed, SilentView, kill_at, load, losses, rewrite, same_weights, train_run, workplace

QUICK = ("train.steps=3", "train.eval_every=3", "eval.rows=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("compare"), tiny_model)


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return workplace(tmp_path / "work", tiny_model)


def planned(
    recipe: Path, *overrides: str, methods: str = "lora,malora", seeds: str = "0", **by: str
) -> list[PlannedRun]:
    planner = Planner(recipe, [*QUICK, *overrides], {name: [override] for name, override in by.items()}, vocabulary())
    planner.check(methods.split(","), [0])
    return planner.runs(methods.split(","), parse_seeds(seeds))


def carried_out(runs: list[PlannedRun], told: list[str] | None = None) -> list[tuple[RunRecord, EvalResult]]:
    outcome = Crew(SilentView, (told if told is not None else []).append).carry_out(runs)
    assert outcome.failures == []
    return [(it.record, it.result) for it in outcome.evaluated]


@pytest.fixture(scope="module")
def compared(home: Path) -> list[tuple[RunRecord, EvalResult]]:
    return carried_out(planned(home, methods="lora,molora,malora"))


# ---------------------------------------------------------------- the plan


def test_only_method_seed_and_name_differ(home: Path) -> None:
    runs = planned(home, methods="lora,malora,molora", seeds="3,4")
    assert [(run.method, run.seed) for run in runs] == [
        (method, seed) for seed in (3, 4) for method in ("lora", "malora", "molora")
    ]
    own = load(home, *QUICK).recipe.model_dump()
    for run in runs:
        found = run.loaded.recipe.model_dump()
        assert run.loaded.name == found["output"].pop("name") == f"tiny-{run.method}-seed{run.seed}"
        assert found.pop("method")["name"] == run.method
        assert found["train"].pop("seed") == run.seed
        expected = json.loads(json.dumps(own, default=str))
        del expected["method"], expected["train"]["seed"], expected["output"]["name"]
        assert json.loads(json.dumps(found, default=str)) == expected


def test_the_recipes_method_keeps_its_settings_and_the_others_take_their_defaults(home: Path) -> None:
    runs = {run.method: run.loaded.recipe.method for run in planned(home, methods="lora,molora,malora")}
    assert runs["malora"] == load(home).recipe.method
    assert runs["malora"] != METHODS["malora"]()
    assert runs["lora"] == METHODS["lora"]()
    assert runs["molora"] == METHODS["molora"]()


def test_every_method_adapts_the_same_linears(home: Path) -> None:
    for run in planned(home, "method.target_modules=[q_proj, mlp.down_proj]", methods="lora,malora,molora"):
        assert run.loaded.recipe.method.target_modules == ("q_proj", "mlp.down_proj")


def test_a_method_may_learn_in_its_own_way(home: Path) -> None:
    runs = planned(home, lora="train.learning_rate=0.125", malora="method.top_k=3")
    lora, malora = (run.loaded.recipe for run in runs)
    assert (lora.train.learning_rate, malora.train.learning_rate) == (0.125, 0.01)
    assert malora.method.model_dump()["top_k"] == 3
    assert malora.method.model_dump()["r"] == 4


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("train.steps=9", "train.steps"),
        ("train.batch_size=12", "train.batch_size"),
        ("train.max_length=40", "train.max_length"),
        ("train.seed=5", "train.seed"),
        ("train.init_seed=5", "train.init_seed"),
        ("train.dropout_seed=5", "train.dropout_seed"),
        ("train.schedule=linear", "train.schedule"),
        ("train.warmup_ratio=0", "train.warmup_ratio"),
        ("eval.rows=1", "eval.rows"),
        ("model.dtype=bfloat16", "model.dtype"),
        ("mix.weighting=proportional", "mix.weighting"),
        ("output.name=mine", "output.name"),
    ],
)
def test_what_would_make_it_unequal_is_refused(home: Path, override: str, named: str) -> None:
    with pytest.raises(RecipeError, match=rf"^--for: '{named}' for lora alone would make the comparison unequal\. "):
        planned(home, lora=override)


def test_a_method_stays_that_method(home: Path) -> None:
    with pytest.raises(RecipeError, match=r"--for: method lora was turned into 'malora'"):
        planned(home, methods="lora", lora="method={name: malora}")


@pytest.mark.parametrize(
    ("methods", "by", "message"),
    [
        ("lora,mallora", {}, "--methods: unknown method 'mallora'; did you mean 'malora'?"),
        ("lora", {"malor": "train.learning_rate=1"}, "--for: unknown method 'malor'; did you mean 'malora'?"),
        ("lora", {"molora": "train.learning_rate=1"}, "--for: 'molora' is not among the methods compared."),
        ("lora", {"lora": "train.lr=1"}, "command line: train.lr=1: unknown setting"),
    ],
)
def test_a_plan_that_is_wrong_is_one_line(home: Path, methods: str, by: dict[str, str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(home, methods=methods, **by)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_what_is_typed_is_read_or_refused() -> None:
    assert parse_seeds("0, 2") == [0, 2]
    assert parse_method_overrides(["lora:train.learning_rate=1e-3", "lora:method.r=4", "molora:method.r=2"]) == {
        "lora": ["train.learning_rate=1e-3", "method.r=4"],
        "molora": ["method.r=2"],
    }
    for text in ("x", "", "1,,2", "1.5"):
        with pytest.raises(RecipeError, match=r"^--seeds: .* is not a list of seeds\. Write it as 0,1,2\.$"):
            parse_seeds(text)
    for text in ("train.learning_rate=1", "method={name: x}", "lora"):
        with pytest.raises(RecipeError, match=r"^--for: .* names no method\. Write it as METHOD:section"):
            parse_method_overrides([text])


# ---------------------------------------------------------------- carrying it out


def test_every_method_sees_the_same_rows_and_starts_from_the_same_base(
    compared: list[tuple[RunRecord, EvalResult]],
) -> None:
    manifests = [record.manifest for record, _ in compared]
    assert [manifest.method for manifest in manifests] == ["lora", "molora", "malora"]
    assert len({json.dumps({n: d.sha256 for n, d in manifest.train_data.items()}) for manifest in manifests}) == 1
    assert {manifest.steps for manifest in manifests} == {3}
    # Nothing is learned in the first step of the warm-up, so the same rows have the same losses in the first two.
    first, *others = [losses(record) for record, _ in compared]
    assert first[0] != first[1]
    for other in others:
        assert other[:2] == [pytest.approx(step, rel=1e-6) for step in first[:2]]
    assert len({json.dumps(found[2]) for found in (first, *others)}) == 3


def test_the_base_is_evaluated_once(compared: list[tuple[RunRecord, EvalResult]]) -> None:
    answers = []
    for record, result in compared:
        [path] = record.eval_dir.glob("*.predictions.jsonl")
        answers.append({"base" in json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()})
        assert {name: task.against for name, task in result.tasks.items()} == {
            name: task.against for name, task in compared[0][1].tasks.items()
        }
        kept = [path.name for path in (record.eval_dir / "answers").glob("*.jsonl")]
        assert kept
        assert all(name.endswith(".adapter.jsonl") for name in kept), "those of the base are nobody's own"
    assert answers == [{True}] * 3


def snapshot(record: RunRecord) -> dict[str, tuple[int, int]]:
    """Every file of a run with its size and time."""
    files = (path for path in record.path.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def test_a_finished_run_is_not_touched(home: Path, compared: list[tuple[RunRecord, EvalResult]]) -> None:
    before = [snapshot(record) for record, _ in compared]
    told: list[str] = []
    again = carried_out(planned(home, methods="lora,molora,malora"), told)
    assert [snapshot(record) for record, _ in again] == before
    assert [line.partition(": ")[2] for line in told] == ["finished already"] * 3
    assert [result for _, result in again] == [result for _, result in compared]


def test_a_killed_run_goes_on_and_a_missing_evaluation_is_made(recipe: Path) -> None:
    longer = ("train.steps=4", "train.checkpoint_every=2", "train.eval_every=4")
    runs = planned(recipe, *longer, methods="lora,malora")
    with pytest.raises(Killed):
        Crew(lambda: SilentView(kill_at(3)), lambda _: None).carry_out(runs)
    told: list[str] = []
    [(first, _), (second, _)] = carried_out(runs, told)
    states = [line.rpartition(": ")[2] for line in told]
    assert states == ["going on", "evaluating", "training", "evaluating"]
    untouched = train_run(recipe, *QUICK, *longer, "method={name: lora}", "output.name=untouched")
    assert same_weights(first, untouched)
    assert [event.step for event in first.metrics.train()] == [1, 2, 3, 4]

    shutil.rmtree(second.eval_dir)
    told.clear()
    carried_out(runs, told)
    assert [line.rpartition(": ")[2] for line in told] == ["finished already", "finished already", "evaluating"]


def test_a_folder_with_another_recipe_stops_everything_before_it_starts(recipe: Path) -> None:
    runs = planned(recipe, "train.learning_rate=0.5", methods="malora")
    carried_out(runs)
    other = planned(recipe, methods="lora,malora")
    with pytest.raises(RunError, match=r"tiny-malora-seed0/recipe.yaml: the recipe differs .* train.learning_rate"):
        carried_out(other)
    assert not (recipe.parent / "runs" / "tiny-lora-seed0").exists()


def test_runs_on_two_base_models_are_not_compared(home: Path, compared: list[tuple[RunRecord, EvalResult]]) -> None:
    """A hub model's name stands for another one once it is published anew."""
    manifest = compared[1][0].manifest
    compared[1][0].write_manifest(manifest.model_copy(update={"base_model_commit": "a" * 40}))
    try:
        with pytest.raises(RunError, match=r"tiny-molora-seed0: it was trained on another '.*' than .*tiny-lora-seed0"):
            carried_out(planned(home, methods="lora,molora,malora"))
    finally:
        compared[1][0].write_manifest(manifest)


def test_an_evaluation_of_some_rows_stands_for_nothing(recipe: Path) -> None:
    runs = planned(recipe, methods="malora")
    [(record, whole)] = carried_out(runs)
    for tasks, limit in ((["add"], None), (None, 1)):
        evaluate_run(record, runs[0].loaded.recipe, Wanted(tasks=tasks, limit=limit))
    told: list[str] = []
    [(_, result)] = carried_out(runs, told)
    assert len(told) == 1
    assert result == whole
    assert compare([(record, result)]).rows[-1].values == [whole.overall().model.score]


# ---------------------------------------------------------------- the table


def with_scores(result: EvalResult, first: float) -> EvalResult:
    """The result with adapters' scores that tell tasks apart; an untrained model's are all zero."""
    tasks = {
        name: task.model_copy(update={"model": task.model.model_copy(update={"score": first + number / 10})})
        for number, (name, task) in enumerate(result.tasks.items())
    }
    return result.model_copy(update={"tasks": tasks, "averages": {}})


def test_the_table_holds_what_was_measured(compared: list[tuple[RunRecord, EvalResult]]) -> None:
    compared = [(record, with_scores(result, index / 5)) for index, (record, result) in enumerate(compared)]
    table = compare(compared)
    rows = {(row.section, row.name): row for row in table.rows}
    assert table.runs == ["tiny-lora-seed0", "tiny-molora-seed0", "tiny-malora-seed0"]
    assert rows["cost", "trainable parameters"].values == [r.manifest.trainable_parameters for r, _ in compared]
    for task in ("copy", "upper", "add"):
        expected = [result.tasks[task].model for _, result in compared]
        assert rows["held-out loss, nats a token", task].values == [scores.loss for scores in expected]
        assert rows["score", task].values == [scores.score for scores in expected]
    for index, (_, result) in enumerate(compared):
        words = [result.tasks[task].model.score for task in ("copy", "upper")]
        sums = result.tasks["add"].model.score
        assert rows["score of a domain", "words"].values[index] == pytest.approx(sum(words) / 2)
        assert rows["score of a domain", "sums"].values[index] == sums
        assert rows["score of a domain", "all domains"].values[index] == pytest.approx((sum(words) / 2 + sums) / 2)
    for row in table.rows:
        better = {"score": True, "score of a domain": True, "held-out loss, nats a token": False}
        assert row.higher_is_better is better.get(row.section, False if row.name == "seconds a step" else None)


@pytest.mark.parametrize(
    ("values", "higher", "best"),
    [
        ([0.1, 0.3, 0.2], True, {1}),
        ([0.1, 0.3, 0.2], False, {0}),
        ([0.3, 0.3, 0.2], True, {0, 1}),
        ([0.3001, 0.3004, 0.2], True, {0, 1}),  # one number on the screen is one result
        ([0.30, 0.3001], True, set()),
        ([0.2, 0.2], True, set()),
        ([0.2, None, 0.1], True, {0}),
        ([0.2, None], True, set()),
        ([None, None], True, set()),
        ([0.2], True, set()),
        ([1.0, 2.0], None, set()),
    ],
)
def test_the_best_of_a_row(values: list[float | None], higher: bool | None, best: set[int]) -> None:
    assert Row("score", "x", values, higher, ".3f").best() == best


@pytest.mark.parametrize(
    ("ends", "best"),
    [
        ([(0.1, 0.29), (0.3, 0.5), (0.1, 0.2)], {1}),
        ([(0.1, 0.31), (0.3, 0.5), (0.1, 0.2)], set()),
        ([(0.1, 0.3), (0.3, 0.5), (0.1, 0.2)], set()),
        ([None, (0.3, 0.5), (0.1, 0.2)], {1}),  # of an older version
    ],
)
def test_the_best_is_one_whose_interval_overlaps_with_no_other(
    ends: list[tuple[float, float] | None], best: set[int]
) -> None:
    assert Row("score", "x", [0.2, 0.4, 0.15], True, ".3f", ends).best() == best


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["compare", *arguments])
    return int(caught.value.code or 0)


def test_compare_runs_prints_the_table_with_the_best_marked(
    compared: list[tuple[RunRecord, EvalResult]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [str(record.path) for record, _ in compared]
    assert command("runs", *paths) == 0
    out = capsys.readouterr().out
    assert [line.split() for line in out.splitlines()[:1]] == [[record.name for record, _ in compared]]
    for row in compare(compared).rows:
        cells = [text + ("*" if index in row.best() else "") for index, text in enumerate(row.shown())]
        pattern = rf"^  {re.escape(row.name)} +{' +'.join(map(re.escape, cells))} *$"
        assert re.search(pattern, out, re.MULTILINE), row
    assert "*" in out
    assert out.count("One seed speaks of its own runs only") == 2
    assert re.search(r"^malora against lora: [+-]", out, re.MULTILINE)
    assert "Learning rates were not tuned: " in out
    monkeypatch.chdir(compared[0][0].path.parent.parent)
    assert command("runs", *(record.name for record, _ in compared)) == 0  # by their names under runs/
    assert capsys.readouterr().out == out


@pytest.mark.parametrize(
    ("methods", "message"), [("", "--methods: no method is named"), ("lor", "did you mean 'lora'?")]
)
def test_baselines_says_what_is_wrong(
    recipe: Path, methods: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("baselines", str(recipe), "--methods", methods) == 2
    assert message in capsys.readouterr().err
    assert not (recipe.parent / "runs").exists()


def test_runs_that_differ_in_more_than_their_method_end_in_no_verdict(
    compared: list[tuple[RunRecord, EvalResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, molora, malora = (record for record, _ in compared)
    found = comparison_of([lora, molora, malora])
    assert found.baseline == "lora"
    assert {it.method for it in found.methods} == {"lora", "molora", "malora"}
    other = RunRecord(Path(shutil.copytree(molora.path, tmp_path / "other")))
    rewrite(other.manifest_path, lambda manifest: manifest["train_data"]["add"].update(sha256="0" * 64))
    for records, why in (
        ([lora, lora], "all are of method lora"),
        ([lora, other], f"its train rows are not those of {lora.path}"),
        ([lora, molora, molora], f"another run of molora has seed {molora.manifest.seeds['train']} too"),
    ):
        with pytest.raises(UnlikeError, match=re.escape(why)):
            comparison_of(records)
        runs = [str(record.path) for record in records]
        assert command("runs", *runs) == 0, "their table is shown all the same"
        assert f"no verdicts: {why}" in capsys.readouterr().out.replace(f"{records[-1].path}: ", "")
        assert command("runs", *runs, "--out", str(tmp_path / "out")) == 2
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("train", "weight_decay", 0.3),
        ("train", "max_grad_norm", 0.3),
        ("train", "init_seed", 5),
        ("train", "dropout_seed", 5),
        ("model", "dtype", "bfloat16"),
        ("mix", "temperature", 3),
        ("remedies", "pcgrad", {}),
    ],
)
def test_runs_of_other_settings_end_in_no_verdict(
    compared: list[tuple[RunRecord, EvalResult]], tmp_path: Path, section: str, key: str, value: object
) -> None:
    lora, molora, _ = (record for record, _ in compared)
    other = RunRecord(Path(shutil.copytree(molora.path, tmp_path / "other")))
    assert comparison_of([lora, other])
    settings = other.recipe
    settings[section][key] = value
    other.recipe_path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with pytest.raises(UnlikeError, match=rf"its {section}\.{key} is not that of "):
        comparison_of([lora, RunRecord(other.path)])


def test_runs_that_exist_get_the_record_and_the_page_of_a_comparison(
    compared: list[tuple[RunRecord, EvalResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = [shutil.copytree(record.path, tmp_path / record.name) for record, _ in compared]
    shutil.rmtree(Path(copied[1]) / "adapter")  # a light run
    shutil.rmtree(Path(copied[1]) / "checkpoints", ignore_errors=True)
    out = tmp_path / "compared"
    asked = [*map(str, copied), "--baseline", "malora", "--endpoint", "score", "--margin", "0.5"]
    assert command("runs", *asked, "--out", str(out)) == 0
    assert f"page:       {out / 'report' / 'index.html'}" in capsys.readouterr().out
    found = Comparison.load(out)
    assert (found.baseline, found.endpoint, found.margin) == ("malora", "score", 0.5)
    assert found.notes[0].startswith("Learning rates were not tuned: ")
    weights = f"Their weights are not here, so they cannot be evaluated again: {Path(copied[1]).name}."
    assert found.notes[-1] == weights
    assert (out / "comparison.csv").is_file()
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert 'id="routing"' in page, "what lies in the folders of the runs is on it"
    assert weights in page
    assert command("runs", *asked, "--json") == 0
    printed = Comparison.model_validate_json(capsys.readouterr().out)
    assert printed.methods == found.methods
    (out / "plan.json").write_text("{}", encoding="utf-8")
    assert command("runs", *asked, "--out", str(out)) == 2
    assert "it holds a comparison with a plan. Name another folder." in capsys.readouterr().err
    assert command("runs", *asked[:3], "--baseline", "dora") == 2
    assert "--baseline: 'dora' is not among the methods compared" in capsys.readouterr().err


def test_runs_have_a_table_where_their_rows_do_not_allow_verdicts(
    compared: list[tuple[RunRecord, EvalResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, other = (RunRecord(Path(shutil.copytree(record.path, tmp_path / record.name))) for record, _ in compared[:2])
    [result] = other.eval_dir.glob("*[0-9].json")
    rewrite(result, lambda found: found["tasks"]["copy"]["model"].update(score=0.5))
    runs = [str(lora.path), str(other.path)]
    assert command("runs", *runs, "--endpoint", "score") == 0
    assert re.search(r"no verdicts: .*: the exact-match of task 'copy' is of all its answers", capsys.readouterr().out)
    for file in other.eval_dir.glob("*.predictions.jsonl"):
        file.unlink()
    assert command("runs", *runs) == 0
    out = capsys.readouterr().out
    assert "held-out loss" in out
    assert "predictions.jsonl: " in out
    assert command("runs", *runs, "--json") == 2


def test_runs_that_cannot_be_compared(
    compared: list[tuple[RunRecord, EvalResult]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, malora = compared[0][0], compared[2][0]
    copies = {
        name: RunRecord(Path(shutil.copytree(malora.path, tmp_path / name)))
        for name in ("running", "fewer", "drawn", "rows", "silent")
    }
    rewrite(copies["running"].path / "manifest.json", lambda m: m.update(status="running"))
    [path] = set(copies["fewer"].eval_dir.glob("*.json"))
    rewrite(path, lambda result: result["tasks"]["add"].update(rows=1))
    [drawn] = set(copies["drawn"].eval_dir.glob("*.json"))
    rewrite(drawn, lambda result: result["tasks"]["add"].update(sample="0" * 16))
    rewrite(copies["rows"].path / "manifest.json", lambda m: m["test_data"]["add"].update(sha256="0" * 64))
    shutil.rmtree(copies["silent"].eval_dir)
    for name, message in {
        "running": "is not finished, so it has no adapter yet. Go on with it: malora train ",
        "fewer": "was evaluated on other rows than tiny-lora-seed0. Evaluate both with the same tasks and limit",
        "drawn": "was evaluated on other rows than tiny-lora-seed0",
        "rows": "was evaluated on other rows than tiny-lora-seed0",
        "silent": f"this run has not been evaluated. Run: malora eval {copies['silent'].path}",
        "nowhere": "run not found",
    }.items():
        assert command("runs", str(lora.path), str(tmp_path / name)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"error: {tmp_path / name}: ")
        assert message in captured.err
    assert newest_evaluation(malora) == compared[2][1]
    assert read_json(path)["tasks"]["add"]["rows"] == 1


# ---------------------------------------------------------------- sets of contenders


def contenders(home: Path, name: str, *overrides: str) -> tuple[dict[str, PlannedRun], str]:
    """The first run of each contender, and the baseline of the set."""
    asked = Asked(home, [*QUICK, *overrides], "0", "none", None, "loss", 0.01, [])
    planner, plan = asked.of_set(name)
    assert planner.folder.name == f"tiny-{name}.compare"
    return {method: planner.run(method, 0) for method in plan.methods}, plan.baseline


def test_the_ablations_are_those_of_the_paper(home: Path) -> None:
    runs, baseline = contenders(home, "ablations", "method.target_modules=[q_proj]")
    assert baseline == "malora"
    assert {run.loaded.recipe.method.name for run in runs.values()} == set(runs)
    assert {name for name in METHODS if name.startswith("malora-")} - {"malora-small"} < set(runs)
    assert all(run.loaded.recipe.method.target_modules == ("q_proj",) for run in runs.values())


def test_the_ranks_are_those_of_the_paper_at_one_scale(home: Path) -> None:
    runs, baseline = contenders(home, "ranks")
    assert baseline == "molora-r8"
    settings = {name: run.loaded.recipe.method.model_dump() for name, run in runs.items()}
    assert {one["lora_alpha"] / one["r"] for one in settings.values()} == {2}
    sizes = {name: (one["r"], one["subspace_rank"], one["beta"]) for name, one in settings.items() if "beta" in one}
    assert sizes == {
        "malora-r6": (6, 16, 0.3),
        "malora-r12": (12, 32, 1.0),
        "malora-r24": (24, 64, 3.5),
        "malora-r48": (48, 128, 5.0),
    }


def test_remedies_are_compared_one_at_a_time_with_none(home: Path) -> None:
    runs, baseline = contenders(home, "remedies", "remedies.pcgrad={}")
    recipes = {name: run.loaded.recipe for name, run in runs.items()}
    assert baseline == "plain"
    chosen = {name: set(recipe.remedies.chosen) for name, recipe in recipes.items()}
    weightings = {name: recipe.mix.weighting for name, recipe in recipes.items()}
    assert chosen == {name: {name} & {"uncertainty", "bandit", "pcgrad"} for name in ("plain", *list(recipes)[1:])}
    assert weightings == {"proportional": "proportional", "temperature": "temperature"} | dict.fromkeys(
        ("plain", "uncertainty", "bandit", "pcgrad"), "uniform"
    )
    assert {recipe.method for recipe in recipes.values()} == {load(home).recipe.method}


def test_contenders_of_a_set_may_be_given_settings(home: Path) -> None:
    def asked(option: str) -> Asked:
        return Asked(home, [*QUICK], "0", "none", None, "loss", 0.01, [option])

    planner, plan = asked("molora-r8:method.lora_dropout=0.2").of_set("ranks")
    dropouts = {name: planner.run(name, 0).loaded.recipe.method.lora_dropout for name in plan.methods}
    assert {name for name, dropout in dropouts.items() if dropout == 0.2} == {"molora-r8"}
    with pytest.raises(RecipeError, match=r"--for: unknown method 'molora-r9'; did you mean 'molora-r8'\?"):
        asked("molora-r9:method.lora_dropout=0.2").of_set("ranks")


def test_variants_of_a_method_are_compared_under_their_own_names(home: Path) -> None:
    def asked(methods: str, *options: str) -> tuple[Planner, Plan]:
        return Asked(home, [*QUICK], "0", "none", None, "loss", 0.01, options).of_methods(methods.split(","))

    own = load(home).recipe.method
    assert own.name == "malora"
    plain, _ = asked("lora,malora")
    options = ("wide:method.r=32", "half:method.beta=0.5")
    planner, plan = asked("lora,malora,wide=lora,half = malora", *options)
    assert (plan.methods, plan.variants) == (["lora", "malora", "wide", "half"], {"wide": "lora", "half": "malora"})
    assert planner.folder == plain.folder, "it may be added to a comparison that was begun without it"
    methods = {run.method: run.loaded.recipe.method for run in planner.runs(plan.methods, [0])}
    assert methods["lora"] == plain.run("lora", 0).loaded.recipe.method
    assert methods["wide"] == methods["lora"].model_copy(update={"r": 32})
    assert methods["half"] == own.model_copy(update={"beta": 0.5}), "of the recipe's own method it has the settings"
    assert planner.run("wide", 0).name == "tiny-wide-seed0"
    command = command_of(planner, plan, allow_code=False)
    assert command[command.index("--methods") + 1] == "lora,malora,wide=lora,half=malora"


def test_a_variant_that_is_named_twice_is_compared_once(home: Path) -> None:
    asked = Asked(home, [*QUICK], "0", "none", None, "loss", 0.01, [])
    assert asked.of_methods(["lora", "wide=lora", "wide", "lora"])[1].methods == ["lora", "wide"]


def test_a_whole_method_for_one_contender_keeps_the_linears_of_all(home: Path) -> None:
    def linears(*options: str) -> list[str] | str | None:
        overrides = [*QUICK, "method.target_modules=[q_proj]"]
        planner, _ = Asked(home, overrides, "0", "none", None, "loss", 0.01, options).of_methods(["malora", "own=lora"])
        return planner.run("own", 0).loaded.recipe.method.target_modules

    assert linears() == linears("own:method={name: lora, r: 4}") == ("q_proj",)
    assert linears("own:method.target_modules=[v_proj]") == ("v_proj",)
    assert linears("own:method={name: lora, target_modules: [v_proj]}") == ("v_proj",)


@pytest.mark.parametrize("name", ["comparison", "laptop", "long", "remedies"])
def test_plans_that_were_kept_have_their_hash(name: str) -> None:
    """What is added to plans later must not change those that were made before."""
    kept = Path(__file__).parents[1] / "benchmarks" / "results" / name
    folder = kept if (kept / "plan.json").is_file() else kept / "compare.compare"
    assert Plan.load(folder).sha256 == Comparison.load(folder).plan_sha256


def test_variants_may_be_added_to_a_comparison_and_not_become_others(home: Path, tmp_path: Path) -> None:
    def plan(methods: str, *options: str) -> Plan:
        return Asked(home, [*QUICK], "0", "none", None, "loss", 0.01, options).of_methods(methods.split(","))[1]

    began = plan("lora,malora")
    began.keep(tmp_path)
    assert plan("lora,malora,wide=lora", "wide:method.r=32").begun(tmp_path) == began
    Plan.path(tmp_path).unlink()
    plan("lora,wide=lora").keep(tmp_path)
    with pytest.raises(RunError, match=r"'variants' differs \(wide: was 'lora', is 'molora'\)"):
        plan("lora,wide=molora").begun(tmp_path)


@pytest.mark.parametrize(
    ("methods", "why"),
    [
        ("lora,wide=lroa", "unknown method 'lroa'; did you mean 'lora'?"),
        ("lora,malora=lora", "'malora' is taken. Use another name in 'malora=lora'."),
        ("lora,Lora=lora", "'Lora' is taken. Use another name in 'Lora=lora'."),
        ("lora,wide=lora,wide=malora", "'wide' is taken. Use another name in 'wide=malora'."),
        ("lora,lora-only-copy=lora", "'lora-only-copy' cannot be a name of 'lora-only-copy=lora'. Write it as "),
        ("lora,wide.=lora", "'wide.' cannot be a name of 'wide.=lora'. Write it as NAME=METHOD; "),
        ("lora,../wide=lora", "'../wide' cannot be a name of '../wide=lora'. Write it as NAME=METHOD; "),
        ("lora,=lora", "'' cannot be a name of '=lora'. Write it as NAME=METHOD; "),
    ],
)
def test_names_of_variants_that_cannot_be_are_refused(methods: str, why: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(f"--methods: {why}")):
        parse_variants(methods.split(","), METHODS)
