"""What the four steps are given and give; ``plain`` says what they do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from malora_cli.adapters.entrywise.pull import Pull


class Steps(Protocol):
    """A module with the four steps."""

    def choose(
        self,
        terms_TE: Sequence[Tensor],
        *,
        top_k: int,
        renormalize: bool,
        token_mask: Tensor | None = None,
        assigned_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...

    def gate_(self, hidden_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor: ...

    def gated_gradients_(self, hidden_TER: Tensor, grad_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor: ...

    def logits_gradient(
        self,
        grad_TE: Tensor,
        logits_TE: Tensor,
        gate_TE: Tensor,
        *,
        renormalize: bool,
        pull: Pull | None,
        dtype: torch.dtype,
    ) -> Tensor: ...
