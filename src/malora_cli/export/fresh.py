"""Loads an export as others will, in a process of its own, and compares its logits with those that were expected.

Run as a script by `verify`, with what is asked as JSON on standard input. It imports torch, transformers, safetensors
and, for adapters, PEFT; everything else that could make the export work is kept away.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any


def main() -> None:
    """Print what was found as JSON."""
    asked = json.load(sys.stdin)
    for name in asked["without"]:
        sys.modules[name] = None  # type: ignore[assignment] # its import raises ImportError
    began = time.perf_counter()
    import torch

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    model, versions = _load(asked)
    found = _compare(model.eval(), asked["rows"])
    print(json.dumps({**found, "versions": versions, "seconds": time.perf_counter() - began}))


def _load(asked: dict[str, Any]) -> tuple[Any, dict[str, str]]:
    import torch
    import transformers

    options = {"dtype": getattr(torch, asked["dtype"]), "trust_remote_code": asked["trust"]}
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    auto = transformers.AutoModelForCausalLM
    if asked["base"] is None:
        return auto.from_pretrained(asked["folder"], **options), versions
    if "malora_cli" not in asked["without"]:
        import malora_cli.adapters.tuner  # noqa: F401 - as an adapter's card says
    import peft

    base = auto.from_pretrained(asked["base"], revision=asked["revision"] or "main", **options)
    return peft.PeftModel.from_pretrained(base, asked["folder"]), {**versions, "peft": peft.__version__}


def _compare(model: Any, rows: str) -> dict[str, Any]:
    import torch
    import torch.nn.functional as F
    from safetensors.torch import load_file

    tensors = load_file(rows)
    count = sum(name.startswith("ids.") for name in tensors)
    sums, largest, tokens, size = [0.0] * 4, 0.0, 0, 0.0
    with torch.no_grad():
        for row in range(count):
            ids, at, expected = (tensors[f"{name}.{row}"] for name in ("ids", "positions", "logits"))
            logits = model(input_ids=ids.unsqueeze(0)).logits[0, at].float()
            change = (logits - expected).abs()
            wanted, found = F.log_softmax(expected, -1), F.log_softmax(logits, -1)
            largest, size = max(largest, float(change.max())), max(size, float(expected.abs().max()))
            tokens += len(at)
            sums[0] += float(change.mean(1).sum())
            sums[1] += float(F.kl_div(found, wanted, reduction="sum", log_target=True))
            sums[2] += float((found.argmax(1) == wanted.argmax(1)).sum())
            sums[3] += float(change.isnan().sum())
    mean, divergence, same, unknown = (total / max(tokens, 1) for total in sums)
    if unknown:
        largest = float("inf")
    return {
        "rows": count,
        "tokens": tokens,
        "largest_difference": largest,
        "largest_logit": size,
        "mean_difference": mean,
        "divergence": divergence,
        "same_top": same,
    }


if __name__ == "__main__":
    main()
