"""What a run says about itself: ``manifest.json`` of its folder."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from malora_cli.results.record import Record


class RunStatus(StrEnum):
    """How far a run came."""

    RUNNING = "running"  # also a run that was killed: nobody was left to write otherwise
    FINISHED = "finished"


class NotedRows(Record):
    """Rows of a source of which there is one thing to say, such as why they were not used."""

    reason: str
    rows: int
    samples: list[int] = Field(description="some of them, counted from 1")


class TaskData(Record):
    """Where the rows of one split came from."""

    source: str
    rows: int
    sha256: str = Field(description="of the encoded rows, in order")
    read: int | None = Field(default=None, description="rows of the source")
    cut: int = Field(default=0, description="rows of which the length policy used a part, or made several")
    unused: list[NotedRows] = Field(default=[])
    remarks: list[NotedRows] = Field(default=[], description="rows that were used, and what is to be known of them")
    also_trained: int | None = Field(default=None, description="test rows whose prompt is also a training prompt")
    shares_words: int | None = Field(
        default=None, description="test rows that share a run of words with a training row"
    )


class Manifest(Record):
    """What a run says about itself. ``seeds`` and hashes are what is needed to repeat it."""

    run_id: str | None = Field(default=None, description="of this run alone; its checkpoints bear it too")
    status: RunStatus
    folder: str | None = Field(default=None, description="where the run lay when this was written")
    created: str = Field(description="UTC, ISO 8601")
    steps: int = Field(description="optimiser steps done")
    method: str
    base_model: str
    base_model_sha256: str | None = Field(description="of a folder's weights")
    base_model_commit: str | None = Field(default=None, description="of a hub model")
    dtype: str | None = Field(default=None, description="number format of the frozen weights; what auto came to")
    trainable_parameters: int
    base_parameters: int
    seeds: dict[str, int]
    versions: dict[str, str]
    train_data: dict[str, TaskData]
    validation_data: dict[str, TaskData] = Field(
        default={}, description="of tasks with rows to choose by while training; before there were any, test rows were"
    )
    test_data: dict[str, TaskData]
    domains: dict[str, str] = Field(description="domain of every task")
    adapter_sha256: dict[str, str] | None = Field(
        default=None, description="of the files of the finished adapter, by name; older versions did not note them"
    )
    remedies: dict[str, str] = Field(default={}, description="what each remedy of the recipe does, as a sentence")
    task_share: dict[str, float] = Field(description="each task's share of the training examples, sums to 1")
    train_seconds: float = Field(default=0.0, description="spent training, evaluations during it included")
    peak_bytes: int | None = Field(
        default=None, description="most memory of the GPU since training began or went on; None on a CPU"
    )

    def stands_on(self, sha256: str | None, commit: str | None) -> bool:
        """Whether the run's base model is that of a hash or commit; older versions did not note commits."""
        return self.base_model_sha256 == sha256 and self.base_model_commit in (None, commit)
