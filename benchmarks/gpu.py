"""What a GPU has to answer, in parts that take a few minutes each; no part has been run on one yet.

    python benchmarks/gpu.py attention   packed rows against each example alone, and against one mask and padding
    python benchmarks/gpu.py contracts   the tests that train, resume and answer, on the device
    python benchmarks/gpu.py steps       a training step of 16,384 tokens on layers of LLaMA-2 7B's sizes, every method
    python benchmarks/gpu.py decode      decoding with a cache, batch 1 and 16
    python benchmarks/gpu.py train       whole training against TRL's SFTTrainer with PEFT's LoRA
    python benchmarks/gpu.py resume      a run that is stopped and goes on, against one that is not
    python benchmarks/gpu.py nf4         a base in 4 bits against the same in bfloat16: memory, pace, loss
    python benchmarks/gpu.py all         one after another

`--device cpu --tiny` goes through all of it on models of a few numbers, in a minute, so that nothing but the card is
untried. Figures are kept as JSON in ``benchmarks/results/gpu-PART.json``, with the card's name. A machine that reaches
no index takes its packages from a folder of wheels: ``pip install --no-index --find-links WHEELS -e . --group dev``.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import train as against
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, PreTrainedModel

from malora_cli.adapters import fused
from malora_cli.adapters.entrywise import plain, steps_for
from malora_cli.bench.run import run_decode, run_steps
from malora_cli.bench.workload import Workload
from malora_cli.data.batch import TrainExample, collate
from malora_cli.modeling import load_base, resolve_base, wrap
from malora_cli.modeling.attention import PACKED_SDPA
from malora_cli.modeling.loss import moved, token_nats
from malora_cli.modeling.memory import forget_peak, peak_bytes
from malora_cli.modeling.modes import as_trained
from malora_cli.processor import processor
from malora_cli.recipe import ModelSettings
from malora_cli.results import RunRecord, write_json

ROOT = Path(__file__).parents[1]
MODEL = "smollm2-135m-instruct"
#: Files whose tests compute, train and answer on whatever device there is.
CONTRACTS = (
    "test_train.py",
    "test_half_precision.py",
    "test_triton.py",
    "test_resuming.py",
    "test_generation.py",
    "test_choices_evaluated.py",
    "test_export.py",
)
console = Console(width=160)


@dataclass(frozen=True)
class Place:
    """Where it is measured.

    Args:
        device: "cuda" or "cpu".
        tiny: Whether models and rounds are as small as can be.
        folder: For what is written and thrown away.
    """

    device: str
    tiny: bool
    folder: Path

    @property
    def rounds(self) -> int:
        return 1 if self.tiny else 5

    def wait(self) -> None:
        """Until all that was asked of the device is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    @contextmanager
    def measured(self, figures: dict[str, Any]) -> Iterator[None]:
        """Adds the block's seconds, and on a GPU its peak memory."""
        self.wait()
        forget_peak(torch.device(self.device))
        started = time.perf_counter()
        yield
        self.wait()
        figures["seconds"] = time.perf_counter() - started
        figures["peak_bytes"] = peak_bytes(torch.device(self.device))

    def recipe(self) -> str:
        """The quickstart's, or one of a model of a few numbers."""
        if not self.tiny:
            return "quickstart"
        from conftest import write_model
        from train_runs import workplace

        return str(workplace(self.folder / "tiny", write_model(self.folder / "model")))


# ---------------------------------------------------------------- attention


