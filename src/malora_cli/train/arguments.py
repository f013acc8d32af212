"""A recipe as the arguments of transformers' Trainer."""

from __future__ import annotations

import math

import torch
from transformers import TrainingArguments

from malora_cli.modeling.device import dtype_of, own_device
from malora_cli.modeling.modes import autocast_dtype
from malora_cli.recipe import Recipe
from malora_cli.results import RunRecord
from malora_cli.train import processes
from malora_cli.train.materials import seeds


def training_arguments(recipe: Recipe, record: RunRecord, steps: int, *, resumed: bool) -> TrainingArguments:
    """The arguments of a run.

    Args:
        recipe: What it is asked to do.
        record: Where it lies.
        steps: Optimiser steps.
        resumed: Whether it goes on, so that the base model was evaluated already.
    """
    train = recipe.train
    device = own_device(recipe.model.device).type
    mixed = autocast_dtype(getattr(torch, dtype_of(recipe.model)), device)
    arguments = TrainingArguments(
        output_dir=str(record.checkpoints_dir),
        run_name=record.name,
        max_steps=steps,
        # The trainer itself parts it into micro-batches.
        per_device_train_batch_size=train.batch_size // processes.world_size(),
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # of frozen models they are the same everywhere
        learning_rate=train.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(train.schedule, train.schedule),
        warmup_steps=math.ceil(train.warmup_ratio * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        # The trainer sets it when it is made; of what comes then only dropout draws. Each process has its own.
        seed=seeds(train)["dropout"] + processes.rank(),
        use_cpu=device == "cpu",
        bf16=mixed == torch.bfloat16,
        fp16=mixed == torch.float16,
        gradient_checkpointing=train.gradient_checkpointing,
        logging_steps=train.log_every,
        eval_strategy="steps",
        eval_steps=train.eval_every,
        eval_on_start=train.eval_on_start and not resumed,
        save_strategy="steps",
        save_steps=train.checkpoint_every,
        report_to=list(train.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=device == "cuda",
        disable_tqdm=True,
        logging_nan_inf_filter=False,
    )
    # One process takes one device: DataParallel would cut the single row of a batch apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
