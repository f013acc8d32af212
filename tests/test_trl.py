"""TRL's trainer with a MALoRA adapter: it trains, saves and reloads, and the balance loss reaches the router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from malora_cli import MaloraConfig

trl = pytest.importorskip("trl", reason="TRL is a test extra")

ROWS = [{"prompt": f"say {word} ", "completion": word * 3} for word in ("ab", "cd", "ef", "gh", "ij", "kl", "mn", "op")]


def trainer(folder: Path, model: Path, *, steps: int, **adapter: Any) -> Any:
    arguments = trl.SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=2e-2,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        max_length=32,
        seed=0,
        disable_tqdm=True,
    )
    sizes = {"r": 4, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(ROWS),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=MaloraConfig(**{**sizes, **adapter}),
    )


def routers(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if "malora_router" in name}


def test_trains_saves_and_reloads(tmp_path: Path, tiny_model: Path) -> None:
    training = trainer(tmp_path / "run", tiny_model, steps=30)
    trained = {name for name, p in training.model.named_parameters() if p.requires_grad}
    assert trained
    assert all("malora_" in name for name in trained)
    training.train()
    losses = [entry["loss"] for entry in training.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])

    training.save_model(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), tmp_path / "adapter")
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(input_ids=ids).logits, training.model.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_the_balance_loss_reaches_the_router(factor: float, tmp_path: Path, tiny_model: Path) -> None:
    """In the first step B is zero, so that nothing but the balance loss can move a router."""
    training = trainer(tmp_path / "run", tiny_model, steps=1, balance_factor=factor)
    before = routers(training.model)
    training.train()
    after = routers(training.model)
    moved = [not torch.equal(after[name], before[name]) for name in before]
    assert all(moved) if factor else not any(moved)


def moved(folder: Path, model: Path, loss: str, *, accumulate: int) -> dict[str, torch.Tensor]:
    """How far one step of SGD on one and the same row moves the routers, in so many micro-batches.

    B is zero, so that nothing but the balance loss moves them.
    """
    sizes = {"r": 4, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM"}
    settings = {
        "output_dir": str(folder),
        "max_steps": 1,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": accumulate,
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "max_length": 32,
        "disable_tqdm": True,
    }
    preferred = {"prompt": "say ab ", "chosen": "ababab", "rejected": "cd"}
    if loss == "dpo":
        arguments, kind, rows = trl.DPOConfig(**settings), trl.DPOTrainer, [preferred] * 8
    else:
        arguments, kind, rows = trl.SFTConfig(**settings, loss_type=loss), trl.SFTTrainer, ROWS[:1] * 8
    torch.manual_seed(0)
    training = kind(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(model),
        peft_config=MaloraConfig(**sizes, balance_factor=0.5),
    )
    before = routers(training.model)
    training.train()
    return {name: after - before[name] for name, after in routers(training.model).items()}


@pytest.mark.parametrize("loss", ["nll", "dft", "dpo"])
def test_the_balance_loss_counts_once_over_accumulated_micro_batches(
    loss: str, tmp_path: Path, tiny_model: Path
) -> None:
    whole, parted = (moved(tmp_path / str(n), tiny_model, loss, accumulate=n) for n in (1, 4))
    for name, value in whole.items():
        assert value.norm() > 0
        assert (parted[name] - value).norm() < 1e-3 * value.norm(), name
