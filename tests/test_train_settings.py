"""Every field of the sections that training reads changes something that can be seen.

A field that nothing reads would be a setting that silently does nothing.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback
from transformers.integrations import TensorBoardCallback, integration_utils
from transformers.models.llama.modeling_llama import LlamaMLP

from malora_cli.data.batch import Packer, TrainExample
from malora_cli.errors import DataError, ModelError
from malora_cli.modeling import base as base_module
from malora_cli.modeling import hub, resolve_base
from malora_cli.recipe.schema import ModelSettings, OutputSettings, TrainSettings
from malora_cli.results import RunRecord
from malora_cli.train import arguments as arguments_module
from malora_cli.train import materials as materials_module
from malora_cli.train import trainer as trainer_module
from malora_cli.train.materials import gather
from malora_cli.train.tracking import keep_in
from train_runs import adapter, load, measured, train_run, workplace

_NUMBERS = itertools.count()

Look = Callable[[RunRecord], Any]


def _rates(record: RunRecord) -> list[float]:
    return [event.learning_rate for event in record.metrics.train()]


def _weights(record: RunRecord) -> list[list[float]]:
    return [weight.flatten().tolist() for weight in adapter(record).values()]


def _checkpoints(record: RunRecord) -> list[str]:
    return sorted(path.name for path in record.checkpoints_dir.iterdir())


def _rows(record: RunRecord) -> list[int]:
    return [sum(task.examples for task in event.tasks.values()) for event in record.metrics.train()]


#: A value of every field, and what differs from a run without it.
TRAIN: dict[str, tuple[str, Look]] = {
    "steps": ("4", lambda record: record.manifest.steps),
    "batch_size": ("12", _rows),
    "learning_rate": ("0.02", lambda record: max(_rates(record))),
    "schedule": ("linear", _rates),
    "warmup_ratio": ("0.5", lambda record: _rates(record)[1]),
    "weight_decay": ("0.5", _weights),
    "max_grad_norm": ("0.001", _weights),
    "seed": ("1", _weights),
    "log_every": ("2", lambda record: [event.step for event in record.metrics.train()]),
    "eval_every": ("2", lambda record: [event.step for event in record.metrics.evals()]),
    "eval_on_start": ("false", lambda record: [event.step for event in record.metrics.evals()]),
    "eval_rows": ("1", lambda record: record.metrics.evals()[0].tasks["add"].examples),
    "checkpoint_every": ("5", _checkpoints),
    "keep_checkpoints": ("1", _checkpoints),
}
#: Fields with a test of their own below.
APART = {
    "epochs",
    "max_length",
    "micro_batch_size",
    "gradient_checkpointing",
    "report_to",
    "stop",
    "micro_batch_tokens",
}
APART |= {"stop", "not_finite", "max_skipped", "conflict_rows", "keep_best"}
APART |= {
    "init_seed",
    "dropout_seed",
    "keep_best_of_tasks",
    "shard",
    "conflict_every",
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("settings"), tiny_model)


@pytest.fixture(scope="module")
def usual(recipe: Path) -> RunRecord:
    return train_run(recipe, "output.name=usual", "train.checkpoint_every=3")


@pytest.fixture
def name() -> Iterator[str]:
    return (f"output.name=run-{number}" for number in _NUMBERS)


def test_no_field_is_forgotten() -> None:
    assert TRAIN.keys() | APART == TrainSettings.model_fields.keys()
    model = {"base", "revision", "dtype", "attention", "chat_template", "trust_remote_code", "quantise", "device"}
    assert set(ModelSettings.model_fields) == model
    assert set(OutputSettings.model_fields) == {"folder", "name"}


@pytest.mark.parametrize("field", TRAIN)
def test_a_field_of_train_changes_something(field: str, recipe: Path, usual: RunRecord, name: Iterator[str]) -> None:
    value, look = TRAIN[field]
    changed = train_run(recipe, "train.checkpoint_every=3", f"train.{field}={value}", next(name))
    assert look(changed) != look(usual)


def test_epochs_take_the_place_of_steps(recipe: Path, name: Iterator[str]) -> None:
    settings = ["train.steps=null", "train.batch_size=39", "train.micro_batch_size=39"]
    assert train_run(recipe, *settings, "train.epochs=1", next(name)).manifest.steps == 2
    assert train_run(recipe, *settings, "train.epochs=1.2", next(name)).manifest.steps == 3


@pytest.mark.parametrize(("stop", "steps"), [("first_exhausted", 9), ("all_exhausted", 16)])
def test_what_is_exhausted_ends_the_training(stop: str, steps: int, recipe: Path, name: Iterator[str]) -> None:
    """Tasks of 18, 30 and 30 rows in equal shares: 54 positions until one is through, 90 until all are."""
    record = train_run(recipe, "train.steps=null", f"train.stop={stop}", "mix.validation=null", next(name))
    assert record.manifest.steps == steps


def test_rows_are_packed_by_their_tokens(recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes through the model together, the losses of the tasks are the same."""
    # AdamW makes more of a rounding difference with every step, so the steps are small.
    same = ["method.lora_dropout=0", "train.learning_rate=1e-4"]
    alone = train_run(recipe, *same, "train.micro_batch_size=1", next(name))
    seen: list[int] = []
    parted = Packer.parted

    def spy(self: Packer, examples: Sequence[TrainExample]) -> list[list[TrainExample]]:
        found = parted(self, examples)
        seen.extend(sum(len(example.input_ids) for example in pack) for pack in found)
        return found

    monkeypatch.setattr(Packer, "parted", spy)
    packing = ["train.micro_batch_size=6", "train.micro_batch_tokens=80", "train.max_length=64"]
    packed = train_run(recipe, *same, *packing, next(name))
    assert max(seen) <= 80
    assert len(seen) > 6
    for one, other in zip(alone.metrics.train(), packed.metrics.train(), strict=True):
        for task, loss in one.tasks.items():
            assert other.tasks[task].loss == pytest.approx(loss.loss, abs=1e-5)


