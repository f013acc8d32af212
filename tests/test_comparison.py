"""`malora compare baselines` from its plan to its record, on the tiny model."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from json_output import assert_documented
from malora_cli.cli import _application, main
from malora_cli.compare import room
from malora_cli.compare import run as run_module
from malora_cli.compare.asked import Asked
from malora_cli.compare.baselines import Study
from malora_cli.compare.command import command_of
from malora_cli.compare.matching import parameters_of
from malora_cli.compare.room import bytes_missing, bytes_of
from malora_cli.errors import RunError
from malora_cli.recipe import LoadedRecipe, shipped_files
from malora_cli.results import RunRecord, read_json
from malora_cli.results.comparison import COLUMNS, Comparison
from malora_cli.results.predictions import hashed
from train_runs import refused, rewrite, workplace

QUICK = ("train.steps=3", "train.eval_every=3", "train.checkpoint_every=1", "eval.rows=4")
TASKS = ("copy", "upper", "add")
METHODS = ["lora", "malora"]
#: A comparison that is tuned on three rates.
TUNED = ("--methods", "lora,malora", "--seeds", "0,1", "--tune", "lr=0.001,0.003,0.01")


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    return workplace(tmp_path / "work", tiny_model)


def baselines(recipe: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["compare", "baselines", str(recipe), *QUICK, *arguments])
    return int(caught.value.code or 0)


def folder_of(recipe: Path) -> Path:
    return recipe.parent / "runs" / "tiny.compare"


def moved(recipe: Path, folder: Path) -> Path:
    """A copy of a recipe with its data and its runs."""
    shutil.copytree(recipe.parent, folder)
    text = recipe.read_text(encoding="utf-8").replace(str(recipe.parent), str(folder))
    (folder / recipe.name).write_text(text, encoding="utf-8")
    return folder / recipe.name


def figures(comparison: Comparison) -> Any:
    """All of a comparison but what depends on the clock."""
    found = json.loads(comparison.model_dump_json())
    del found["created"]
    for method in found["methods"]:
        for run in method["runs"]:
            del run["seconds_per_step"], run["train_seconds"]
    for trial in found["trials"]:
        del trial["seconds"]
    return found


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The recipe of a comparison that was tuned on two rates."""
    recipe = workplace(tmp_path_factory.mktemp("tuned"), tiny_model)
    assert baselines(recipe, *TUNED) == 0
    return recipe


def test_every_method_has_as_many_trials_and_reports_its_best_rate(tuned: Path) -> None:
    comparison = Comparison.load(folder_of(tuned))
    assert (comparison.baseline, comparison.seeds, comparison.tuning_seed) == ("lora", [0, 1], 1000)
    trials = {m: [t for t in comparison.trials if t.method == m] for m in ("lora", "malora")}
    assert len(trials["lora"]) == len(trials["malora"]) >= 3
    for it in comparison.methods:
        losses = {trial.learning_rate: trial.loss for trial in trials[it.method] if trial.loss is not None}
        assert it.tuned.learning_rate == min(losses, key=losses.__getitem__)
        for run in it.runs:
            assert RunRecord(tuned.parent / "runs" / run.run).recipe["train"]["learning_rate"] == it.tuned.learning_rate
            assert RunRecord(tuned.parent / "runs" / run.run).recipe["train"]["seed"] == run.seed
    for trial in comparison.trials:
        record = RunRecord(tuned.parent / "runs" / trial.run)
        assert not list(record.eval_dir.glob("*.json")), "no test row is read before the rates are chosen"
        last = record.metrics.evals()[-1]
        assert trial.loss == pytest.approx(sum(t.loss or 0 for t in last.tasks.values()) / len(last.tasks))


