"""What a bundle costs in transformers beside its base model, on one thread of the CPU.

    python benchmarks/bundle.py BUNDLE BASE     folders of a bundle and of the model that it stands on

Processor seconds are counted, not the clock, so other programs matter little. The two take turns; the ratio is the
median over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

PROMPT, STEPS = 256, 16


def load(folder: Path) -> PreTrainedModel:
    """A model in float32."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()


@torch.no_grad()
def reading(model: PreTrainedModel) -> float:
    """Seconds for a prompt."""
    ids = torch.arange(3, 3 + PROMPT).unsqueeze(0)
    began = time.process_time()
    model(input_ids=ids)
    return time.process_time() - began


def decoding(rows: int) -> Callable[[PreTrainedModel], float]:
    """Seconds for a token of each of some rows, with a cache."""

    @torch.no_grad()
    def decode(model: PreTrainedModel) -> float:
        ids = torch.arange(3, 19).expand(rows, -1)
        cache = model(input_ids=ids, use_cache=True).past_key_values
        began = time.process_time()
        for _ in range(STEPS):
            model(input_ids=ids[:, -1:], past_key_values=cache, use_cache=True)
        return (time.process_time() - began) / STEPS

    return decode


def main() -> None:
    """Print the times of both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    base, bundle = load(asked.base), load(asked.bundle)
    scenarios = {f"a prompt of {PROMPT} tokens": reading, "a token": decoding(1), "a token of 16 rows": decoding(16)}
    for name, seconds in scenarios.items():
        pairs = [(seconds(base), seconds(bundle)) for _ in range(asked.rounds + 1)][1:]  # the first warms up
        ratio = median(ours / theirs for theirs, ours in pairs)
        times = [1000 * median(side) for side in zip(*pairs, strict=True)]
        print(f"{name}: base {times[0]:.0f} ms, bundle {times[1]:.0f} ms, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
