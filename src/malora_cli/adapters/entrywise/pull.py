"""What a router's balance loss asks of the backward pass of its gates."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Pull(NamedTuple):
    """The gradient of a balance loss by the probability of each expert, which is the same for every real token."""

    pull_E: Tensor  # one of `kernel.balance_pulls`
    weighted_E: Tensor  # that times the weight of this router's balance loss among those of others
    weight: Tensor | float  # of all of them, in what is differentiated; a scalar
    token_mask: Tensor | None  # 1 for real tokens, 0 for padding; None when all are real
    balance_E: Tensor | None  # zeros, which become the balance loss by expert; None where nobody asks
