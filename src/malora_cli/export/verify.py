"""Checking an export in the runtime that it is for, in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import save_file

from malora_cli.adapters.product import by_pytorch
from malora_cli.data.batch import TrainExample, collate
from malora_cli.errors import RunError
from malora_cli.export.request import TORCH_DTYPES, Request
from malora_cli.export.static import StaticLora, applied
from malora_cli.export.streamed import Header
from malora_cli.modeling import BaseModel
from malora_cli.modeling.device import dtype_of
from malora_cli.modeling.modes import evaluating
from malora_cli.modeling.weights import weight_files
from malora_cli.recipe import ModelSettings

#: Largest difference of logits in float32, in units of the largest logit, up to which an exact export is exact.
TOLERANCE = 1e-4
#: In llama.cpp, whose products round otherwise: divergence in units of its own on the base model alone, and beyond it.
OTHER_RUNTIME = (1.5, 1e-4)
#: Where an export rounds: mean difference of the logits in units of the adapter's own effect, and of the largest logit.
ROUNDED = (0.5, 0.02)
#: Supervised tokens of a row that are compared at most: each takes the whole vocabulary's logits.
_POSITIONS = 16
_LLAMA_CPP, _MLX = "llama.cpp", "mlx-lm"


@dataclass(frozen=True)
class Reading:
    """How an export is read back.

    Args:
        runtime: ``PEFT``, ``transformers``, ``llama.cpp`` or ``mlx-lm``.
        dtype: Number format, as torch calls it.
        base: The base model for adapters: a folder, a hub id or a GGUF file.
        revision: Commit of a base on the hub.
        adapter: File of a LoRA for llama.cpp.
        model: File of a whole model for llama.cpp.
        without: Packages that must not be needed.
        trust: Let the code that comes with it run.
        exact: Whether it must be what was expected but for rounding.
    """

    runtime: str
    dtype: str
    base: str | None = None
    revision: str | None = None
    adapter: str | None = None
    model: str | None = None
    without: Sequence[str] = ("malora_cli",)
    trust: bool = False
    exact: bool = True


def reading_of(request: Request, folder: Path, base: BaseModel, settings: ModelSettings) -> Reading | None:
    """How others load an export, where a runtime is here; None on a base in 4 or 8 bits, which rounds otherwise.

    Args:
        request: What was asked for.
        folder: Where it was written.
        base: The base model.
        settings: How the run loaded it.
    """
    own = dtype_of(settings)
    exact = own == "float32" and request.dtype in (None, "f32")
    dtype, trust = TORCH_DTYPES.get(request.dtype or "", own), settings.trust_remote_code
    if request.form == "peft" and settings.quantise is None:
        return Reading("PEFT", dtype, base=base.location, revision=base.commit, trust=trust, exact=exact)
    if request.form == "mlx" and settings.quantise is None and _is_installed(_MLX):
        return Reading(_MLX, dtype, base=base.location, revision=base.commit, exact=exact)
    if request.form == "hf":
        if request.to == "dense":
            exact &= _is_float32(folder) and settings.quantise != "int8"  # which rounds the inputs as well
        trust |= request.to == "bundle"  # whose code was written a moment ago
        return Reading("transformers", dtype, without=("malora_cli", "peft"), trust=trust, exact=exact)
    if request.form == "gguf" and base.gguf is not None and _is_installed(_LLAMA_CPP):
        [file] = (str(found.absolute()) for found in folder.glob("*.gguf"))
        adapter, model = (file, None) if request.to == "lora" else (None, file)
        exact &= request.to == "lora" or request.dtype == "f32"  # else sums are rounded to the tensor's own type
        return Reading(_LLAMA_CPP, dtype, base=str(base.gguf.absolute()), adapter=adapter, model=model, exact=exact)
    return None


def _is_float32(folder: Path) -> bool:
    """Whether a model's weights are written without rounding."""
    files = [file for file in weight_files(folder) if file.suffix != ".json"]
    return {about["dtype"] for file in files for about in Header.of(file).about.values()} <= {"F32"}


def _is_installed(runtime: str) -> bool:
    return importlib.util.find_spec(_FURTHER[runtime][0]) is not None


@torch.no_grad()
def keep_rows(model: PeftModel, examples: Sequence[TrainExample], file: Path) -> None:
    """Write rows with the logits that the base model has at their supervised tokens.

    Args:
        model: The wrapped model.
        examples: The rows.
        file: Where to.
    """
    tensors: dict[str, torch.Tensor] = {}
    with evaluating(model), by_pytorch(), model.disable_adapter():
        for row, example in enumerate(examples):
            batch = collate([example])
            ids, positions = batch["input_ids"][0].clone(), batch["positions"][:_POSITIONS].clone()
            tensors |= {f"ids.{row}": ids, f"positions.{row}": positions}
            tensors[f"base.{row}"] = _logits(model, ids, positions)
    save_file(tensors, file)


