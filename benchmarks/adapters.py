"""What the adapters cost, by scenario. Figures are printed and kept as JSON in ``benchmarks/results/``.

    python benchmarks/adapters.py smollm2     a training step of SmolLM2-135M, every method, on the CPU
    python benchmarks/adapters.py layer       the same for one layer of LLaMA-2 7B's sizes
    python benchmarks/adapters.py decode      decoding with a cache, batch 1 and 16
    python benchmarks/adapters.py growth      one adapted linear against experts, rank and tokens, three ways
    python benchmarks/adapters.py products    the float32 products of a step by PyTorch's default and by oneDNN
    python benchmarks/adapters.py build       putting MALoRA on a model of LLaMA-2 7B's sizes
    python benchmarks/adapters.py cuda        a training step of 16,384 tokens in bfloat16 on a GPU

Timings are medians of interleaved rounds, and ratios are taken within a round. Give it a quiet machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import nn

from malora_cli.adapters import fused
from malora_cli.adapters.config import MoloraConfig
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import Routing
from malora_cli.bench.loop import LoopMoloraLinear
from malora_cli.bench.measure import in_turns
from malora_cli.bench.run import run_decode, run_steps, write_figures
from malora_cli.bench.workload import SHAPES, Workload
from malora_cli.cli._bench_tables import decode_table, step_table
from malora_cli.cli._terminal import plain_table
from malora_cli.modeling import wrap
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results"
MODEL = "smollm2-135m-instruct"
#: Experts and rank: the one grows at the paper's other, then both.
GROWTH = [*((n, 12) for n in (4, 8, 16, 32, 64)), *((8, r) for r in (8, 16, 32, 64)), (64, 64)]
console = Console(width=160)


def steps(name: str, workload: Workload, rounds: int) -> None:
    """Every row's training step on one workload."""
    costs = run_steps([], workload, rounds=rounds)
    console.print(step_table(costs))
    write_figures(RESULTS / f"{name}.json", workload, costs)


def smollm2(rounds: int) -> None:
    """SmolLM2-135M, with each method's own dropout and without any."""
    steps("smollm2", Workload(model=MODEL), rounds)
    steps("smollm2-no-dropout", Workload(model=MODEL, dropout=0.0), rounds)


def layer(rounds: int) -> None:
    """One layer of LLaMA-2 7B's sizes."""
    steps("layer", Workload(shape="llama2-7b"), rounds)


def cuda(rounds: int) -> None:
    """Four layers of LLaMA-2 7B's sizes on a GPU; the model's other 28 are the same."""
    steps("cuda", Workload(shape="llama2-7b", layers=4, tokens=16_384, dtype="bfloat16", device="cuda"), rounds)


def decode(rounds: int) -> None:
    """Decoding 32 tokens after 64."""
    workload = Workload(model=MODEL, tokens=64)
    rows = ["frozen", "loop-molora", "lora", "molora", "malora", "hydralora", "mixlora"]
    costs = run_decode(rows, workload, rounds=rounds)
    console.print(decode_table(costs))
    write_figures(RESULTS / "decode.json", workload, costs)


def growth(rounds: int) -> None:
    """Forward and backward of one adapted linear of 1,024 by 1,024: all experts multiplied out, gathered, in a loop."""
    torch.manual_seed(0)
    base = nn.Linear(1024, 1024, bias=False).requires_grad_(False)
    table = plain_table(("tokens", "experts", "rank"), ("frozen ms", "dense", "gathered", "loop", "chosen"))
    rows = []
    for tokens, (experts, rank) in itertools.product((256, 1024, 8192), GROWTH):
        found, way = _one_linear(base, tokens, experts, rank, rounds)
        frozen = found.pop("frozen")
        times = {name: seconds / frozen for name, seconds in found.items()}
        rows.append({"tokens": tokens, "experts": experts, "rank": rank, "frozen_seconds": frozen, **times})
        table.add_row(
            f"{tokens:,}",
            str(experts),
            str(rank),
            f"{1000 * frozen:.1f}",
            *(f"{x:.2f}" for x in times.values()),
            way,
        )
    console.print("times of the frozen linear's, forward and backward:")
    console.print(table)
    write_json(RESULTS / "growth.json", {"top_k": 2, "features": 1024, "rows": rows})


