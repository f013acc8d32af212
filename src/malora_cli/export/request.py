"""What an export is asked for, and what becomes of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from malora_cli.errors import RecipeError
from malora_cli.registry import did_you_mean

if TYPE_CHECKING:  # it takes torch
    from malora_cli.export.cost import Cost

Target = Literal["adapter", "lora", "dense", "bundle"]
#: The formats of each target, the usual one first.
FORMATS_OF: Mapping[str, tuple[str, ...]] = {
    "adapter": ("peft",),
    "lora": ("peft", "gguf", "mlx"),
    "dense": ("hf", "gguf"),
    "bundle": ("hf",),
}
#: Number formats that can be asked for, by format; none for the others.
DTYPES_OF: Mapping[str, tuple[str, ...]] = {"hf": ("f32", "bf16", "f16"), "gguf": ("f32", "f16", "bf16", "q8_0")}
#: What torch calls them.
TORCH_DTYPES: Mapping[str, str] = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
#: The LoRA nearest to the routed mixture, which keeps more of a run than any gates held fixed (docs/exporting.md).
DEFAULT_GATES = "fit"
#: Options that only some targets have a meaning for.
_ONLY_FOR = {
    "gates": ("lora", "dense"),
    "rank": ("lora", "dense"),
    "accept_loss": ("lora", "dense"),
    "onto": ("lora", "dense", "bundle"),
}


@dataclass(frozen=True)
class Request:
    """What is asked for.

    Args:
        to: What is written.
        format: Its format; None is the usual one.
        gates: Gates to hold fixed, as text; None is `DEFAULT_GATES`.
        rank: Rank of the LoRA, below the exact one; None is exact.
        dtype: Number format; None keeps what there is.
        base: What the export calls its base model; None is where it was found.
        rows: Rows a task to measure gates and losses on; None is the recipe's ``train.eval_rows`` and ``eval.rows``.
        step: Take the checkpoint of this step instead of the finished adapter.
        verify: Load the export in a fresh process and compare.
        accept_loss: Nats a token that the tasks of the gates may lose against the run; None refuses what is worse than
            the base model on them.
        force: Replace what is in the way, once the new one is whole.
        onto: The base model that it is for, of a run on one in 4 or 8 bits: ``quantised``, as it was trained on, or
            ``original``; None is the first.
        push: Name of a repository of the hub to send it to.
        public: Whether everybody can see that repository, where it is new.
    """

    to: Target
    format: str | None = None
    gates: str | None = None
    rank: int | None = None
    dtype: str | None = None
    base: str | None = None
    rows: int | None = None
    step: int | None = None
    verify: bool = True
    accept_loss: float | None = None
    force: bool = False
    onto: Literal["quantised", "original"] | None = None
    push: str | None = None
    public: bool = False

    @property
    def form(self) -> str:
        """The format by name."""
        return self.format or FORMATS_OF[self.to][0]

    @property
    def name(self) -> str:
        """Name of the folder where none is given."""
        if self.to in ("adapter", "bundle"):
            return self.to
        gates = re.sub(r"[^\w.=]+", "-", (self.gates or DEFAULT_GATES).removeprefix("task:")).strip("-.")
        form = [] if self.form == FORMATS_OF[self.to][0] else [self.form]
        return "-".join([self.to, gates, *form])

    @property
    def _dtypes(self) -> tuple[str, ...]:
        """Number formats that can be asked for; a bundle keeps the base model's own files."""
        return () if self.to == "bundle" else DTYPES_OF.get(self.form, ())

    def check(self) -> None:
        """Make sure that its options go together.

        Raises:
            RecipeError: They do not.
        """
        known = FORMATS_OF[self.to]
        if self.form not in known:
            near = did_you_mean(self.form, known)
            raise RecipeError(f"'{self.form}' is not a format of --to {self.to}; {near}", where="--format")
        if self.dtype is not None and self.dtype not in self._dtypes:
            known = self._dtypes
            fix = f"Known: {', '.join(known)}." if known else "Leave it out."
            raise RecipeError(
                f"'{self.dtype}' is not a number format of --format {self.form}", where="--dtype", fix=fix
            )
        if self.public and self.push is None:
            raise RecipeError("nothing is pushed", where="--public", fix="Add --push-to-hub OWNER/NAME.")
        if self.accept_loss is not None and not isfinite(self.accept_loss):
            raise RecipeError(
                f"got {self.accept_loss}, not a finite number", where="--accept-loss", fix="Give nats a token, as 0.02."
            )
        for name, targets in _ONLY_FOR.items():
            if getattr(self, name) is not None and self.to not in targets:
                option, fix = f"--{name.replace('_', '-')}", f"Use --to {' or '.join(targets)}."
                keeps = f"{'an adapter' if self.to == 'adapter' else 'a bundle'} keeps its routers and takes no gates"
                what = keeps if name == "gates" else f"--to {self.to} has no use for it"
                raise RecipeError(what, where=option, fix=fix)


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: Where.
        costs: What each export costs each task that has validation rows, by the name of its folder.
        checks: What reading each back came to, by the same names.
        left_out: Share of the squared norm of all updates that a lower rank leaves out, likewise.
        fixed: Whether gates were held fixed.
        pushed: Where it lies on the hub.
    """

    folder: Path
    costs: Mapping[str, Sequence[Cost]] = field(default_factory=dict)
    checks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    left_out: Mapping[str, float] = field(default_factory=dict)
    fixed: bool = False
    pushed: str | None = None
