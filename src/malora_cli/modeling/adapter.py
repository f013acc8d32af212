"""Putting an adapter on a base model, reading one back, and counting what is trained."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.adapters.config import MIXTURE_PREFIX, MixtureConfig, MixtureType
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.quick import quicken
from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.errors import ModelError
from malora_cli.modeling.memory import out_of_memory
from malora_cli.modeling.modes import autocast_dtype
from malora_cli.modeling.quantised import values_in
from malora_cli.modeling.reason import does_not_fit, first_line
from malora_cli.results import read_json


@dataclass(frozen=True)
class ParameterCount:
    """Trainable and frozen parameters of a wrapped model."""

    trainable: int
    base: int

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, as the paper counts."""
        return 100 * self.trainable / (self.base + self.trainable)


def wrap(model: PreTrainedModel, method: AdapterSettings, *, quick: bool = True) -> PeftModel:
    """Put a method's adapter on a base model; nothing else stays trainable.

    Args:
        model: The base model.
        method: The method.
        quick: Take the faster ways to compute it, see `adapters.quick`.

    Raises:
        ModelError: The model has no such linears, or its architecture is not known and none are named.
    """
    try:
        wrapped = get_peft_model(model, _config(model, method))
    except (ValueError, TypeError) as error:
        raise ModelError(first_line(error), where=f"method '{method.name}'") from error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        raise does_not_fit("its adapter", error, where=f"method '{method.name}'") from error
    _freeze(wrapped, method.frozen)
    if quick:
        quicken(wrapped)
    return wrapped


def _config(model: PreTrainedModel, method: AdapterSettings) -> PeftConfig:
    """A method's configuration on the linears that it adapts in a model."""
    kind = model.config.model_type
    targets = method.target_modules or PAPER_TARGETS.get(kind)
    if targets is None:
        raise _wrong_targets(model, f"which linears of a '{kind}' model to adapt is not known")
    if not isinstance(targets, str):
        # PEFT adapts what it finds and passes over the rest, so that a misspelt name would go unnoticed.
        names = [f".{name}" for name, _ in model.named_modules()]
        unmatched = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
        if unmatched:
            raise _wrong_targets(model, f"this '{kind}' model has no module {', '.join(map(repr, unmatched))}")
        targets = list(targets)
    return method.peft_config(targets)


def _freeze(model: PeftModel, weights: tuple[str, ...]) -> None:
    """Keep adapter weights of these names as they are, also when PEFT makes the adapter trainable again."""
    if weights:
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.frozen_peft_weight_names = dict.fromkeys(model.peft_config, weights)
                layer._freeze_non_trainable_peft_weights()


def _wrong_targets(model: nn.Module, what: str) -> ModelError:
    linears = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return ModelError(what, where="method.target_modules", fix=f"Name linears; it has {', '.join(sorted(linears))}.")


def load_adapter(
    model: PreTrainedModel, folder: Path, method: AdapterSettings | None = None, *, trainable: bool = False
) -> PeftModel:
    """Put a saved adapter on its base model.

    What is built follows from the method. An adapter's own configuration may come from anybody, and there are types of
    PEFT's whose configuration names further files to load.

    Args:
        model: The base model.
        folder: Where the adapter lies.
        method: What it was trained by; None is a LoRA or a mixture that this process has written itself.
        trainable: Whether it is trained further, and not only evaluated.

    Raises:
        ModelError: The folder holds no adapter in safetensors, or not one of this method and model.
    """
    saved = check_adapter(folder, method)
    try:
        config = PeftConfig.from_pretrained(folder) if method is None else _config(model, method)
        # Our own need no initial values first; PEFT would round its own methods to the base model's dtype.
        empty = isinstance(config, MixtureConfig)
        empty &= not getattr(model, "is_quantized", False)  # PEFT moves what stands on 8-bit linears, values or not
        wrapped = PeftModel.from_pretrained(
            model,
            folder,
            config=config,
            is_trainable=trainable,
            low_cpu_mem_usage=empty,
            torch_device=str(next(model.parameters()).device),  # PEFT would read it onto the first GPU
        )
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, MemoryError, SafetensorError) as error:
        if out_of_memory(error):
            raise does_not_fit("the adapter", error, where=str(folder)) from error
        raise ModelError(f"the adapter does not fit this model ({first_line(error)})", where=str(folder)) from error
    # PEFT only warns where the names of the tensors differ, and goes on with initial values.
    wrong = saved ^ set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if wrong:
        raise ModelError(
            f"the adapter does not fit this model ({len(wrong)} tensors are on one side only, as {min(wrong)})",
            where=str(folder),
        )
    quicken(wrapped)
    if not trainable:
        return wrapped.eval()
    _freeze(wrapped, method.frozen if method is not None else ())
    return wrapped


