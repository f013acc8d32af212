"""TRL's SFTTrainer with PEFT's LoRA, on the rows of a recipe, with the same of their tokens supervised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from malora_cli.data.batch import TrainExample
from malora_cli.modeling.device import dtype_of
from malora_cli.recipe import Recipe
from malora_cli.train.materials import Materials

TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]
#: Tokens of a pack, where a step has as many, and of the longest row.
LENGTH = 1024


def rows_of(examples: Iterable[TrainExample]) -> list[dict[str, Any]]:
    """Examples as TRL takes them."""
    rows = []
    for example in examples:
        supervised = {at for first, last in example.spans for at in range(first, last)}
        mask = [int(at in supervised) for at in range(len(example.input_ids))]
        rows.append({"input_ids": list(example.input_ids), "completion_mask": mask})
    return rows


def packs_of(rows: Sequence[Mapping[str, Any]], steps: int) -> tuple[int, int]:
    """How many packs a step hold the rows on average, and the tokens of each: no more than our steps have."""
    tokens = round(sum(len(row["input_ids"]) for row in rows) / steps)
    return max(1, round(tokens / LENGTH)), min(tokens, LENGTH)


def sft_trainer(
    asked: Recipe,
    materials: Materials,
    rows: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    steps: int,
    packed: bool,
    evaluated: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    callbacks: Sequence[Any] = (),
) -> Any:
    """A trainer with LoRA of rank 64, on the recipe's base model, learning rate and seed.

    Args:
        asked: The recipe.
        materials: What it comes to.
        rows: To train on, in this order.
        folder: For what TRL writes.
        steps: Optimiser steps.
        packed: Whether packs of at most 1,024 tokens take the place of the recipe's rows a step.
        evaluated: Rows that are going to be evaluated, by name.
        callbacks: As transformers' Trainer takes them.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    dtype = dtype_of(asked.model)
    size, length = packs_of(rows, steps) if packed else (asked.train.batch_size, LENGTH)
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=asked.train.learning_rate,
        seed=asked.train.seed,
        warmup_steps=1,
        lr_scheduler_type="cosine",
        logging_steps=1,
        max_length=length,
        bf16=dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=False,
        completion_only_loss=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=size,
        packing=packed,
    )
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(materials.base.location, dtype=getattr(torch, dtype)),
        args=arguments,
        train_dataset=Dataset.from_list(list(rows)),
        eval_dataset={name: Dataset.from_list(list(own)) for name, own in (evaluated or {}).items()} or None,
        processing_class=materials.tokenizer,
        peft_config=LoraConfig(r=64, lora_alpha=128, lora_dropout=0.05, target_modules=TARGETS, task_type="CAUSAL_LM"),
        callbacks=list(callbacks),
    )
