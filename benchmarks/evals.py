"""What evaluations cost, by scenario. Figures are printed and kept as JSON in ``benchmarks/results/``.

    python benchmarks/evals.py choices --rows FILE   questions a second and answers, against lm-eval's HFLM

Everybody asks the same SmolLM2-135M with a fresh MALoRA adapter, in turns; medians and ratios are of rounds that are
interleaved. `choices` takes JSON lines with `question`, `choices` and `answer` (the position of the right one).
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import torch
from peft import PeftModel
from rich.console import Console

from malora_cli.adapters.methods import METHODS
from malora_cli.data.encoding import Encoder
from malora_cli.modeling import load_base, load_tokenizer, resolve_base, wrap
from malora_cli.recipe import ModelSettings
from malora_cli.results import write_json

RESULTS = Path(__file__).parent / "results"
MODEL = ModelSettings(base="smollm2-135m-instruct", device="cpu")
console = Console(width=160)


def subject() -> tuple[PeftModel, Encoder]:
    """The model that is asked, with an adapter that routes every token, and its encoder."""
    base = resolve_base(MODEL)
    model = wrap(load_base(base, MODEL), METHODS["malora"]()).eval()
    return model, Encoder(load_tokenizer(base, MODEL))


def keep(name: str, figures: Mapping[str, Any]) -> None:
    """Write figures down with what they were measured on."""
    libraries = ("malora", "torch", "transformers", "peft", "lm_eval")
    machine = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **{library: version(library) for library in libraries},
    }
    write_json(RESULTS / f"evals-{name}.json", {"machine": machine, **figures})


def processor() -> str:
    """What the machine calls its processor."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if "model name" in line
    ]
    return names[0] if names else platform.machine()


SCENARIOS: dict[str, Callable[[argparse.Namespace], None]] = {}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=Path, help="JSON lines to ask about")
    parser.add_argument("--limit", type=int, default=300, help="rows of them at most")
    arguments = parser.parse_args()
    SCENARIOS[arguments.scenario](arguments)


if __name__ == "__main__":
    main()
