"""One training run, from a checked recipe to a finished run folder."""

from __future__ import annotations

import itertools
import math
import os
import platform
import shlex
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from malora_cli.adapters.analysis import analyse_experts
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.data.batch import Packer
from malora_cli.data.encoding import Encoder
from malora_cli.data.mixture import Mixture, lay_out
from malora_cli.data.splits import Split
from malora_cli.data.tasks import Task, load_tasks
from malora_cli.errors import RunError, StoppedError
from malora_cli.modeling import BaseModel, count_parameters, load_adapter, load_base, load_tokenizer, resolve_base, wrap
from malora_cli.recipe import LoadedRecipe, Recipe
from malora_cli.recipe.problems import show
from malora_cli.results import EvalEvent, Event, Manifest, RunRecord, RunStatus, TaskData, utc_now
from malora_cli.train import checkpoints, processes, sharding
from malora_cli.train.callbacks import Pace, StopAtStep
from malora_cli.train.probe import StepCost, measure_longest_step
from malora_cli.train.stopping import StopRequest
from malora_cli.train.surroundings import check_surroundings
from malora_cli.train.trainer import MaloraTrainer
from malora_cli.train.view import View

#: Settings of ``train`` that say how a run is watched, not what is learned.
WATCHING = frozenset(
    {
        "log_every",
        "eval_every",
        "eval_rows",
        "conflict_rows",
        "conflict_every",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
        "keep_best_of_tasks",
        "report_to",
        "not_finite",
        "max_skipped",
    }
)
#: What of these is learned by after all where tasks stop by their held-out loss.
_WATCHED = frozenset(("eval_every", "eval_rows"))
#: What a resumed run may change besides: how long it is, and with that the course of its learning rate.
_LENGTH = frozenset(("steps", "epochs"))
_PACKAGES = ("malora", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


@dataclass(frozen=True)
class Materials:
    """What a run needs besides the model's weights."""

    base: BaseModel
    tokenizer: PreTrainedTokenizerBase
    tasks: list[Task]
    mixture: Mixture
    packer: Packer


def gather(recipe: Recipe) -> Materials:
    """Find the base model, read the data and lay out the order of the rows.

    Raises:
        MaloraError: Something is not there or is wrong; nothing has been written then.
    """
    base = resolve_base(recipe.model)
    tokenizer = load_tokenizer(base, recipe.model)
    tasks = load_tasks(recipe.mix, Encoder(tokenizer), max_length=recipe.train.max_length)
    packer = Packer(recipe.train.micro_batch_size, recipe.train.micro_batch_tokens)
    return Materials(base, tokenizer, tasks, lay_out(tasks, recipe.mix, recipe.train), packer)


def prepare_model(recipe: Recipe, materials: Materials, checkpoint: Path | None = None) -> PeftModel:
    """The base model with a fresh adapter, the same for every run of the recipe's seed, or with a checkpoint's."""
    base, method = load_base(materials.base, recipe.model), cast(AdapterSettings, recipe.method)
    if checkpoint is not None:  # whose adapter needs no initial values, the slow part of wrapping
        return load_adapter(base, checkpoint, trained=method)
    set_seed(_first(recipe.train.init_seed, recipe.train.seed))
    return wrap(base, method)


def _first(given: int | None, otherwise: int) -> int:
    return otherwise if given is None else given


def train(
    loaded: LoadedRecipe,
    view: View,
    *,
    resume: bool = False,
    announce: Callable[[Materials, StepCost], None] | None = None,
) -> RunRecord:
    """Train what a recipe asks for.

    Args:
        loaded: The recipe.
        view: Where progress is shown.
        resume: Go on with the run of this name from its newest checkpoint.
        announce: Told of the data and of what the longest step costs, before a new run begins; None measures no step.

    Returns:
        The finished run.

    Raises:
        MaloraError: Something is missing, wrong or in the way.
    """
    recipe = loaded.recipe
    record = RunRecord(recipe.output.folder / loaded.name)
    check_surroundings(recipe)
    processes.meet()
    if not resume and processes.writes():
        _check_free(record)
    checkpoint = processes.the_writers(_resume_point(record, loaded) if resume and processes.writes() else None)
    with processes.one_first():
        materials = gather(recipe)
    model = prepare_model(recipe, materials, checkpoint)
    if recipe.train.shard:
        sharding.shard(model)
    if announce is not None and not resume:
        cost = measure_longest_step(model, materials.mixture, materials.packer, recipe.train)
        if processes.writes():
            announce(materials, cost)
    manifest = _manifest(recipe, materials, model)
    if resume:
        manifest = _continued(record, manifest)
    arguments = _arguments(recipe, record, materials.mixture.steps, resumed=checkpoint is not None)
    if processes.writes():
        try:
            record.write_recipe(loaded.to_yaml())
            record.write_manifest(manifest)
        except OSError as error:
            raise _unwritable(record.path, error) from error
        record.metrics.rewind(checkpoints.step_of(checkpoint) if checkpoint else -1)

    def report(event: Event) -> None:
        if processes.writes():
            record.metrics.append(event)
            view.show(event)

    past = processes.the_writers(list(record.metrics) if resume and processes.writes() else [])
    evals = [event for event in past if isinstance(event, EvalEvent)]
    pace = Pace(recipe.train, record.path / "trouble", report, view.tick, evals)
    trainer = MaloraTrainer(
        model,
        arguments,
        mixture=materials.mixture,
        tasks=materials.tasks,
        packer=materials.packer,
        pace=pace,
        checkpoint=checkpoint,
    )
    with StopRequest() as stop, view.running(materials.mixture.steps, materials.mixture.share, past):
        trainer.add_callback(StopAtStep(stop))
        if not trainer.adaptation.over:  # where it is, a run was resumed of which only the end was not written
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step or (checkpoints.step_of(checkpoint) if checkpoint else 0)
    if stop.signal is not None and steps < materials.mixture.steps and not trainer.adaptation.over:
        raise StoppedError(f"saved at step {steps:,}; {how_to_go_on(record)}", stop.signal)
    weights = sharding.adapter_weights(model)
    if not processes.writes():
        return record
    model.save_pretrained(record.adapter_dir, state_dict=weights)
    if weights is not None:  # the analysis wants them in one piece
        model = load_adapter(load_base(materials.base, recipe.model), record.adapter_dir)
    if (geometry := analyse_experts(model)) is not None:
        geometry.save(record.experts_path)
    done = {"status": RunStatus.FINISHED, "steps": steps, "train_seconds": trainer.seconds}
    record.write_manifest(manifest.model_copy(update=done))
    return record


def how_to_go_on(record: RunRecord) -> str:
    """The command that resumes a run, to stand at the end of a message."""
    again = shlex.join(["malora", "train", str(record.recipe_path), "--resume"])
    return f"go on from the newest checkpoint with: {again}"


def _check_free(record: RunRecord) -> None:
    """Make sure that the run's folder is free and can be made, before anything slow happens."""
    if record.path.exists():
        taken = (record.path.with_name(f"{record.name}-{number}") for number in itertools.count(2))
        rename = f"take another name: output.name={next(path.name for path in taken if not path.exists())}"
        if record.exists:
            raise RunError(
                "this run folder exists already, and runs are never overwritten",
                where=str(record.path),
                fix=f"Go on with it by --resume, or {rename}",
            )
        raise RunError("something else lies here", where=str(record.path), fix=f"Remove it, or {rename}")
    parent = next(path for path in [record.path.parent, *record.path.parent.absolute().parents] if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise _unwritable(record.path, PermissionError(f"{parent} is not writable"))


def _unwritable(path: Path, error: OSError) -> RunError:
    return RunError(f"the run folder cannot be written ({error})", where=str(path), fix="Set output.folder to another.")


def _resume_point(record: RunRecord, loaded: LoadedRecipe) -> Path | None:
    """The newest checkpoint of the run that a recipe goes on with; None to begin anew when there is none yet."""
    if not record.exists:
        remove = "Remove what lies there, and leave" if record.path.exists() else "Leave"
        raise RunError("there is no run to resume", where=str(record.path), fix=f"{remove} --resume out to start it.")
    if record.finished:
        raise RunError("this run is finished", where=str(record.path), fix=f"Evaluate it: malora eval {record.path}")
    may_change = WATCHING | _LENGTH
    if loaded.recipe.train.patience is not None:
        may_change -= _WATCHED
    check_same_recipe(record, loaded, may_change=may_change)
    checkpoint = checkpoints.newest_intact(record.checkpoints_dir)
    if checkpoint is not None and checkpoints.processes_of(checkpoint) != processes.world_size():
        raise RunError(
            f"the run was trained in {checkpoints.processes_of(checkpoint)} processes, and these are "
            f"{processes.world_size()}",
            where=str(record.path),
            fix="Resume it in as many.",
        )
    return checkpoint


def _continued(record: RunRecord, manifest: Manifest) -> Manifest:
    """The manifest of a run that goes on, which must stand on the rows and the base model that it began with."""
    before = record.manifest
    changed = [
        *(f"the training rows of '{name}'" for name in _changed(before.train_data, manifest.train_data)),
        *(f"the test rows of '{name}'" for name in _changed(before.test_data, manifest.test_data)),
        *(["the base model"] if before.base_model_sha256 != manifest.base_model_sha256 else []),
    ]
    if changed:
        raise RunError(
            f"no longer what this run began with: {', '.join(changed)}",
            where=str(record.path),
            fix="Undo that, or start another run: output.name=NAME.",
        )
    return manifest.model_copy(update={"created": before.created})


def _changed(before: dict[str, TaskData], now: dict[str, TaskData]) -> list[str]:
    return [name for name in now if now[name].sha256 != before[name].sha256]


def check_same_recipe(record: RunRecord, loaded: LoadedRecipe, *, may_change: Collection[str] = WATCHING) -> None:
    """Make sure that a run is what a recipe asks for, as far as what is learned goes.

    Args:
        record: The run.
        loaded: The recipe.
        may_change: Settings of ``train`` that may differ; those of ``eval`` and ``output`` always may.

    Raises:
        RunError: It differs; every setting is named with both values.
    """
    allowed = {f"train.{setting}" for setting in may_change}
    changed = [
        f"{path} (was {show(before)}, is {show(now)})"
        for path, before, now in _differences(record.recipe, loaded.recipe.model_dump(mode="json"))
        if path not in allowed and not path.startswith(("eval.", "output."))
    ]
    if changed:
        raise RunError(
            f"the recipe differs from the run's own in {', '.join(sorted(changed))}",
            where=str(record.recipe_path),
            fix="Undo that, or start another run: output.name=NAME.",
        )


def _differences(old: Any, new: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old.keys() | new.keys():
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))
    elif old != new:
        yield path, old, new


def _arguments(recipe: Recipe, record: RunRecord, steps: int, *, resumed: bool) -> TrainingArguments:
    train = recipe.train
    cuda, cpu = torch.cuda.is_available(), not torch.accelerator.is_available()
    arguments = TrainingArguments(
        output_dir=str(record.checkpoints_dir),
        run_name=record.name,
        max_steps=steps,
        # The trainer itself parts it into micro-batches.
        per_device_train_batch_size=train.batch_size // processes.world_size(),
        ddp_find_unused_parameters=False,
        per_device_eval_batch_size=train.micro_batch_size,
        learning_rate=train.learning_rate,
        lr_scheduler_type={"constant": "constant_with_warmup"}.get(train.schedule, train.schedule),
        warmup_steps=math.ceil(train.warmup_ratio * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        # The trainer sets it when it is made; of what comes then only dropout draws. Each process has its own.
        seed=_first(train.dropout_seed, train.seed) + processes.rank(),
        use_cpu=cpu,
        bf16=recipe.model.dtype == "bfloat16" and (cpu or (cuda and torch.cuda.is_bf16_supported())),
        fp16=recipe.model.dtype == "float16" and cuda,
        gradient_checkpointing=train.gradient_checkpointing,
        logging_steps=train.log_every,
        eval_strategy="steps",
        eval_steps=train.eval_every,
        eval_on_start=not resumed,
        save_strategy="steps",
        save_steps=train.checkpoint_every,
        report_to=list(train.report_to),
        remove_unused_columns=False,
        dataloader_pin_memory=cuda,
        disable_tqdm=True,
        logging_nan_inf_filter=False,
    )
    # One process takes one device: DataParallel would cut the single row of a batch apart.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _manifest(recipe: Recipe, materials: Materials, model: PeftModel) -> Manifest:
    def data(split: Split) -> TaskData:
        return TaskData(
            source=split.source,
            rows=len(split),
            sha256=split.sha256,
            read=split.read,
            cut=split.cut,
            unused=split.unused,
        )

    count = count_parameters(model)
    return Manifest(
        status=RunStatus.RUNNING,
        created=utc_now(),
        steps=0,
        method=recipe.method.name,
        base_model=recipe.model.base,
        base_model_sha256=materials.base.sha256(),
        trainable_parameters=count.trainable,
        base_parameters=count.base,
        seeds={
            "train": recipe.train.seed,
            "init": _first(recipe.train.init_seed, recipe.train.seed),
            "dropout": _first(recipe.train.dropout_seed, recipe.train.seed),
        },
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        train_data={task.name: data(task.train) for task in materials.tasks},
        test_data={task.name: data(task.test) for task in materials.tasks},
        domains={task.name: task.settings.domain for task in materials.tasks},
        task_share=materials.mixture.share,
    )
