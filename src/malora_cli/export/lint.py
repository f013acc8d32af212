"""Which runtimes load a LoRA in PEFT's format, and whether these compute what PEFT does.

The rules are those of the runtimes' own sources: vLLM's ``lora/peft_helper.py``, SGLang's ``srt/lora``, and llama.cpp's
``convert_lora_to_gguf.py`` with ``llama-adapter.cpp``. None of them is run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import isclose, sqrt
from pathlib import Path
from typing import Any, Literal

from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.errors import RunError
from malora_cli.results import read_json

CONFIG = "adapter_config.json"
#: The highest that vLLM takes as ``--max-lora-rank``.
_HIGHEST_RANK = 512
_DOWN, _UP = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")


@dataclass(frozen=True)
class Verdict:
    """What one runtime makes of an adapter.

    Args:
        runtime: Its name.
        does: ``loads`` it, and computes what PEFT does; ``differs``: loads it, and computes something else; or
            ``refuses`` it.
        why: The reason, or what has to be done for it to load.
    """

    runtime: str
    does: Literal["loads", "differs", "refuses"]
    why: str = ""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format; mlx-lm has a file of the same name."""
    return (folder / CONFIG).is_file() and "peft_type" in read_json(folder / CONFIG)


def lint(folder: Path) -> list[Verdict]:
    """What PEFT, vLLM, SGLang and llama.cpp make of an adapter.

    Args:
        folder: It, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        RunError: It is damaged, or has NaN or infinite weights.
    """
    adapter = _Adapter(read_json(folder / CONFIG), _shapes_in(folder / SAFETENSORS_WEIGHTS_NAME))
    kind = adapter.config["peft_type"]
    if kind != "LORA":
        known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
        ours = known is not None and known.__module__.startswith("malora_cli.")
        what = f"{kind} is not a LoRA"
        fix = f"{what}; malora merge-export RUN --to lora writes one" if ours else what
        own = Verdict("PEFT", "loads", "with `import malora_cli`" if ours else "")
        return [own, *(Verdict(runtime, "refuses", fix) for runtime in _RUNTIMES)]
    if (why := adapter.damage()) is not None:
        return [Verdict(runtime, "refuses", why) for runtime in ("PEFT", *_RUNTIMES)]
    return [Verdict("PEFT", "loads"), *(of(adapter) for of in _RUNTIMES.values())]


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name."""
    if not file.is_file():
        fix = "Save it as safetensors: a .bin file is not opened, since it can run code."
        raise RunError(f"there is no {file.name}", where=str(file.parent), fix=fix)
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            for name in names:
                if not bool(tensors.get_tensor(name).isfinite().all()):
                    raise RunError(f"{name} has NaN or infinite weights", where=str(file))
    except (SafetensorError, OSError) as error:
        raise RunError(f"it cannot be read ({error})", where=str(file), fix="Copy it again.") from error
    return found


@dataclass(frozen=True)
class _Adapter:
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def has(self, name: str) -> bool:
        """Whether a setting is switched on."""
        return self.config.get(name) not in (None, False, "none", [], {})

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of every adapted module, by its name."""
        return {
            name.removesuffix(end).removeprefix("base_model.model."): shape[0]
            for name, shape in self.shapes.items()
            for end in _DOWN
            if name.endswith(end)
        }

    def damage(self) -> str | None:
        """Why PEFT cannot load it."""
        ups = {
            name.removesuffix(end).removeprefix("base_model.model."): shape[-1]
            for name, shape in self.shapes.items()
            for end in _UP
            if name.endswith(end)
        }
        if not self.ranks:
            return "it has no weights of a LoRA"
        if odd := sorted(self.ranks.keys() ^ ups.keys()):
            return f"{odd[0]} has only one of lora_A and lora_B"
        for module, rank in self.ranks.items():
            if rank != ups[module]:
                return f"{module}: lora_A has rank {rank}, and lora_B {ups[module]}"
            if rank != self._pattern("rank_pattern", "r", module):
                return f"{module} has rank {rank}, and {CONFIG} says {self._pattern('rank_pattern', 'r', module)}"
        return None

    def _pattern(self, pattern: str, default: str, module: str) -> float:
        of: Mapping[str, float] = self.config.get(pattern) or {}
        return of.get(get_pattern_key(list(of), module), self.config[default])

    def scale(self, module: str) -> float:
        """What PEFT multiplies the update of a module by."""
        rank, alpha = self.ranks[module], self._pattern("alpha_pattern", "lora_alpha", module)
        return alpha / sqrt(rank) if self.has("use_rslora") else alpha / rank

    def other_scale(self, scale: Callable[[str], float]) -> str | None:
        """Where a runtime scales an update otherwise than PEFT does."""
        for module in self.ranks:
            if not isclose(theirs := scale(module), ours := self.scale(module), rel_tol=1e-6):
                return f"{module} is scaled by {theirs:g}, in PEFT by {ours:g}: {self._reason}"
        return None

    @property
    def _reason(self) -> str:
        settings = [name for name in ("rank_pattern", "alpha_pattern", "use_rslora") if self.has(name)]
        return f"{' and '.join(settings)} is not read"

    @cached_property
    def further(self) -> list[str]:
        """Tensors that are no factors of a LoRA."""
        return [name for name in self.shapes if not name.endswith((*_DOWN, *_UP))]