def _one_linear(base: nn.Linear, tokens: int, experts: int, rank: int, rounds: int) -> tuple[dict[str, float], str]:
    """Median seconds of each way, and which one the kernel takes by itself."""
    config = MoloraConfig(num_experts=experts, r=rank, lora_alpha=2 * rank, balance_factor=0.0)
    ours = MixtureLinear(base, "default", config=config, routing=Routing(), name="layers.0.linear")
    loop = LoopMoloraLinear(base, num_experts=experts, top_k=2, r=rank, lora_alpha=2 * rank, dropout=0.0)
    x = torch.randn(1, tokens, base.in_features).requires_grad_()
    judge = fused.gathering_pays

    def timed(module: nn.Module, gather: bool | None = None) -> Callable[[], float]:
        def run() -> float:
            fused.gathering_pays = judge if gather is None else lambda *_: gather
            started = time.perf_counter()
            module(x).sum().backward()
            module.zero_grad()
            x.grad = None
            return time.perf_counter() - started

        return run

    ways = {"frozen": timed(base), "dense": timed(ours, False), "gathered": timed(ours, True), "loop": timed(loop)}
    found = in_turns(ways, rounds, lambda _: None)
    fused.gathering_pays = judge
    chosen = judge(torch.empty(tokens, experts), ours.malora_up["default"], 2)
    return {name: median(seconds) for name, seconds in found.items()}, "gathered" if chosen else "dense"


def products(rounds: int) -> None:
    """``a b^T`` for the sizes of SmolLM2-135M and of LLaMA-2 7B at 512 tokens."""
    table = plain_table(("tokens", "inner", "outer"), ("default ms", "oneDNN ms", "ratio"))
    rows = []
    for inner, outer in ((576, 576), (576, 1536), (1536, 576), (96, 1536), (576, 40), (4096, 4096), (4096, 11008)):
        a, b = torch.randn(512, inner), torch.randn(outer, inner)
        ways: dict[str, Callable[[], Any]] = {
            "default": lambda a=a, b=b: F.linear(a, b),
            "onednn": lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise.default(a, b, None, "none", [], ""),
        }
        found = in_turns({name: lambda way=way: _seconds(way) for name, way in ways.items()}, rounds, lambda _: None)
        default, onednn = median(found["default"]), median(found["onednn"])
        rows.append({"inner": inner, "outer": outer, "default_seconds": default, "onednn_seconds": onednn})
        times = (f"{1000 * default:.2f}", f"{1000 * onednn:.2f}", f"{onednn / default:.2f}")
        table.add_row("512", f"{inner:,}", f"{outer:,}", *times)
    console.print(table)
    write_json(RESULTS / "products.json", {"tokens": 512, "rows": rows})


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def build(_rounds: int) -> None:
    """Seconds to put MALoRA on LLaMA-2 7B: 192 linears, 1,536 singular value decompositions."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPES["llama2-7b"], num_hidden_layers=32))
    # Memory that is never touched is never taken: the frozen weights only have to be there.
    base = empty.to(torch.bfloat16).to_empty(device="cpu")
    started = time.perf_counter()
    wrap(base, METHODS["malora"]())
    seconds = time.perf_counter() - started
    console.print(f"MALoRA on LLaMA-2 7B built in {seconds:.1f} s on {torch.get_num_threads()} threads")
    write_json(RESULTS / "build.json", {"seconds": seconds, "threads": torch.get_num_threads()})


def main() -> None:
    """Run one scenario."""
    scenarios = {function.__name__: function for function in (smollm2, layer, decode, growth, products, build, cuda)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    scenarios[arguments.scenario](arguments.rounds)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from malora_cli.cli._common import prepare_libraries

    prepare_libraries()
    main()
