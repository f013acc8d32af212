"""How exports are served: the commands, and what stands beside several LoRAs of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from malora_cli.results import write_json, write_text

#: Ranks that vLLM takes as --max-lora-rank.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def server_commands(to: str, form: str, base: str, places: Mapping[str, str], rank: int | None) -> list[str]:
    """How servers are started with exports; nothing for an adapter, whose router they do not know.

    Args:
        to: What was exported.
        form: Its format.
        base: What the exports call their base model.
        places: Folder of each export by its name; one, but for LoRAs.
        rank: The rank of LoRAs.
    """
    first = quote(next(iter(places.values())))
    match to, form:
        case "lora", "peft":
            modules = " ".join(quote(f"{name}={place}") for name, place in places.items())
            ranks = f"--max-lora-rank {_served_rank(rank or 1)}"
            several = f" --max-loras {len(places)}" if len(places) > 1 else ""
            return [
                f"vllm serve {quote(base)} --enable-lora {ranks}{several} --lora-modules {modules}",
                f"python -m sglang.launch_server --model-path {quote(base)} {ranks} --lora-paths {modules}",
            ]
        case "lora", "gguf":
            files = quote(",".join(f"{place}/adapter.gguf" for place in places.values()))
            chosen = " --lora-init-without-apply" if len(places) > 1 else ""
            return [f"llama-server -m {quote(base)} --lora {files}{chosen}"]
        case "lora", "mlx":
            return [f"mlx_lm.server --model {quote(base)} --adapter-path {quote(place)}" for place in places.values()]
        case "dense", "hf":
            return [f"vllm serve {first}", f"python -m sglang.launch_server --model-path {first}"]
        case "dense", "gguf":
            return [f"llama-server -m {first}/model.gguf"]
        case "bundle", _:
            return [
                f"vllm serve {first} --trust-remote-code --model-impl transformers --dtype float32",
                f"python -m sglang.launch_server --model-path {first} --trust-remote-code --model-impl transformers",
            ]
        case _:
            return []


def _served_rank(rank: int) -> int:
    return next((known for known in RANKS if known >= rank), rank)


def write_serving(folder: Path, names: Sequence[str], rank: int, base: str, form: str, *, shares_down: bool) -> None:
    """Write ``serve.json`` and ``SERVE.md``: how all LoRAs of a folder are served at once.

    Args:
        folder: The folder, with one LoRA in each folder of these names.
        names: Names of the LoRAs.
        rank: Their rank.
        base: What a server is started with.
        form: Their format: ``peft``, ``gguf`` or ``mlx``.
        shares_down: Whether all have the same ``lora_A``.
    """
    inside = "/adapter.gguf" if form == "gguf" else ""
    described: dict[str, Any] = {"base": base, "format": form, "rank": rank}
    described |= {"max_lora_rank": _served_rank(rank)} if form == "peft" else {}
    write_json(folder / "serve.json", {**described, "loras": {name: name + inside for name in names}})
    commands = "\n".join(server_commands("lora", form, base, {name: name for name in names}, rank))
    if form == "peft":
        write_text(folder / "SERVE.md", _PEFT.format(count=len(names), commands=commands, blend=_BLEND * shares_down))
    elif form == "gguf":
        numbered = ", ".join(f"{number} is {name}" for number, name in enumerate(names))
        write_text(folder / "SERVE.md", _GGUF.format(count=len(names), commands=commands, numbered=numbered))


_PEFT = """# Serving these LoRAs

One base model, {count} LoRAs of one rank; a request names the one it wants as its model. Run in this folder.
None of these commands was run when this file was written.

```
{commands}
```

vLLM takes one LoRA a request.
{blend}"""
_BLEND = """
All of them share `lora_A`: the sum of their `lora_B`, each times a share, over that `lora_A` is exactly the blend of
their updates. PEFT's `add_weighted_adapter` with `combination_type="linear"` is not: it multiplies a sum of `lora_A`
by one of `lora_B`. Take `"cat"` there.
"""
_GGUF = """# Serving these LoRAs

One base model, {count} LoRAs. Run in this folder. The command was not run when this file was written.

```
{commands}
```

A request chooses by `"lora": [{{"id": 0, "scale": 1.0}}]`; several, each with a scale, are a blend. Of the ids,
{numbered}.
"""
