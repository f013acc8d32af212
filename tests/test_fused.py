"""The fused kernel against the plain one: the same output and gradients, and no use where it would not hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from malora_cli.adapters import fused as fused_module
from malora_cli.adapters import layer as layer_module
from malora_cli.adapters import logits as logits_module
from malora_cli.adapters.config import MaloraConfig, MixtureConfig, MoloraConfig
from malora_cli.adapters.dropout import draw_kept
from malora_cli.adapters.fused import can_fuse
from malora_cli.adapters.gathered import gathering_pays
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.product import product
from malora_cli.adapters.routing import Routing
from reference import PlainDropout

CONFIGS = {
    "malora": MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6),
    "molora": MoloraConfig(r=3, num_experts=4, lora_alpha=6),
    "dropout": MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6, lora_dropout=0.4),
    "fixed": MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6, frozen=["down"]),
    "fixed-dropout": MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6, frozen=["down"], lora_dropout=0.4),
    "literal": MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6, renormalize=False),
}


def _layer(config: MixtureConfig, *, bias: bool) -> MixtureLinear:
    torch.manual_seed(0)
    base = nn.Linear(7, 9, bias=bias).requires_grad_(False)
    made = MixtureLinear(base, "default", config=config, routing=Routing(), name="layers.0.up")
    with torch.no_grad():
        made.malora_up["default"].normal_()
    return made


def _outcome(made: MixtureLinear, x: Tensor) -> list[Tensor | None]:
    """Output and all gradients, under one draw of the dropout."""
    made.zero_grad()
    followed = x.detach().clone().requires_grad_(x.requires_grad)
    torch.manual_seed(1)
    y = made(followed)
    (y * torch.linspace(-1, 2, y.numel()).view_as(y)).sum().backward()
    return [y, followed.grad, *(p.grad for p in made.parameters() if p.requires_grad)]


@pytest.mark.parametrize("follow", [True, False], ids=["input-followed", "first-layer"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_the_plain_kernel(config: MixtureConfig, bias: bool, follow: bool, monkeypatch: Any) -> None:
    made, x = _layer(config, bias=bias), torch.randn(2, 5, 7).requires_grad_(follow)
    fused = _outcome(made, x)
    monkeypatch.setattr(layer_module, "can_fuse", lambda *_: False)
    if config.lora_dropout:
        made.malora_dropout["default"] = PlainDropout(0.4)
    plain = _outcome(made, x)
    assert (fused[1] is None) == (not follow)
    for ours, reference in zip(fused, plain, strict=True):
        if reference is not None:
            torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("frozen", "down_products"), [([], 1), (["down"], 0)])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_what_is_frozen_costs_no_product(
    dropout: float, frozen: list[str], down_products: int, monkeypatch: Any
) -> None:
    config = MaloraConfig(r=3, subspace_rank=5, num_experts=4, lora_alpha=6, frozen=frozen, lora_dropout=dropout)
    made, shapes = _layer(config, bias=False), []
    product = fused_module.product

    def counted(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
        shapes.append((len(a), len(b)))
        return product(a, b, bias)

    monkeypatch.setattr(fused_module, "product", counted)
    monkeypatch.setattr(logits_module, "product", counted)
    _outcome(made, torch.randn(2, 5, 7, requires_grad=True))
    joined = (5 + 4, 7)  # with the router's, where the two share their input
    assert shapes.count((5, 7)) + shapes.count(joined) == down_products


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_gathering_each_experts_tokens_changes_nothing(config: MixtureConfig, monkeypatch: Any) -> None:
    made, x = _layer(config, bias=True), torch.randn(2, 5, 7).requires_grad_()
    with torch.no_grad():
        made.malora_router["default"][3].fill_(0)
        made.malora_router["default"][3, 0] = -9  # an expert that few or none want
    x.data[..., 0] = 1.0
    dense = _outcome(made, x)
    calls = []
    monkeypatch.setattr(fused_module, "gathering_pays", lambda *_: calls.append(1) or True)
    gathered = _outcome(made, x)
    assert calls
    for ours, reference in zip(gathered, dense, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-5, atol=1e-5)


def test_gathering_is_for_large_mixtures_of_few_active_experts() -> None:
    def pays(tokens: int, experts: int, r: int, top_k: int = 2, device: str = "cpu") -> bool:
        return gathering_pays(
            torch.empty(tokens, experts, device=device), torch.empty(5, experts * r, device=device), top_k
        )

    assert not pays(4096, 8, 12)  # the paper's
    assert pays(4096, 64, 8)
    assert pays(1024, 8, 64)
    assert not pays(1, 64, 8)
    assert not pays(4096, 64, 8, top_k=64)
    assert not pays(4096, 64, 8, device="meta")


def test_the_input_and_the_frozen_weight_stay_as_they_are() -> None:
    made, x = _layer(CONFIGS["malora"], bias=True), torch.randn(2, 5, 7, requires_grad=True)
    before, weight = x.detach().clone(), made.base_layer.weight.clone()
    y = made(x)
    upstream = torch.ones_like(y)
    y.backward(upstream)
    assert torch.equal(x, before)
    assert torch.equal(made.base_layer.weight, weight)
    assert torch.equal(
        upstream, torch.ones_like(y)
    )  # in-place arithmetic stays with what the functions made themselves


def test_an_input_that_others_use_as_well_gets_the_sum_of_the_gradients(monkeypatch: Any) -> None:
    made = _layer(CONFIGS["malora"], bias=False)
    gradients = []
    for fuse in (can_fuse, lambda *_: False):
        monkeypatch.setattr(layer_module, "can_fuse", fuse)
        x = torch.linspace(-1, 1, 35).view(1, 5, 7).requires_grad_()
        twice = x * 2
        (made(twice).sum() + (twice**2).sum() + made(twice).square().sum()).backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_another_default_format_changes_nothing() -> None:
    made, x = _layer(CONFIGS["malora"], bias=False), torch.linspace(-1, 1, 35).view(1, 5, 7)
    assert made.training
    assert made.malora_config["default"].balance_factor > 0
    found = []
    before = torch.get_default_dtype()
    for default in (before, torch.float64):
        made.zero_grad()
        torch.set_default_dtype(default)
        try:
            made(x).square().sum().backward()
        finally:
            torch.set_default_dtype(before)
        found.append([p.grad.clone() for p in made.parameters() if p.grad is not None])
    assert len(found[0]) == 4
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999, 1e-9])
def test_dropout_keeps_the_share_it_says_and_the_mean(p: float) -> None:
    torch.manual_seed(0)
    kept, factor = draw_kept(torch.empty(1001, 999), p)
    assert kept.unique().tolist() == [0, 1][p < 1e-6 :]
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=3 * (p * (1 - p) / kept.numel()) ** 0.5 + 1e-5)
    assert factor == pytest.approx(1 / (1 - p), rel=0.02 if p > 0.9 else 1e-4)
    again, _ = draw_kept(torch.empty(1001, 999), p)
    assert p < 1e-6 or not torch.equal(kept, again)
    torch.manual_seed(0)
    assert torch.equal(draw_kept(torch.empty(1001, 999), p)[0], kept)


def test_dropout_of_neighbours_is_independent() -> None:
    """Four entries share one number of the generator."""
    torch.manual_seed(0)
    kept = draw_kept(torch.empty(1, 4 * 50_000), 0.3)[0].view(-1, 4).float() - 0.7
    covariance = kept.T @ kept / len(kept)
    torch.testing.assert_close(covariance, 0.21 * torch.eye(4), atol=0.005, rtol=0)


class _Packed(nn.Parameter):
    """A weight of a library that keeps it in a way of its own."""


@pytest.mark.parametrize("fuse", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7)], ids=str)
def test_a_single_vector_and_no_token_at_all(
    shape: tuple[int, ...], dtype: torch.dtype, fuse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = _layer(CONFIGS["dropout"], bias=True)
    made.base_layer.to(dtype)
    if not fuse:
        monkeypatch.setattr(layer_module, "can_fuse", lambda *_: False)
    x = torch.ones(shape, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        y = made(x)
    assert y.shape == (*shape[:-1], 9)
    y.sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any()) == (x.numel() > 0)


def test_products_of_any_size_stand_in_one_graph() -> None:
    compiled = torch.compile(product, backend="eager", fullgraph=True)
    a = torch.ones(1024, 1024)
    assert torch.equal(compiled(a, a[:4]), torch.full((1024, 4), 1024.0))


def test_is_used_only_where_nothing_else_looks_at_the_base_layer() -> None:
    up, x, plain = torch.zeros(2, 2), torch.zeros(1, 3), nn.Dropout(0.5)
    frozen = nn.Linear(3, 2).requires_grad_(False)
    assert can_fuse(frozen, x, up, plain)
    assert not can_fuse(nn.Linear(3, 2), x, up, plain)
    assert not can_fuse(frozen, x.double(), up, plain)
    assert not can_fuse(nn.Linear(3, 2, dtype=torch.bfloat16).requires_grad_(False), x, up, plain)
    assert not can_fuse(nn.Identity(), x, up, plain)
    assert not can_fuse(frozen, x, up, nn.AlphaDropout(0.5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_fuse(frozen, x, up, plain)
    for watch in (nn.Module.register_forward_hook, nn.Module.register_full_backward_pre_hook):
        watched = nn.Linear(3, 2).requires_grad_(False)
        watch(watched, lambda *_: None)
        assert not can_fuse(watched, x, up, plain)
    biased = nn.Linear(3, 2).requires_grad_(False)
    biased.bias.requires_grad_()
    assert not can_fuse(biased, x, up, plain)
    replaced = nn.Linear(3, 2).requires_grad_(False)
    replaced.forward = lambda x: x  # type: ignore[method-assign]
    assert not can_fuse(replaced, x, up, plain)
    packed = nn.Linear(3, 2)
    packed.weight = _Packed(torch.zeros(2, 3), requires_grad=False)
    assert not can_fuse(packed, x, up, plain)
    everywhere = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert not can_fuse(frozen, x, up, plain)
    everywhere.remove()
    assert can_fuse(frozen, x, up, plain)


def test_is_not_used_where_float32_products_may_be_rounded(rounded_products: None) -> None:
    assert not can_fuse(nn.Linear(3, 2).requires_grad_(False), torch.zeros(1, 3), torch.zeros(2, 2), nn.Identity())
