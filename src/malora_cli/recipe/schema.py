"""The recipe: what a run is asked to do. Defaults are the MALoRA paper's where it gives one (arXiv 2410.22782).

The sections are checked here and nowhere else. ``Recipe`` leaves the method and the remedies open; ``recipe_type``
closes it over those there are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from malora_cli.recipe.mix_settings import MixSettings
from malora_cli.recipe.remedies import RemediesSettings
from malora_cli.recipe.settings import Count, FileName, MethodSettings, Settings, Text


class ModelSettings(Settings):
    """The base model, which stays frozen."""

    base: Text = Field(description="Base model: a known short name, a hub id, a folder or a GGUF file")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model; null is its newest")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Number format of the frozen weights: auto is bfloat16 on a CUDA GPU that computes in it, else "
        "float32; a run keeps to what it began with",
    )
    quantise: Literal["nf4", "int8"] | None = Field(
        default=None, description="Frozen weights in 4 or 8 bits, by bitsandbytes; null keeps them in dtype"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = Field(
        default="sdpa", description="Attention implementation, by its name in transformers"
    )
    chat_template: Text | None = Field(
        default=None,
        description="Chat template: a Jinja file, or plain for none; null is the tokenizer's own",
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with a hub model")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto",
        description="What computes: auto is a CUDA GPU where there is one, else the CPU; Apple's GPU is taken only by "
        "its name, mps",
    )


def _whole_batch(data: dict[str, Any]) -> int:
    return int(data.get("batch_size", 1))  # of an invalid one the error is told, and this never read


Seed = Annotated[int, Field(ge=0, lt=2**32)]


class TrainSettings(Settings):
    """Length, pace and record of the training."""

    stop: Literal["steps", "first_exhausted", "all_exhausted"] = Field(
        default="steps",
        description="What ends the training: steps or epochs, or that the first task, or every task, has been through "
        "its rows as often as its repeats say",
    )
    steps: Count | None = Field(default=None, description="Optimiser steps to train; this or epochs")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        default=None, validate_default=True, description="Passes over the training rows; this or steps"
    )
    batch_size: Count = Field(default=16, description="Rows of one optimiser step, over all processes")
    micro_batch_size: Count = Field(
        default_factory=_whole_batch,
        description="Most rows that go through the model at once; divides batch_size, which is also its default",
    )
    micro_batch_tokens: Count | None = Field(
        default=None,
        description="Most tokens that go through the model at once: the rows of a step are packed, best fit first, "
        "into as few micro-batches as hold them; null counts rows only",
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which it rises from zero")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Norm that gradients are clipped to; 0 does not clip")
    max_length: Count = Field(
        default=1024,
        validate_default=True,
        description="Longest row in tokens, prompt and answer together; a task's too_long says what becomes of longer "
        "ones",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**32, description="Seed of the data order, and of what has no seed of its own"
    )
    init_seed: Seed | None = Field(default=None, description="Seed of the adapter's initialisation")
    dropout_seed: Seed | None = Field(default=None, description="Seed of dropout")
    log_every: Count = Field(default=5, description="Steps from one logged step to the next")
    eval_every: Count = Field(default=50, description="Steps from one validation loss of every task to the next")
    eval_on_start: bool = Field(
        default=True, description="Measure it before the first step as well; changes are told since the first one"
    )
    eval_rows: Count = Field(
        default=16, description="Validation rows of each task for that loss, chosen at random by mix.seed"
    )
    conflict_rows: Count | None = Field(
        default=None,
        description="Training rows of each task, chosen at random, whose gradients are compared; null compares none",
    )
    conflict_every: Count | None = Field(
        default=None,
        validate_default=True,
        description="Steps from one comparison of gradients to the next; null compares at every evaluation",
    )
    checkpoint_every: Count = Field(default=50, description="Steps from one checkpoint to the next")
    keep_checkpoints: Count = Field(default=2, description="Newest checkpoints to keep")
    keep_best: int = Field(
        default=0, ge=0, description="Checkpoints to keep besides, those of the lowest validation loss, mean over tasks"
    )
    keep_best_of_tasks: bool = Field(
        default=False,
        description="Keep for each task the checkpoint of its own lowest validation loss besides; steps that are both "
        "evaluated and saved count",
    )
    not_finite: Literal["halt", "skip"] = Field(
        default="halt", description="What to do with a step whose loss or gradient is NaN or infinite"
    )
    max_skipped: Count = Field(default=10, description="Steps that may be skipped in a row before the run halts")
    shard: bool = Field(
        default=False,
        description="Spread weights, gradients and optimiser states over the processes (FSDP2) instead of copying them",
    )
    gradient_checkpointing: bool = Field(default=False, description="Less memory for about a third more time")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        default=(), description="Trackers that receive the metrics besides the run folder"
    )

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        # A step count that is wrong itself is not in `data`; it is reported on its own line.
        steps, stop = info.data.get("steps"), info.data.get("stop")
        if stop in ("first_exhausted", "all_exhausted"):
            if steps is not None or epochs is not None:
                raise ValueError(f"stop is {stop}, so neither steps nor epochs may be set; null unsets one")
            return epochs
        if "steps" in info.data and (steps is None) == (epochs is None):
            have = "neither is" if epochs is None else f"steps is {steps} too"
            unset = "" if epochs is None else "; null unsets one"
            raise ValueError(f"exactly one of steps and epochs must be set, and {have}{unset}")
        return epochs

    @field_validator("conflict_every")
    @classmethod
    def _compared(cls, every: int | None, info: ValidationInfo) -> int | None:
        if every is not None and info.data.get("conflict_rows", 0) is None:
            raise ValueError("no gradients are compared: conflict_rows is null")
        return every

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, micro: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch_size")
        if batch is not None and batch % micro:
            raise ValueError(f"must divide batch_size, which is {batch}")
        return micro

    @field_validator("max_length")
    @classmethod
    def _fits(cls, longest: int, info: ValidationInfo) -> int:
        room = info.data.get("micro_batch_tokens")
        if room is not None and longest > room:
            raise ValueError(f"must be at most micro_batch_tokens, which is {room}")
        return longest


class EvalSettings(Settings):
    """The evaluation after training."""

    rows: Count | None = Field(
        default=None,
        description="Test rows of each task at most, chosen at random by mix.seed; null is all of them",
    )
    batch_size: Count = Field(default=32, description="Rows that go through the model at once at most")
    batch_tokens: Count | Literal["auto"] = Field(
        default="auto",
        description="Tokens that go through the model at once at most, padding and answers included; auto is "
        "train.micro_batch_tokens where that is set, else on a GPU what its memory is found to hold, else no limit",
    )
    trust_metric_code: bool = Field(
        default=False, description="Run the Python code of metrics that are modules of your own, as evaluate:PATH"
    )


def _expanded(folder: Path) -> Path:
    return Path(os.path.expanduser(folder))  # noqa: PTH111 (pathlib's raises for an unknown user)


class OutputSettings(Settings):
    """Where the run folder goes."""

    folder: Annotated[Path, AfterValidator(_expanded)] = Field(
        default=Path("runs"), description="Folder of run folders, relative to where the command runs"
    )
    name: FileName | None = Field(default=None, description="Name of the run folder; null is the recipe's file name")


class Recipe(Settings):
    """Everything one run is asked to do."""

    model: ModelSettings = Field(description="The base model")
    method: MethodSettings = Field(description="The adapter method and its settings, told apart by name")
    mix: MixSettings = Field(description="The mixture of tasks: a shipped mix's name, a YAML file or the mix itself")
    train: TrainSettings = Field(description="Length, pace and record of the training")
    remedies: RemediesSettings = Field(
        default_factory=RemediesSettings,
        description="What is done against tasks getting in each other's way; each remedy under its name",
    )
    eval: EvalSettings = Field(
        default_factory=EvalSettings, validate_default=True, description="The evaluation after training"
    )
    output: OutputSettings = Field(default_factory=OutputSettings, description="Where the run folder goes")

    @field_validator("remedies")
    @classmethod
    def _goes_with_the_stop(cls, remedies: RemediesSettings, info: ValidationInfo) -> RemediesSettings:
        stop = info.data["train"].stop if "train" in info.data else "steps"
        changing = [name for name, settings in remedies.chosen.items() if settings.changes_shares]
        if stop != "steps" and changing:
            raise ValueError(
                f"{changing[0]} changes the shares of the tasks, and train.stop: {stop} goes by shares that stay as "
                "they are; set train.steps or train.epochs instead"
            )
        return remedies

    @field_validator("eval")
    @classmethod
    def _trusts_its_metrics(cls, settings: EvalSettings, info: ValidationInfo) -> EvalSettings:
        code = info.data["mix"].code if "mix" in info.data else []
        if code and not settings.trust_metric_code:
            raise ValueError(
                f"a metric is Python code of {code[0]}; if you trust it, set eval.trust_metric_code to true"
            )
        return settings
