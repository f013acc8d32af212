"""PEFT configurations of the mixture methods."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Self

from peft import PeftConfig
from peft.utils.other import get_pattern_key

from malora_cli.adapters.card import write_card
from malora_cli.adapters.constraints import mixture_problems, subspace_problems
from malora_cli.adapters.structure import (
    IndependentExperts,
    OwnSubspaces,
    SharedDown,
    SharedSubspace,
    SharedUp,
    Structure,
    Subspace,
)

#: What the names of all our weights begin with.
MIXTURE_PREFIX = "malora_"


class MixtureType(str, Enum):  # noqa: UP042 - PEFT writes and compares the value as a plain str
    """Names of our methods in ``adapter_config.json``. Name and value agree, so a plain str finds them in a dict."""

    MALORA = "MALORA"
    MOLORA = "MOLORA"
    HYDRALORA = "HYDRALORA"


#: Settings of PEFT's LoRA that have no meaning here, and why.
_NOT_HERE = {
    "target_parameters": "experts stand on linears, whose input their router reads",
    "ensure_weight_tying": "embeddings are not adapted, so nothing tied comes apart; leave it out",
    "lora_bias": "an expert is a product of matrices without a bias; leave it out",
    "use_rslora": "set lora_alpha to the multiple of r that you want; the update is scaled by lora_alpha / r",
    "use_dora": "a mixture has no single weight whose magnitude could be learned",
    "init_lora_weights": "the experts' start is the method's own; leave it out",
    "fan_in_fan_out": "it is seen from the layer; leave it out",
    "layer_replication": "replicate the layers before the adapter is put in",
}


@dataclass
class MixtureConfig(PeftConfig):
    """What every mixture of LoRA experts is configured by.

    Args:
        r: Expert rank (MoLoRA's r, MALoRA's expanded r').
        num_experts: Experts N in each adapted linear. A list divides the layers of the model into as many groups of
            consecutive ones, of one size as nearly as can be, and gives the number for each, the first layers first.
        top_k: Experts K active for a token.
        lora_alpha: The update is scaled by ``lora_alpha / r``, once.
        lora_dropout: Dropout on the input of the down-projection; never on the router's.
        balance_factor: Weight of the mean over routers of the load-balancing loss.
        router: "linear" gives every adapted linear a router of its own; "block" one router to the linears that stand in
            one module, such as q, k and v, which routes by the input of the first of them.
        renormalize: Divide the K kept gates by their sum. Off is Eq. 4 of the paper read literally, under which
            the gates sum to about K/N in the beginning and experts learn at that fraction of the pace.
        frozen: Parts of the experts that keep their initial values: "down", "up" and, where there is one,
            "coefficient".
        target_modules: Names (or a regular expression) of the linears to adapt; None takes the paper's for the
            model's architecture: every linear of a block but the attention output.
        exclude_modules: Names (or a regular expression) of linears to leave alone.
        layers_to_transform: Indices of the layers to adapt; None is all.
        layers_pattern: Name of the module list that ``layers_to_transform`` counts in.
        modules_to_save: Further modules to train and save whole.
        rank_pattern: Other ranks for some linears, by name or regular expression, as LoRA has them.
        alpha_pattern: Other ``lora_alpha`` for some linears, likewise.
        trainable_token_indices: Tokens whose embeddings are trained too: a list, or one for each embedding by its name.
        bias: "none": the biases of the base model stay as they are.
    """

    r: int = field(default=8, metadata={"help": "Expert rank."})
    num_experts: int | list[int] = field(default=8, metadata={"help": "Experts in each adapted linear."})
    top_k: int = field(default=2, metadata={"help": "Experts active for a token."})
    lora_alpha: float = field(default=16, metadata={"help": "The update is scaled by lora_alpha / r."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout on the input of the down-projection."})
    balance_factor: float = field(default=0.01, metadata={"help": "Weight of the load-balancing loss."})
    router: str = field(default="linear", metadata={"help": "What has a router of its own: linear or block."})
    renormalize: bool = field(default=True, metadata={"help": "Divide the kept gates by their sum."})
    frozen: list[str] = field(default_factory=list, metadata={"help": "Parts that keep their initial values."})
    target_modules: list[str] | set[str] | str | None = field(default=None, metadata={"help": "Linears to adapt."})
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Linears to leave alone."})
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "Layers to adapt."})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "Name of the layers' list."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules to train whole."})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "Ranks of some linears."})
    alpha_pattern: dict[str, float] = field(default_factory=dict, metadata={"help": "Alphas of some linears."})
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "Tokens whose embeddings are trained."}
    )
    bias: str = field(default="none", metadata={"help": "none: the base model's biases stay as they are."})

    def __new__(cls, *_: Any, **settings: Any) -> Self:
        """Refuse what LoRA has and a mixture has not by its name, in place of a bare TypeError."""
        if refused := [f"{name}: {_NOT_HERE[name]}" for name in settings if name in _NOT_HERE]:
            raise ValueError(f"{cls.__name__} has no {'; no '.join(refused)}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)
        if isinstance(self.num_experts, tuple):  # as recipes have it, and JSON has not
            self.num_experts = list(self.num_experts)
        if problems := self._problems():
            raise ValueError(f"{type(self).__name__}: {'; '.join(problems)}")

    def _problems(self) -> list[str]:
        """What is wrong with the numbers, each as a sentence."""
        experts = self.num_experts if isinstance(self.num_experts, list) else [self.num_experts]
        counts = [("r", self.r), *(("num_experts", count) for count in experts)]
        counts += [(f"rank_pattern['{pattern}']", rank) for pattern, rank in self.rank_pattern.items()]
        if not self._takes_all:
            counts.append(("top_k", self.top_k))
        problems = [
            f"{name} must be a whole number of at least 1, not {value}"
            for name, value in counts
            if not isinstance(value, int) or value < 1
        ]
        if not experts:
            problems.append("num_experts is an empty list")
        elif not problems and not self._takes_all:
            problems += mixture_problems(num_experts=experts, top_k=self.top_k, renormalize=self.renormalize)
        if self.router not in ("linear", "block"):
            problems.append(f"router must be 'linear' or 'block', not '{self.router}'")
        if not 0.0 <= self.lora_dropout < 1.0:
            problems.append(f"lora_dropout must lie in [0, 1), not {self.lora_dropout}")
        alphas = [
            ("lora_alpha", self.lora_alpha),
            *((f"alpha_pattern['{k}']", v) for k, v in self.alpha_pattern.items()),
        ]
        problems += [f"{name} must be above 0, not {value}" for name, value in alphas if not value > 0]
        if self.bias != "none":
            problems.append(f"bias must be 'none', not '{self.bias}': the base model stays as it is")
        if not self.balance_factor >= 0:
            problems.append(f"balance_factor must be at least 0, not {self.balance_factor}")
        if not problems:
            parts = self.structure(1, 1).parts
            problems += [
                f"frozen has no part '{part}'; known: {', '.join(parts)}" for part in self.frozen if part not in parts
            ]
        return problems

    @property
    def _takes_all(self) -> bool:
        """Whether tokens take all experts, however many a layer has."""
        return False

    @property
    def scaling(self) -> float:
        """``lora_alpha / r``, dimensionless."""
        return self.lora_alpha / self.r

    @property
    def experts(self) -> int:
        """N, of a configuration that holds for one layer."""
        return self.num_experts if isinstance(self.num_experts, int) else max(self.num_experts)

    def of_layer(self, layer: int, depth: int) -> Self:
        """The configuration of one layer of a model, with the number of experts of the layer's group.

        Args:
            layer: The layer's number, from 0.
            depth: Layers of the model.
        """
        if isinstance(self.num_experts, int):
            return self
        groups = len(self.num_experts)
        return replace(self, num_experts=self.num_experts[min(layer * groups // depth, groups - 1)])

    def of_module(self, name: str) -> Self:
        """The configuration of one linear, with the rank and the alpha that the patterns give it.

        Args:
            name: The linear's name in the model.
        """
        rank = self.rank_pattern.get(get_pattern_key(self.rank_pattern, name))
        alpha = self.alpha_pattern.get(get_pattern_key(self.alpha_pattern, name))
        if rank is None and alpha is None:
            return self
        try:
            return replace(self, r=rank or self.r, lora_alpha=alpha or self.lora_alpha, rank_pattern={})
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write ``adapter_config.json``, and a card of the adapter where PEFT has left a blank one or none."""
        super().save_pretrained(save_directory, **kwargs)
        write_card(Path(save_directory), self)

    @abstractmethod
    def structure(self, in_features: int, out_features: int) -> Structure:
        """How the experts of a linear of these sizes are factored."""


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

    def structure(self, in_features: int, out_features: int) -> Structure:
        """A_t and B_t for every expert."""
        return IndependentExperts(in_features, out_features, self.experts, self.r, same_start=self.same_init)


@dataclass
class HydraLoraConfig(MixtureConfig):
    """HydraLoRA: one A for all experts, a B_t for each: ``y = W0 x + s * sum_t g_t(x) B_t A x``.

    Its gates are the whole softmax, so ``top_k`` is the number of experts unless it is given, and there is no balance
    loss unless ``balance_factor`` is set.

    Source: Tian et al., HydraLoRA, NeurIPS 2024 (arXiv 2404.19245).
    """

    num_experts: int | list[int] = field(default=4, metadata={"help": "Experts in each adapted linear."})
    top_k: int = field(default=0, metadata={"help": "Experts active for a token; 0 is all of them."})
    balance_factor: float = field(default=0.0, metadata={"help": "Weight of the load-balancing loss."})

    def __post_init__(self) -> None:
        if self._takes_all and isinstance(self.num_experts, int):  # a list has them by layer, see `of_layer`
            self.top_k = self.num_experts
        super().__post_init__()
        self.peft_type = MixtureType.HYDRALORA

    @property
    def _takes_all(self) -> bool:
        return self.top_k == 0

    def structure(self, in_features: int, out_features: int) -> Structure:
        """One A, and B_t for every expert."""
        return SharedDown(in_features, out_features, self.experts, self.r)


#: What a MALoRA shares or splits, by ``MaloraConfig.subspace``.
SUBSPACES: dict[str, type[Subspace]] = {"shared": SharedSubspace, "own": OwnSubspaces, "up": SharedUp}


@dataclass
class MaloraConfig(MixtureConfig):
    """MALoRA: experts share a down-projection S_A and differ in coefficients P_t and up-projections B_t.

    ``y = W0 x + s * sum_t g_t(x) B_t P_t S_A x``. With MoLoRA's expert rank ``r0`` and ``lambda < 1`` the paper takes
    ``subspace_rank = lambda * r0 * num_experts`` and ``r = r0 + (1 - lambda) * r0``: 32 and 12 for r0 = 8 and 1/2.

    Args:
        subspace_rank: Rank d of the shared subspace, at least ``r``.
        beta: Balance between learning S_A (gradient ~ 1/beta) and the P_t (gradient ~ beta).
        subspace: "shared", or an ablation: "own" gives every expert a subspace S_t of rank d / N of its own, and "up"
            decomposes the up-projections in place of the down-projections, ``B_t = S_B Q_t``.

    Source: Wang et al., MALoRA, Findings of NAACL 2025 (arXiv 2410.22782), Eq. 5-10; Table 3 for the ablations.
    """

    r: int = field(default=12, metadata={"help": "Expanded expert rank r'."})
    lora_alpha: float = field(default=24, metadata={"help": "The update is scaled by lora_alpha / r."})
    subspace_rank: int = field(default=32, metadata={"help": "Rank d of the shared subspace, at least r."})
    beta: float = field(default=1.0, metadata={"help": "Gradients of S_A scale with 1/beta, those of P_t with beta."})
    subspace: str = field(default="shared", metadata={"help": "shared, or an ablation: own or up."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MixtureType.MALORA

    def _problems(self) -> list[str]:
        problems = []
        if self.subspace not in SUBSPACES:
            problems.append(f"subspace must be one of {', '.join(SUBSPACES)}, not '{self.subspace}'")
        if not isinstance(self.subspace_rank, int) or self.subspace_rank < 1:
            problems.append(f"subspace_rank must be a whole number of at least 1, not {self.subspace_rank}")
        if not 0 < self.beta < float("inf"):
            problems.append(f"beta must be above 0, not {self.beta}")
        if problems:
            return problems
        return super()._problems() + subspace_problems(
            r=self.r,
            num_experts=self.num_experts,
            subspace_rank=self.subspace_rank,
            own=self.subspace == "own",
        )

    def structure(self, in_features: int, out_features: int) -> Structure:
        """P_t and B_t for every expert around the subspace."""
        return SUBSPACES[self.subspace](
            in_features, out_features, self.experts, self.r, rank=self.subspace_rank, beta=self.beta
        )
