"""The card of a saved adapter: what it is, and how it is loaded, in place of PEFT's blank form."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard

if TYPE_CHECKING:
    from malora_cli.adapters.config import MixtureConfig

#: Of the form that PEFT writes.
_BLANK = "# Model Card for Model ID"

_TEXT = """# {method} adapter

{description}

| | |
|---|---|
| base model | {base} |
| experts in each adapted linear | {experts}, of which a token takes {top_k} |
| rank of an expert | {r} |
| adapted linears | {targets} |

## Loading it

PEFT does not know this method by itself. The package `malora` (`pip install malora`) tells it, and the import is all it
takes; without it, PEFT and what is built on PEFT end in `KeyError: '{kind}'`.

```python
import malora_cli  # makes PEFT know the method
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "FOLDER")  # where this file lies
```

Every token takes its own experts, so there is no single merged weight. `malora merge-export RUN --to lora --gates
task:NAME` writes the exact LoRA for fixed gates, which plain PEFT loads.

{source}
"""


def write_card(folder: Path, config: MixtureConfig) -> None:
    """Write the card of an adapter into its folder, unless somebody has written one."""
    path = folder / "README.md"
    card = ModelCard.load(path) if path.exists() else ModelCard(f"---\nlibrary_name: peft\n---\n{_BLANK}\n")
    if _BLANK not in card.text:
        return
    data: Any = card.data
    base = config.base_model_name_or_path
    if base and Path(base).is_dir():  # a path on this machine, which the hub would refuse
        data.base_model = None
        data.tags = [tag for tag in data.tags or [] if not tag.startswith("base_model:")] or None
    card.text = _text(config)
    path.write_text(str(card), encoding="utf-8")


def _text(config: MixtureConfig) -> str:
    description, *rest = (inspect.getdoc(type(config)) or type(config).__name__).split("\n\n")
    formula = [part for part in rest[:1] if part.startswith("``")]
    named = [config.target_modules] if isinstance(config.target_modules, str) else sorted(config.target_modules or [])
    return _TEXT.format(
        method=type(config).__name__.removesuffix("Config"),
        description="\n\n".join([description, *formula]).replace("``", "`"),
        base=config.base_model_name_or_path or "BASE",
        experts=config.num_experts,
        top_k=config.top_k or "all",
        r=config.r,
        targets=", ".join(f"`{name}`" for name in named),
        kind=str(config.peft_type.value if config.peft_type else ""),
        source="\n\n".join(part for part in rest if part.startswith("Source:")),
    )
