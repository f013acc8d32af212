"""One training run, from a checked recipe to a finished run folder."""

from __future__ import annotations

import logging
import platform
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

from peft import PeftModel

from malora_cli.adapters.analysis import analyse_experts
from malora_cli.data.overlap import Overlap
from malora_cli.data.splits import Split
from malora_cli.errors import DivergedError, StoppedError
from malora_cli.modeling import count_parameters, known_commit, save_adapter
from malora_cli.modeling.device import dtype_of
from malora_cli.modeling.memory import forget_peak, peak_bytes
from malora_cli.modeling.reason import first_line
from malora_cli.recipe import LoadedRecipe, Recipe
from malora_cli.results import EvalEvent, Event, Manifest, RunRecord, RunStatus, TaskData, utc_now, write_json
from malora_cli.results.contents import ADAPTER_FILES, seal
from malora_cli.train import checkpoints, processes, sharding
from malora_cli.train.arguments import training_arguments
from malora_cli.train.callbacks import Pace, StopAtStep
from malora_cli.train.folder import held, told_of_the_disk
from malora_cli.train.materials import Materials, gather, prepare_model, seeds
from malora_cli.train.probe import StepCost, measure_longest_step
from malora_cli.train.resuming import check_length, check_place, continued, how_to_go_on, resume_point, run_of
from malora_cli.train.stopping import StopRequest
from malora_cli.train.surroundings import check_surroundings
from malora_cli.train.trainer import MaloraTrainer
from malora_cli.train.view import View

_LOG = logging.getLogger(__name__)
_PACKAGES = ("malora", "torch", "transformers", "peft", "accelerate", "datasets", "tokenizers")


def train(
    loaded: LoadedRecipe,
    view: View,
    *,
    resume: bool = False,
    announce: Callable[[Materials, StepCost | None], None] | None = None,
    measure: bool = True,
) -> RunRecord:
    """Train what a recipe asks for.

    Args:
        loaded: The recipe.
        view: Where progress is shown.
        resume: Go on with the run of this name from its newest checkpoint.
        announce: Told of the data and of what the longest step costs, before a new run begins; None measures no step.
        measure: Whether that step is measured.

    Returns:
        The finished run.

    Raises:
        MaloraError: Something is missing, wrong or in the way.
    """
    record = run_of(loaded, resume=resume)
    check_surroundings(loaded.recipe)
    processes.meet(loaded.recipe.model.device)
    resume = processes.the_writers(processes.writes() and check_place(record, resume=resume))
    loaded = loaded.with_dtype(processes.by_the_writer(lambda: _format(loaded.recipe, record if resume else None)))
    with held(record):
        try:
            _train(loaded, record, view, resume=resume, announce=announce, measure=measure)
        except DivergedError as error:
            if processes.writes() and record.exists:
                with suppress(OSError):  # what is raised says more
                    write_json(record.diverged_path, {"why": str(error)})
            raise
    return record


def _format(recipe: Recipe, before: RunRecord | None) -> str:
    """What ``model.dtype: auto`` comes to: what the run began with, or what it is on this machine."""
    own = None if before is None else (before.recipe.get("model") or {}).get("dtype")
    return dtype_of(recipe.model) if own is None else str(own)


def _train(
    loaded: LoadedRecipe,
    record: RunRecord,
    view: View,
    *,
    resume: bool,
    announce: Callable[[Materials, StepCost | None], None] | None,
    measure: bool,
) -> None:
    recipe, checkpoint, commit = loaded.recipe, None, None
    if resume:
        checkpoint = processes.by_the_writer(lambda: resume_point(record, loaded))
        commit = processes.by_the_writer(lambda: known_commit(record.manifest, recipe.model))
    with processes.one_first():
        materials = gather(recipe, commit=commit)
    if checkpoint is not None:
        check_length(record, checkpoint, materials.mixture.steps)
    model = prepare_model(recipe, materials, checkpoint)
    if recipe.train.shard:
        sharding.shard(model)
    if announce is not None and not resume:
        materials = _announce(announce, recipe, materials, model, measure=measure)
    manifest = processes.by_the_writer(lambda: _manifest(record, recipe, materials, model, resume=resume))
    with told_of_the_disk(record):
        past = _open(record, loaded, manifest, checkpoint)
        trainer = _trainer(record, recipe, manifest, materials, model, view, past=past, checkpoint=checkpoint)
        device = next(model.parameters()).device
        forget_peak(device)
        steps = _go_through(trainer, record, view, past=past, checkpoint=checkpoint)
        took = {"train_seconds": trainer.seconds, "peak_bytes": peak_bytes(device)}
        done = {"status": RunStatus.FINISHED, "steps": steps, **took}
        _close(record, model, manifest.model_copy(update=done))


def _announce(
    announce: Callable[[Materials, StepCost | None], None],
    recipe: Recipe,
    materials: Materials,
    model: PeftModel,
    *,
    measure: bool,
) -> Materials:
    """Tell of the data and of the longest step; gives back the materials, with micro-batches that fit into memory."""
    cost = measure_longest_step(model, materials.mixture, materials.packer, recipe.train) if measure else None
    if processes.writes():
        announce(materials, cost)
    return materials if cost is None else replace(materials, packer=cost.packer)


