"""The run folder: where everything of one run lies, and what it says about itself.

RUN/recipe.yaml      the recipe with every value resolved
RUN/manifest.json    versions, seeds, hashes of data and base model, status
RUN/metrics.jsonl    every log step and evaluation (see metrics.py)
RUN/checkpoints/     step-000100/ ...: what a killed run resumes from
RUN/adapter/         the trained adapter in PEFT's format
RUN/experts.json     what the trained experts have in common, for routed methods
RUN/eval/            one JSON an evaluation, and the predictions behind it
RUN/report/          index.html
RUN/tensorboard/     what TensorBoard reads, with ``train.report_to: [tensorboard]``
RUN/trouble/         the rows of steps with a NaN or infinite loss or gradient
RUN/diverged.json    why training ended, where it did in such a step or weight
RUN/.lock            held by the process that writes the run, beside .writer.json that names it (see lock.py)
"""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

import yaml

from malora_cli.errors import RunError
from malora_cli.places import follow
from malora_cli.registry import nearest
from malora_cli.results.contents import ADAPTER_FILES, checkpoint_damage, difference
from malora_cli.results.evaluation import EvalResult
from malora_cli.results.files import damaged, is_scratch, read_json, shown, write_json, write_text
from malora_cli.results.manifest import Manifest, RunStatus
from malora_cli.results.metrics import MetricsLog
from malora_cli.yaml_lines import Origin, read_text, read_yaml

_CHECKPOINT = re.compile(r"step-([0-9]+)")


