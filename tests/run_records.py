"""Run folders that hold a manifest and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from malora_cli.results import Manifest, RunRecord, RunStatus, TaskData, utc_now


def manifest(**changes: Any) -> Manifest:
    data = {"a": TaskData(source="a.jsonl", rows=1, sha256="0")}
    fields: dict[str, Any] = {
        "status": RunStatus.FINISHED,
        "created": utc_now(),
        "steps": 3,
        "method": "malora",
        "base_model": "m",
        "base_model_sha256": None,
        "trainable_parameters": 1,
        "base_parameters": 2,
        "seeds": {"train": 0},
        "versions": {},
        "train_data": data,
        "test_data": data,
        "domains": {"a": "x"},
        "task_share": {"a": 1.0},
    }
    return Manifest(**(fields | changes))


def run_record(folder: Path, name: str, **changes: Any) -> RunRecord:
    record = RunRecord(folder / name)
    record.write_manifest(manifest(**changes))
    return record