def _open(record: RunRecord, loaded: LoadedRecipe, manifest: Manifest, checkpoint: Path | None) -> list[Event]:
    """Write down what the run is, and leave of its log what was before the checkpoint; gives back these events."""
    if processes.writes():
        try:
            record.write_recipe(loaded.to_yaml())
            record.write_manifest(manifest)
        except BaseException:  # a full disk, or Ctrl-C: a recipe without a manifest would be in the way of the next try
            if not record.exists:
                record.recipe_path.unlink(missing_ok=True)
            raise
        _rewind(record, checkpoints.step_of(checkpoint) if checkpoint else -1)
    return processes.by_the_writer(lambda: list(record.metrics))


def _rewind(record: RunRecord, step: int) -> None:
    record.metrics.rewind(step)
    last = max((event.step for event in record.metrics), default=0)
    if last < step:  # every checkpoint was a log step
        warnings.warn(
            f"{record.metrics.path}: what was measured from step {last:,} to the checkpoint of step {step:,} is lost",
            stacklevel=2,
        )


def _trainer(
    record: RunRecord,
    recipe: Recipe,
    manifest: Manifest,
    materials: Materials,
    model: PeftModel,
    view: View,
    *,
    past: Sequence[Event],
    checkpoint: Path | None,
) -> MaloraTrainer:
    def report(event: Event) -> None:
        if processes.writes():
            record.metrics.append(event)
            view.show(event)

    evals = [event for event in past if isinstance(event, EvalEvent)]
    return MaloraTrainer(
        model,
        training_arguments(recipe, record, materials.mixture.steps, resumed=checkpoint is not None),
        mixture=materials.mixture,
        tasks=materials.tasks,
        packer=materials.packer,
        remedies=recipe.remedies,
        pace=Pace(recipe.train, record.trouble_dir, report, view.tick, view.evaluating, evals),
        run_id=manifest.run_id,
        checkpoint=checkpoint,
    )


def _go_through(
    trainer: MaloraTrainer, record: RunRecord, view: View, *, past: Sequence[Event], checkpoint: Path | None
) -> int:
    """Train to the end; gives back the steps that are done.

    Raises:
        StoppedError: It was told to stop before.
    """
    mixture = trainer.mixture
    _LOG.info("training")
    with StopRequest() as stop, view.running(mixture.steps, mixture.share, past):
        trainer.add_callback(StopAtStep(stop))
        if not trainer.adaptation.over:  # where it is, a run was resumed of which only the end was not written
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step or (checkpoints.step_of(checkpoint) if checkpoint else 0)
    if stop.signal is not None and steps < mixture.steps and not trainer.adaptation.over:
        raise StoppedError(f"saved at step {steps:,}; {how_to_go_on(record)}", stop.signal)
    return steps


def _close(record: RunRecord, model: PeftModel, manifest: Manifest) -> None:
    """Write the adapter, what its experts have in common, and that the run is finished, in this order."""
    weights = sharding.adapter_weights(model)
    if not processes.writes():
        return
    save_adapter(model, record.adapter_dir, weights)
    sealed = {"adapter_sha256": seal(record.adapter_dir, ADAPTER_FILES)}
    _LOG.info("comparing the experts")
    try:
        if (geometry := analyse_experts(model, weights)) is not None:
            geometry.save(record.experts_path)
    except (RuntimeError, MemoryError, ValueError) as error:  # no reason for a run that is trained not to be finished
        warnings.warn(f"what the experts have in common cannot be told ({first_line(error)})", stacklevel=2)
    record.write_manifest(manifest.model_copy(update=sealed))


def _manifest(record: RunRecord, recipe: Recipe, materials: Materials, model: PeftModel, *, resume: bool) -> Manifest:
    """What the run is; that of a resumed one is checked against what it was."""

    def data(split: Split, overlap: Overlap | None = None) -> TaskData:
        return TaskData(
            source=split.source,
            rows=len(split),
            sha256=split.sha256,
            read=split.read,
            cut=split.cut,
            unused=split.unused,
            remarks=list(split.remarks),
            also_trained=overlap.exact if overlap else None,
            shares_words=overlap.runs if overlap else None,
        )

    count = count_parameters(model)
    manifest = Manifest(
        run_id=uuid4().hex,
        status=RunStatus.RUNNING,
        folder=str(record.path.resolve()),
        created=utc_now(),
        steps=0,
        method=recipe.method.name,
        base_model=recipe.model.base,
        # All weights are read for it, so one process does; the machine remembers.
        base_model_sha256=materials.base.sha256(),
        base_model_commit=materials.base.commit,
        dtype=recipe.model.dtype,
        trainable_parameters=count.trainable,
        base_parameters=count.base,
        seeds=seeds(recipe.train),
        versions={"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        train_data={task.name: data(task.train) for task in materials.tasks},
        validation_data={task.name: data(task.validation) for task in materials.tasks if len(task.validation)},
        test_data={task.name: data(task.test, task.overlap) for task in materials.tasks},
        remedies={name: remedy.sentence() for name, remedy in recipe.remedies.chosen.items()},
        domains={task.name: task.settings.domain for task in materials.tasks},
        task_share=materials.mixture.share,
    )
    return continued(record, manifest) if resume else manifest
