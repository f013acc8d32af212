"""What a benchmark is asked for: its rows by name, and the work that they are measured on. Without torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from malora_cli.adapters.methods import METHODS
from malora_cli.errors import ModelError, RecipeError
from malora_cli.modeling.finding import check_base
from malora_cli.recipe import ModelSettings
from malora_cli.registry import unknown

#: Rows that are no method of ours: the frozen model, and what other toolkits do. Of these, `PEER` is what every row is
#: compared with. They run as their users run them, on linears that nothing has quickened.
FROZEN, PEER, PEFT_DORA, LOOP = "frozen", "peft-lora", "peft-dora", "loop-molora"
STOCK = (FROZEN, PEER, PEFT_DORA, LOOP)
#: Sizes of well-known models, for random weights: what a layer costs does not depend on what it has learned.
SHAPES: dict[str, dict[str, int]] = {
    "llama2-7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32},
    "llama3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "smollm2-135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}


@dataclass(frozen=True)
class Workload:
    """What is measured on.

    Args:
        model: Base model as in a recipe, or None.
        shape: Name of a shape in `SHAPES`, where there is no model.
        layers: Layers of a model of that shape.
        tokens: Tokens of one step.
        dtype: Of the frozen weights; bfloat16 computes under autocast, as training does.
        device: "cpu" or "cuda".
        dropout: Dropout of every method, over its own; None leaves each its own.
    """

    model: str | None = None
    shape: str = "llama2-7b"
    layers: int = 1
    tokens: int = 512
    dtype: str = "float32"
    device: str = "cpu"
    dropout: float | None = None

    @property
    def settings(self) -> ModelSettings | None:
        """The model as a recipe would name it."""
        return None if self.model is None else ModelSettings(base=self.model, dtype=self.dtype)

    def check(self) -> None:
        """Make sure that the model or the shape is there.

        Raises:
            ModelError: It is not.
        """
        if self.settings is not None:
            check_base(self.settings)
        elif self.shape not in SHAPES:
            raise ModelError(unknown("shape", self.shape, SHAPES), where="--shape")


def check_rows(names: Sequence[str]) -> list[str]:
    """The rows asked for, or all of them; the peer is always among them.

    Raises:
        RecipeError: A name is no row.
    """
    known = [*STOCK, *METHODS]
    for name in names:
        if name not in known:
            raise RecipeError(unknown("method", name, known), where="--methods")
    wanted = set(names) | {PEER} if names else known
    return [name for name in known if name in wanted]
