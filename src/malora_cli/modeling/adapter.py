"""Putting an adapter on a base model, reading one back, and counting what is trained."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.errors import ModelError


@dataclass(frozen=True)
class ParameterCount:
    """Trainable and frozen parameters of a wrapped model."""

    trainable: int
    base: int

    @property
    def percent(self) -> float:
        """Trainable parameters in percent of all, as the paper counts."""
        return 100 * self.trainable / (self.base + self.trainable)


def wrap(model: PreTrainedModel, method: AdapterSettings) -> PeftModel:
    """Put a method's adapter on a base model; nothing else stays trainable.

    Raises:
        ModelError: The model has no such linears, or its architecture is not known and none are named.
    """
    kind = model.config.model_type
    targets = method.target_modules or PAPER_TARGETS.get(kind)
    if targets is None:
        linears = sorted({name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(
            f"which linears of a '{kind}' model to adapt is not known",
            where="method.target_modules",
            fix=f"Name them; it has {', '.join(linears)}.",
        )
    try:
        return get_peft_model(model, method.peft_config(list(targets)))
    except (ValueError, TypeError) as error:
        raise ModelError(str(error).strip().splitlines()[0], where=f"method '{method.name}'") from error


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on its base model, for evaluation.

    Raises:
        ModelError: The folder holds no adapter in safetensors, or not one of this model.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ModelError("there is no adapter here (no adapter_model.safetensors)", where=str(folder))
    try:
        return PeftModel.from_pretrained(model, folder).eval()
    except (ValueError, RuntimeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(f"the adapter does not fit this model ({reason})", where=str(folder)) from error


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count the parameters of a wrapped model; works on the meta device."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return ParameterCount(trainable, sum(p.numel() for p in model.parameters()) - trainable)


def parameter_table(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Adapted modules and trainable parameters by the name of the target, such as ``{"q_proj": (30, 1234)}``."""
    modules: dict[str, set[str]] = defaultdict(set)
    parameters: dict[str, int] = defaultdict(int)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ...layers.0.self_attn.q_proj.malora_up.default[.weight]: the target stands before the adapter's own name
            parts = name.split(".")
            end = next(i for i, part in enumerate(parts) if part.startswith(("malora_", "lora_")))
            modules[parts[end - 1]].add(".".join(parts[:end]))
            parameters[parts[end - 1]] += parameter.numel()
    return {target: (len(modules[target]), parameters[target]) for target in modules}