def test_the_record_holds_what_the_runs_measured(tuned: Path) -> None:
    comparison = Comparison.load(folder_of(tuned))
    assert [it.value for it in comparison.methods] == sorted(it.value or 0 for it in comparison.methods)
    lora, malora = comparison.of("lora"), comparison.of("malora")
    for it in (lora, malora):
        for run in it.runs:
            [result] = RunRecord(tuned.parent / "runs" / run.run).evaluations()
            assert run.scores == {name: task.model.score for name, task in result.tasks.items()}
            assert run.losses == {name: task.model.loss for name, task in result.tasks.items()}
        by_seed = [sum(run.losses.values()) / 3 for run in it.runs]
        assert it.value == pytest.approx(sum(by_seed) / 2)
    assert lora.effect is None
    assert malora.effect is not None
    assert malora.effect.value == pytest.approx((malora.value or 0) - (lora.value or 0))
    assert set(malora.tasks) == set(comparison.rows) == {"copy", "upper", "add"}
    assert malora.tasks["add"].value == pytest.approx(
        (malora.mean("losses", "add") or 0) - (lora.mean("losses", "add") or 0)
    )
    for it in (lora, malora):
        values = sorted(loss for run in it.runs for loss in run.losses.values())
        assert it.interquartile == pytest.approx(sum(values[1:5]) / 4)
        assert it.interquartile_half is not None
    assert (lora.rank or 0) + (malora.rank or 0) == pytest.approx(3)
    [sentence] = comparison.sentences
    assert sentence.startswith("malora ")
    assert "2 seeds, 3 tasks" in sentence


def test_trials_measure_validation_rows_at_their_end_alone(tuned: Path) -> None:
    comparison = Comparison.load(folder_of(tuned))
    for trial in comparison.trials:
        record = RunRecord(folder_of(tuned).parent / trial.run)
        assert [event.step for event in record.metrics.evals()] == [record.manifest.steps]
    reported = RunRecord(folder_of(tuned).parent / comparison.of("lora").runs[0].run)
    assert [event.step for event in reported.metrics.evals()] == [0, reported.manifest.steps]


