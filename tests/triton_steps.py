"""What runs Triton's kernels on a CPU; a process of its own, for Triton reads `TRITON_INTERPRET` when it is imported.

python tests/triton_steps.py interpret | compile
"""

from __future__ import annotations

import copy
import json
import sys
import warnings
from collections import OrderedDict
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
import triton
from peft import get_peft_model
from torch import Tensor, nn
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from malora_cli.adapters import fused, logits
from malora_cli.adapters.entrywise import TRIED, by_triton, plain
from malora_cli.adapters.entrywise.steps import Steps
from malora_cli.adapters.entrywise.trial import Sizes, differing
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import routing_of

CPU = torch.device("cpu")
SIZES = {
    "as malora has them": Sizes(experts=8),
    "float16": Sizes(dtype=torch.float16),
    "float32": Sizes(dtype=torch.float32),
    "literal gates": Sizes(renormalize=False),
    "one expert of a token": Sizes(top_k=1, renormalize=False),
    "all experts": Sizes(top_k=6),
    "all experts, literal": Sizes(top_k=6, renormalize=False),
    "logits in one piece": Sizes(terms=1),
    "half of the experts of a token": Sizes(experts=20, top_k=10),
    "no padding": Sizes(masked=False),
    "one token": Sizes(tokens=1),
    "no token": Sizes(tokens=0),
    "one expert": Sizes(experts=1, top_k=1),
    "many large experts": Sizes(tokens=90, experts=64, rank=64, top_k=4),
    "a rank beyond what a program has in hand": Sizes(tokens=9, experts=3, rank=2100),
}
#: What a pointer of a kernel points at, where it is not to float32.
KINDS = {"hidden": "*bf16", "out": "*bf16", "mask": "*i64", "scaling": "fp32", "tokens": "i32", "stride": "i32"}


def steps() -> dict[str, list[str]]:
    """What differs between the two ways, by sizes."""
    return {name: differing(by_triton, plain, sizes, CPU) for name, sizes in SIZES.items()}


def broken() -> dict[str, list[str]]:
    """What is found to differ when a step is wrong, by what is wrong with it."""

    def enlarged(terms_TE: Any, **how: Any) -> tuple[Tensor, Tensor]:
        logits_TE, gate_TE = plain.choose(terms_TE, **how)
        return logits_TE, gate_TE * 1.001

    def rounded(terms_TE: Any, **how: Any) -> tuple[Tensor, Tensor]:
        return plain.choose([term.bfloat16().float() for term in terms_TE], **how)

    def renormalized(terms_TE: Any, **how: Any) -> tuple[Tensor, Tensor]:
        return plain.choose(terms_TE, **how | {"renormalize": True})

    def through_all(*given: Tensor, **how: Any) -> Tensor:
        return plain.logits_gradient(*given, **how | {"renormalize": True})

    def ungated(hidden_TER: Tensor, grad_TER: Tensor, gate_TE: Tensor, scaling: float) -> Tensor:
        return plain.gated_gradients_(hidden_TER, grad_TER, gate_TE, scaling * 1.02)

    faults = {
        "gates a thousandth too large": {"choose": enlarged},
        "logits in bfloat16": {"choose": rounded},
        "gates that are always renormalised": {"choose": renormalized},
        "gradients of gates that are": {"logits_gradient": through_all},
        "gradients a fiftieth too large": {"gated_gradients_": ungated},
    }
    found = {}
    for fault, wrong in faults.items():
        steps: Any = SimpleNamespace(**{**vars(plain), **wrong})
        found[fault] = [name for sizes in TRIED for name in differing(steps, plain, sizes, CPU)]
    return found


def versions() -> list[int]:
    """How often autograd is told that the three tensors have changed that steps write to."""
    written = [torch.ones(3, 2, 4) for _ in range(3)]
    gate_TE = torch.ones(3, 2)
    by_triton.gate_(written[0], gate_TE, 1.0)
    by_triton.gated_gradients_(written[1], written[2], gate_TE, 1.0)
    return [tensor._version for tensor in written]


