"""Training: what is learned and what is measured, against computations of the test's own."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from malora_cli.adapters.routing import Routing
from malora_cli.data.batch import TrainExample, collate
from malora_cli.data.tasks import in_lots
from malora_cli.errors import MaloraError, RunError
from malora_cli.modeling import load_adapter, load_base, resolve_base
from malora_cli.modeling.heldout import held_out
from malora_cli.modeling.loss import token_nats
from malora_cli.results import ExpertGeometry, RunRecord
from malora_cli.train import materials as materials_module
from malora_cli.train import trainer as trainer_module
from malora_cli.train.materials import gather
from train_runs import adapter, load, losses, measured, rewrite, same_weights, train_run, workplace

LORA = "method={name: lora, r: 4}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return workplace(tmp_path_factory.mktemp("train"), tiny_model)


@pytest.fixture(scope="module")
def plain(recipe: Path) -> RunRecord:
    """The recipe as it is: six steps of six rows, in micro-batches of three."""
    return train_run(recipe, "output.name=plain")


@pytest.fixture
def name() -> Iterator[str]:
    """An override that gives each run of a test another folder."""
    return (f"output.name=run-{number}" for number in _NUMBERS)


_NUMBERS = itertools.count()


def _nats(model: Any, example: TrainExample) -> tuple[float, int]:
    """Summed nats and supervised tokens of one example by itself, from the model's plain logits."""
    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, :-1].double()
    nats = F.cross_entropy(logits, ids[0, 1:], reduction="none")[example.prompt_tokens - 1 :]
    return float(nats.sum()), len(nats)


def test_the_loss_of_every_task_is_that_of_its_rows(recipe: Path, plain: RunRecord, tiny_model: Path) -> None:
    """Before the first step the adapter changes nothing, so it is the base model's, whatever dropout does."""
    materials = gather(load(recipe).recipe)
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    expected = {task.name: [0.0, 0, 0] for task in materials.tasks}
    for position in range(6):
        example = materials.mixture[position]
        sums = expected[materials.tasks[example.task].name]
        nats, tokens = _nats(base, example)
        sums[0], sums[1], sums[2] = sums[0] + nats, sums[1] + tokens, sums[2] + 1
    found = plain.metrics.train()[0].tasks
    assert {name: (task.tokens, task.examples) for name, task in found.items()} == {
        name: (tokens, examples) for name, (_, tokens, examples) in expected.items() if examples
    }
    for name, task in found.items():
        assert task.nats == pytest.approx(expected[name][0], rel=1e-5)