def test_every_figure_is_in_the_csv(tuned: Path) -> None:
    comparison = Comparison.load(folder_of(tuned))
    with (folder_of(tuned) / "comparison.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    found = {(row["method"], row["seed"], row["task"], row["metric"]): row["value"] for row in rows}
    assert float(found["malora", "1", "add", "loss"]) == comparison.of("malora").runs[1].losses["add"]
    assert float(found["lora", "", "", "loss"]) == comparison.of("lora").value
    assert float(found["lora", "", "", "loss, interquartile mean"]) == comparison.of("lora").interquartile
    assert sum(row["phase"] == "tuning" for row in rows) == len(comparison.trials)


def test_what_is_done_is_not_done_again(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder_of(tuned) / "report" / "index.html"
    assert Comparison.load(folder_of(tuned)).sentences[0] in page.read_text(encoding="utf-8")
    before = figures(Comparison.load(folder_of(tuned)))
    capsys.readouterr()
    assert baselines(tuned, *TUNED) == 0
    out = capsys.readouterr().out
    assert not re.search(r"(training|evaluating|going on)$", out, re.MULTILINE)
    assert figures(Comparison.load(folder_of(tuned))) == before
    assert re.search(r"^malora +[0-9.M,]+ +[0-9.e-]+\*? +[0-9.]+ ±[0-9.]+", out, re.MULTILINE)
    assert max(map(len, out.splitlines()[-9:-5])) <= 110


def test_another_plan_is_not_mixed_with_the_one_begun(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for changed, named in (
        (["--margin", "0.5"], "'margin' differs (was 0.01, is 0.5)"),
        (["train.batch_size=12"], "'recipe' differs (train.batch_size: was 6, is 12)"),
        (["--endpoint", "score"], "'endpoint' differs"),
    ):
        asked = [*TUNED, *changed]
        line = refused(["compare", "baselines", str(tuned), *QUICK, *asked], capsys)
        assert "another comparison was begun here" in line
        assert named in line
    remedy = refused(["compare", "baselines", str(tuned), *QUICK, *TUNED, "remedies.pcgrad={}"], capsys)
    assert "'recipe' differs (remedies.pcgrad: was null, is {" in remedy
    template = tuned.parent / "template.jinja"
    template.write_text("{{ messages }}", encoding="utf-8")
    named = refused(
        ["compare", "baselines", str(tuned), *QUICK, *TUNED, f"model.chat_template={template.absolute()}"], capsys
    )
    assert "'recipe' differs (a file is named there that was not, or no longer is)" in named
    fewer = ["--methods", "lora,dora", "--seeds", "0,1", "--tune", "none"]
    line = refused(["compare", "baselines", str(tuned), *QUICK, *fewer], capsys)
    assert "this comparison began with malora as well. Name all of --methods lora,malora, or take another name" in line


def test_what_watches_runs_and_what_later_versions_add_leaves_the_plan_as_it_is(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = moved(tuned, tmp_path / "copied")
    rewrite(folder_of(recipe) / "plan.json", lambda plan: plan["recipe"]["train"].pop("weight_decay"))
    watched = ["train.checkpoint_every=2", "train.keep_checkpoints=1", "eval.batch_size=3"]
    assert baselines(recipe, *TUNED, *watched) == 0
    assert not re.search(r"(training|evaluating)$", capsys.readouterr().out, re.MULTILINE)
    line = refused(["compare", "baselines", str(recipe), *QUICK, *TUNED, "train.weight_decay=0.5"], capsys)
    assert "the recipe differs from the run's own in train.weight_decay" in line


def test_what_comes_later_is_marked(recipe: Path) -> None:
    plain = ["--tune", "none"]
    assert baselines(recipe, "--methods", "lora,malora", "--seeds", "0", *plain) == 0
    first = Comparison.load(folder_of(recipe))
    assert "there is no verdict on the methods" in first.sentences[0]
    assert first.notes[0].startswith("Learning rates were not tuned: ")
    assert baselines(recipe, "--methods", "lora,malora,dora", "--seeds", "0,1", "--single-task", *plain) == 0
    later = Comparison.load(folder_of(recipe))
    assert later.alone
    assert [it.method for it in later.methods if it.added] == ["dora"]
    assert "Added after the plan was written: dora." in later.notes
    assert "Added after the plan was written: seed 1, training on single tasks." in later.notes
    assert later.plan_sha256 == first.plan_sha256


def test_where_one_run_fails_the_others_go_on(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run_module.train

    def failing(loaded: Any, *arguments: Any, **options: Any) -> RunRecord:
        if loaded.name == "tiny-malora-seed0":
            raise RunError("the disk is full", where="here")
        return plain(loaded, *arguments, **options)

    asked = ["--methods", "lora,malora", "--seeds", "0,1", "--tune", "none"]
    with monkeypatch.context() as patched:
        patched.setattr(run_module, "train", failing)
        assert baselines(recipe, *asked) == 1
    out = capsys.readouterr().out
    assert "failed: malora, seed 0: here: the disk is full" in out
    broken = Comparison.load(folder_of(recipe))
    assert [(failure.method, failure.seed) for failure in broken.failures] == [("malora", 0)]
    assert broken.of("malora").effect is None
    assert "Not compared, since runs are missing: malora." in broken.notes
    assert baselines(recipe, *asked) == 0  # it was mended
    mended = Comparison.load(folder_of(recipe))
    assert mended.failures == []
    assert mended.of("malora").effect is not None


def test_a_method_that_diverges_at_every_rate_is_a_failure(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0", "--tune", "lr=1e25,1e30", "train.warmup_ratio=0"]
    code = baselines(recipe, *asked, "train.max_grad_norm=0")
    trials = read_json(folder_of(recipe) / "tuning.json")
    assert all(trial["diverged"] for trial in trials)
    assert code == 2
    assert len({trial["learning_rate"] for trial in trials}) == 5, "grids went down to look for better"
    with pytest.raises(SystemExit) as caught:
        main(["compare", "plan", str(recipe), *QUICK, *asked, "train.max_grad_norm=0"])
    assert not caught.value.code
    assert capsys.readouterr().err.endswith("0 lines of phase tune\n"), "what diverged is not tried for ever"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "lora"], "--methods: lora alone has nothing to be compared with. Name two at least."),
        (["--baseline", "lorra"], "--baseline: 'lorra' is not among the methods compared; did you mean 'lora'?"),
        (["--seeds", "0,0"], "--seeds: a seed stands twice in '0,0'. Name each once."),
        (["--seeds", "0,1000"], "--seeds: 1000 is the seed that learning rates are tuned with"),
        (["--tune", "lr=0.1"], "--tune: got lr=0.1; a grid has two learning rates at least, all above 0."),
        (["--tune", "lr=0,0.1"], "--tune: got lr=0,0.1; a grid has two"),
        (["--tune", "optimal"], "--tune: 'optimal' is not a tuning. Write auto, none or lr="),
        (["--for", "lora:train.learning_rate=1"], "--for: the learning rate of lora is set, and it is going to be"),
        (["--for", "lora:train.steps=9"], "--for: 'train.steps' for lora alone would make the comparison unequal."),
        (["--methods", "lora,mallora"], "--methods: unknown method 'mallora'; did you mean 'malora'?"),
        (["mix.validation=null"], "--tune: no task keeps validation rows to choose learning rates by. Set mix.valid"),
        (["--for", "lora:train.init_seed=5"], "--for: 'train.init_seed' for lora alone would make the comparison"),
        (["train.init_seed=1"], "train.init_seed is set, so that runs of several seeds have it in common"),
    ],
)
def test_what_is_wrong_is_one_line(
    recipe: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(["compare", "baselines", str(recipe), *QUICK, *arguments], capsys)
    assert message in line
    assert not (recipe.parent / "runs").exists()


def test_a_second_comparison_there_says_who_holds_the_lock(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from malora_cli.results import writing

    with writing(RunRecord(folder_of(recipe))):
        line = refused(["compare", "baselines", str(recipe), *QUICK, "--methods", "lora,malora"], capsys)
    assert "another process is writing this" in line


# ---------------------------------------------------------------- size, and a plan that is only shown


def test_methods_are_matched_to_the_size_of_the_baseline(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "malora,lora,hydralora", "--baseline", "malora", "--match", "parameters", "--dry-run"]
    wide = "method={name: malora, r: 12, subspace_rank: 32}"
    assert baselines(recipe, wide, *asked) == 0
    out = capsys.readouterr().out
    deviations = re.findall(r"(lora|hydralora) ([+-][0-9.]+)%", out.split("parameters against malora: ")[1])
    assert {name for name, _ in deviations} == {"lora", "hydralora"}
    assert all(abs(float(share)) <= 3 for _, share in deviations)
    assert not (recipe.parent / "runs").exists(), "nothing is run"


def test_a_rank_that_was_set_is_not_matched(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "lora,twice=lora,half=lora,malora", "--for", "lora:method.r=48", "--for", "twice:method.r=96"]
    asked += ["--for", "half:method={name: lora, r: 24}"]
    assert baselines(recipe, *asked, "--match", "parameters", "--dry-run", "--json") == 0
    plan = json.loads(capsys.readouterr().out)
    sizes = {method["method"]: method["parameters"] for method in plan["methods"]}
    assert (sizes["twice"], sizes["half"]) == (2 * sizes["lora"], sizes["lora"] / 2)
    assert abs(sizes["malora"] / sizes["lora"] - 1) <= 0.03


def test_subspaces_that_experts_divide_are_matched_by_ranks_that_they_can_divide(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "lora,malora-unshared-subspace", "--tune", "none", "--match", "parameters", "--dry-run"]
    own = "malora-unshared-subspace:method.num_experts=3"
    divided = ["--for", own, "--for", "malora-unshared-subspace:method.subspace_rank=24"]
    assert baselines(recipe, "method={name: lora, r: 48}", *asked, *divided) == 0
    [share] = re.findall(r"unshared-subspace ([+-][0-9.]+)%", capsys.readouterr().out)
    assert abs(float(share)) <= 3


def test_a_size_that_no_rank_has_is_refused_with_the_nearest(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = "method={name: lora, r: 1}"
    asked = ["--methods", "lora,molora", "--match", "parameters", "--tune", "none"]
    line = refused(["compare", "baselines", str(recipe), *QUICK, few, *asked], capsys)
    assert line.startswith("error: --match: no rank of molora comes within 3% of the ")
    assert re.search(r"nearest: rank 1 with [0-9,]+ and rank [12] with [0-9,]+\). Let the others match it", line)


def test_a_dry_run_shows_the_grid_and_how_much_there_is_to_do(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0,1", "--dry-run", "--for", "lora:train.learning_rate=1e-3"]
    assert baselines(recipe, *asked[:-2]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^malora +[0-9,.M]+ +0\.00316 0\.01 0\.0316 0\.1 +4 +2$", out, re.MULTILINE)
    assert "8 trials (more where a best rate lies at an edge) and 4 reported runs, 36 training steps" in out
    assert baselines(recipe, *asked, "--tune", "none") == 0
    out = capsys.readouterr().out
    assert re.search(r"^lora +[0-9,.M]+ +0\.001 +0 +2$", out, re.MULTILINE)
    assert "0 trials and 4 reported runs, 12 training steps" in out
    assert baselines(recipe, *asked, "--tune", "none", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora compare baselines --dry-run", told)
    assert [(it["method"], it["learning_rates"]) for it in told["methods"]] == [("lora", [0.001]), ("malora", [0.01])]
    assert not folder_of(recipe).exists()


def test_the_room_that_runs_take_is_there_before_they_begin(
    tuned: Path, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, plan = Asked(tuned, QUICK, "0,1", "lr=0.001,0.003,0.01", None, "loss", 0.01, []).of_methods(METHODS)
    counted = parameters_of(planner, METHODS)
    runs = Study(planner, plan).all_runs()[:6]  # the trials
    assert bytes_missing(runs, counted) == 0, "they are finished"
    for run in runs:
        weights = sum(file.stat().st_size for file in run.folder.rglob("*.safetensors"))
        assert 0.8 * weights < bytes_of(run, counted[run.method]) < weights, "heads and random states are the rest"
    recipe_of_killed = moved(tuned, tmp_path / "killed")
    killed = [replace(run, loaded=at(run.loaded, recipe_of_killed.parent / "runs")) for run in runs]
    for run in killed:
        rewrite(run.record.manifest_path, lambda found: found.update(status="running"))
    assert bytes_missing(killed, counted) == 0, "what they have written counts"
    monkeypatch.setattr(room, "free_bytes", lambda _: 2**20)
    assert baselines(tuned, *TUNED) == 0, "nothing is missing there"
    assert baselines(tuned, *TUNED, "--dry-run", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["disk_bytes"] == 0
    line = refused(["compare", "baselines", str(recipe), *QUICK, *TUNED], capsys)
    assert re.search(r"runs: the runs take about [0-9.]+ MB with their checkpoints, and 1\.0 MB are free\. Free", line)
    assert not folder_of(recipe).exists()


# ---------------------------------------------------------------- elsewhere, side by side, and without weights


def at(loaded: LoadedRecipe, folder: Path) -> LoadedRecipe:
    """A recipe whose run lies in another folder."""
    output = loaded.recipe.output.model_copy(update={"folder": folder})
    return replace(loaded, recipe=loaded.recipe.model_copy(update={"output": output}))


def run_lines(lines: list[str]) -> None:
    for line in lines:
        for command in line.split(" && "):
            with pytest.raises(SystemExit) as caught:
                main(shlex.split(command)[1:])
            assert not caught.value.code, command


def test_lines_that_run_in_reverse_order_make_the_same_comparison(
    recipe: Path, tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jobs.txt"

    def lines(phase: str) -> list[str]:
        with pytest.raises(SystemExit) as caught:
            main(["compare", "plan", str(recipe), *QUICK, *TUNED, "--phase", phase, "--out", str(file)])
        assert not caught.value.code
        return file.read_text(encoding="utf-8").splitlines()

    line = refused(["compare", "plan", str(recipe), *QUICK, *TUNED, "--phase", "report"], capsys)
    assert "6 trials of the tuning are not finished" in line
    while found := lines("tune"):
        assert all("&&" not in line for line in found)
        run_lines(found[::-1])
    found = lines("report")
    assert len(found) == 4
    run_lines(found[::-1])
    assert lines("report") == []
    assert baselines(recipe, *TUNED) == 0
    apart, whole = (figures(Comparison.load(folder_of(path))) for path in (recipe, tuned))
    assert apart == whole


def test_jobs_side_by_side_make_the_same_comparison(
    recipe: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0", "--tune", "none"]
    assert baselines(recipe, *asked, "--jobs", "2") == 0
    assert "evaluated" in (out := capsys.readouterr().out)
    assert not re.search("evaluating$", out, re.MULTILINE), "runs are evaluated where they are trained"
    assert "adapter: copy: 4 rows" in (recipe.parent / "runs" / "tiny-lora-seed0.log").read_text(encoding="utf-8")
    here = workplace(tmp_path / "here", tiny_model)
    assert baselines(here, *asked, "--jobs", "1") == 0
    assert not list((here.parent / "runs").glob("*.log"))
    two, one = (figures(Comparison.load(folder_of(path))) for path in (recipe, here))
    assert two == one


def test_a_run_that_fails_before_its_turn_stops_no_others(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "lora,malora,dora", "--seeds", "0", "--tune", "none"]
    impossible = ["--for", "dora:method.target_modules=[nope]"]
    assert baselines(recipe, *asked, *impossible) == 1, "a method that cannot be built"
    found = Comparison.load(folder_of(recipe))
    assert [failure.method for failure in found.failures] == ["dora"]
    assert {it.method for it in found.methods} == {"lora", "malora"}
    [evaluation] = (recipe.parent / "runs").glob("tiny-malora-seed0/eval/*.json")
    evaluation.write_text("{", encoding="utf-8")
    for jobs in ("1", "2"):
        capsys.readouterr()
        assert baselines(recipe, *asked, *impossible, "--jobs", jobs) == 1, "an evaluation that cannot be read"
        assert "failed: malora, seed 0: " in capsys.readouterr().out
        found = Comparison.load(folder_of(recipe))
        assert {failure.method for failure in found.failures} == {"malora", "dora"}
        assert [it.method for it in found.methods] == ["lora"]


def test_the_command_of_a_comparison_asks_for_it_again(recipe: Path) -> None:
    overrides = [*QUICK, f"model={{base: {recipe.parent / 'base'}, dtype: float32}}"]
    by_method = ["lora:method={name: lora, r: 4}"]
    asked = Asked(
        recipe, overrides, "0,1", "lr=0.001,0.003", "malora", "score", 0.01234567, by_method, single_task=True
    )
    command = command_of(*asked.of_methods(METHODS), allow_code=True)
    assert command[:4] == ["malora", "compare", "baselines", "tiny.yaml"]
    assert not any(str(recipe.parent) in part for part in command)
    assert "model={base: base, dtype: float32}" in command
    again = typer_command("compare", "baselines", *command[3:])
    assert (again["margin"], again["seeds"], again["tune"]) == (0.01234567, "0,1", "lr=0.001,0.003")
    assert (again["baseline"], again["endpoint"], again["single_task"]) == ("malora", "score", True)
    assert again["methods"] == "lora,malora"
    assert again["for_method"] == by_method
    assert again["allow_code"] is True
    assert again["overrides"][: len(QUICK)] == list(QUICK)
    shipped = Asked(shipped_files("recipes")["compare-smoke"], [], "0", "none", None, "loss", 0.01, [])
    assert command_of(*shipped.of_set("ablations"), allow_code=False)[:4] == [
        *("malora", "compare", "ablations", "compare-smoke")
    ]


def typer_command(*arguments: str) -> dict[str, Any]:
    """What a command line is understood as."""
    group = typer.main.get_command(_application())
    context = group.make_context("malora", list(arguments[:2]), resilient_parsing=True)
    compare = group.commands["compare"]  # type: ignore[attr-defined]
    return dict(compare.commands["baselines"].make_context("baselines", list(arguments[2:]), parent=context).params)


def test_runs_without_their_weights_still_count(tuned: Path, tmp_path: Path) -> None:
    light = moved(tuned, copied := tmp_path / "light")
    for folder in [*copied.glob("runs/*/adapter"), *copied.glob("runs/*/checkpoints")]:
        shutil.rmtree(folder)
    for rows in copied.glob("runs/*-lora-*/eval/*.predictions.jsonl"):  # of one method, texts do not travel either
        lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]
        kept = [{**line, "prompt": hashed(line["prompt"])} for line in lines]
        rows.write_text("".join(f"{json.dumps(line)}\n" for line in kept), encoding="utf-8")
    assert baselines(light, *TUNED) == 0
    assert figures(Comparison.load(folder_of(light))) == figures(Comparison.load(folder_of(tuned)))


# ---------------------------------------------------------------- the seesaw


def seen(record: RunRecord, task: str) -> tuple[tuple[int, int], int]:
    """Examples and supervised tokens of a task that a run was trained on, and examples of the others."""
    steps = [event.tasks for event in record.metrics.train()]
    own = sum(step[task].examples for step in steps), sum(step[task].tokens for step in steps)
    return own, sum(loss.examples for step in steps for name, loss in step.items() if name != task)


def test_the_baseline_alone_on_every_task_shows_the_seesaw(recipe: Path) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0,1", "--tune", "none", "--single-task"]
    assert baselines(recipe, *asked) == 0
    comparison = Comparison.load(folder_of(recipe))
    runs = recipe.parent / "runs"
    alone = {task: [RunRecord(runs / f"tiny-lora-only-{task}-seed{seed}") for seed in (0, 1)] for task in TASKS}
    for task, records in alone.items():
        losses = [record.evaluations()[-1].tasks[task].model.loss for record in records]
        assert comparison.alone[task] == pytest.approx(losses)
        for seed, record in enumerate(records):
            (own, others), (mixed, _) = seen(record, task), seen(RunRecord(runs / f"tiny-lora-seed{seed}"), task)
            assert others == 0
            # A mixture draws exact shares in blocks of rows, so that the last block may be short of one.
            assert abs(own[0] - mixed[0]) <= 1
            assert own[0] != mixed[0] or own[1] == mixed[1], "as many rows are the same rows"
    for it in comparison.methods:
        gaps = {t: (it.mean("losses", t) or 0) - sum(comparison.alone[t]) / 2 for t in TASKS}
        assert {task: effect.value for task, effect in it.alone.items()} == pytest.approx(gaps)
        shares = [-gap / (sum(comparison.alone[task]) / 2) for task, gap in gaps.items()]
        assert it.delta_m == pytest.approx(100 * sum(shares) / 3)
    told = [row for row in comparison.figures() if row[2] == "single task"]
    assert [row[:2] + row[4:7] for row in told] == [
        ("lora", seed, task, "loss", comparison.alone[task][seed]) for task in comparison.alone for seed in (0, 1)
    ]
    assert comparison.sentences[1].count("Delta_m") == 1
    assert "trained on each task alone" in comparison.sentences[1]


def test_runs_on_one_task_have_the_rows_of_the_mixture(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--methods", "lora,malora", "--seeds", "0", "--tune", "none"]
    assert baselines(recipe, *asked) == 0
    file = recipe.parent / "copy.train.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(f"{json.dumps({**row, 'answer': 'x'})}\n" for row in rows), encoding="utf-8")
    line = refused(["compare", "baselines", str(recipe), *QUICK, *asked, "--single-task"], capsys)
    assert re.search(r"tiny-lora-only-copy-seed0: its train rows are not those of .*tiny-lora-seed0\. Put the", line)
    assert not Comparison.load(folder_of(recipe)).alone


def test_trials_have_the_rows_of_the_reported_runs(
    tuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = moved(tuned, copied := tmp_path / "copied")
    trials = [trial.run for trial in Comparison.load(folder_of(recipe)).trials]
    for trial in reversed(trials):  # once all but the first are of other rows, then it is as well
        manifest = RunRecord(copied / "runs" / trial).manifest_path
        rewrite(manifest, lambda found: found["validation_data"]["add"].update(sha256="0" * 64))
        if trial == trials[1]:
            line = refused(["compare", "baselines", str(recipe), *QUICK, *TUNED], capsys)
            assert re.search(rf"{trial}: its validation rows are not those of .*{trials[0]}\. Put the data", line)
    line = refused(["compare", "baselines", str(recipe), *QUICK, *TUNED], capsys)
    assert re.search(rf"{trials[0]}: its validation rows are not those of .*tiny-lora-rate.*-seed0\.", line)


def test_what_cannot_be_trained_alone_on_the_same_rows_is_refused(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for override, message in (
        ("train.batch_size=9", None),
        ("train.batch_size=12", None),
        (
            "mix.weighting=proportional",
            "tasks weighted proportional by examples have no share that is known beforehand",
        ),
        ("remedies.bandit={}", "bandit changes the shares of the tasks while training, so that none is known before"),
        ("remedies.patience={}", "Leave that remedy out: remedies.patience=false."),
        ("train.batch_size=8", "a step has 2.66667 rows of task 'copy', so that it cannot be trained alone"),
        ("train={steps: null, epochs: 1}", "how many steps the mixture takes is not known beforehand. Set train.steps"),
    ):
        asked = [*QUICK, override, "train.micro_batch_size=1", "--methods", "lora,malora", "--single-task"]
        if message is None:
            assert baselines(recipe, *asked[len(QUICK) :], "--dry-run") == 0
            assert "(9 runs on one task alone among them)" in capsys.readouterr().out
        else:
            assert message in refused(["compare", "baselines", str(recipe), *asked], capsys)
