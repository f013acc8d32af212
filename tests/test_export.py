"""Adapters taken elsewhere: whole, or as the LoRA that a mixture is for fixed gates."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import malora_cli.export.run
from exports import export_adapter, export_lora
from malora_cli.adapters.methods import METHODS
from malora_cli.cli import main
from malora_cli.data.encoding import Encoder
from malora_cli.data.formats._base import Example
from malora_cli.data.tasks import load_tasks
from malora_cli.errors import MaloraError, RecipeError, RunError
from malora_cli.evals.choosing import choose_tasks
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.place import appearing_whole
from malora_cli.export.static import static_lora
from malora_cli.modeling import BaseModel, load_adapter, wrap
from malora_cli.recipe import ModelSettings, Recipe
from malora_cli.results import RunRecord, read_json
from tiny_models import tiny
from train_runs import load, rewrite, train_run, workplace

IDS = torch.tensor([[5, 17, 40, 9, 77, 31, 8, 60]])
#: Strong enough that experts differ, routers have preferences and a wrong gate shows.
PACE = ("train.steps=8", "train.learning_rate=0.05", "train.schedule=constant", "train.warmup_ratio=0")
MOLORA = "method={name: molora, r: 3, num_experts: 4, lora_alpha: 6}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("export"), tiny_model)


@pytest.fixture(scope="module")
def runs(recipe: Path) -> dict[str, tuple[RunRecord, tuple[str, ...]]]:
    """Finished runs by name, each with the overrides of its recipe."""
    overrides = {
        "malora": (*PACE, "output.name=malora"),
        "molora": (*PACE, MOLORA, "output.name=molora"),
        "lora": (*PACE, "method={name: lora, r: 4}", "output.name=lora"),
        "targets": (*PACE, "method.target_modules=[q_proj, down_proj]", "output.name=targets"),
    }
    return {name: (train_run(recipe, *given), given) for name, given in overrides.items()}


def test_two_exports_do_not_write_into_one_folder_at_once(tmp_path: Path) -> None:
    place = tmp_path / "lora"
    with appearing_whole(place) as first:
        first.mkdir()
        with pytest.raises(RunError, match="another export is being written there"), appearing_whole(place):
            pytest.fail("it was let in")
        assert first.is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]


def base_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids).logits


# ---------------------------------------------------------------- references, from the equations and the saved numbers


class Experts:
    """One routed linear as it was saved: S_A, the P_t and B_t, and W_g."""

    def __init__(self, weights: dict[str, Tensor], module: str, config: dict[str, object]) -> None:
        self.count, self.scaling = int(config["num_experts"]), float(config["lora_alpha"]) / int(config["r"])
        self.top_k = int(config["top_k"])
        self.router = weights[f"{module}.malora_router"]
        downs = weights[f"{module}.malora_down"]
        if f"{module}.malora_coefficient" in weights:
            parts = weights[f"{module}.malora_coefficient"].chunk(self.count)
            self.down = [part @ downs for part in parts]
        else:
            self.down = list(downs.chunk(self.count))
        self.up = weights[f"{module}.malora_up"].chunk(self.count, dim=1)

    def gates(self, x: Tensor) -> Tensor:
        """Gates of every token: the largest of a softmax, divided by their sum."""
        rows = []
        for token in x.reshape(-1, x.shape[-1]):
            probability = (self.router @ token).softmax(0)
            kept = probability.argsort(descending=True)[: self.top_k]
            row = torch.zeros(self.count)
            row[kept] = probability[kept] / probability[kept].sum()
            rows.append(row)
        return torch.stack(rows)

    def update(self, gates: Tensor) -> Tensor:
        """The weight update for gates that are the same for every token."""
        return self.scaling * sum(g * up @ down for g, up, down in zip(gates, self.up, self.down, strict=True))


def experts_of(adapter: Path) -> dict[str, Experts]:
    """The routed linears of a saved adapter, by their names in the base model."""
    weights, config = load_file(adapter / "adapter_model.safetensors"), read_json(adapter / "adapter_config.json")
    prefix, end = "base_model.model.", ".malora_router"
    names = [name.removesuffix(end) for name in weights if name.endswith(end)]
    return {name.removeprefix(prefix): Experts(weights, name, config) for name in names}


@contextmanager
def updated(model: nn.Module, updates: dict[str, Tensor]) -> Iterator[nn.Module]:
    """A base model some of whose linears add ``update @ x``."""
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda _m, args, y, w=update: y + args[0] @ w.T)
        for name, update in updates.items()
    ]
    yield model
    for hook in hooks:
        hook.remove()


def mean_gates(model: nn.Module, adapter: Path, rows: list[list[int]]) -> dict[str, Tensor]:
    """Mean gates of every router over all tokens of some rows, seen through hooks."""
    experts = experts_of(adapter)
    seen: dict[str, list[Tensor]] = {name: [] for name in experts}
    hooks = [
        model.get_base_model()
        .get_submodule(name)
        .register_forward_hook(lambda _m, args, _y, name=name: seen[name].append(experts[name].gates(args[0])))
        for name in experts
    ]
    for row in rows:
        logits(model, torch.tensor([row]))
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(gates).mean(0) for name, gates in seen.items()}


def some_rows(recipe: Path, task: str, count: int, model: Path) -> list[list[int]]:
    encoder = Encoder(AutoTokenizer.from_pretrained(model))
    [loaded] = load_tasks(choose_tasks(load(recipe).recipe.mix, [task]), encoder, max_length=1024)
    lines = (recipe.parent / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines()
    numbers = loaded.train.rows.select(loaded.train.sample(count))["row"]
    rows = [json.loads(lines[number]) for number in numbers]
    return [encoder.encode(Example.single(row["question"], row["answer"])).input_ids for row in rows]


# ---------------------------------------------------------------- --to adapter


def test_an_exported_adapter_is_loaded_by_peft_and_names_its_base(
    recipe: Path, runs: dict[str, tuple[RunRecord, tuple[str, ...]]], tiny_model: Path, tmp_path: Path
) -> None:
    for name in ("malora", "lora"):
        record, given = runs[name]
        folder = tmp_path / "out" / name
        export_adapter(record, load(recipe, *given).recipe, folder)
        config = read_json(folder / "adapter_config.json")
        assert config["base_model_name_or_path"] == str(tiny_model)
        assert config["peft_type"] == name.upper()
        exported = PeftModel.from_pretrained(base_model(Path(config["base_model_name_or_path"])), folder)
        assert torch.equal(logits(exported), logits(load_adapter(base_model(tiny_model), record.adapter_dir)))
        assert not torch.equal(logits(exported), logits(base_model(tiny_model)))


def test_a_checkpoint_is_exported_without_what_only_training_needs(
    recipe: Path, runs: dict[str, tuple[RunRecord, tuple[str, ...]]], tiny_model: Path, tmp_path: Path
) -> None:
    record, given = runs["malora"]
    step = record.manifest.steps
    export_adapter(record, load(recipe, *given).recipe, tmp_path / "out", step=step)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "SHA256SUMS", "adapter_config.json", "adapter_model.safetensors"}
    exported = load_adapter(base_model(tiny_model), tmp_path / "out")
    assert torch.equal(logits(exported), logits(load_adapter(base_model(tiny_model), record.adapter_dir)))
    own = load(recipe, *given).recipe
    ends = [export_lora(record, own, tmp_path / f"lora-{at}", gates="mix", step=at) for at in (step, None)]
    assert ends[0] == ends[1]


# ---------------------------------------------------------------- --to lora


@pytest.mark.parametrize(("name", "rank"), [("malora", 8), ("molora", 12), ("targets", 8)])
@pytest.mark.parametrize("gates", ["task:add", "mix"])
def test_a_lora_is_the_mixture_with_its_mean_gates(
    recipe: Path,
    runs: dict[str, tuple[RunRecord, tuple[str, ...]]],
    tiny_model: Path,
    tmp_path: Path,
    name: str,
    rank: int,
    gates: str,
) -> None:
    record, given = runs[name]
    costs = export_lora(record, load(recipe, *given).recipe, tmp_path / "lora", gates=gates, rows=5)

    routed = load_adapter(base_model(tiny_model), record.adapter_dir)
    names = ["add"] if gates == "task:add" else ["copy", "upper", "add"]
    by_task = [mean_gates(routed, record.adapter_dir, some_rows(recipe, task, 5, tiny_model)) for task in names]
    experts = experts_of(record.adapter_dir)
    mean = {linear: torch.stack([found[linear] for found in by_task]).mean(0) for linear in experts}
    assert all(float(gate.max() - gate.min()) > 0.01 for gate in mean.values())  # a wrong gate would show
    with updated(base_model(tiny_model), {linear: experts[linear].update(mean[linear]) for linear in experts}) as model:
        expected = logits(model)

    config = read_json(tmp_path / "lora" / "adapter_config.json")
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
    assert config["base_model_name_or_path"] == str(tiny_model)
    weights = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    assert {tensor.shape[0] for key, tensor in weights.items() if "lora_A" in key} == {rank}
    assert len(weights) == 2 * len(experts) == (8 if name == "targets" else 24)

    merged = PeftModel.from_pretrained(base_model(tiny_model), tmp_path / "lora").eval()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
    assert (logits(routed) - expected).abs().max() > 1e-4  # routing is what is approximated
    torch.testing.assert_close(logits(merged.merge_and_unload()), expected, atol=1e-5, rtol=1e-5)
    assert [cost.task for cost in costs] == ["copy", "upper", "add"]


def test_tasks_count_by_their_share_of_the_mix(
    recipe: Path, runs: dict[str, tuple[RunRecord, tuple[str, ...]]], tmp_path: Path
) -> None:
    record, given = runs["malora"]
    own = load(recipe, *given).recipe
    for gates in ("task:copy", "task:upper", "task:add", "mix"):
        export_lora(record, own, tmp_path / gates, gates=gates)
    ups = {
        gates: load_file(tmp_path / gates / "adapter_model.safetensors")
        for gates in ("task:copy", "task:upper", "task:add", "mix")
    }
    key = next(key for key in ups["mix"] if "lora_B" in key)
    mean = torch.stack([ups[f"task:{task}"][key] for task in ("copy", "upper", "add")]).mean(0)
    torch.testing.assert_close(ups["mix"][key], mean)
    assert not torch.allclose(ups["mix"][key], ups["task:add"][key], rtol=1e-3)

    weighted = tmp_path / "weighted"
    weighted.mkdir()
    for path in (record.path / "manifest.json", record.recipe_path):
        (weighted / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    (weighted / "adapter").symlink_to(record.adapter_dir)
    rewrite(weighted / "manifest.json", lambda m: m.update(task_share={"copy": 0.5, "upper": 0.3, "add": 0.2}))
    export_lora(RunRecord(weighted), own, tmp_path / "shared", gates="mix")
    shared = load_file(tmp_path / "shared" / "adapter_model.safetensors")[key]
    expected = 0.5 * ups["task:copy"][key] + 0.3 * ups["task:upper"][key] + 0.2 * ups["task:add"][key]
    torch.testing.assert_close(shared, expected)


@pytest.mark.parametrize("kind", ["gpt2", "phi", "qwen3"])
def test_other_architectures_merge_as_well(kind: str, tmp_path: Path) -> None:
    model = wrap(tiny(kind), METHODS["malora"](r=3, subspace_rank=6, num_experts=4))  # type: ignore[arg-type]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in (p for name, p in model.named_parameters() if "malora_up" in name):
            parameter.normal_(0, 0.1)
    model.save_pretrained(tmp_path / "adapter")
    experts = experts_of(tmp_path / "adapter")
    routers = experts_in_order(model)
    gates = torch.rand(len(routers), 4)
    (tmp_path / "lora").mkdir()
    origin = Origin(BaseModel(kind, kind), ModelSettings(base=kind), tiny(kind), "anything")
    FORMATS["peft"].write("lora", static_lora(model, gates), origin, tmp_path / "lora")
    updates = {name: experts[name].update(gate) for name, gate in zip(routers, gates, strict=True)}
    with updated(tiny(kind), updates) as reference:
        expected = logits(reference)
    merged = PeftModel.from_pretrained(tiny(kind), tmp_path / "lora")
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=1e-4)
    assert (expected - logits(tiny(kind))).abs().max() > 1e-2


def experts_in_order(model: PeftModel) -> list[str]:
    """Names of the routed linears, as a tally counts them."""
    return [name for name, module in model.get_base_model().named_modules() if hasattr(module, "malora_router")]


# ---------------------------------------------------------------- what it costs is said


def test_the_table_and_merge_json_hold_the_same_losses(
    recipe: Path,
    runs: dict[str, tuple[RunRecord, tuple[str, ...]]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record, _ = runs["malora"]
    out = tmp_path / "lora"
    asked = ["--to", "lora", "--gates", "task:copy", "--accept-loss", "99", "--no-verify", "--out", str(out)]
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", str(record.path), *asked])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"exported: {out}"
    told = read_json(out / "merge.json")
    assert (told["run"], told["gates"]) == ("malora", "task:copy")
    table = {line.split()[1]: line.split()[2:] for line in lines[2:-1]}
    assert table.keys() == told["validation"].keys() == {"copy", "upper", "add"}
    first, *_, last = record.metrics.evals()
    for task, cost in told["validation"].items():
        assert table[task][:3] == [f"{cost[name]:.4f}" for name in ("base", "routed", "merged")]
        assert cost["routed"] == pytest.approx(last.tasks[task].loss, rel=1e-5)
        assert cost["base"] == pytest.approx(first.tasks[task].loss, rel=1e-5)
        kept = (cost["base"] - cost["merged"]) / (cost["base"] - cost["routed"])
        assert cost["kept"] == pytest.approx(kept)
        assert cost["divergence"] > 0
        assert 0 < cost["same_top"] <= 1
    assert any(abs(cost["merged"] - cost["routed"]) > 1e-4 for cost in told["validation"].values())


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ("task:ad", r"--gates: 'task:ad' names no gates; did you mean 'task:add'\?"),
        ("mixx", r"--gates: 'mixx' names no gates; did you mean 'mix'\?"),
        ("task:", r"--gates: 'task:' names no gates; "),
        ("../..", r"--gates: '../..' names no gates; known: domain:.*, each, fit, mix, .*uniform"),
    ],
)
def test_gates_that_are_not_there(
    recipe: Path, runs: dict[str, tuple[RunRecord, tuple[str, ...]]], tmp_path: Path, gates: str, message: str
) -> None:
    record, given = runs["malora"]
    with pytest.raises(RecipeError, match=message):
        export_lora(record, load(recipe, *given).recipe, tmp_path / "out" / "lora", gates=gates)
    assert not (tmp_path / "out").exists()


def test_a_lora_has_no_gates_to_hold_fixed(
    recipe: Path, runs: dict[str, tuple[RunRecord, tuple[str, ...]]], tmp_path: Path
) -> None:
    record, given = runs["lora"]
    with pytest.raises(RunError, match=r"method 'lora' has no routed experts whose gates could be held fixed\."):
        export_lora(record, load(recipe, *given).recipe, tmp_path / "lora", gates="mix")
    assert not (tmp_path / "lora").exists()


Export = Callable[[RunRecord, Recipe, Path], object]
EXPORTS: list[Export] = [
    lambda record, recipe, folder: export_adapter(record, recipe, folder),
    lambda record, recipe, folder: export_lora(record, recipe, folder, gates="mix"),
]


@pytest.mark.parametrize("export", EXPORTS)
def test_nothing_is_overwritten_and_nothing_half_written_stays(
    recipe: Path,
    runs: dict[str, tuple[RunRecord, tuple[str, ...]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    export: Export,
) -> None:
    record, given = runs["malora"]
    own = load(recipe, *given).recipe
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    (tmp_path / "file").touch()
    for folder, message in ((tmp_path / "taken", "exists already"), (tmp_path / "file" / "x", "cannot be written")):
        with pytest.raises(RunError, match=rf"{folder}: .*{message}.* Name another by --out FOLDER"):
            export(record, own, folder)
    for error, expected in ((OSError("disk full"), MaloraError), (KeyboardInterrupt(), KeyboardInterrupt)):

        def fail(*_: object, error: BaseException = error) -> None:
            raise error

        monkeypatch.setattr(malora_cli.export.run, "write_json", fail)
        with pytest.raises(expected):
            export(record, own, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "taken"]
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["mine"]
    rewrite_status = tmp_path / "unfinished"
    rewrite_status.mkdir()
    (rewrite_status / "manifest.json").write_text((record.path / "manifest.json").read_text(encoding="utf-8"))
    rewrite(rewrite_status / "manifest.json", lambda manifest: manifest.update(status="running"))
    with pytest.raises(RunError, match="not finished"):
        export(RunRecord(rewrite_status), own, tmp_path / "new")