def spoilt() -> dict[str, list[bool]]:
    """Whether the gates of three tokens are NaN, of which the second has a logit that is none, by the logit."""
    found = {}
    for value in ("nan", "inf"):
        logits_TE = torch.zeros(3, 4)
        logits_TE[1, 2] = float(value)
        _, gate_TE = by_triton.choose([logits_TE], top_k=2, renormalize=True)
        found[value] = gate_TE.isnan().any(1).tolist()
    return found


def trained(method: str, dropout: float, way: Steps) -> dict[str, Tensor]:
    """Output, gradients and tally of two linears in bfloat16 that take a method, as on a GPU but for the steps."""
    torch.manual_seed(0)
    layers = {name: nn.Linear(24, 24, bias=False, dtype=torch.bfloat16) for name in "ab"}
    config = METHODS[method](lora_dropout=dropout).peft_config(["a", "b"])
    config.task_type = None
    model = get_peft_model(nn.Sequential(OrderedDict(layers)).requires_grad_(False), copy.deepcopy(config)).train()
    for name, parameter in model.named_parameters():
        if "malora_up" in name:
            nn.init.normal_(parameter, std=0.1)
    routing = routing_of(model)
    assert routing is not None
    routing.tally = routing.new_tally(model)
    x = torch.randn(1, 31, 24).bfloat16().requires_grad_()
    with (
        patch.object(fused, "steps_for", lambda _: way),
        patch.object(fused, "multiplies_into_float32", return_value=True),
        patch.object(logits, "multiplies_into_float32", return_value=True),
        patch.object(torch, "mm", _into_float32),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(x)
        routing.balance_weight = torch.tensor(2.0)
        y.float().square().sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    sums = dict(zip(("load", "gate", "balance", "tokens"), routing.tally.sums(), strict=False))
    assert x.grad is not None
    return {**found, **sums, "output": y.detach(), "input": x.grad}


def _into_float32(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return a.to(out_dtype) @ b.to(out_dtype)


def models() -> dict[str, dict[str, float]]:
    """How far the two ways are apart, by method and dropout, and what of it."""
    found = {}
    for method in ("malora", "molora", "hydralora", "mixlora"):
        for dropout in (0.0, 0.3):
            ours, exact = (trained(method, dropout, way) for way in (by_triton, plain))
            assert ours.keys() == exact.keys()
            found[f"{method} {dropout}"] = {name: _distance(ours[name], exact[name]) for name in exact}
    return found


def _distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-12))


def compiled() -> dict[str, int]:
    """Bytes of each kernel's program for three NVIDIA GPUs, by Triton's own compiler, which needs none of them."""
    made = {}
    for name in ("_choose", "_gate", "_gated_gradients", "_logits_gradient"):
        kernel = getattr(by_triton, name)
        # As `_sizes` has them for experts of rank 12.
        known = {"E": 8, "R": 12, "TOP_K": 2, "TILE_T": 16, "TILE_E": 8, "TILE_R": 16}
        constants = {arg: known.get(arg, True) for arg in kernel.arg_names if arg.isupper()}
        signature = {arg: "constexpr" if arg in constants else _kind(name, arg) for arg in kernel.arg_names}
        for capability in (75, 80, 90):
            source = ASTSource(kernel, signature, constants)
            program = triton.compile(source, target=GPUTarget("cuda", capability, 32))
            made[f"{name} {capability}"] = len(program.asm["cubin"])
    return made


def _kind(kernel: str, argument: str) -> str:
    halved = argument == "grad" and kernel == "_gated_gradients"  # in the other kernel it is a gradient of gates
    return "*bf16" if halved else KINDS.get(argument, "*fp32")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "compile":
        print(json.dumps({"compiled": compiled()}))
    else:
        print(
            json.dumps(
                {"steps": steps(), "broken": broken(), "spoilt": spoilt(), "versions": versions(), "models": models()}
            )
        )
