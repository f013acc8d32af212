"""The classes that a bundle's Python files extend, and the files with these names in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from transformers import PreTrainedModel

from malora_cli.export.bundle.refusals import check_config, is_own, not_bundled

CONFIGURATION, MODELING = "configuration_malora", "modeling_malora"
_TEMPLATE = "malora_cli.export.bundle.template"
#: What stands in the template in the place of other architectures' names.
_NAMES = re.compile(r"LlamaConfig|LlamaModel|LlamaForCausalLM|malora_llama")


@dataclass(frozen=True)
class Architecture:
    """The names of a base model's classes.

    Args:
        config: Of the configuration, such as ``LlamaConfig``.
        model: Of the model without a head, such as ``LlamaModel``.
        causal: Of the language model, such as ``LlamaForCausalLM``.
        model_type: ``llama``, for instance.
    """

    config: str
    model: str
    causal: str
    model_type: str

    @classmethod
    def of(cls, causal: PreTrainedModel, name: str) -> Architecture:
        """Those of a base model.

        Args:
            causal: The model.
            name: What the recipe calls it.

        Raises:
            ModelError: It is no text model of transformers' own.
        """
        check_config(causal.config, name)
        classes = type(causal.config), type(causal.base_model), type(causal)
        if causal.base_model is causal or not all(map(is_own, classes)):
            kind = causal.config.model_type
            raise not_bundled(f"a '{kind}' model has no model below its head that a bundle's code could extend", name)
        config, model, head = (kind.__name__ for kind in classes)
        return cls(config, model, head, causal.config.model_type)

    def settings(self) -> dict[str, Any]:
        """What ``config.json`` says of the classes; in this order, for servers look through them so."""
        return {
            "model_type": f"malora_{self.model_type}",
            "architectures": [f"Malora{self.causal}"],
            "auto_map": {
                "AutoConfig": f"{CONFIGURATION}.Malora{self.config}",
                "AutoModel": f"{MODELING}.Malora{self.model}",
                "AutoModelForCausalLM": f"{MODELING}.Malora{self.causal}",
            },
        }

    def code(self) -> Iterator[tuple[str, str]]:
        """The Python files by name."""
        names = {
            "LlamaConfig": self.config,
            "LlamaModel": self.model,
            "LlamaForCausalLM": self.causal,
            "malora_llama": f"malora_{self.model_type}",
        }
        for stem in (CONFIGURATION, MODELING):
            text = files(_TEMPLATE).joinpath(f"{stem}.py").read_text(encoding="utf-8")
            yield f"{stem}.py", _NAMES.sub(lambda found: names[found[0]], text)
