"""Which runtimes load a LoRA in PEFT's format, and whether these compute what PEFT does.

The rules are those of the runtimes' own sources: vLLM's ``lora/peft_helper.py`` and ``lora/models.py``, SGLang's
``srt/lora``, and llama.cpp's ``convert_lora_to_gguf.py`` with ``llama-adapter.cpp``. None of them is run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from math import isclose, sqrt
from pathlib import Path
from typing import Any, Literal

from peft import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from pydantic import BaseModel, ConfigDict, PositiveFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open

from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.adapters.config import MixtureType
from malora_cli.errors import RunError
from malora_cli.export.serving import RANKS
from malora_cli.results import read_json

CONFIG = "adapter_config.json"
_DOWN, _UP = (".lora_A.weight", ".lora_embedding_A"), (".lora_B.weight", ".lora_embedding_B")
#: Copies of the base's own embeddings, which servers pass over.
_COPIES = ("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")
#: Settings that all runtimes read, that say how training began or went on, or that the rules below look at.
_KNOWN = {
    *("peft_type", "task_type", "base_model_name_or_path", "revision", "auto_mapping", "inference_mode"),
    *("peft_version", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform"),
    *("layers_pattern", "fan_in_fan_out", "init_lora_weights", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
    *("ensure_weight_tying", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("modules_to_save",),
}


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


class _Config(BaseModel):
    """What of ``adapter_config.json`` decides on the weights; its defaults are PEFT's."""

    model_config = ConfigDict(strict=True)

    peft_type: str
    r: PositiveInt = 8
    lora_alpha: PositiveFloat = 8
    target_modules: list[str] | str | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter in PEFT's format; mlx-lm has a file of the same name."""
    return (folder / CONFIG).is_file() and "peft_type" in _read(folder / CONFIG)


def is_routed(folder: Path) -> bool:
    """Whether an adapter has routed experts, so that it is no LoRA."""
    return _read(folder / CONFIG).get("peft_type") in {*MixtureType}


def lint(folder: Path) -> list[Verdict]:
    """What PEFT, vLLM, SGLang and llama.cpp make of an adapter.

    Args:
        folder: It, with ``adapter_config.json`` and ``adapter_model.safetensors``.

    Raises:
        RunError: It is damaged, or has NaN or infinite weights.
    """
    told = _read(folder / CONFIG)
    try:
        config = _Config.model_validate(told)
    except ValidationError as error:
        [first, *_] = error.errors()
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise RunError(what, where=str(folder / CONFIG)) from None
    adapter = _Adapter(config, told, _shapes_in(folder / SAFETENSORS_WEIGHTS_NAME))
    if config.peft_type != "LORA":
        return _of_another_kind(config.peft_type)
    if (why := adapter.damage()) is not None:
        return [Verdict(runtime, "refuses", why) for runtime in ("PEFT", *_RUNTIMES)]
    own = Verdict("PEFT", "loads")
    if unread := [name for name in told if name not in _KNOWN and adapter.has(name)]:
        return [own, *(Verdict(runtime, "differs", _unread(unread)) for runtime in _RUNTIMES)]
    return [own, *(of(adapter) for of in _RUNTIMES.values())]


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found = read_json(file)
    except (OSError, ValueError) as error:
        raise RunError(f"it cannot be read ({error})", where=str(file)) from error
    if not isinstance(found, dict):
        raise RunError("not a JSON object", where=str(file))
    return found