def _model(kind: str, dtype: torch.dtype, place: Place, attention: str) -> PreTrainedModel:
    width, layers = (32, 1) if place.tiny else (2048, 4)
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "vocab_size": 512}
    heads = {"num_attention_heads": width // 16 if place.tiny else 16, "num_key_value_heads": 2}
    config = MistralConfig(**sizes, **heads, sliding_window=64) if kind == "window" else LlamaConfig(**sizes, **heads)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(place.device, dtype).train()


def _gradients(model: PreTrainedModel, rows: Sequence[Sequence[TrainExample]]) -> list[torch.Tensor]:
    model.zero_grad()
    for row in rows:
        with as_trained(model):
            nats_K = token_nats(model, moved(collate(row), model.device))
        nats_K.sum().backward()
    return [p.grad.float() for p in model.parameters() if p.grad is not None]


def attention(place: Place) -> dict[str, Any]:
    """Each kind of attention, in each format, on short and long examples."""
    means = (12, 100) if place.tiny else (64, 1024)
    formats = (torch.float32, torch.bfloat16)
    return {"cases": [_case(place, *case) for case in itertools.product(("full", "window"), formats, means)]}


def _case(place: Place, kind: str, dtype: torch.dtype, mean: int) -> dict[str, Any]:
    """Largest difference of a gradient from that of examples alone, in units of its norm; then pace and memory."""
    generator = torch.Generator().manual_seed(mean)
    lengths = torch.randint(mean // 2, mean + mean // 2, (3 if place.tiny else 16,), generator=generator).tolist()
    ids = [torch.randint(0, 512, (length,), generator=generator).tolist() for length in lengths]
    rows = [TrainExample(row, [(1, len(row))], 0) for row in ids]
    packed, plain = (_model(kind, dtype, place, name) for name in (PACKED_SDPA, "sdpa"))
    pairs = zip(_gradients(plain, [[row] for row in rows]), _gradients(packed, [rows]), strict=True)
    return {
        "kind": kind,
        "dtype": str(dtype),
        "lengths": lengths,
        "difference": max(float((one - other).norm() / one.norm()) for one, other in pairs),
        "by lengths": _cost(place, lambda: _gradients(packed, [rows])),
        "by one mask": _cost(place, lambda: _gradients(plain, [rows])),
        "padded": _cost(place, lambda: _padded(plain, ids)),
    }


def _padded(model: PreTrainedModel, ids: Sequence[Sequence[int]]) -> None:
    """As most tools train: a batch of rows, filled up to the longest."""
    width = max(map(len, ids))
    rows = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids], device=model.device)
    model.zero_grad()
    with as_trained(model):
        loss = model(input_ids=rows, attention_mask=mask, labels=rows.masked_fill(mask == 0, -100)).loss
    loss.backward()


def _cost(place: Place, work: Callable[[], Any]) -> dict[str, Any]:
    """Median seconds and the peak memory of one of several rounds, the first left out."""
    rounds: list[dict[str, Any]] = []
    for _ in range(place.rounds + 1):
        rounds.append({})
        with place.measured(rounds[-1]):
            work()
    return {"seconds": median(found["seconds"] for found in rounds[1:]), "peak_bytes": rounds[-1]["peak_bytes"]}


# ---------------------------------------------------------------- everything else


