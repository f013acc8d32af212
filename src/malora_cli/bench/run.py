"""A benchmark from the names of its rows to its figures, and the file that they are kept in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from malora_cli.bench.measure import DecodeCost, StepCost, decode_costs, step_costs
from malora_cli.bench.rows import base_of, build
from malora_cli.bench.workload import Workload, check_rows
from malora_cli.errors import RunError
from malora_cli.processor import processor
from malora_cli.results import write_json


def run_steps(
    names: Sequence[str], workload: Workload, *, rounds: int, tick: Callable[[str], None] = lambda _: None
) -> list[StepCost]:
    """Training steps of these rows; of all that there are when none are named.

    Raises:
        MaloraError: A row, the model or the device is not there.
    """
    rows = check_rows(names)
    base = base_of(workload)
    return step_costs({name: build(name, base, workload) for name in rows}, workload, rounds=rounds, tick=tick)


def run_decode(
    names: Sequence[str], workload: Workload, *, rounds: int, tick: Callable[[str], None] = lambda _: None
) -> list[DecodeCost]:
    """Decoding under these rows at batch 1 and 16; the arguments are those of `run_steps`."""
    rows = check_rows(names)
    base = base_of(workload)
    models = {name: build(name, base, workload) for name in rows}
    return decode_costs(models, workload, batches=(1, 16), rounds=rounds, tick=tick)


def write_figures(file: Path, workload: Workload, costs: Sequence[StepCost | DecodeCost]) -> None:
    """Write figures with what they were measured on.

    Raises:
        RunError: The file cannot be written.
    """
    machine = {
        "processor": torch.cuda.get_device_name() if workload.device == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("malora", "torch", "peft", "transformers")},
    }
    try:
        write_json(file, {"workload": asdict(workload), "machine": machine, "rows": [asdict(cost) for cost in costs]})
    except OSError as error:
        raise RunError(f"the figures cannot be written ({error.strerror})", where=str(file)) from error