def checkpoint_name(step: int) -> str:
    """Name of the folder of a step's checkpoint."""
    return f"step-{step:07d}"


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of every checkpoint, oldest first."""
    found = ((_CHECKPOINT.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir())
    return sorted((int(match[1]), path) for match, path in found if match)


def utc_now() -> str:
    """The time now, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunRecord:
    """One run folder, read lazily.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = Path(os.path.abspath(path)).name  # noqa: PTH100 - "." and ".." have one as well
        self.metrics = MetricsLog(path / "metrics.jsonl")

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    @property
    def manifest_path(self) -> Path:
        """What the run says about itself."""
        return self.path / "manifest.json"

    @property
    def checkpoints_dir(self) -> Path:
        """Where checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def adapter_dir(self) -> Path:
        """The trained adapter in PEFT's format."""
        return self.path / "adapter"

    @property
    def experts_path(self) -> Path:
        """The analysis of the trained experts, see `ExpertGeometry`."""
        return self.path / "experts.json"

    @property
    def eval_dir(self) -> Path:
        """Where evaluations lie."""
        return self.path / "eval"

    @property
    def report_path(self) -> Path:
        """The report page."""
        return self.path / "report" / "index.html"

    @property
    def trouble_dir(self) -> Path:
        """Where the rows of steps that went wrong lie."""
        return self.path / "trouble"

    @property
    def diverged_path(self) -> Path:
        """Says that training ended in a NaN or infinite loss, gradient or weight, and how."""
        return self.path / "diverged.json"

    @property
    def lock_path(self) -> Path:
        """What the process that writes the run has locked."""
        return self.path / ".lock"

    @property
    def writer_path(self) -> Path:
        """Which process that is."""
        return self.path / ".writer.json"

    @property
    def exists(self) -> bool:
        """Whether the folder holds a run that got as far as its manifest."""
        return self.manifest_path.is_file()

    @property
    def free(self) -> bool:
        """Whether nothing lies here, or only what a run leaves that was killed before it wrote its manifest."""
        if not self.path.exists():
            return True
        if not self.path.is_dir():
            return False
        found = {path.name for path in self.path.iterdir() if not is_scratch(path)}
        ours = {self.lock_path.name, self.writer_path.name}
        if self.writer_path.name in found:  # which no recipe has beside it that somebody keeps here
            ours.add(self.recipe_path.name)
        return found <= ours

    def free_name(self) -> str:
        """The nearest name of a run that is not taken here."""
        names = (f"{self.name}-{number}" for number in itertools.count(2))
        place = Path(os.path.abspath(self.path)).parent  # noqa: PTH100
        return next(name for name in names if not (place / name).exists())

    @property
    def manifest(self) -> Manifest:
        """What the run says about itself.

        Raises:
            RunError: There is no manifest, or it cannot be read.
        """
        path = self.manifest_path
        if not path.is_file():
            raise RunError(
                "not a run folder (manifest.json is missing)",
                where=str(self.path),
                fix="Name a folder that `malora train` made.",
            )
        try:
            return Manifest.model_validate(read_json(path))
        except (ValueError, OSError) as error:
            raise damaged(path, "manifest", error) from error

    @property
    def was_at(self) -> Path | None:
        """Where the run lay when it was trained; None where it does not say.

        Raises:
            RunError: The manifest cannot be read.
        """
        folder = self.manifest.folder if self.exists else None
        return None if folder is None else Path(folder)

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest atomically."""
        write_json(self.manifest_path, manifest.model_dump(mode="json"))

    @property
    def recipe(self) -> dict[str, Any]:
        """The resolved recipe as plain data, with paths as they are now that the run may have been moved.

        Raises:
            RunError: It is not there or damaged.
        """
        path = self.recipe_path
        try:
            document = read_yaml(read_text(path), lambda line: Origin(f"line {line}", path.parent))
            if document.problems or not isinstance(document.data, dict):
                raise ValueError("; ".join(map(str, document.problems)) or "it is not a mapping")
            for section, settings in document.data.items():
                if not isinstance(settings, dict):
                    raise ValueError(f"{section}: not a mapping, got {shown(settings)}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise damaged(path, "recipe", error) from error
        if (was := self.was_at) is not None:
            follow(document.data, was, self.path.resolve())
        return document.data

    @property
    def knows_validation(self) -> bool:
        """Whether its recipe says what is kept for validation; older versions measured test rows while training."""
        try:
            return "validation" in self.recipe.get("mix", {})
        except RunError:  # which is told by whoever goes by the recipe
            return True

    def write_recipe(self, text: str) -> None:
        """Write the resolved recipe, as YAML."""
        write_text(self.recipe_path, text)

    @property
    def finished(self) -> bool:
        """Whether training came to its end and the adapter was saved."""
        return self.exists and self.manifest.status is RunStatus.FINISHED

    @property
    def is_light(self) -> bool:
        """Whether it is finished and its weights were left behind, as in a repository; what was measured still counts.

        Such a run cannot be evaluated or exported.
        """
        return self.finished and not self.adapter_dir.exists()

    def require_finished(self) -> None:
        """Make sure that there is an adapter.

        Raises:
            RunError: There is none yet.
        """
        if not self.finished:
            raise RunError(
                "this run is not finished, so it has no adapter yet",
                where=str(self.path),
                fix=f"Go on with it: malora train {quote(str(self.recipe_path))} --resume",
            )

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint of a step lies, if there is one."""
        return self.checkpoints_dir / checkpoint_name(step)

    def adapter_at(self, step: int | None) -> Path:
        """The adapter after a step for which there is a checkpoint; None is the finished one.

        Its files are those that training wrote: run folders are passed on, and files of them damaged or replaced.

        Raises:
            RunError: There is none, or it is not what was written.
        """
        if step is None:
            self.require_finished()
            self._require_intact(self.adapter_dir, self._adapter_damage())
            return self.adapter_dir
        if not self.checkpoint(step).is_dir():
            steps = [step for step, _ in checkpoints_in(self.checkpoints_dir)]
            raise RunError(
                f"checkpoint of step {step} not found",
                where=str(self.path),
                fix=f"There are checkpoints of steps {', '.join(map(str, steps))}." if steps else "There are none.",
            )
        self._require_intact(self.checkpoint(step), checkpoint_damage(self.checkpoint(step), step, ADAPTER_FILES))
        return self.checkpoint(step)

    def _adapter_damage(self) -> str | None:
        known = self.manifest.adapter_sha256
        if known is None:
            warnings.warn(
                f"{self.path}: the manifest is of an older version, which noted no hash of the adapter; whether these "
                "are the weights that were trained is not known",
                stacklevel=3,
            )
            return None
        return difference(self.adapter_dir, known, ADAPTER_FILES)

    def _require_intact(self, folder: Path, damage: str | None) -> None:
        if damage is not None:
            fix = "Copy the run again from where it came from, or train it again."
            raise RunError(f"the adapter is damaged ({damage})", where=str(folder), fix=fix)

    def evaluations(self) -> list[EvalResult]:
        """Every evaluation of this run, oldest first.

        Raises:
            RunError: One of them is damaged.
        """
        return list(self.evaluations_by_file().values())

    def evaluations_by_file(self) -> dict[Path, EvalResult]:
        """The same under the file of each, beside which lie the predictions behind it.

        Raises:
            RunError: One of them is damaged.
        """
        found = [(path, EvalResult.load(path)) for path in sorted(self.eval_dir.glob("*.json"))]
        return dict(sorted(found, key=lambda item: item[1].created))

    def evaluations_of_the_end(self) -> list[EvalResult]:
        """Those of the finished adapter, not of a checkpoint before it, on its test rows; oldest first.

        Raises:
            RunError: One of them is damaged.
        """
        steps = self.manifest.steps
        return [result for result in self.evaluations() if result.step == steps and result.of_test_rows]


def runs_under(folder: Path) -> Iterator[RunRecord]:
    """Every run folder directly under ``folder``, the one trained last first."""
    if not folder.is_dir():
        return
    records = [record for record in map(RunRecord, folder.iterdir()) if record.exists]
    # The folder's own time is also that of its newest evaluation or report.
    yield from sorted(records, key=lambda record: record.manifest_path.stat().st_mtime_ns, reverse=True)


def find_run(run: Path | None, folder: Path) -> RunRecord:
    """The run a user means: the folder named, or its name under ``folder``, or the newest when none is named.

    Raises:
        RunError: There is no such run.
    """
    if run is not None:
        for path in (run, folder / run):
            record = RunRecord(path)
            if record.exists:
                return record
        near = nearest(run.name, [record.name for record in runs_under(folder)])
        what = f"run not found; {near}" if near else "run not found"
        raise RunError(what, where=str(run), fix=f"`ls {folder}` lists the runs.")
    newest = next(runs_under(folder), None)
    if newest is None:
        raise RunError("no runs found", where=str(folder), fix="Train one: `malora train RECIPE`.")
    return newest