@torch.no_grad()
def keep_expected(model: PeftModel, rows: Path, numbers: Iterable[int], file: Path, lora: StaticLora | None) -> None:
    """Write the logits that an export has to have, at the same tokens.

    Args:
        model: The wrapped model.
        rows: What `keep_rows` has written.
        numbers: Those of the rows that it is compared on.
        file: Where to.
        lora: What is exported; None is the model with its own adapter.
    """
    with evaluating(model), by_pytorch(), nullcontext() if lora is None else applied(model, lora):
        with safe_open(rows, framework="pt") as kept:
            inputs = {row: (kept.get_tensor(f"ids.{row}"), kept.get_tensor(f"positions.{row}")) for row in numbers}
        save_file({f"logits.{row}": _logits(model, *of_row) for row, of_row in inputs.items()}, file)


def _logits(model: PeftModel, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    logits = model(input_ids=ids.unsqueeze(0).to(device), use_cache=False).logits[0]
    return logits[positions.to(device)].float().cpu()


@dataclass(frozen=True)
class Check:
    """An export that is to be read back.

    Args:
        folder: Its folder.
        reading: How it is read.
        rows: What `keep_rows` has written.
        expected: What `keep_expected` has written for it.
    """

    folder: Path
    reading: Reading
    rows: Path
    expected: Path


def read_back(asked: Sequence[Check]) -> list[dict[str, Any]]:
    """Load exports in a fresh process, and compare their logits with those that were kept.

    One process reads them all, and their base model once.

    Args:
        asked: The exports, all in one runtime.

    Returns:
        What was measured of each, for ``verify.json``; ``unavailable`` says why the runtime does not work here.

    Raises:
        RunError: One cannot be loaded there, or computes something else.
    """
    if not asked:
        return []
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("fresh.py"))],
        input=json.dumps([_as_json(one) for one in asked]),
        capture_output=True,
        text=True,
        check=False,
        cwd=asked[0].rows.parent,
    )
    found: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    for check, one in zip(asked, found, strict=False):
        if "unavailable" in one:
            return [{"runtime": check.reading.runtime, **one} for _ in asked]
        _judge(one, check.reading, check.folder)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        raise RunError(
            f"the export does not load in a fresh process ({lines[-1] if lines else f'exit code {done.returncode}'})",
            where=str(asked[min(len(found), len(asked) - 1)].folder),
            fix="Add --debug and report it; --no-verify writes it all the same.",
        )
    return [
        {"runtime": check.reading.runtime, "exact": check.reading.exact, **one}
        for check, one in zip(asked, found, strict=True)
    ]


def _as_json(check: Check) -> dict[str, Any]:
    how = {name: value for name, value in vars(check.reading).items() if name != "exact"}
    files = {"folder": str(check.folder.absolute()), "rows": str(check.rows), "expected": str(check.expected)}
    return {**files, "threads": torch.get_num_threads(), **how}


def _judge(found: Mapping[str, Any], reading: Reading, folder: Path) -> None:
    """Make sure that what was read back is what was written, as nearly as its number format and runtime can."""
    if not reading.exact:
        what, has = "logits differ on the average by", found["mean_difference"]
        bound = ROUNDED[0] * found["mean_effect"] + ROUNDED[1] * found["largest_logit"]
    elif reading.runtime == _LLAMA_CPP:
        what, has = "divergence from the run", found["divergence"]
        bound = OTHER_RUNTIME[0] * found["base_divergence"] + OTHER_RUNTIME[1]
    else:
        what, has = "logits differ by", found["largest_difference"]
        bound = TOLERANCE * max(1.0, found["largest_logit"])
    if not has <= bound:
        raise RunError(
            f"read back in {reading.runtime}, {what} {has:.2g}, and {bound:.2g} is rounding",
            where=str(folder),
            fix="Report it; --no-verify writes it all the same.",
        )


#: Runtimes that read exports and are not part of an installation: what is imported, and how it is installed.
_FURTHER = {
    "vLLM": ("vllm", "pip install vllm"),
    _LLAMA_CPP: ("llama_cpp_py_sync", "pip install llama-cpp-py-sync"),
    _MLX: ("mlx_lm", "pip install 'mlx-lm[cpu]'"),
}
#: Which of them read what is written, by target and format.
_READERS = {
    ("lora", "peft"): ["vLLM"],
    ("lora", "gguf"): [_LLAMA_CPP],
    ("lora", "mlx"): [_MLX],
    ("dense", "hf"): ["vLLM"],
    ("dense", "gguf"): [_LLAMA_CPP],
    ("bundle", "hf"): ["vLLM"],
}


def sorted_out(request: Request, read: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """What was checked, and the runtimes that read such an export and that it was not checked in, with the reason."""
    checked = [it for it in read if "unavailable" not in it]
    missing = {it["runtime"]: f"it does not load here: {it['unavailable']}" for it in read if "unavailable" in it}
    for runtime in _READERS.get((request.to, request.form), []):
        if runtime not in {it["runtime"] for it in read}:
            install = _FURTHER[runtime][1]
            known = "malora has no check for it" if _is_installed(runtime) else f"not installed ({install})"
            missing[runtime] = known
    return {"checked": checked, "not_checked": [{"runtime": name, "why": why} for name, why in missing.items()]}