def test_the_validation_loss_at_step_0_is_the_base_models(recipe: Path, plain: RunRecord, tiny_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    event = plain.metrics.evals()[0]
    assert event.step == 0
    for number, task in enumerate(gather(load(recipe).recipe).tasks):
        examples = [example for lot in in_lots(task.validation, number, limit=4, size=9) for example in lot]
        each = [_nats(base, example) for example in examples]
        found = event.tasks[task.name]
        assert (found.tokens, found.examples) == (sum(tokens for _, tokens in each), min(4, len(task.validation)))
        assert found.nats == pytest.approx(sum(nats for nats, _ in each), rel=1e-5)
        assert (found.stderr_nats is None) == (len(each) == 1)


def test_tasks_add_up_to_the_total_at_every_log_step(
    recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the trainer's own loss, and to the last bit to the nats of the tokens."""
    totals: list[float] = []
    logged: list[float] = []

    def spy(model: Any, batch: Any) -> torch.Tensor:
        nats = token_nats(model, batch)
        totals.append(float(nats.detach().double().sum()))
        return nats

    log = trainer_module.MaloraTrainer.log

    def spy_log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        logged.append(logs.get("loss", math.nan))
        log(self, logs, start_time)

    monkeypatch.setattr(trainer_module, "token_nats", spy)
    monkeypatch.setattr(trainer_module.MaloraTrainer, "log", spy_log)
    events = train_run(recipe, "train.micro_batch_size=2", next(name)).metrics.train()
    assert len(totals) == 6 * 3
    for event, step, loss in zip(events, range(0, 18, 3), logged, strict=False):
        nats, tokens = (sum(getattr(task, what) for task in event.tasks.values()) for what in ("nats", "tokens"))
        assert nats == pytest.approx(sum(totals[step : step + 3]), rel=1e-14)
        assert nats == pytest.approx(loss * tokens, rel=1e-6)
        assert sum(task.examples for task in event.tasks.values()) == 6


def test_log_steps_add_up_as_well(recipe: Path, plain: RunRecord, name: Iterator[str]) -> None:
    rare = train_run(recipe, "train.log_every=4", "train.checkpoint_every=9", next(name))
    assert [event.step for event in rare.metrics.train()] == [4, 6]
    for task in ("copy", "upper", "add"):
        for what in ("nats", "tokens", "examples"):
            sums = [
                sum(getattr(event.tasks[task], what) for event in run.metrics.train() if task in event.tasks)
                for run in (plain, rare)
            ]
            assert sums[0] == pytest.approx(sums[1], rel=1e-14)


@pytest.mark.parametrize("method", [LORA, "method.balance_factor=0"], ids=["lora", "malora"])
def test_accumulation_changes_nothing(method: str, recipe: Path, name: Iterator[str]) -> None:
    """One loss over the supervised tokens of the whole batch, however it is cut; without dropout and balance loss."""
    still = [method, "method.lora_dropout=0"]
    runs = [train_run(recipe, *still, f"train.micro_batch_size={rows}", next(name)) for rows in (6, 3, 1)]
    for other in runs[1:]:
        for one, two in zip(losses(runs[0]), losses(other), strict=True):
            assert one == pytest.approx(two, rel=1e-5)
        for key, weight in adapter(runs[0]).items():
            torch.testing.assert_close(adapter(other)[key], weight, rtol=1e-3, atol=2e-5)


def test_the_balance_loss_counts_once_however_a_batch_is_cut(
    tmp_path: Path, tiny_model: Path, name: Iterator[str]
) -> None:
    """It is a mean over micro-batches by their supervised tokens, so equal rows show its weight.

    For rows that differ it is not that of the whole batch: the share of tokens an expert gets in each micro-batch
    is multiplied by the probability it has there, and a product of means is no mean of products.
    """
    recipe = workplace(tmp_path, tiny_model)
    line = (tmp_path / "add.train.jsonl").read_text().splitlines()[0]
    (tmp_path / "add.train.jsonl").write_text(line + "\n")
    one_row = ["method.lora_dropout=0", "method.balance_factor=1"]
    rewrite(tmp_path / "mix.yaml", lambda mix: mix.update(tasks={"add": mix["tasks"]["add"]}))
    runs = [train_run(recipe, *one_row, f"train.micro_batch_size={rows}", next(name)) for rows in (6, 3, 1)]
    light = train_run(recipe, one_row[0], "method.balance_factor=0", next(name))
    routers = [key for key in adapter(light) if "router" in key]
    for other in runs[1:]:
        for key, weight in adapter(runs[0]).items():
            torch.testing.assert_close(adapter(other)[key], weight, rtol=1e-3, atol=2e-5)
        balance = [[event.balance_loss for event in run.metrics.train()] for run in (runs[0], other)]
        assert balance[0] == pytest.approx(balance[1], rel=1e-5)
    assert any(not torch.allclose(adapter(light)[key], adapter(runs[0])[key], atol=1e-3) for key in routers)


def test_measuring_changes_nothing(recipe: Path, plain: RunRecord, name: Iterator[str]) -> None:
    """Neither validation losses nor checkpoints nor log steps; dropout is on between them."""
    quiet = train_run(
        recipe, "train.eval_every=6", "train.checkpoint_every=6", "train.log_every=6", "train.eval_rows=1", next(name)
    )
    assert same_weights(plain, quiet)
    assert not same_weights(plain, train_run(recipe, "method.lora_dropout=0", next(name)))


@pytest.mark.parametrize("method", ["method.name=malora", LORA])
def test_validation_losses_are_without_dropout(method: str, recipe: Path, name: Iterator[str]) -> None:
    loaded = load(recipe, method, "method.lora_dropout=0.9", next(name))
    record = train_run(recipe, method, "method.lora_dropout=0.9", f"output.name={loaded.name}")
    model = load_adapter(load_base(resolve_base(loaded.recipe.model), loaded.recipe.model), record.adapter_dir)
    for number, task in enumerate(gather(loaded.recipe).tasks):
        again = held_out(model, map(collate, in_lots(task.validation, number, limit=4, size=3)))
        assert again.loss == record.metrics.evals()[-1].tasks[task.name]


def test_the_last_step_is_logged_evaluated_and_saved(recipe: Path, name: Iterator[str]) -> None:
    record = train_run(
        recipe, "train.steps=5", "train.log_every=2", "train.eval_every=3", "train.checkpoint_every=4", next(name)
    )
    assert [event.step for event in record.metrics.train()] == [2, 4, 5]
    assert [event.step for event in record.metrics.evals()] == [0, 3, 5]
    assert sorted(path.name for path in record.checkpoints_dir.iterdir()) == ["step-0000004", "step-0000005"]
    assert (record.manifest.steps, record.finished) == (5, True)


def test_a_checkpoint_is_a_log_step(recipe: Path, name: Iterator[str]) -> None:
    """So that a run that goes on from it has lost nothing of the sums."""
    record = train_run(recipe, "train.log_every=3", "train.checkpoint_every=2", next(name))
    assert [event.step for event in record.metrics.train()] == [2, 3, 4, 6]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate(schedule: str, recipe: Path, name: Iterator[str]) -> None:
    record = train_run(recipe, f"train.schedule={schedule}", "train.warmup_ratio=0.3", next(name))
    warm = 2  # 0.3 * 6 steps, rounded up
    falls = {
        "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
        "linear": lambda done: 1 - done,
        "constant": lambda done: 1.0,
    }[schedule]
    expected = [0.01 * (step / warm if step < warm else falls((step - warm) / (6 - warm))) for step in range(6)]
    assert [event.learning_rate for event in record.metrics.train()] == pytest.approx(expected)


def test_metrics_are_complete(plain: RunRecord) -> None:
    events = plain.metrics.train()
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    for event in events:
        assert event.expert_share is not None
        assert list(event.expert_share) == ["layer 0", "layer 1"]
        for share in event.expert_share.values():
            assert len(share) == 4
            assert sum(share) == pytest.approx(1, abs=1e-5)
        assert event.balance_loss is not None
        assert 0.9 < event.balance_loss <= 4  # 1 when uniform, at most the number of experts
        assert event.grad_norm is not None
        assert event.grad_norm > 0
        assert event.seconds_per_step is not None
        assert event.seconds_per_step > 0
        assert event.tokens_per_second > 0
    assert all(later.seconds > earlier.seconds for earlier, later in itertools.pairwise(events))
    for evaluated in plain.metrics.evals():
        assert evaluated.expert_load is not None
        assert list(evaluated.expert_load) == ["copy", "upper", "add"]
        assert all(
            sum(s) == pytest.approx(1, abs=1e-5) for load in evaluated.expert_load.values() for s in load.values()
        )
        assert evaluated.gate_entropy is not None
        assert list(evaluated.gate_entropy) == ["copy", "upper", "add"]
        for entropy in evaluated.gate_entropy.values():
            assert list(entropy) == ["layer 0", "layer 1"]
            assert all(0 < value <= 1 for value in entropy.values())
    kinds = [json.loads(line)["kind"] for line in plain.metrics.path.read_text().splitlines()]
    assert kinds == ["eval", "train", "train", "train", "eval", "train", "train", "train", "eval"]


def test_pace_is_over_the_steps_and_tokens_of_the_log_step(recipe: Path, name: Iterator[str]) -> None:
    record = train_run(recipe, "train.log_every=3", "train.checkpoint_every=3", next(name))
    mixture = gather(load(recipe).recipe).mixture
    for number, event in enumerate(record.metrics.train()):
        assert event.seconds_per_step is not None
        tokens = sum(len(mixture[position].input_ids) for position in range(number * 18, number * 18 + 18))
        assert event.tokens_per_second * event.seconds_per_step * 3 == pytest.approx(tokens)


def test_expert_share_is_of_one_log_step(recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of all steps so far, nor of the evaluations between them."""
    seen: list[set[float]] = []
    load_by_group = Routing.load_by_group

    def spy(self: Routing, tallies: Any) -> Any:
        seen.extend(set(tally.tokens_L.tolist()) for name, tally in tallies.items() if name == "all")
        return load_by_group(self, tallies)

    monkeypatch.setattr(Routing, "load_by_group", spy)
    train_run(recipe, "train.log_every=2", next(name))
    mixture = gather(load(recipe).recipe).mixture
    rows = [range(start, start + 12) for start in (0, 12, 24)]
    assert seen == [{sum(len(mixture[position].input_ids) for position in positions)} for positions in rows]


def test_a_finished_run_says_what_its_experts_share(plain: RunRecord) -> None:
    geometry = ExpertGeometry.load(plain.experts_path)
    assert geometry is not None
    assert list(geometry.groups) == ["layer 0", "layer 1"]
    sides = geometry.groups["layer 1"]["up_proj"]
    assert sides["down"].similarity is not None
    assert sides["up"].effective_rank > 1  # B has left zero


def test_lora_has_no_experts(recipe: Path, name: Iterator[str]) -> None:
    record = train_run(recipe, LORA, next(name))
    for event in record.metrics:
        known = event.model_dump(exclude_none=True).keys()
        assert not {"expert_share", "expert_load", "gate_entropy", "balance_loss"} & known
    assert not record.experts_path.exists()


def test_no_balance_loss_where_it_weighs_nothing(recipe: Path, name: Iterator[str]) -> None:
    events = train_run(recipe, "method.balance_factor=0", next(name)).metrics.train()
    assert all(event.balance_loss is None and event.expert_share for event in events)


def test_epochs_are_passes_over_the_rows(recipe: Path, name: Iterator[str]) -> None:
    length = ["train.steps=null", "train.epochs=1.5", "train.batch_size=18", "train.micro_batch_size=9"]
    record = train_run(recipe, "mix.validation=null", *length, next(name))
    assert record.metrics.evals() == []
    assert record.manifest.steps == 7  # 1.5 * (18 + 30 + 30) / 18, rounded up


@pytest.mark.parametrize("method", ["method.name=malora", LORA])
def test_gradient_checkpointing_gives_the_same_losses(method: str, recipe: Path, name: Iterator[str]) -> None:
    one, two = (train_run(recipe, method, f"train.gradient_checkpointing={on}", next(name)) for on in ("false", "true"))
    assert losses(one) == losses(two)
    assert same_weights(one, two)
    for first, second in zip(one.metrics.train(), two.metrics.train(), strict=True):
        assert first.expert_share == second.expert_share
        assert first.balance_loss == pytest.approx(second.balance_loss)


@pytest.mark.parametrize("method", ["method.name=malora", LORA])
def test_a_bfloat16_base_is_trained_with_a_float32_adapter(
    method: str, recipe: Path, plain: RunRecord, name: Iterator[str]
) -> None:
    record = train_run(recipe, method, "model.dtype=bfloat16", next(name))
    assert {weight.dtype for weight in adapter(record).values()} == {torch.float32}
    for one, two in zip(losses(record), losses(plain), strict=True):
        assert one == pytest.approx(two, rel=0.05)
        assert one != two


def test_training_learns(recipe: Path, name: Iterator[str]) -> None:
    record = train_run(
        recipe,
        *("train.steps=40", "train.eval_every=40", "train.checkpoint_every=40"),
        next(name),
    )
    first, last = record.metrics.evals()
    for task in ("copy", "upper", "add"):
        before, after = first.tasks[task].loss, last.tasks[task].loss
        assert before is not None
        assert after is not None
        assert after < before - 0.1  # a head this small cannot tell tokens much further apart


def test_the_same_recipe_is_the_same_run(recipe: Path, plain: RunRecord, name: Iterator[str]) -> None:
    again = train_run(recipe, next(name))
    assert same_weights(plain, again)
    assert measured(plain) == measured(again)


def test_a_loss_that_is_no_number_ends_the_run_in_one_line(recipe: Path, name: Iterator[str]) -> None:
    with pytest.raises(RunError, match=r"^step \d: the loss is not a finite number \(rows of 'copy'") as caught:
        train_run(recipe, "train.learning_rate=1e30", "train.max_grad_norm=0", "train.warmup_ratio=0", next(name))
    assert "lower train.learning_rate" in str(caught.value)


def test_a_base_model_that_answers_no_number_is_told_apart(
    recipe: Path, name: Iterator[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        model = load_base(*arguments)
        model.lm_head.weight.data.fill_(torch.nan)
        return model

    monkeypatch.setattr(materials_module, "load_base", broken)
    with pytest.raises(MaloraError, match=r"^step 0: the loss of task 'copy' is not a finite number. The base model"):
        train_run(recipe, next(name))