@pytest.mark.parametrize("template", ["plain", "own.jinja"])
def test_the_chat_template_of_the_recipe(template: str, recipe: Path) -> None:
    (recipe.parent / "own.jinja").write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    materials = gather(
        load(recipe, f"model.chat_template={recipe.parent / template if '.' in template else template}").recipe
    )
    text = materials.tokenizer.decode(materials.tasks[0].train.rows[0]["input_ids"])
    assert text.startswith("copy" if template == "plain" else "<user>copy")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "cannot be read (No such file"),
        (b"\xff", "it is not UTF-8"),
        (b"{% if %}", "own.jinja:1: the chat template"),
    ],
)
def test_a_wrong_chat_template_is_one_line(content: bytes | None, expected: str, recipe: Path) -> None:
    path = recipe.parent / "own.jinja"
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError) as caught:
        gather(load(recipe, f"model.chat_template={path}").recipe)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_longest_row(recipe: Path, name: Iterator[str]) -> None:
    with pytest.raises(DataError, match=r"task 'upper': .* every row is longer than train.max_length 31 tokens"):
        train_run(recipe, "train.max_length=31", next(name))


@pytest.mark.parametrize("rows", [1, 2, 6])
def test_rows_that_go_through_the_model_at_once(
    rows: int, recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    parted = Packer.parted

    def spy(self: Packer, examples: Sequence[TrainExample]) -> list[list[TrainExample]]:
        found = parted(self, examples)
        if len(examples) == 6:  # a step's, not those of an evaluation
            seen.extend(map(len, found))
        return found

    monkeypatch.setattr(Packer, "parted", spy)
    train_run(recipe, f"train.micro_batch_size={rows}", "train.steps=1", next(name))
    assert seen == [rows] * (6 // rows)


@pytest.mark.parametrize(("on", "passes"), [("false", 1), ("true", 2)])
def test_gradient_checkpointing_runs_the_layers_again(
    on: str, passes: int, recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[bool] = []
    forward = LlamaMLP.forward

    def spy(self: LlamaMLP, x: Any) -> Any:
        calls.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", spy)
    settings = [f"train.gradient_checkpointing={on}", "train.steps=1", "train.micro_batch_size=6"]
    train_run(recipe, *settings, next(name))
    assert sum(calls) == passes * 2  # two layers


class SeenError(Exception):
    """Enough was seen."""


def test_trackers_are_handed_on(recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch) -> None:
    handed: dict[str, Any] = {}

    def spy(**arguments: Any) -> None:
        handed.update(arguments)
        raise SeenError

    monkeypatch.setattr(arguments_module, "TrainingArguments", spy)
    monkeypatch.setattr("transformers.integrations.get_available_reporting_integrations", lambda: ["wandb", "mlflow"])
    override = next(name)
    with pytest.raises(SeenError):
        train_run(recipe, "train.report_to=[wandb, mlflow]", override)
    assert (handed["report_to"], handed["run_name"]) == (["wandb", "mlflow"], override.partition("=")[2])


def test_trackers_receive_the_losses_of_every_task_and_how_gradients_oppose(
    recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[int, dict[str, float]]] = []

    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:  # type: ignore[override]
            received.append((state.global_step, logs))

    start = trainer_module.MaloraTrainer.__init__

    def with_tracker(self: Any, *arguments: Any, **options: Any) -> None:
        start(self, *arguments, **options)
        self.add_callback(Tracker())

    monkeypatch.setattr(trainer_module.MaloraTrainer, "__init__", with_tracker)
    sizes = ("train.steps=2", "train.batch_size=12", "train.micro_batch_size=6", "train.conflict_rows=2")
    record = train_run(recipe, *sizes, "remedies.bandit={every: 1}", "method=malora", next(name))
    metrics = record.metrics
    losses = {kind: [f"{kind}/{task}" for task in ("add", "copy", "upper")] for kind in ("loss", "eval_loss")}
    own = ("loss", "grad_norm", "learning_rate")
    share = [f"share/{task}" for task in ("add", "copy", "upper")]
    opposed = ["gradients/lowest_cosine", "gradients/opposed_pairs"]
    step = sorted([*losses["loss"], *own, *share, "balance_loss", "tokens_per_second"])
    evaluation = sorted([*losses["eval_loss"], "eval_loss"])
    assert [(at, sorted(logs)) for at, logs in received] == [
        (0, evaluation), (0, opposed), (1, step), (2, step), (2, evaluation), (2, opposed),
    ]  # fmt: skip
    assert received[2][1]["loss/add"] == metrics.train()[0].tasks["add"].loss
    last = [task.loss for task in metrics.evals()[-1].tasks.values()]
    assert received[4][1]["eval_loss"] == pytest.approx(sum(loss for loss in last if loss) / 3)
    assert -1 <= received[5][1]["gradients/lowest_cosine"] <= 1


def test_tensorboard_writes_into_the_run_unless_it_is_told_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", ModuleType("tensorboard"))
    monkeypatch.setattr(sys.modules["torch.utils.tensorboard"], "SummaryWriter", object, raising=False)
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    own = TensorBoardCallback()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    told = TensorBoardCallback()
    keep_in(Path("run/tensorboard"), [own, TrainerCallback(), told])
    assert (own.logging_dir, told.logging_dir) == ("run/tensorboard", "elsewhere")


def test_the_model_is_loaded_as_the_recipe_says(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def spy(location: str, **arguments: Any) -> Any:
        asked.append({"location": location, **arguments})
        raise SeenError

    monkeypatch.setattr(hub, "commit_of", lambda _name, revision: f"commit-of-{revision}")
    monkeypatch.setattr(hub, "check_weights", lambda *_: None)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", spy)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    settings = load(
        recipe,
        "model={base: owner/name, revision: abc, dtype: bfloat16, attention: eager, trust_remote_code: true}",
    ).recipe.model
    found = resolve_base(settings)
    for read in (base_module.load_tokenizer, base_module.load_base):
        with pytest.raises(SeenError):
            read(found, settings)
    named = {"location": "owner/name", "revision": "commit-of-abc", "trust_remote_code": True}
    assert asked[0].items() >= named.items()
    assert asked[1].items() >= (named | {"dtype": torch.bfloat16, "attn_implementation": "eager"}).items()


@pytest.mark.parametrize(("field", "value"), [("attention", "eager"), ("dtype", "bfloat16")])
def test_a_run_uses_the_models_settings(
    field: str, value: str, recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[PreTrainedModel] = []

    def spy(*arguments: Any) -> PreTrainedModel:
        models.append(base_module.load_base(*arguments))
        return models[-1]

    monkeypatch.setattr(materials_module, "load_base", spy)
    train_run(recipe, f"model.{field}={value}", "train.steps=1", next(name))
    config = models[0].config
    assert value in {config._attn_implementation, str(config.dtype).removeprefix("torch.")}


def test_another_base_is_another_run(recipe: Path, usual: RunRecord, tmp_path: Path, name: Iterator[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(usual.manifest.base_model)
    model.lm_head.weight.data.mul_(2)
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(usual.manifest.base_model).save_pretrained(tmp_path / "other")
    record = train_run(recipe, f"model.base={tmp_path / 'other'}", "train.steps=1", next(name))
    assert record.manifest.base_model == str(tmp_path / "other")
    assert record.manifest.base_model_sha256 != usual.manifest.base_model_sha256
    assert measured(record)[0]["tasks"] != measured(usual)[0]["tasks"]


def test_output_settings_name_the_folder(recipe: Path, tmp_path: Path) -> None:
    record = train_run(recipe, f"output.folder={tmp_path / 'elsewhere'}", "output.name=mine", "train.steps=1")
    assert record.path == tmp_path / "elsewhere" / "mine"
    assert record.finished
