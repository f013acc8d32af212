"""The model card beside exported weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from malora_cli.export.cost import Cost
from malora_cli.export.gates import Gates
from malora_cli.export.request import Request
from malora_cli.modeling import BaseModel
from malora_cli.results import RunRecord, write_text

_PEFT_CODE = """```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{base}"{revision})
model = PeftModel.from_pretrained(base, "FOLDER")  # where this file lies
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```"""
_HF_CODE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})  # where this file lies
tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})
```"""
_CODE = {
    ("lora", "peft"): _PEFT_CODE,
    ("lora", "gguf"): "```\nllama-server -m {base} --lora adapter.gguf\n```",
    ("lora", "mlx"): "```\nmlx_lm.generate --model {base} --adapter-path FOLDER --prompt ...\n```",
    ("dense", "hf"): _HF_CODE,
    ("dense", "gguf"): "```\nllama-server -m model.gguf\n```",
    ("bundle", "hf"): _HF_CODE,
}
_WHAT = {
    "lora": "A LoRA of {base}{of}, written by `malora merge-export`.",
    "dense": "{base} with the adapter of a run merged into it{of}, written by `malora merge-export`.",
    "bundle": "{base} with its routed low-rank experts: every token takes its own. Written by `malora merge-export`.",
}


def write_card(
    folder: Path,
    record: RunRecord,
    request: Request,
    base: BaseModel,
    named: str,
    gates: Gates | None,
    costs: Sequence[Cost],
    quantised: str | None = None,
) -> None:
    """Write ``README.md``: what this is, what it was trained on and how well it keeps that, and how it is loaded.

    Args:
        folder: The export.
        record: The run that it is of.
        request: What was asked for.
        base: The base model.
        named: What the export calls it.
        gates: Those that were held fixed; None where nothing was.
        costs: What that costs each task.
        quantised: The number format that the base model was rounded to, of 4 or 8 bits.
    """
    on_hub = base.commit is not None and named == base.location
    data = ModelCardData(
        library_name="peft" if request.to == "lora" else "transformers",
        base_model=named if on_hub else None,  # the hub refuses a path of this machine
        pipeline_tag="text-generation",
        tags=["malora", request.to],
    )
    fitted = gates is not None and gates.fit
    held = "fitted to its routed experts by least squares" if fitted else "for gates held fixed"
    of = "" if gates is None else f", {held} (`{gates.text}`)"
    of += "" if request.rank is None else f", at rank {request.rank}"
    code = _CODE[request.to, request.form].format(
        base=named,
        revision=f', revision="{base.commit}"' if on_hub else "",
        trust=", trust_remote_code=True" if request.to == "bundle" else "",
    )
    parts = [
        f"# {record.name}",
        _WHAT[request.to].format(base=f"`{named}`", of=of),
        *([_ROUNDED[request.to].format(kind=quantised)] if quantised is not None else []),
        _trained_on(record),
        *([_cost_table(costs)] if costs else []),
        "## Loading it",
        code,
        *([_FITTED if gates.fit else _HELD] if gates is not None else []),
        "The licence of the base model, and those of the data, hold for this as well.",
    ]
    body = "\n\n".join(parts)
    write_text(folder / "README.md", f"---\n{data.to_yaml()}\n---\n\n{body}\n")


_ROUNDED = {
    "lora": "It was trained on the base model in {kind}, and is best loaded on that (`BitsAndBytesConfig`).",
    "dense": "The base model's weights in it are those that {kind} stands for, as the adapter was trained on them.",
}
_ROUTES = "The run that this comes from routes: every token takes its own experts. Here all tokens take "
_HELD = f"{_ROUTES}the same mixture of them, which approximates the routing."
_FITTED = f"{_ROUTES}one LoRA, which approximates the routing as nearly as one can on rows of these tasks."


def _trained_on(record: RunRecord) -> str:
    manifest = record.manifest
    lines = [f"Trained by `{manifest.method}` for {manifest.steps:,} steps on:", ""]
    lines += ["| task | domain | share of the rows |", "|---|---|---|"]
    for task, domain in manifest.domains.items():
        lines.append(f"| {task} | {domain} | {manifest.task_share.get(task, 0):.1%} |")
    return "\n".join(lines)


def _cost_table(costs: Sequence[Cost]) -> str:
    lines = [
        "## What it keeps",
        "",
        "Validation loss in nats a token. *Kept* is the share of the run's gain over the base model.",
        "",
        "| task | rows | base | run | this | kept |",
        "|---|---|---|---|---|---|",
    ]
    for it in costs:
        kept = "-" if it.kept != it.kept else f"{it.kept:.0%}"
        lines.append(f"| {it.task} | {it.rows} | {it.base:.4f} | {it.routed:.4f} | {it.merged:.4f} | {kept} |")
    return "\n".join(lines)
