"""The recipe: what a run is asked to do. Defaults are the MALoRA paper's where it gives one (arXiv 2410.22782).

The sections are checked here and nowhere else. ``Recipe`` leaves the method open; ``recipe_type`` closes it over
the methods there are.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from malora_cli.recipe.settings import Count, FileName, MethodSettings, Name, Settings, Text
from malora_cli.registry import did_you_mean


class ModelSettings(Settings):
    """The base model, which stays frozen."""

    base: Text = Field(description="Base model: a known short name, a hub id, a folder or a GGUF file")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub model; null is its newest")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="Number format of the frozen weights"
    )
    attention: Literal["sdpa", "eager", "flash_attention_2", "flash_attention_3", "flex_attention"] = Field(
        default="sdpa", description="Attention implementation, by its name in transformers"
    )
    trust_remote_code: bool = Field(default=False, description="Run Python code that comes with a hub model")


class SourceSettings(Settings):
    """Where rows come from. In a recipe, plain text stands for ``path`` alone."""

    path: Text = Field(description="File, folder or hub id; a file or folder is relative to the file that names it")
    config: Text | None = Field(default=None, description="Configuration (subset) of a hub dataset")
    split: Text | None = Field(default=None, description="Split of a hub dataset or a folder; null is the usual one")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub dataset")


class TaskSettings(Settings):
    """One task: its rows, how they become text, and how answers are scored."""

    domain: Text = Field(description="Domain whose average this task counts towards")
    train: SourceSettings = Field(description="Rows to train on")
    test: SourceSettings = Field(description="Held-out rows to evaluate on")
    columns: dict[Text, Text] = Field(
        default_factory=dict,
        description="Column of the data for each role of the format; a role left out is a column of the same name",
    )
    format: Text = Field(description="Prompt format")
    metric: Text = Field(description="Metric of the answers")
    system: str | None = Field(
        default=None, description="System prompt; empty text is an empty one, null takes the mix's"
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Share of the training rows relative to other tasks; only with explicit weighting"
    )
    max_new_tokens: Count = Field(default=64, description="Longest answer to generate, in tokens")

    @field_validator("format", "metric")
    @classmethod
    def _known(cls, value: str, info: ValidationInfo) -> str:
        vocabulary = (info.context or {}).get("vocabulary")
        if vocabulary is not None:
            known = vocabulary.formats if info.field_name == "format" else vocabulary.metrics
            if value not in known:
                raise ValueError(f"no such {info.field_name}; {did_you_mean(value, known)}")
        return value


class MixSettings(Settings):
    """The tasks and how often each is drawn."""

    description: str | None = Field(default=None, description="What this mix is for, in one line")
    weighting: Literal["proportional", "uniform", "explicit"] = Field(
        default="uniform",
        description="How often tasks are drawn: by their rows, equally, or by the weight each task then has",
    )
    system: str | None = Field(
        default=None, description="System prompt of tasks without their own; null is the chat template's default"
    )
    tasks: dict[Name, TaskSettings] = Field(min_length=1, description="Every task under its name")

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        seen: dict[str, str] = {}
        for name in tasks:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"'{other}' and '{name}' are one file name where case does not count; rename one")
        return tasks

    @field_validator("tasks")
    @classmethod
    def _weighted(cls, tasks: dict[str, TaskSettings], info: ValidationInfo) -> dict[str, TaskSettings]:
        explicit = info.data.get("weighting") == "explicit"
        wrong = ", ".join(f"'{name}'" for name, task in tasks.items() if (task.weight is None) == explicit)
        if wrong and explicit:
            raise ValueError(f"explicit weighting needs a weight for every task; missing for {wrong}")
        if wrong and "weighting" in info.data:
            weighting = info.data["weighting"]
            raise ValueError(f"weights go with 'weighting: explicit', not '{weighting}'; given for {wrong}")
        return tasks


def _whole_batch(data: dict[str, Any]) -> int:
    return int(data["batch_size"])


class TrainSettings(Settings):
    """Length, pace and record of the training."""

    steps: Count | None = Field(default=None, description="Optimiser steps to train; this or epochs")
    epochs: Annotated[float, Field(gt=0)] | None = Field(
        default=None, validate_default=True, description="Passes over the training rows; this or steps"
    )
    batch_size: Count = Field(default=16, description="Rows of one optimiser step, over all processes")
    micro_batch_size: Count = Field(
        default_factory=_whole_batch,
        description="Rows that go through the model at once; divides batch_size, which is also its default",
    )
    learning_rate: float = Field(default=5e-4, gt=0, description="Highest learning rate of AdamW")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="Course of the learning rate after the warm-up"
    )
    warmup_ratio: float = Field(default=0.1, ge=0, le=1, description="Share of the steps in which it rises from zero")
    weight_decay: float = Field(default=0.01, ge=0, description="Weight decay of AdamW")
    max_grad_norm: float = Field(default=1.0, ge=0, description="Norm that gradients are clipped to; 0 does not clip")
    max_length: Count = Field(default=1024, description="Longest row in tokens, prompt and answer together")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seed of initialisation, data order and dropout")
    log_every: Count = Field(default=5, description="Steps from one logged step to the next")
    eval_every: Count = Field(default=50, description="Steps from one held-out loss of every task to the next")
    eval_rows: Count = Field(default=16, description="Held-out rows of each task for that loss")
    checkpoint_every: Count = Field(default=50, description="Steps from one checkpoint to the next")
    keep_checkpoints: Count = Field(default=2, description="Newest checkpoints to keep")
    gradient_checkpointing: bool = Field(default=False, description="Less memory for about a third more time")
    report_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        default=(), description="Trackers that receive the metrics besides the run folder"
    )

    @field_validator("epochs")
    @classmethod
    def _one_length(cls, epochs: float | None, info: ValidationInfo) -> float | None:
        # A step count that is wrong itself is not in `data`; it is reported on its own line.
        if "steps" in info.data and (info.data["steps"] is None) == (epochs is None):
            have = "neither is" if epochs is None else f"steps is {info.data['steps']} too"
            unset = "" if epochs is None else "; null unsets one"
            raise ValueError(f"exactly one of steps and epochs must be set, and {have}{unset}")
        return epochs

    @field_validator("micro_batch_size")
    @classmethod
    def _divides(cls, micro: int, info: ValidationInfo) -> int:
        batch = info.data.get("batch_size")
        if batch is not None and batch % micro:
            raise ValueError(f"must divide batch_size, which is {batch}")
        return micro


class EvalSettings(Settings):
    """The evaluation after training."""

    rows: Count | None = Field(default=None, description="Held-out rows of each task at most; null is all of them")
    batch_size: Count = Field(default=32, description="Rows that go through the model at once")


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
    eval: EvalSettings = Field(default_factory=EvalSettings, description="The evaluation after training")
    output: OutputSettings = Field(default_factory=OutputSettings, description="Where the run folder goes")