def _of_another_kind(kind: str) -> list[Verdict]:
    known = PEFT_TYPE_TO_CONFIG_MAPPING.get(kind)
    if known is None:
        own = Verdict("PEFT", "refuses", f"peft_type '{kind}' is unknown to it")
    else:
        ours = known.__module__.startswith("malora_cli.")
        own = Verdict("PEFT", "loads", "with `import malora_cli`" if ours else "")
    fix = "; malora merge-export RUN --to lora writes one" if "malora" in own.why else ""
    return [own, *(Verdict(runtime, "refuses", f"{kind} is not a LoRA{fix}") for runtime in _RUNTIMES)]


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors by name."""
    if not file.is_file():
        fix = "Save it as safetensors: a .bin file is not opened, since it can run code."
        raise RunError(f"{file.name} not found", where=str(file.parent), fix=fix)
    try:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            found = {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
            for name in names:
                with suppress(NotImplementedError):  # number formats that torch only stores
                    if not bool(tensors.get_tensor(name).float().isfinite().all()):
                        raise RunError(f"{name} has NaN or infinite weights", where=str(file))
    except (SafetensorError, OSError) as error:
        raise RunError(f"it cannot be read ({error})", where=str(file), fix="Copy it again.") from error
    return found


@dataclass(frozen=True)
class _Adapter:
    config: _Config
    told: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def has(self, name: str) -> bool:
        """Whether a setting is switched on."""
        return self.told.get(name) not in (None, False, "none", [], {})

    def on(self, *names: str) -> list[str]:
        """Those of some settings that are switched on."""
        return [name for name in names if self.has(name)]

    @cached_property
    def ranks(self) -> dict[str, int]:
        """The rank of every adapted module, by its name."""
        return {name: shape[0] if shape else 0 for name, shape in self._ending(_DOWN).items()}

    def _ending(self, ends: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return {
            name.removesuffix(end).removeprefix("base_model.model."): shape
            for name, shape in self.shapes.items()
            for end in ends
            if name.endswith(end)
        }

    def damage(self) -> str | None:
        """Why PEFT cannot load it."""
        ups = {name: shape[1] if len(shape) > 1 else 0 for name, shape in self._ending(_UP).items()}
        if not self.ranks:
            return "it has no weights of a LoRA"
        if odd := sorted(self.ranks.keys() ^ ups.keys()):
            return f"{odd[0]} has only one of lora_A and lora_B"
        for pattern in (*(self.config.rank_pattern or ()), *(self.config.alpha_pattern or ())):
            try:
                re.compile(pattern)
            except re.error:
                return f"'{pattern}' is not a valid pattern"
        if self.has("target_parameters"):
            return None  # whose ranks are those of all experts together
        for module, rank in self.ranks.items():
            if rank != ups[module]:
                return f"{module}: lora_A has rank {rank}, and lora_B {ups[module]}"
            if rank != (said := self._by_pattern(self.config.rank_pattern, self.config.r, module)):
                return f"{module} has rank {rank}, and {CONFIG} says {said}"
        return None

    @staticmethod
    def _by_pattern(pattern: Mapping[str, float] | None, default: float, module: str) -> float:
        of = pattern or {}
        return of.get(get_pattern_key(list(of), module), default)

    def scale(self, module: str) -> float:
        """What PEFT multiplies the update of a module by."""
        rank, alpha = self.ranks[module], self._by_pattern(self.config.alpha_pattern, self.config.lora_alpha, module)
        return alpha / sqrt(rank) if self.config.use_rslora else alpha / rank

    def other_scale(self, scale: Callable[[str], float], unread: Sequence[str]) -> str | None:
        """Where a runtime scales an update otherwise than PEFT does, as it does not read some settings."""
        for module in self.ranks:
            if not isclose(theirs := scale(module), ours := self.scale(module), rel_tol=1e-6):
                return f"{module} is scaled by {theirs:g}, in PEFT by {ours:g}: {_unread(self.on(*unread))}"
        return None

    @cached_property
    def further(self) -> list[str]:
        """Tensors that are no factors of a LoRA."""
        return [name for name in self.shapes if not name.endswith((*_DOWN, *_UP, *_COPIES))]

    def alone(self, module: str, needed: str) -> str | None:
        """An adapted module of one name beside which none of another name is adapted."""
        found = (name for name in self.ranks if name.rpartition(".")[2] == module)
        return next((name for name in found if f"{name.removesuffix(module)}{needed}" not in self.ranks), None)


def _unread(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} not read"


def _vllm(adapter: _Adapter) -> Verdict:
    config = adapter.config
    highest = max(config.r, *adapter.ranks.values())
    if refused := adapter.on("use_dora", "lora_bias", "bias", "modules_to_save"):
        return Verdict("vLLM", "refuses", ", ".join(refused))
    if adapter.further:
        return Verdict("vLLM", "refuses", f"it has {adapter.further[0]}")
    if highest > RANKS[-1]:
        return Verdict("vLLM", "refuses", f"its rank is {highest}, and {RANKS[-1]} the highest")
    scale = config.lora_alpha / (sqrt(config.r) if config.use_rslora else config.r)
    if (why := adapter.other_scale(lambda _module: scale, ("rank_pattern", "alpha_pattern"))) is not None:
        return Verdict("vLLM", "differs", why)
    return Verdict("vLLM", "loads", f"with --max-lora-rank {next(rank for rank in RANKS if rank >= highest)}")


def _sglang(adapter: _Adapter) -> Verdict:
    targets, config = adapter.config.target_modules, adapter.config
    if isinstance(targets, str) and targets != "all-linear":
        return Verdict("SGLang", "refuses", "target_modules is a regular expression and not a list")
    if (odd := next((name for name, rank in adapter.ranks.items() if rank != config.r), None)) is not None:
        return Verdict("SGLang", "refuses", f"{odd} has rank {adapter.ranks[odd]}, and the others {config.r}")
    # It joins these into one product.
    pairs = (("q_proj", "v_proj"), ("k_proj", "q_proj"), ("v_proj", "q_proj"), ("up_proj", "gate_proj"))
    for module, needed in (*pairs, ("gate_proj", "up_proj")):
        if (name := adapter.alone(module, needed)) is not None:
            return Verdict("SGLang", "refuses", f"{name} is adapted and {needed} beside it is not")
    if unread := adapter.on("use_dora", "lora_bias", "bias", "modules_to_save"):
        return Verdict("SGLang", "differs", _unread(unread))
    if adapter.further:
        return Verdict("SGLang", "differs", f"{adapter.further[0]} is not read")
    scale = config.lora_alpha / config.r
    if (why := adapter.other_scale(lambda _module: scale, ("alpha_pattern", "use_rslora"))) is not None:
        return Verdict("SGLang", "differs", why)
    return Verdict("SGLang", "loads")


def _llama_cpp(adapter: _Adapter) -> Verdict:
    further = [name for name in adapter.further if ".base_layer.weight" not in name]  # which the converter passes over
    norms = [name for name in further if "_layernorm" in name or ".norm" in name]
    if odd := [name for name in further if name not in norms]:
        return Verdict("llama.cpp", "refuses", f"convert_lora_to_gguf.py has no place for {odd[0]}")
    if norms:
        return Verdict("llama.cpp", "differs", f"{norms[0]} is converted, and then not read")
    alpha, unread = adapter.config.lora_alpha, ("alpha_pattern", "use_rslora")
    if (why := adapter.other_scale(lambda name: alpha / adapter.ranks[name], unread)) is not None:
        return Verdict("llama.cpp", "differs", why)
    return Verdict("llama.cpp", "loads", "after convert_lora_to_gguf.py")


_RUNTIMES: Mapping[str, Callable[[_Adapter], Verdict]] = {"vLLM": _vllm, "SGLang": _sglang, "llama.cpp": _llama_cpp}
