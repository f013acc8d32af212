"""LoRAs for gates of every kind, at any rank, and whole models: what is written is what the run computes."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from exports import ANY_LOSS, export_lora, logits, mixture
from json_output import assert_documented
from malora_cli.adapters.routing import routing_of
from malora_cli.cli import main
from malora_cli.data.batch import Packer
from malora_cli.data.splits import Split
from malora_cli.errors import MaloraError, RecipeError, RunError
from malora_cli.export import measuring
from malora_cli.export import run as exporting
from malora_cli.export.cost import Cost
from malora_cli.export.fit import Moments
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.gates import Gates, parse_gates
from malora_cli.export.measuring import uniform_gates
from malora_cli.export.plan import Plan
from malora_cli.export.planned import bytes_of
from malora_cli.export.request import Request
from malora_cli.export.run import export_run
from malora_cli.export.static import LowRank, StaticLora, applied, static_lora
from malora_cli.modeling import BaseModel, load_adapter
from malora_cli.recipe import ModelSettings, Recipe
from malora_cli.results import RunRecord, read_json
from tiny_models import tiny
from train_runs import load, train_run, workplace

PACE = ("train.steps=8", "train.learning_rate=0.05", "train.schedule=constant", "train.warmup_ratio=0")
TASKS = ["copy", "upper", "add"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("merges"), tiny_model)


@pytest.fixture(scope="module")
def run(recipe: Path) -> RunRecord:
    return train_run(recipe, *PACE, "output.name=malora")


@pytest.fixture(scope="module")
def own(recipe: Path) -> Recipe:
    return load(recipe, *PACE, "output.name=malora").recipe


def exported(run: RunRecord, own: Recipe, folder: Path, **asked: object) -> Path:
    export_run(run, own, Request(**{"to": "lora", "verify": False, "accept_loss": ANY_LOSS, **asked}), folder)  # type: ignore[arg-type]
    return folder


def with_lora(base: Path, folder: Path) -> nn.Module:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()


# ---------------------------------------------------------------- gates


def test_gates_by_name_by_domain_and_blended(own: Recipe) -> None:
    share = {"copy": 0.5, "upper": 0.3, "add": 0.2}

    def shares(text: str) -> dict[str, float]:
        [gates] = parse_gates(text, own.mix, share)
        assert gates.shares is not None
        return dict(gates.shares)

    assert shares("mix") == shares("fit") == share
    assert shares("task:add") == shares("fit:task:add") == {"add": 1.0}
    domain = own.mix.tasks["copy"].domain
    members = {task: share[task] for task in TASKS if own.mix.tasks[task].domain == domain}
    assert shares(f"domain:{domain}") == pytest.approx({t: s / sum(members.values()) for t, s in members.items()})
    assert shares("task:copy=3,task:add=1") == {"copy": 0.75, "add": 0.25}
    assert shares("mix=1,task:add=1") == pytest.approx({"copy": 0.25, "upper": 0.15, "add": 0.6})
    assert [gates.name for gates in parse_gates("each", own.mix, share)] == [*TASKS, "mix"]
    assert [gates.fit for gates in parse_gates("fit:mix", own.mix, share)] == [True]
    assert [gates.text for gates in parse_gates("fit:each", own.mix, share)] == [
        *(f"fit:task:{task}" for task in TASKS),
        "fit:mix",
    ]
    assert parse_gates("uniform", own.mix, share) == [Gates("uniform", None)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task:copy=-1,task:add=2", "'task:copy=-1' has no share, a number not below 0"),
        ("task:copy=much", "'task:copy=much' has no share"),
        ("task:copy=nan", "'task:copy=nan' has no share"),
        ("task:copy=0,task:add=0", r"the shares of 'task:copy=0,task:add=0' are all 0"),
        ("task:cop=1", r"'task:cop' names no gates; did you mean 'task:copy'\?"),
        ("fit:uniform", r"'fit:uniform' is fitted to no rows"),
        ("fit:task:cop", r"'task:cop' names no gates"),
    ],
)
def test_gates_that_mean_nothing(own: Recipe, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=f"^--gates: {message}"):
        parse_gates(text, own.mix, dict.fromkeys(TASKS, 1 / 3))


def test_exports_have_folders_of_their_own_inside_the_folder(own: Recipe) -> None:
    tasks = {"..": own.mix.tasks["add"], "a/b": own.mix.tasks["copy"], "mix": own.mix.tasks["upper"]}
    mix = own.mix.model_copy(update={"tasks": tasks})
    names = {text: parse_gates(text, mix, dict.fromkeys(tasks, 1 / 3))[0].name for text in ("task:..", "task:a/b")}
    assert names == {"task:..": "gates", "task:a/b": "a-b"}
    with pytest.raises(RecipeError, match="two exports would be called 'mix'"):
        parse_gates("each", mix, dict.fromkeys(tasks, 1 / 3))


def test_a_blend_is_the_weighted_sum_of_the_updates(run: RunRecord, own: Recipe, tmp_path: Path) -> None:
    exported(run, own, tmp_path / "each", gates="each")
    blend = load_file(
        exported(run, own, tmp_path / "blend", gates="task:copy=3,task:add=1") / "adapter_model.safetensors"
    )
    names = [*TASKS, "mix"]
    each = {name: load_file(tmp_path / "each" / name / "adapter_model.safetensors") for name in names}
    for key, weight in blend.items():
        parts = [each[name][key] for name in names]
        if "lora_A" in key:
            assert all(torch.equal(part, weight) for part in parts), "shared bit for bit"
        else:
            torch.testing.assert_close(weight, 0.75 * parts[0] + 0.25 * parts[2])
    served = read_json(tmp_path / "each" / "serve.json")
    assert served["loras"] == {name: name for name in names}
    assert served["rank"] == read_json(tmp_path / "each" / "mix" / "adapter_config.json")["r"]
    assert served["max_lora_rank"] >= served["rank"]
    assert "--enable-lora" in (tmp_path / "each" / "SERVE.md").read_text(encoding="utf-8")
    measured = {name: set(read_json(tmp_path / "each" / name / "merge.json")["validation"]) for name in names}
    assert measured == {"copy": {"copy"}, "upper": {"upper"}, "add": {"add"}, "mix": set(TASKS)}
    assert AutoTokenizer.from_pretrained(tmp_path / "each" / "mix").chat_template


def test_the_rows_of_a_task_are_gone_through_once_for_all_loras(
    run: RunRecord, own: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = measuring._moments, list[tuple[str, int]]()

    def counted(model: PeftModel, rows: Split, limit: int, half: int, packer: Packer) -> dict[str, Moments]:
        seen.append((rows.source, half))
        return plain(model, rows, limit, half, packer)

    monkeypatch.setattr(measuring, "_moments", counted)
    each = exported(run, own, tmp_path / "each", gates="fit:each")
    assert len(seen) == len(set(seen)) == 2 * len(TASKS)
    for gates, name in (("fit", "fit-mix"), ("fit:task:add", "fit-task-add")):
        alone = load_file(exported(run, own, tmp_path / name, gates=gates) / "adapter_model.safetensors")
        together = load_file(each / name / "adapter_model.safetensors")
        assert all(torch.equal(weight, together[key]) for key, weight in alone.items())


def test_a_run_is_fitted_on_its_rows(run: RunRecord, own: Recipe, tiny_model: Path, tmp_path: Path) -> None:
    mean = export_lora(run, own, tmp_path / "mean", gates="mix")
    fitted = export_lora(run, own, tmp_path / "fit", gates="fit")
    assert sum(cost.divergence for cost in fitted) < sum(cost.divergence for cost in mean)
    assert read_json(tmp_path / "fit" / "merge.json")["gates"] == "fit"


def test_one_rank_and_one_alpha_whatever_the_experts_are(recipe: Path, tmp_path: Path) -> None:
    settings = (*PACE, "method={name: mola, r: 2, num_experts: [2, 4], lora_alpha: 4}", "output.name=mola")
    run = train_run(recipe, *settings)
    energies: dict[int, float] = {}
    for asked, rank in (({}, 8), ({"rank": 3}, 3)):
        folder = exported(run, load(recipe, *settings).recipe, tmp_path / str(rank), **asked)
        config = read_json(folder / "adapter_config.json")
        assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (
            rank,
            rank,
            {},
            {},
        )
        weights = load_file(folder / "adapter_model.safetensors")
        assert {weight.shape[0] for key, weight in weights.items() if "lora_A" in key} == {rank}
        assert {weight.shape[1] for key, weight in weights.items() if "lora_B" in key} == {rank}
        updates = [
            torch.linalg.svdvals(weights[key.replace("lora_A", "lora_B")] @ weights[key])
            for key in weights
            if "lora_A" in key
        ]
        energies[rank] = sum(float(values.square().sum()) for values in updates)
        left_out = read_json(folder / "merge.json")["left_out_by_rank"]
        assert left_out == pytest.approx(1 - energies[rank] / energies[8], abs=1e-5)
    assert energies[3] < energies[8]


# ---------------------------------------------------------------- whole models


def test_a_whole_model_computes_what_the_lora_does(
    run: RunRecord, own: Recipe, tiny_model: Path, tmp_path: Path
) -> None:
    lora = exported(run, own, tmp_path / "lora", gates="task:add")
    expected = logits(with_lora(tiny_model, lora))
    dense = exported(run, own, tmp_path / "dense", to="dense", gates="task:add")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(dense)), expected, atol=1e-4, rtol=1e-4)
    before, after = load_file(tiny_model / "model.safetensors"), load_file(dense / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {key for key, weight in before.items() if not torch.equal(weight, after[key])}
    assert changed == {
        key.removeprefix("base_model.model.").replace(".lora_A", "")
        for key in load_file(lora / "adapter_model.safetensors")
        if "lora_A" in key
    }
    half = exported(run, own, tmp_path / "half", to="dense", gates="task:add", dtype="bf16")
    rounded = load_file(half / "model.safetensors")
    assert all(torch.equal(weight, after[key].bfloat16()) for key, weight in rounded.items()), "rounded once"
    assert AutoModelForCausalLM.from_pretrained(half).dtype == torch.bfloat16
    assert read_json(dense / "config.json")["rope_theta"] == 10_000
    assert AutoTokenizer.from_pretrained(dense).chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "phi"])
def test_whole_models_of_other_architectures_and_in_several_files(kind: str, tmp_path: Path) -> None:
    model = mixture(kind)
    lora = static_lora(model, torch.rand(len(routing_of(model).names), 4))  # type: ignore[union-attr]
    with applied(model, lora):
        expected = logits(model)
    assert (expected - logits(tiny(kind))).abs().max() > 1e-2
    tiny(kind).save_pretrained(tmp_path / "base", max_shard_size="30KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    (tmp_path / "out").mkdir()
    base = BaseModel(kind, str(tmp_path / "base"))
    FORMATS["hf"].write(
        "dense", lora, Origin(base, ModelSettings(base=kind), tiny(kind), kind, "f32"), tmp_path / "out"
    )
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(logits(found), expected, atol=1e-4, rtol=1e-4)
    sizes = [path.name for path in (tmp_path / "base").glob("*.safetensors")]
    assert sorted(sizes) == sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))


def test_a_plain_lora_is_exported_as_it_is(recipe: Path, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("lora", "rslora", "dora"):
        settings = (*PACE, f"method={{name: {name}, r: 4}}", f"output.name={name}")
        run, recipe_of = train_run(recipe, *settings), load(recipe, *settings).recipe
        expected = logits(with_lora(tiny_model, run.adapter_dir))
        if name == "dora":
            with pytest.raises(RunError, match=r"what method 'dora' adds is not a LoRA.* Use --to dense"):
                exported(run, recipe_of, tmp_path / name)
            assert not (tmp_path / name).exists()
        else:
            folder = exported(run, recipe_of, tmp_path / name)
            assert read_json(folder / "adapter_config.json")["use_rslora"] is False
            torch.testing.assert_close(logits(with_lora(tiny_model, folder)), expected, atol=1e-5, rtol=1e-5)
        dense = exported(run, recipe_of, tmp_path / f"{name}-dense", to="dense")
        torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(dense)), expected, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------- reading back, and what is refused


def test_an_export_is_read_back_and_a_wrong_one_removed(
    run: RunRecord, own: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run.path), "--accept-loss", "99"]
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", *given, "--to", "lora", "--out", str(tmp_path / "lora"), "--json"])
    assert caught.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert_documented("malora merge-export", told)
    [checked] = told["checks"]["fit"]["checked"]
    assert checked["runtime"] == "PEFT"
    assert 0 <= checked["largest_difference"] < 1e-4
    assert checked["tokens"] > 0
    assert checked["same_top"] == 1
    assert told["validation"]["fit"]["add"]["base"] > 0
    kept = read_json(tmp_path / "lora" / "verify.json")
    assert kept["checked"] == [checked]
    assert [it["runtime"] for it in kept["not_checked"]] == ["vLLM"]

    plain = type(FORMATS["hf"]).write

    def spoiled(self: object, target: str, lora: object, origin: object, folder: Path) -> None:
        plain(self, target, lora, origin, folder)  # type: ignore[arg-type]
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"][3] += 0.01
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(type(FORMATS["hf"]), "write", spoiled)
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", *given, "--to", "dense", "--out", str(tmp_path / "dense")])
    assert caught.value.code == 2
    assert "read back in transformers, logits differ by 0.0" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora"]


def test_a_model_stored_in_half_precision_rounds_and_is_read_back(
    run: RunRecord, own: Recipe, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model).bfloat16().save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(half)
    monkeypatch.setattr("malora_cli.export.plan.base_of_run", lambda *_: BaseModel(str(half), str(half)))
    request = Request("dense", gates="task:add", accept_loss=ANY_LOSS)
    [checked] = export_run(run, own, request, tmp_path / "out").checks["add"]["checked"]
    assert checked["exact"] is False
    assert 0 < checked["mean_difference"] < checked["mean_effect"] / 4
    plain = type(FORMATS["hf"]).write

    def without(self: object, target: str, lora: StaticLora, origin: object, folder: Path) -> None:
        plain(self, target, {n: LowRank(x.down_SI, -x.up_OS) for n, x in lora.items()}, origin, folder)  # type: ignore[arg-type]

    monkeypatch.setattr(type(FORMATS["hf"]), "write", without)
    with pytest.raises(RunError, match="logits differ on the average by"):
        export_run(run, own, request, tmp_path / "wrong")


def test_a_bundle_is_read_back_without_us(run: RunRecord, own: Recipe, tmp_path: Path) -> None:
    found = export_run(run, own, Request("bundle"), tmp_path / "bundle")
    [checked] = found.checks["bundle"]["checked"]
    assert checked["runtime"] == "transformers"
    assert checked["same_top"] == 1
    card = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert card.count("trust_remote_code=True") == 2
    assert read_json(tmp_path / "bundle" / "verify.json")["checked"] == [checked]


def test_what_is_there_is_replaced_only_by_force(run: RunRecord, own: Recipe, tmp_path: Path) -> None:
    folder = exported(run, own, tmp_path / "out", gates="task:add")
    (folder / "old").touch()
    with pytest.raises(RunError, match="this folder exists already"):
        exported(run, own, folder, gates="task:copy")
    with pytest.raises(MaloraError):
        exported(run, own, folder, gates="task:copy", rank=999, force=True)
    assert (folder / "old").exists(), "nothing is removed before the new one is whole"
    exported(run, own, folder, gates="task:copy", force=True)
    assert not (folder / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "model.safetensors").touch()
    (tmp_path / "link").symlink_to(folder)
    for other in (run.path, tmp_path / "mine", tmp_path / "link", tmp_path):
        with pytest.raises(RunError, match="what is there is not an export, and is not replaced"):
            exported(run, own, other, gates="task:copy", force=True)
    assert (run.adapter_dir / "adapter_model.safetensors").is_file()
    assert read_json(folder / "merge.json")["gates"] == "task:copy"


def test_a_dry_run_says_what_would_be_written(
    run: RunRecord, own: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown(*arguments: str) -> str:
        with pytest.raises(SystemExit) as caught:
            main(["merge-export", str(run.path), "--out", str(tmp_path / "out"), "--dry-run", *arguments])
        assert not caught.value.code
        return capsys.readouterr().out

    with monkeypatch.context() as patched:
        patched.setattr(exporting, "load_base", lambda *_: pytest.fail("weights are loaded"))
        lower = shown("--to", "lora", "--rank", "3")
        assert "--to lora --format peft, rank 3 (the exact one is 8)\n" in lower
        assert "rank 3 leaves something out" in lower
        assert "each; 4 of them: copy, upper, add, mix" in shown("--to", "lora", "--gates", "each")
        assert "byte for byte" in shown()
    assert not (tmp_path / "out").exists()
    for to, file in (("lora", "adapter_model.safetensors"), ("dense", "model.safetensors")):
        planned = Plan.of(run, own, Request(to), tmp_path / to).planned(tmp_path / to)  # type: ignore[arg-type]
        assert (exported(run, own, tmp_path / to, to=to) / file).stat().st_size == pytest.approx(
            planned.bytes, rel=0.1, abs=4096
        )
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**20 // 100))
    with pytest.raises(RunError, match=r"the export takes about 0 MiB, and 0 MiB are free"):
        exported(run, own, tmp_path / "more")


def test_the_size_of_a_hub_model_is_read_from_its_files_where_they_are_here(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    shutil.copytree(tiny_model, tmp_path / "models--someone--some" / "snapshots" / "abc")
    here, away = (BaseModel("someone/some", "someone/some", commit) for commit in ("abc", "abd"))
    monkeypatch.setattr("malora_cli.modeling.base.empty_base", lambda *_: tiny("llama"))
    settings = ModelSettings(base="someone/some")
    stored = (tiny_model / "model.safetensors").stat().st_size
    assert bytes_of(Request("dense"), 0, [], here, settings) == stored
    assert bytes_of(Request("dense"), 0, [], away, settings) == tiny("llama").num_parameters() * 2


def test_a_dry_run_takes_no_torch(run: RunRecord, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom malora_cli.cli import main\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n        main(command.split())\n"
        "    except SystemExit as end:\n        assert not end.code\n"
        "assert not {'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)"
    )
    asked = (
        "--to adapter",
        "--to lora --gates each",
        "--to lora --format mlx",
        "--to dense --dtype bf16",
        "--to bundle",
    )
    commands = [f"merge-export {run.path} --dry-run --out {tmp_path / 'out'} {one}" for one in asked]
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    _, each, mlx, dense, bundle = done.stdout.split("--to ")[1:]
    assert f"{tmp_path / 'out'}/copy " in each
    assert "--max-lora-rank 8 --max-loras 4 --lora-modules copy=" in each
    assert "files: adapters.safetensors, adapter_config.json, merge.json," in mlx
    assert "rounded once, to bf16" in dense
    assert "malora.safetensors" in bundle


def test_a_merge_that_is_worse_than_the_base_is_refused() -> None:
    def cost(merged: float, base: float = 2.0, routed: float = 1.0, task: str = "a") -> Cost:
        return Cost(task, 5, 50, base, routed, merged, 0.1, 0.9)

    mine, judge = Gates("task:a", {"a": 1.0}), exporting._judge
    judge([cost(1.05)], mine, None)
    with pytest.warns(UserWarning, match="task 'a' keeps 50% of what the run gained"):
        judge([cost(1.5)], mine, None)
    with pytest.raises(
        RunError, match=r"task 'a' has 2\.5000 nats a token with these gates, and the base model 2\.0000"
    ):
        judge([cost(2.5)], mine, None)
    judge([cost(2.5, task="b")], mine, None)  # it is not meant for that
    with pytest.raises(RunError, match=r"--accept-loss: .*0\.2000 more than the run"):
        judge([cost(1.2)], mine, 0.1)
    with pytest.warns(UserWarning, match="keeps -50%"):
        judge([cost(2.5)], mine, 2.0)
    with pytest.raises(RunError, match="task 'a' has a NaN or infinite loss"):
        judge([cost(math.nan)], mine, None)
    judge([cost(2.5, task="b")], Gates("mix", {"a": 1.0, "b": 0.0}), None)  # which was not trained
    assert cost(1.25).kept == 0.75
    assert math.isnan(cost(1.0, base=1.0).kept)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "lora", "--rank", "99"], "--rank: 99 is above the exact rank, 8. Leave it out for the exact LoRA."),
        (["--to", "dense", "--gates", "each"], "--gates: a whole model is written for one choice of gates. Name one"),
        (["--to", "adapter", "--rank", "2"], "--rank: --to adapter has no use for it. Use --to lora or dense."),
        (["--to", "lora", "--dtype", "f16"], "--dtype: 'f16' is not a number format of --format peft. Leave it out."),
        (
            ["--to", "dense", "--dtype", "q8_0"],
            "--dtype: 'q8_0' is not a number format of --format hf. Known: f32, bf16",
        ),
        (["--to", "dense", "--format", "peft"], "--format: 'peft' is not a format of --to dense; known: "),
        (["--to", "bundle", "--gates", "mix"], "--gates: a bundle keeps its routers and takes no gates. Use --to lora"),
        (["--to", "bundle", "--dtype", "f16"], "--dtype: 'f16' is not a number format of --format hf"),
        (
            ["--to", "lora", "--format", "gguf", "--dtype", "q8_0"],
            "--dtype: rows of q8_0 are multiples of 32 long",
        ),
        (["--to", "lora", "--accept-loss", "nan"], "--accept-loss: got nan, not a finite number"),
        (["--to", "lora", "--gates", "fit:fit:each"], "--gates: 'fit:fit:each' is fitted to no rows."),
        (["--to", "lora", "--gates", "task:ad"], "--gates: 'task:ad' names no gates; did you mean 'task:add'?"),
    ],
)
def test_what_cannot_be_asked_for(
    run: RunRecord, tmp_path: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", str(run.path), *arguments, "--out", str(tmp_path / "out")])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


def test_the_code_of_a_card_runs(run: RunRecord, own: Recipe, tmp_path: Path) -> None:
    for to in ("lora", "dense"):
        folder = exported(run, own, tmp_path / to, to=to)
        card = (folder / "README.md").read_text(encoding="utf-8")
        code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(folder))
        found: dict[str, object] = {}
        exec(code, found)
        assert logits(found["model"]).isfinite().all()  # type: ignore[arg-type]
        assert "| copy |" in card
        assert "Kept" in card
        assert "approximates the routing" in card
    shutil.rmtree(tmp_path / "dense")


def test_a_checkpoint_is_loaded_as_the_run_would(run: RunRecord, tiny_model: Path) -> None:
    model = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_model), run.adapter_dir)
    before = logits(model)
    with applied(model, static_lora(model, uniform_gates(model))):
        assert not torch.allclose(logits(model), before)
    assert torch.equal(logits(model), before), "hooks are gone, and the adapter is back"