def _vllm(adapter: _Adapter) -> Verdict:
    highest, config = max(adapter.ranks.values()), adapter.config
    refused = [name for name in ("use_dora", "lora_bias", "bias", "modules_to_save") if adapter.has(name)]
    if refused or adapter.further:
        return Verdict("vLLM", "refuses", ", ".join(refused) or f"it has {adapter.further[0]}")
    if highest > _HIGHEST_RANK:
        return Verdict("vLLM", "refuses", f"its rank is {highest}, and {_HIGHEST_RANK} the highest")
    under = sqrt(config["r"]) if adapter.has("use_rslora") else config["r"]
    if (why := adapter.other_scale(lambda _module: config["lora_alpha"] / under)) is not None:
        return Verdict("vLLM", "differs", why)
    return Verdict("vLLM", "loads", f"with --max-lora-rank {highest} or more")


def _sglang(adapter: _Adapter) -> Verdict:
    targets, config = adapter.config["target_modules"], adapter.config
    if isinstance(targets, str) and targets != "all-linear":
        return Verdict("SGLang", "refuses", "target_modules is a regular expression and not a list")
    if unread := [name for name in ("use_dora", "lora_bias", "bias", "modules_to_save") if adapter.has(name)]:
        return Verdict("SGLang", "differs", f"{', '.join(unread)} is not read")
    if adapter.further:
        return Verdict("SGLang", "differs", f"{adapter.further[0]} is not read")
    if (why := adapter.other_scale(lambda _module: config["lora_alpha"] / config["r"])) is not None:
        return Verdict("SGLang", "differs", why)
    return Verdict("SGLang", "loads")


def _llama_cpp(adapter: _Adapter) -> Verdict:
    # The converter keeps norms, and passes over copies of the base's own weights.
    if odd := [name for name in adapter.further if "norm" not in name and ".base_layer." not in name]:
        return Verdict("llama.cpp", "refuses", f"convert_lora_to_gguf.py has no place for {odd[0]}")
    if (why := adapter.other_scale(lambda name: adapter.config["lora_alpha"] / adapter.ranks[name])) is not None:
        return Verdict("llama.cpp", "differs", why)
    return Verdict("llama.cpp", "loads", "after convert_lora_to_gguf.py")


_RUNTIMES: Mapping[str, Callable[[_Adapter], Verdict]] = {"vLLM": _vllm, "SGLang": _sglang, "llama.cpp": _llama_cpp}
