"""Checking an export in the runtime that it is for, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import save_file

from malora_cli.data.batch import TrainExample, collate
from malora_cli.errors import RunError
from malora_cli.modeling.modes import evaluating

#: Largest difference of logits in float32, in units of the largest logit, up to which an exact export is exact.
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Reading:
    """How an export is read back.

    Args:
        dtype: Number format, as torch calls it.
        base: Location of the base model for adapters; None where the export is a model of its own.
        revision: Commit of a base on the hub.
        without: Packages that must not be needed.
        trust: Let the code that comes with it run.
        exact: Whether it must be what was expected but for rounding in float32.
    """

    dtype: str
    base: str | None = None
    revision: str | None = None
    without: Sequence[str] = ("malora_cli",)
    trust: bool = False
    exact: bool = True


@torch.no_grad()
def keep_expected(model: PeftModel, examples: Iterable[TrainExample], file: Path) -> int:
    """Write rows with the logits that an export has to have at their supervised tokens.

    Returns:
        How many rows.
    """
    tensors: dict[str, torch.Tensor] = {}
    rows = 0
    device = next(model.parameters()).device
    with evaluating(model):
        for example in examples:
            batch = collate([example])
            logits = model(input_ids=batch["input_ids"].to(device), use_cache=False).logits[0]
            tensors[f"ids.{rows}"] = batch["input_ids"][0].clone()
            tensors[f"positions.{rows}"] = batch["positions"]
            tensors[f"logits.{rows}"] = logits[batch["positions"].to(device)].float().cpu()
            rows += 1
    save_file(tensors, file)
    return rows


def read_back(folder: Path, rows: Path, reading: Reading) -> dict[str, Any]:
    """Load an export in a fresh process, and compare its logits with those that were kept.

    Args:
        folder: The export.
        rows: What `keep_expected` has written.
        reading: How.

    Returns:
        What was measured, for ``verify.json``.

    Raises:
        RunError: It cannot be loaded there, or computes something else.
    """
    asked = {
        "folder": str(folder.absolute()),
        "rows": str(rows),
        "threads": torch.get_num_threads(),
        **{name: value for name, value in vars(reading).items() if name != "exact"},
    }
    script = Path(__file__).with_name("fresh.py")
    done = subprocess.run(
        [sys.executable, "-P", str(script)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        cwd=rows.parent,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RunError(
            f"the export does not load in a fresh process ({lines[-1] if lines else f'exit code {done.returncode}'})",
            where=str(folder),
            fix="Add --debug and report it; --no-verify writes it all the same.",
        )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    bound = TOLERANCE * max(1.0, found["largest_logit"])
    if reading.exact and not found["largest_difference"] <= bound:
        raise RunError(
            f"read back, its logits differ by up to {found['largest_difference']:.2g}, and {bound:.2g} is rounding",
            where=str(folder),
            fix="Report it; --no-verify writes it all the same.",
        )
    return {"runtime": "PEFT" if reading.base else "transformers", "exact": reading.exact, **found}


#: Runtimes that read exports and are not part of an installation: what is imported, and how it is installed.
_FURTHER = {
    "vLLM": ("vllm", "pip install vllm"),
    "llama.cpp": ("llama_cpp", "pip install llama-cpp-py-sync"),
    "mlx-lm": ("mlx_lm", "pip install mlx-lm"),
}
#: Which of them read what is written, by target and format.
_READERS = {
    ("lora", "peft"): ["vLLM"],
    ("lora", "gguf"): ["llama.cpp"],
    ("lora", "mlx"): ["mlx-lm"],
    ("dense", "hf"): ["vLLM"],
    ("dense", "gguf"): ["llama.cpp"],
    ("bundle", "hf"): ["vLLM"],
}


def not_checked(target: str, form: str, checked: Iterable[str]) -> list[dict[str, str]]:
    """The runtimes that read such an export and that it was not checked in, each with the reason."""
    found = []
    for runtime in _READERS.get((target, form), []):
        if runtime not in set(checked):
            module, install = _FURTHER[runtime]
            missing = importlib.util.find_spec(module) is None
            why = f"not installed ({install})" if missing else "malora has no check for it"
            found.append({"runtime": runtime, "why": why})
    return found