def round_experts(model: PeftModel) -> None:
    """Hold low-rank weights in the number format that they are multiplied in, where `as_trained` mixes formats.

    What is computed by `as_trained` stays the same: autocast would round them again in each call, which in decoding is
    each token. Routers stay in float32, and so does DoRA, whose norms PEFT computes in the format of these weights.

    Args:
        model: The wrapped model, which is trained no further.
    """
    dtype = autocast_dtype(model.dtype, next(model.parameters()).device.type)
    for layer in model.modules() if dtype is not None else ():
        if isinstance(layer, MixtureLinear):
            for adapter in layer.malora_up:
                layer.round_experts(adapter, dtype)
        elif isinstance(layer, LoraLayer) and not layer.lora_magnitude_vector:
            layer.lora_A.to(dtype)
            layer.lora_B.to(dtype)


def save_adapter(model: PeftModel, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model's adapter in PEFT's format.

    Args:
        model: The wrapped model.
        folder: Where to.
        weights: What is trained, by name, where the model does not have it in one piece.
    """
    # No method changes the vocabulary. Left to itself, PEFT asks the hub each time whether that was so.
    model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)


def check_adapter(folder: Path, method: AdapterSettings | None) -> set[str]:
    """Make sure that a folder holds an adapter of a method, in safetensors, with finite weights; nothing is loaded.

    Args:
        folder: The folder.
        method: The method; None is any of those there are.

    Returns:
        Names of its tensors.

    Raises:
        ModelError: It holds something else.
    """
    file = folder / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise ModelError(f"no adapter found here ({SAFETENSORS_WEIGHTS_NAME} is missing)", where=str(folder))
    try:
        config = read_json(folder / CONFIG_NAME)
        kind = config.get("peft_type") if isinstance(config, dict) else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"{CONFIG_NAME} cannot be read ({reason})", where=str(folder)) from error
    known = {PeftType.LORA.value, *MixtureType} if method is None else {method.peft_config([]).peft_type.value}
    if not isinstance(kind, str) or kind not in known:
        raise ModelError(
            f"this adapter is of PEFT's type {kind!r}, and {' or '.join(sorted(known))} was trained",
            where=str(folder),
        )
    try:
        with safe_open(file, framework="pt") as tensors:
            names = set(tensors.keys())
            spoilt = next((name for name in names if not tensors.get_tensor(name).isfinite().all()), None)
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise ModelError(f"{SAFETENSORS_WEIGHTS_NAME} cannot be read ({reason})", where=str(folder)) from error
    if spoilt is not None:
        raise ModelError(f"the weights of the adapter are not finite ({spoilt})", where=str(folder))
    return names


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a wrapped model, on any device. Frozen adapter weights are in neither count."""
    named = dict(model.named_parameters())
    trainable = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    base = sum(values_in(p) for name, p in named.items() if not p.requires_grad and adapted_module(name) is None)
    return ParameterCount(trainable, base)


def adapted_module(parameter: str) -> str | None:
    """The module that an adapter's parameter belongs to; None for one of the base model.

    In ``...q_proj.malora_up.default`` the module stands before the adapter's own names.
    """
    parts = parameter.split(".")
    ends = [i for i, part in enumerate(parts) if part.startswith((MIXTURE_PREFIX, "lora_", "modules_to_save"))]
    return ".".join(parts[: ends[0]]) if ends else None


def balance_factor(model: PeftModel) -> float:
    """Weight of the balance loss of the active adapter's routers; 0 for one without routers."""
    return float(getattr(model.active_peft_config, "balance_factor", 0.0))


def parameter_table(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Adapted modules and trainable parameters by the name of the target, such as ``{"q_proj": (30, 1234)}``."""
    modules: dict[str, set[str]] = defaultdict(set)
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        module = adapted_module(name)
        if parameter.requires_grad and module is not None:
            target = module.rpartition(".")[2]
            modules[target].add(module)
            parameters[target] += parameter.numel()
    return {target: (len(modules[target]), parameters[target]) for target in modules}
