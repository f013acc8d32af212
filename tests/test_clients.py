"""Other people's loops and trainers: what they do to the loss, how they put the adapter in, and compiling."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments
from transformers.modeling_outputs import CausalLMOutput

from malora_cli import HydraLoraConfig, MaloraConfig
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.following import StepShares
from malora_cli.adapters.routing import routing_of
from tiny_models import randomise, tiny, tokens

SETTINGS = {"r": 3, "subspace_rank": 5, "num_experts": 4, "lora_alpha": 6, "balance_factor": 5.0}
ROW = tokens(1, 9, seed=1)[0]


def with_task(model: nn.Module, config: MixtureConfig) -> nn.Module:
    config.task_type = "CAUSAL_LM"
    return get_peft_model(model, config)


def transformers_own(model: Any, config: MixtureConfig) -> nn.Module:
    model.add_adapter(config)
    return model  # type: ignore[no-any-return]


WAYS: dict[str, Callable[[nn.Module, MixtureConfig], nn.Module]] = {
    "task_type": with_task,
    "no_task_type": get_peft_model,
    "add_adapter": transformers_own,
    "inject_adapter_in_model": lambda model, config: inject_adapter_in_model(config, model),
}


def adapted(way: str = "task_type", **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    model = WAYS[way](tiny("llama"), MaloraConfig(**{**SETTINGS, **changes}))
    randomise(model)
    return model.train()


def by_weight(model: nn.Module, values: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
    """Of every adapter weight, by its name without PEFT's prefix."""
    named = {name.removeprefix("base_model.model."): values(p) for name, p in model.named_parameters()}
    return {name: value.detach().clone() for name, value in named.items() if ".malora_" in name and value is not None}


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return by_weight(model, lambda p: p.grad)


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in theirs.items():
        assert (ours[name] - value).norm() <= rtol * value.norm() + 1e-12, name


def padded() -> dict[str, Tensor]:
    ids = tokens(2, 9, seed=1)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


# What becomes of the loss


def test_a_loss_may_be_divided_in_place() -> None:
    model = adapted()
    expected = gradients(model, model(**padded()).loss / 8)
    loss = model(**padded()).loss
    loss /= 8
    assert_same(gradients(model, loss), expected, rtol=0.0)


def test_a_loss_in_a_tuple_is_followed_too() -> None:
    model = adapted()
    expected = gradients(model, model(**padded()).loss / 8)
    assert_same(gradients(model, model(**padded(), return_dict=False)[0] / 8), expected, rtol=0.0)


def test_log_probabilities_may_be_changed_in_place() -> None:
    model, ids = adapted(), tokens(2, 9)
    inner = model.base_model.model  # type: ignore[union-attr]
    plain = inner.forward

    def with_log_probs(**inputs: Any) -> Any:
        output = plain(**inputs)
        log_probs = output.logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
        return SimpleNamespace(log_probs=log_probs, label_mask=torch.ones_like(log_probs, dtype=torch.bool))

    expected = gradients(model, model(input_ids=ids, labels=ids).loss / 4)
    inner.forward = with_log_probs
    log_probs = model(input_ids=ids).log_probs
    log_probs /= 4
    assert_same(gradients(model, -log_probs.mean()), expected, rtol=1e-4)


@pytest.mark.parametrize("way", list(WAYS)[1:])
def test_padding_and_the_weight_of_the_balance_loss_do_not_depend_on_how_the_adapter_came_in(way: str) -> None:
    wrapped, ours = adapted(), adapted(way)
    found = [gradients(model, model(**padded()).loss / 8) for model in (ours, wrapped)]
    assert_same(*found, rtol=0.0)
    by_position = ours(padded()["input_ids"], padded()["attention_mask"], labels=padded()["labels"])
    assert_same(gradients(ours, by_position.loss / 8), found[1], rtol=0.0)


def test_hooks_are_hung_once_copied_with_the_model_and_taken_down_with_the_adapter() -> None:
    model = adapted("add_adapter")
    model.add_adapter(MaloraConfig(**SETTINGS), adapter_name="second")  # type: ignore[operator]
    assert len(model._forward_hooks) == len(model._forward_pre_hooks) == 1
    wrapped = adapted()
    expected = gradients(wrapped, wrapped(**padded()).loss / 8)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert_same(gradients(twin, twin(**padded()).loss / 8), expected, rtol=0.0)
    base = wrapped.unload()  # type: ignore[operator]
    assert not base._forward_hooks
    assert not base._forward_pre_hooks


# Trainers


def own_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    loss = nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    return loss / (labels[:, 1:].numel() if num_items_in_batch is None else num_items_in_batch)


def trained(folder: Path, way: str, *, accumulate: int, **settings: Any) -> dict[str, Tensor]:
    """Weights after two steps of SGD on one and the same row, in so many micro-batches."""
    label_smoothing = settings.pop("label_smoothing_factor", 0.0)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulate,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        label_smoothing_factor=label_smoothing,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    model = adapted(way)
    rows = [{"input_ids": ROW, "labels": ROW}] * 8
    Trainer(model=model, args=arguments, train_dataset=rows, **settings).train()
    return by_weight(model, lambda p: p)


@pytest.mark.parametrize(
    ("way", "settings"),
    [
        ("task_type", {}),
        ("no_task_type", {}),
        ("task_type", {"compute_loss_func": own_loss}),
        ("add_adapter", {"label_smoothing_factor": 0.1}),
    ],
    ids=["task type", "no task type", "a loss of one's own", "label smoothing"],
)
def test_accumulation_under_transformers_own_trainer_changes_nothing(
    way: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    found = [trained(tmp_path, way, accumulate=n, **settings) for n in (4, 1)]
    assert_same(*found, rtol=1e-5)


def test_shares_of_a_step_add_up_to_one() -> None:
    shares = StepShares()
    for count, expected in ((1, [1.0]), (3, [1.0, 0.0, 0.0]), (3, [1 / 3] * 3), (2, [1 / 3, 2 / 3]), (4, None)):
        taken = [shares.take(last=number == count) for number in range(1, count + 1)]
        assert sum(taken) == pytest.approx(1.0)
        assert all(0.0 <= share <= 1.0 for share in taken)
        if expected is not None:
            assert taken == pytest.approx(expected)
    assert [StepShares().take(last=last) for last in (False, True)] == [0.0, 1.0]  # nothing is known of a first step


# Compiling


class Toy(nn.Module):
    """A model of one linear, which returns its loss as transformers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return CausalLMOutput(loss=y.square().mean(), logits=y)


@pytest.mark.parametrize(
    ("make", "dtype"), [(MaloraConfig, torch.float32), (MaloraConfig, torch.bfloat16), (HydraLoraConfig, torch.float32)]
)
def test_a_compiled_model_has_the_gradients_of_the_plain_one(make: Any, dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    settings = {"balance_factor": 5.0} if make is MaloraConfig else {}
    model = get_peft_model(Toy().to(dtype), make(target_modules=["linear"], **settings)).train()
    randomise(model)
    compiled, x = torch.compile(model, backend="aot_eager"), torch.randn(3, 5, 8).to(dtype)
    expected = gradients(model, model(x).loss / 8)
    for _ in range(2):
        assert_same(gradients(model, compiled(x).loss / 8), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2)
    with torch.no_grad():
        model.eval()
        whole = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(whole(x).logits, model(x).logits)
    assert routing_of(model) is not None
