"""What exports keep of a run, and what writing them takes.

    python benchmarks/export.py gates RUN [--rows N]   uniform, mean and fitted gates, exact and at half rank: kept gain
    python benchmarks/export.py dense [--layers N]     writing a whole model against copying its files: time and memory

``gates`` measures every task of a run, on at most N validation rows each. ``dense`` makes a random Llama of some 60
million parameters a layer.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from malora_cli.cli._common import recipe_of_run
from malora_cli.export.formats import FORMATS, Origin
from malora_cli.export.gates import parse_gates
from malora_cli.export.measuring import costs_of, loras_of
from malora_cli.export.request import Request
from malora_cli.export.run import _Job
from malora_cli.export.static import LowRank, StaticLora
from malora_cli.modeling import BaseModel, base_of_run
from malora_cli.processor import processor
from malora_cli.recipe import ModelSettings
from malora_cli.results import RunRecord, read_json, write_json

RESULTS = Path(__file__).parent / "results" / "export.json"
REPEATS = 3
console = Console(width=140)


def gates(run: Path, rows: int) -> dict[str, Any]:
    """Share of each task's gain that is kept, and nats a token that are lost, by gates."""
    record = RunRecord(run)
    recipe = recipe_of_run(record, [], trust=False)
    adapter = record.adapter_at(None)
    job = _Job(record, recipe, Request("lora"), adapter, base_of_run(recipe.model, record.manifest), tell=console.print)
    share = record.manifest.task_share

    def lora(text: str) -> StaticLora:
        [chosen] = parse_gates(text, recipe.mix, share)
        return loras_of(job.model, {text: chosen}, job.tasks, rows, job.packer)[text]

    def half(whole: StaticLora) -> StaticLora:
        return {name: one.reduced(one.rank // 2)[0] for name, one in whole.items()}

    common = {text: lora(text) for text in ("uniform", "mix", "fit")}
    common["fit, half rank"] = half(common["fit"])
    found: dict[str, Any] = {}
    for task in job.tasks:
        own = {"task": lora(f"task:{task.name}"), "fit:task": lora(f"fit:task:{task.name}")}
        own["fit:task, half rank"] = half(own["fit:task"])
        found[task.name] = {
            name: cost.as_json() for name, cost in costs_of(job.model, task, common | own, rows, job.packer).items()
        }
        kept = "  ".join(f"{name} {cost['kept']:.0%}" for name, cost in found[task.name].items())
        console.print(f"{task.name}: {kept}")
    return {"run": record.name, "method": record.manifest.method, "rows": rows, "tasks": found}


def dense(layers: int) -> dict[str, Any]:
    """Seconds of a file copy and of writing a whole model, in turns, and the memory that writing took."""
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(1, get_context("spawn")) as other:
        size = other.submit(_random_model, Path(place) / "base", layers).result()
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            found = fresh.submit(_written, Path(place)).result()
    return {**found, "layers": layers, "largest_shard_mib": size / 2**20}


def _random_model(folder: Path, layers: int) -> int:
    """Write a random Llama in bfloat16; the bytes of its largest shard."""
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": layers, "num_attention_heads": 16}
    LlamaForCausalLM(LlamaConfig(vocab_size=32_000, **sizes)).bfloat16().save_pretrained(folder, max_shard_size="300MB")
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


def _written(place: Path) -> dict[str, Any]:
    base = place / "base"
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    names = [name for name, _ in skeleton.named_modules() if name.endswith("_proj") and "o_proj" not in name]
    linears = {name: skeleton.get_submodule(name) for name in names}
    lora = {n: LowRank(torch.randn(32, m.in_features), torch.randn(m.out_features, 32)) for n, m in linears.items()}
    origin = Origin(BaseModel("random", str(base)), ModelSettings(base="random"), skeleton, "random")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    copied, written = [], []
    for number in range(REPEATS):
        began = time.perf_counter()
        shutil.copytree(base, place / f"copy{number}")
        copied.append(time.perf_counter() - began)
        (folder := place / f"out{number}").mkdir()
        began = time.perf_counter()
        FORMATS["hf"].write("dense", lora, origin, folder)
        written.append(time.perf_counter() - began)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    ratios = [two / one for one, two in zip(copied, written, strict=True)]
    return {
        "copy_seconds": copied,
        "write_seconds": written,
        "ratio": statistics.median(ratios),
        "more_memory_mib": more / 1024,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gates", "dense"])
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--layers", type=int, default=6)
    asked = parser.parse_args()
    found = gates(asked.run, asked.rows) if asked.what == "gates" else dense(asked.layers)
    before = read_json(RESULTS) if RESULTS.is_file() else {}
    write_json(RESULTS, {**before, asked.what: {"processor": processor(), **found}})
    console.print(f"kept in {RESULTS}")


if __name__ == "__main__":
    main()
