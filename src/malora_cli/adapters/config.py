"""PEFT configurations of the mixture methods."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from peft import PeftConfig

from malora_cli.adapters.constraints import mixture_problems

#: What the names of all our weights begin with.
MIXTURE_PREFIX = "malora_"


class MixtureType(str, Enum):  # noqa: UP042 - PEFT writes and compares the value as a plain str
    """Names of our methods in ``adapter_config.json``. Name and value agree, so a plain str finds them in a dict."""

    MALORA = "MALORA"
    MOLORA = "MOLORA"


@dataclass
class MixtureConfig(PeftConfig):
    """What every mixture of LoRA experts is configured by.

    Args:
        r: Expert rank (MoLoRA's r, MALoRA's expanded r').
        num_experts: Experts N in each adapted linear.
        top_k: Experts K active for a token.
        lora_alpha: The update is scaled by ``lora_alpha / r``, once.
        lora_dropout: Dropout on the input of the down-projection; never on the router's.
        balance_factor: Weight of the mean over routers of the load-balancing loss.
        renormalize: Divide the K kept gates by their sum. Off is Eq. 4 of the paper read literally, under which
            the gates sum to about K/N in the beginning and experts learn at that fraction of the pace.
        frozen: Parts of every expert that keep their initial values: "down" and, where there is one, "coefficient".
        target_modules: Names (or a regular expression) of the linears to adapt; None takes the paper's for the
            model's architecture: every linear of a block but the attention output.
        exclude_modules: Names (or a regular expression) of linears to leave alone.
        layers_to_transform: Indices of the layers to adapt; None is all.
        layers_pattern: Name of the module list that ``layers_to_transform`` counts in.
        modules_to_save: Further modules to train and save whole.
    """

    r: int = field(default=8, metadata={"help": "Expert rank."})
    num_experts: int = field(default=8, metadata={"help": "Experts in each adapted linear."})
    top_k: int = field(default=2, metadata={"help": "Experts active for a token."})
    lora_alpha: float = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the down-projection."})
    balance_factor: float = field(default=0.01, metadata={"help": "Weight of the load-balancing loss."})
    renormalize: bool = field(default=True, metadata={"help": "Divide the kept gates by their sum."})
    frozen: list[str] = field(default_factory=list, metadata={"help": "Parts that keep their initial values."})
    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Linears to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Linears to leave alone."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layers' list."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train whole."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        counts = self._counts().items()
        problems = [
            f"{name} must be a whole number of at least 1, not {value}"
            for name, value in counts
            if not isinstance(value, int) or value < 1
        ]
        problems += mixture_problems(
            r=self.r, num_experts=self.num_experts, top_k=self.top_k, subspace_rank=self.shared_rank
        )
        if not 0.0 <= self.lora_dropout < 1.0:
            problems.append(f"lora_dropout must lie in [0, 1), not {self.lora_dropout}")
        if not self.lora_alpha > 0:
            problems.append(f"lora_alpha must be above 0, not {self.lora_alpha}")
        if not self.balance_factor >= 0:
            problems.append(f"balance_factor must be at least 0, not {self.balance_factor}")
        parts = ["down"] if self.shared_rank is None else ["down", "coefficient"]
        problems += [
            f"frozen has no part '{part}'; known: {', '.join(parts)}" for part in self.frozen if part not in parts
        ]
        if problems:
            raise ValueError(f"{type(self).__name__}: {'; '.join(problems)}")

    def _counts(self) -> dict[str, int]:
        return {"r": self.r, "num_experts": self.num_experts, "top_k": self.top_k}

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``, dimensionless."""
        return self.lora_alpha / self.r

    @property
    def shared_rank(self) -> int | None:
        """Rank of the down-projection that all experts share; None where each has its own."""
        return None


@dataclass
class MoloraConfig(MixtureConfig):
    """Mixture of LoRA experts: ``y = W0 x + s * sum_t g_t(x) B_t A_t x``, a router for each adapted linear.

    Args:
        same_init: Let all experts of a linear start from the same A.

    Source: the baseline of MALoRA (arXiv 2410.22782), section 2.2; Zadouri et al. 2023 (arXiv 2309.05444).
    """

    same_init: bool = field(default=False, metadata={"help": "All experts of a linear start from the same A."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MixtureType.MOLORA


@dataclass
class MaloraConfig(MixtureConfig):
    """MALoRA: experts share a down-projection S_A and differ in coefficients P_t and up-projections B_t.

    ``y = W0 x + s * sum_t g_t(x) B_t P_t S_A x``. With MoLoRA's expert rank ``r0`` and ``lambda < 1`` the paper takes
    ``subspace_rank = lambda * r0 * num_experts`` and ``r = r0 + (1 - lambda) * r0``: 32 and 12 for r0 = 8 and 1/2.

    Args:
        subspace_rank: Rank d of the shared subspace, at least ``r``.
        beta: Balance between learning S_A (gradient ~ 1/beta) and the P_t (gradient ~ beta).

    Source: Wang et al., MALoRA, Findings of NAACL 2025 (arXiv 2410.22782), Eq. 5-10.
    """

    r: int = field(default=12, metadata={"help": "Expanded expert rank r'."})
    lora_alpha: float = field(default=24, metadata={"help": "The update is scaled by lora_alpha / r."})
    subspace_rank: int = field(default=32, metadata={"help": "Rank d of the shared subspace, at least r."})
    beta: float = field(default=1.0, metadata={"help": "Gradients of S_A scale with 1/beta, those of P_t with beta."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta < float("inf"):
            raise ValueError(f"MaloraConfig: beta must be above 0, not {self.beta}")
        self.peft_type = MixtureType.MALORA

    def _counts(self) -> dict[str, int]:
        return {**super()._counts(), "subspace_rank": self.subspace_rank}

    @property
    def shared_rank(self) -> int:
        """Rank d of the shared subspace."""
        return self.subspace_rank
