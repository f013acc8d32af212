"""How the experts of one linear are factored: which matrices there are, how they start, what the kernel makes of them.

Every structure ends in the three matrices of the one kernel, ``dy = s * sum_t g_t(x) U_t C_t D_t x``, so a method
differs from another by a few lines here and by nothing in the kernel. Parts are named as the weights are: ``down`` (D),
``coefficient`` (C, or what makes it) and ``up`` (U, or what makes it). Shape suffixes as in ``kernel``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from malora_cli.adapters.initialisation import kaiming_uniform, own_subspaces, shared_subspace
from malora_cli.adapters.kernel import Factors


@dataclass(frozen=True)
class Structure:
    """The experts of one linear.

    Args:
        in_features: I.
        out_features: O.
        num_experts: N.
        r: Expert rank.
    """

    in_features: int
    out_features: int
    num_experts: int
    r: int

    #: Names of the parts.
    parts: ClassVar[tuple[str, ...]] = ("down", "up")

    @property
    @abstractmethod
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shape of every part."""

    @abstractmethod
    def start(self) -> dict[str, Tensor]:
        """Initial values of the parts that do not start at zero; float32, from the global generator."""

    @abstractmethod
    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """The kernel's three matrices."""

    @property
    def ranks(self) -> int:
        """E*R, the ranks of all experts."""
        return self.num_experts * self.r


@dataclass(frozen=True)
class IndependentExperts(Structure):
    """MoLoRA: each expert has an A_t and a B_t of its own.

    Args:
        same_start: All A_t start from one draw.
    """

    same_start: bool = False

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """A_t stacked, B_t side by side."""
        return {"down": (self.ranks, self.in_features), "up": (self.out_features, self.ranks)}

    def start(self) -> dict[str, Tensor]:
        """LoRA's own draw for every A_t, or one for all; B_t = 0."""
        if self.same_start:
            return {"down": kaiming_uniform(self.r, self.in_features).repeat(self.num_experts, 1)}
        return {"down": kaiming_uniform(self.ranks, self.in_features)}

    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """C is the identity."""
        return Factors(part["down"], None, part["up"])


@dataclass(frozen=True)
class SharedDown(Structure):
    """HydraLoRA: one A of the experts' rank for all, a B_t for each.

    Source: Tian et al. 2024 (arXiv 2404.19245), Eq. 4-5.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """One A, B_t side by side."""
        return {"down": (self.r, self.in_features), "up": (self.out_features, self.ranks)}

    def start(self) -> dict[str, Tensor]:
        """LoRA's own draw for A; B_t = 0."""
        return {"down": kaiming_uniform(self.r, self.in_features)}

    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """C hands every expert the whole of ``A x``: an identity for each."""
        down = part["down"]
        identity = torch.eye(self.r, dtype=down.dtype, device=down.device)
        return Factors(down, identity.repeat(self.num_experts, 1), part["up"])


@dataclass(frozen=True)
class Subspace(Structure):
    """What the methods around MALoRA's shared subspace have in common.

    Args:
        rank: Rank d of the subspace.
        beta: Balance between general and task-specific learning.
    """

    parts: ClassVar[tuple[str, ...]] = ("down", "coefficient", "up")

    rank: int
    beta: float


@dataclass(frozen=True)
class SharedSubspace(Subspace):
    """MALoRA: ``A_t = P_t S_A``, with S_A shared.

    Source: MALoRA (arXiv 2410.22782), Eq. 6-10.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """S_A, P_t stacked, B_t side by side."""
        return {
            "down": (self.rank, self.in_features),
            "coefficient": (self.ranks, self.rank),
            "up": (self.out_features, self.ranks),
        }

    def start(self) -> dict[str, Tensor]:
        """Eq. 8-10; B_t = 0."""
        start = shared_subspace(
            self.in_features, num_experts=self.num_experts, r=self.r, subspace_rank=self.rank, beta=self.beta
        )
        return {"down": start.down_SI, "coefficient": start.coefficient_ERS.flatten(0, 1)}

    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """The matrices as they are."""
        return Factors(part["down"], part["coefficient"], part["up"])


@dataclass(frozen=True)
class OwnSubspaces(Subspace):
    """Ablation "without shared S_A": ``A_t = P_t S_t``, each S_t of rank d / N.

    Source: MALoRA (arXiv 2410.22782), Table 3.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """S_t stacked, P_t stacked, B_t side by side."""
        return {
            "down": (self.rank, self.in_features),
            "coefficient": (self.ranks, self.rank // self.num_experts),
            "up": (self.out_features, self.ranks),
        }

    def start(self) -> dict[str, Tensor]:
        """The nearest to LoRA's own draw that has the rank d / N; B_t = 0."""
        start = own_subspaces(
            self.in_features,
            num_experts=self.num_experts,
            r=self.r,
            subspace_rank=self.rank // self.num_experts,
            beta=self.beta,
        )
        return {"down": start.down_SI, "coefficient": start.coefficient_ERS.flatten(0, 1)}

    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """C is block-diagonal: expert t reads S_t alone."""
        blocks = part["coefficient"].unflatten(0, (self.num_experts, self.r))
        return Factors(part["down"], torch.block_diag(*blocks), part["up"])


@dataclass(frozen=True)
class SharedUp(Subspace):
    """Ablation "decomposing B_t instead of A_t": ``B_t = S_B Q_t``, with S_B shared.

    The paper says no more than that. Here Q_t starts at zero, as B_t does in MALoRA, and S_B as ``beta`` times
    orthonormal columns, as S_A does: what is shared has a direction from the start, what tells experts apart has not.

    Source: MALoRA (arXiv 2410.22782), Table 3.
    """

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """A_t stacked, Q_t side by side, S_B."""
        return {
            "down": (self.ranks, self.in_features),
            "coefficient": (self.rank, self.ranks),
            "up": (self.out_features, self.rank),
        }

    def start(self) -> dict[str, Tensor]:
        """LoRA's own draw for every A_t; ``Q_t = 0``."""
        frame = shared_subspace(self.out_features, num_experts=1, r=1, subspace_rank=self.rank, beta=self.beta)
        return {"down": kaiming_uniform(self.ranks, self.in_features), "up": frame.down_SI.T}

    def factors(self, part: Mapping[str, Tensor]) -> Factors:
        """U is the product; multiplying it out once costs as much as some tokens do."""
        return Factors(part["down"], None, part["up"] @ part["coefficient"])
