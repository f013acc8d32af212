"""Putting an adapter on a base model, reading one back, and counting what is trained."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from peft import PeftConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from malora_cli.adapters import tuner  # noqa: F401 - tells PEFT about our methods
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.methods._base import AdapterSettings
from malora_cli.adapters.targets import PAPER_TARGETS
from malora_cli.errors import ModelError
from malora_cli.modeling.reason import first_line


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
        raise _wrong_targets(model, f"which linears of a '{kind}' model to adapt is not known")
    if not isinstance(targets, str):
        # PEFT adapts what it finds and passes over the rest, so that a misspelt name would go unnoticed.
        names = [f".{name}" for name, _ in model.named_modules()]
        unmatched = [target for target in targets if not any(name.endswith(f".{target}") for name in names)]
        if unmatched:
            raise _wrong_targets(model, f"this '{kind}' model has no module {', '.join(map(repr, unmatched))}")
        targets = list(targets)
    try:
        return get_peft_model(model, method.peft_config(targets))
    except (ValueError, TypeError) as error:
        raise ModelError(first_line(error), where=f"method '{method.name}'") from error


def _wrong_targets(model: nn.Module, what: str) -> ModelError:
    linears = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))}
    return ModelError(what, where="method.target_modules", fix=f"Name linears; it has {', '.join(sorted(linears))}.")


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Put a saved adapter on its base model, for evaluation.

    Raises:
        ModelError: The folder holds no adapter in safetensors, or not one of this model.
    """
    if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
        raise ModelError(f"there is no adapter here (no {SAFETENSORS_WEIGHTS_NAME})", where=str(folder))
    try:
        # Our own need no initial values first; PEFT would round its own methods to the base model's dtype.
        ours = isinstance(PeftConfig.from_pretrained(folder), MixtureConfig)
        wrapped = PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=ours)
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            saved = set(file.keys())
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"the adapter does not fit this model ({first_line(error)})", where=str(folder)) from error
    # PEFT only warns where the names of the tensors differ, and goes on with initial values.
    wrong = saved ^ set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if wrong:
        raise ModelError(
            f"the adapter does not fit this model ({len(wrong)} tensors are on one side only, as {min(wrong)})",
            where=str(folder),
        )
    return wrapped.eval()


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
            end = next(i for i, part in enumerate(parts) if part.startswith(("malora_", "lora_", "modules_to_save")))
            modules[parts[end - 1]].add(".".join(parts[:end]))
            parameters[parts[end - 1]] += parameter.numel()
    return {target: (len(modules[target]), parameters[target]) for target in modules}