def contracts(place: Place) -> dict[str, Any]:
    """Their outcome, by file."""
    files = CONTRACTS[:1] if place.tiny else CONTRACTS
    some = ["-k", "is_a_log_step"] if place.tiny else []
    environment = {**os.environ} | ({} if place.device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""})
    found = {}
    for file in files:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / file), *some]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=ROOT)
        lines = done.stdout.splitlines()
        console.print(file, lines[-1] if lines else done.stderr[-500:], highlight=False)
        found[file] = {
            "exit_code": done.returncode,
            "summary": lines[-1] if lines else done.stderr[-500:],
            "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        }
    return found


def steps(place: Place) -> dict[str, Any]:
    """As ``benchmarks/adapters.py cuda``; a few of them without Triton's kernels, too."""
    small = Workload(shape="smollm2-135m", tokens=32, dtype="bfloat16", device=place.device)
    large = Workload(shape="llama2-7b", layers=4, tokens=16_384, dtype="bfloat16", device=place.device)
    workload = small if place.tiny else large
    found: dict[str, Any] = {"workload": asdict(workload)}
    found["triton"] = steps_for(torch.empty(0, device=place.device)) is not plain
    costs = run_steps(["malora"] if place.tiny else [], workload, rounds=place.rounds)
    with patch.object(fused, "steps_for", lambda _: plain):
        without = run_steps(["malora"] if place.tiny else ["malora", "molora"], workload, rounds=place.rounds)
    return found | {"rows": [asdict(cost) for cost in costs], "without_triton": [asdict(cost) for cost in without]}


def decode(place: Place) -> dict[str, Any]:
    """As ``benchmarks/adapters.py decode``, in bfloat16."""
    small = Workload(shape="smollm2-135m", tokens=4, dtype="bfloat16", device=place.device)
    large = Workload(shape="llama2-7b", layers=4, tokens=64, dtype="bfloat16", device=place.device)
    workload = small if place.tiny else large
    rows = ["malora"] if place.tiny else ["frozen", "loop-molora", "lora", "molora", "malora"]
    return {"workload": asdict(workload), "rows": [asdict(cost) for cost in run_decode(rows, workload, rounds=1)]}


def train(place: Place) -> dict[str, Any]:
    """As ``benchmarks/train.py trl``, in one process and in bfloat16 where the device computes in it."""
    found: dict[str, Any] = {}
    for name in ("trl", "malora") if place.tiny else against.CONTENDERS:
        figures: dict[str, Any] = {}
        with place.measured(figures):
            run = against.contender(name, place.recipe())
        found[name] = {**run, "peak_bytes": figures["peak_bytes"]}
        found[name]["label_tokens_per_second"] = run["label_tokens"] / sum(run["seconds"])
    return found


def resume(place: Place) -> dict[str, Any]:
    """Two runs of the same steps, one of them stopped in the middle; the largest difference of their weights."""
    from safetensors.torch import load_file

    from malora_cli.cli._common import read_recipe
    from malora_cli.train.run import train as train_run
    from malora_cli.train.view import NoView

    class Stopping(NoView):
        def tick(self, step: int) -> None:
            if step == 4:
                raise KeyboardInterrupt

    common = ["train.steps=6", "train.checkpoint_every=2", "train.eval_every=6", "train.eval_rows=1"]
    common += [f"output.folder={place.folder}", f"model.device={place.device}", "model.dtype=auto"]
    recipe = place.recipe()
    whole, stopped = (read_recipe(recipe, [*common, f"output.name={name}"]) for name in ("whole", "stopped"))
    records: list[RunRecord] = [train_run(whole, NoView())]
    try:
        train_run(stopped, Stopping())
    except KeyboardInterrupt:
        records.append(train_run(stopped, NoView(), resume=True))
    first, second = (load_file(record.adapter_dir / "adapter_model.safetensors") for record in records)
    worst = max(float((first[name] - second[name]).abs().max()) for name in first)
    return {"dtype": records[0].manifest.dtype, "largest_difference": worst}


def nf4(place: Place) -> dict[str, Any]:
    """A step of MALoRA on the same model, held in both ways."""
    from malora_cli.adapters.methods.malora import Malora

    base = MODEL
    if place.tiny:
        place.recipe()
        base = str(place.folder / "model")
    found: dict[str, Any] = {}
    size = 16 if place.tiny else 512
    ids = torch.randint(5, 250, (size,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [TrainExample(ids, [(1, size)], 0)] * 4
    for name, quantise in (("bfloat16", None), ("nf4", "nf4")):
        settings = ModelSettings(base=base, dtype="bfloat16", quantise=quantise, device=place.device)
        model = wrap(load_base(resolve_base(settings), settings), Malora()).train()
        batch = moved(collate(rows), next(model.parameters()).device)

        def step(model: Any = model, batch: Any = batch) -> torch.Tensor:
            with as_trained(model):
                loss = token_nats(model, batch).mean()
            loss.backward()
            return loss

        found[name] = {**_cost(place, step), "nats": float(step())}
    return found


PARTS: dict[str, Callable[[Place], dict[str, Any]]] = {
    part.__name__: part for part in (attention, contracts, steps, decode, train, resume, nf4)
}


def measure(part: str, place: Place, out: Path) -> bool:
    """Run one part and keep its figures; says whether it came to its end, and its tests passed."""
    started = time.perf_counter()
    try:
        figures: dict[str, Any] = {"found": PARTS[part](place)}
    except Exception:  # the next part is to run all the same
        figures = {"error": traceback.format_exc()}
    on = torch.cuda.get_device_name() if place.device == "cuda" else processor()
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    figures = {"device": on, "tiny": place.tiny, "seconds": time.perf_counter() - started, **versions, **figures}
    write_json(out / f"gpu-{part}.json", figures)
    console.print(f"{part}: {figures['seconds']:.0f} s on {on}", figures.get("error", "done"), highlight=False)
    broken = [file for file, it in figures.get("found", {}).items() if isinstance(it, dict) and it.get("exit_code")]
    return "error" not in figures and not broken


def main() -> None:
    """Run one part, or all of them; exit code 1 where one did not come to its end, or a test failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="models of a few numbers and single rounds")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU found; try --device cpu --tiny")
    done = []
    for part in PARTS if arguments.part == "all" else [arguments.part]:
        with tempfile.TemporaryDirectory() as folder:
            done.append(measure(part, Place(arguments.device, arguments.tiny, Path(folder)), arguments.out))
    sys.exit(0 if all(done) else 1)


if __name__ == "__main__":
    main()
