"""What a run stands on, all of it decided by its recipe: the base model, the rows in their order, a fresh adapter."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.mixture import Mixture, lay_out
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import RecipeError
from malora_cli.modeling import (
    BaseModel,
    load_adapter,
    load_base,
    load_config,
    load_tokenizer,
    resolve_base,
    wrap,
)
from malora_cli.modeling.device import slow_format
from malora_cli.modeling.positions import check_positions, check_rows
from malora_cli.recipe import Recipe, TrainSettings

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Materials:
    """What a run needs besides the model's weights."""

    base: BaseModel
    tokenizer: PreTrainedTokenizerBase
    tasks: list[Task]
    mixture: Mixture
    packer: Packer


def gather(recipe: Recipe, *, commit: str | None = None) -> Materials:
    """Find the base model, read the data and lay out the order of the rows.

    Args:
        recipe: What is asked for.
        commit: As in `resolve_base`.

    Raises:
        MaloraError: Something is not there or is wrong; nothing has been written then.
    """
    if (slow := slow_format(recipe.model)) is not None:
        warnings.warn(slow, stacklevel=2)
    base = resolve_base(recipe.model, commit=commit)
    check_positions(load_config(base, recipe.model), recipe.train.max_length)
    tokenizer = load_tokenizer(base, recipe.model)
    encoder = Encoder(tokenizer)
    if not encoder.stop_ids:
        warnings.warn(
            "the tokenizer has no end token (eos_token), and the chat template ends no turn with one: answers are "
            "trained without an end, so that the model goes on until max_new_tokens",
            stacklevel=2,
        )
    _LOG.info("reading the data")
    tasks = load_tasks(recipe.mix, encoder, max_length=recipe.train.max_length)
    _check_choices(recipe, tasks)
    packer = Packer(recipe.train.micro_batch_size, recipe.train.micro_batch_tokens)
    return Materials(base, tokenizer, tasks, lay_out(tasks, recipe.mix, recipe.train), packer)


def _check_choices(recipe: Recipe, tasks: Sequence[Task]) -> None:
    """Make sure that there are validation rows of every task where something is chosen by them."""
    lacking = [f"'{task.name}'" for task in tasks if not len(task.validation)]
    settings = [setting for setting in ("keep_best", "keep_best_of_tasks") if getattr(recipe.train, setting)]
    remedies = [name for name, remedy in recipe.remedies.chosen.items() if remedy.goes_by_evaluations]
    choosing = [*(f"train.{setting}" for setting in settings), *(f"remedies.{name}" for name in remedies)]
    if lacking and choosing:
        raise RecipeError(
            f"goes by the loss on validation rows, and there are none of {', '.join(lacking)}",
            where=choosing[0],
            fix="Set mix.validation, or name such rows as the task's `validation`."
            if recipe.mix.validation is None
            else "Name rows as the task's `validation`: it has too few to train on to spare any.",
        )


def prepare_model(recipe: Recipe, materials: Materials, checkpoint: Path | None = None) -> PeftModel:
    """The base model with a fresh adapter, the same for every run of the recipe's seed, or with a checkpoint's."""
    _LOG.info("loading %s", materials.base.name)
    base, method = load_base(materials.base, recipe.model), cast(AdapterSettings, recipe.method)
    # Test rows count by their length alone.
    check_rows(
        base,
        max(split.longest for task in materials.tasks for _, split in task.splits),
    )
    if checkpoint is not None:  # whose adapter needs no initial values, the slow part of wrapping
        return load_adapter(base, checkpoint, method, trainable=True)
    _LOG.info("adding the adapter")
    set_seed(seeds(recipe.train)["init"])
    return wrap(base, method)


def seeds(train: TrainSettings) -> dict[str, int]:
    """What each part of a run draws by; those without a seed of their own take that of the data order."""
    return {
        "train": train.seed,
        "init": train.seed if train.init_seed is None else train.init_seed,
        "dropout": train.seed if train.dropout_seed is None else train.dropout_seed,
    }
