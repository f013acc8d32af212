"""Every routed preset against loops over tokens and experts: output and all gradients of a linear and of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

import reference
from malora_cli.adapters import layer as layer_module
from malora_cli.adapters.block import BlockRouter
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.entrywise import plain
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import Routing
from presets import FACTOR, ROUTED, config

IN, OUT, TOKENS = 10, 7, 12
PARTS = ("down", "coefficient", "up", "router")
#: Which axis of a part has the experts side by side, by the structure's name; what they share is not there.
EXPERT_AXES = {
    "IndependentExperts": {"down": 0, "up": 1},
    "SharedDown": {"up": 1},
    "SharedSubspace": {"coefficient": 0, "up": 1},
    "OwnSubspaces": {"down": 0, "coefficient": 0, "up": 1},
    "SharedUp": {"down": 0, "coefficient": 1},
}


@pytest.fixture(params=[True, False], ids=["fused", "plain"], autouse=True)
def fused(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if not request.param:
        monkeypatch.setattr(layer_module, "can_fuse", lambda *_: False)
    return bool(request.param)


def make_layer(settings: MixtureConfig, routing: Routing | None = None, **kwargs: object) -> MixtureLinear:
    base = nn.Linear(IN, OUT).requires_grad_(False)
    made = MixtureLinear(base, "default", config=settings, routing=routing or Routing(), name="linear", **kwargs)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "malora_" in name:
                parameter.normal_(0, 0.5)
    return made.train()


def live(layer: MixtureLinear) -> dict[str, Tensor]:
    """The adapter's parameters, by part."""
    return {
        part: getattr(layer, f"malora_{part}")["default"]
        for part in PARTS
        if "default" in getattr(layer, f"malora_{part}")
    }


def copied(layer: MixtureLinear) -> dict[str, Tensor]:
    return {part: value.detach().clone().requires_grad_() for part, value in live(layer).items()}


def slow(layer: MixtureLinear, part: Mapping[str, Tensor], x_TI: Tensor, gates: list[dict[int, Tensor]]) -> Tensor:
    return layer.base_layer(x_TI) + reference.update(layer.malora_config["default"], part, x_TI, gates)


def assert_same_gradients(layer: MixtureLinear, part: Mapping[str, Tensor], *, frozen: tuple[str, ...] = ()) -> None:
    for name, value in live(layer).items():
        if name in frozen:
            assert value.grad is None, name
            continue
        assert part[name].grad is not None
        assert part[name].grad.abs().max() > 0.01, name
        torch.testing.assert_close(value.grad, part[name].grad, atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def padding(padded: bool) -> Tensor:
    mask = torch.ones(2, TOKENS // 2, dtype=torch.long)
    mask[0, :2] = 1 - int(padded)
    return mask


@pytest.mark.parametrize("padded", [False, True], ids=["all-real", "padded"])
@pytest.mark.parametrize("renormalize", [True, False], ids=["renormalised", "literal"])
@pytest.mark.parametrize("method", ROUTED)
def test_output_and_every_gradient_agree_with_a_loop(method: str, renormalize: bool, padded: bool) -> None:
    torch.manual_seed(0)
    settings = config(method, renormalize=renormalize)
    layer, mask = make_layer(settings), padding(padded)
    x, weight = torch.randn(2, TOKENS // 2, IN, requires_grad=True), torch.randn(2, TOKENS // 2, OUT)
    layer.malora_routing.token_mask = mask if padded else None
    y = layer(x)
    (y * weight).sum().backward()

    part, x_TI = copied(layer), x.detach().flatten(0, 1).requires_grad_()
    routed = reference.route(settings, part["router"], x_TI, mask.flatten())
    expected = slow(layer, part, x_TI, routed.gates)
    ((expected * weight.flatten(0, 1)).sum() + settings.balance_factor * routed.balance).backward()

    torch.testing.assert_close(y.flatten(0, 1), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(x.grad.flatten(0, 1), x_TI.grad, atol=2e-5, rtol=1e-4)
    assert_same_gradients(layer, part, frozen=tuple(settings.frozen))


Combine = Callable[[list[Callable[[Tensor], Tensor]], Tensor], Tensor]


def _attention(linears: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    q, k, v = (linear(x) for linear in linears)
    return torch.tanh(q) * k + v.square()


def _mlp(linears: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    """The third linear has another input than the one the block is routed by."""
    gate, up, down = linears
    inner = torch.tanh(gate(x)) * up(x)
    return down(nn.functional.pad(inner, (0, IN - OUT)))


@pytest.mark.parametrize("padded", [False, True], ids=["all-real", "padded"])
@pytest.mark.parametrize("combine", [_attention, _mlp])
def test_a_block_agrees_with_a_loop_over_one_router(combine: Combine, padded: bool) -> None:
    torch.manual_seed(0)
    settings, routing, block = config("mixlora"), Routing(), BlockRouter()
    layers, mask = [make_layer(settings, routing, block=block) for _ in range(3)], padding(padded)
    assert ["router" in live(layer) for layer in layers] == [True, False, False]
    x, weight = torch.randn(2, TOKENS // 2, IN, requires_grad=True), torch.randn(2, TOKENS // 2, OUT)
    routing.token_mask = mask if padded else None
    y = combine(list(layers), x)
    (y * weight).sum().backward()

    parts, x_TI = [copied(layer) for layer in layers], x.detach().flatten(0, 1).requires_grad_()
    routed = reference.route(settings, parts[0]["router"], x_TI, mask.flatten())
    linears = [
        lambda inputs, layer=layer, part=part: slow(layer, part, inputs, routed.gates)
        for layer, part in zip(layers, parts, strict=True)
    ]
    expected = combine(linears, x_TI)
    # One router, so its balance loss counts once and whole.
    ((expected * weight.flatten(0, 1)).sum() + FACTOR * routed.balance).backward()

    torch.testing.assert_close(y.flatten(0, 1), expected, atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(x.grad.flatten(0, 1), x_TI.grad, atol=2e-4, rtol=1e-3)
    for layer, part in zip(layers, parts, strict=True):
        for name, value in live(layer).items():
            scale = float(part[name].grad.abs().max())
            torch.testing.assert_close(value.grad, part[name].grad, atol=1e-5 * scale + 1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("method", ROUTED)
def test_one_expert_is_pefts_lora(method: str) -> None:
    torch.manual_seed(0)
    settings = config(method, num_experts=1, top_k=1, balance_factor=0.0)
    layer = make_layer(settings)
    a, b = (factor.detach() for factor in reference.expert(settings, live(layer), 0))
    lora_config = LoraConfig(r=settings.r, lora_alpha=settings.lora_alpha)  # type: ignore[arg-type]
    lora = LoraLinear(layer.base_layer, "default", config=lora_config, r=settings.r, lora_alpha=settings.lora_alpha)
    with torch.no_grad():
        lora.lora_A["default"].weight.copy_(a)
        lora.lora_B["default"].weight.copy_(b)
    ours, theirs = (torch.ones(5, IN).cumsum(0).sin().requires_grad_() for _ in range(2))
    y, expected = layer(ours), lora(theirs)
    for one in (y, expected):
        one.square().sum().backward()
    torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4)
    grads = {name: value.grad for name, value in live(layer).items()}
    assert not grads["router"].any()  # one expert: nothing to choose
    if method != "malora-decomposed-up":  # whose B is a product
        torch.testing.assert_close(grads["up"], lora.lora_B["default"].weight.grad, atol=1e-4, rtol=1e-4)
    if "coefficient" not in grads and "down" not in settings.frozen:
        torch.testing.assert_close(grads["down"], lora.lora_A["default"].weight.grad, atol=1e-4, rtol=1e-4)


@contextmanager
def autocast(on: bool) -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=on):
        yield


def _distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.detach().float() - exact.detach()).norm() / exact.detach().norm())


@pytest.mark.parametrize("mode", ["autocast", "half-precision base"])
@pytest.mark.parametrize("method", ROUTED)
def test_bfloat16_rounds_the_experts_and_never_the_routing(method: str, mode: str, fused: bool) -> None:
    torch.manual_seed(0)
    settings = config(method)
    layer = make_layer(settings)
    seen: list[Tensor] = []
    kept = plain.top_gates
    x = torch.randn(40, IN).bfloat16().float()
    weight = torch.randn(40, OUT)

    part, x_TI = copied(layer), x.clone().requires_grad_()
    if mode != "autocast":
        layer.base_layer.bfloat16()
    routed = reference.route(settings, part["router"], x_TI, torch.ones(40))
    exact = layer.base_layer.float()(x_TI) + reference.update(settings, part, x_TI, routed.gates)
    ((exact * weight).sum() + settings.balance_factor * routed.balance).backward()

    if mode != "autocast":
        layer.base_layer.bfloat16()
    ours = (x if mode == "autocast" else x.bfloat16()).clone().requires_grad_()

    def watching(logits: Tensor, **how: object) -> object:
        seen.append(logits)
        return kept(logits, **how)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, autocast(mode == "autocast"):
        patch.setattr(plain, "top_gates", watching)
        y = layer(ours)
    assert y.dtype == torch.bfloat16
    (y * weight).sum().backward()
    assert [logits.dtype for logits in seen] == [torch.float32]
    # Logits in bfloat16 would be off by 1e-2.
    torch.testing.assert_close(seen[0], x @ part["router"].T, atol=1e-5, rtol=1e-5)
    assert _distance(y, exact) < 0.02
    assert _distance(ours.grad, x_TI.grad) < 0.03
    for name, value in live(layer).items():
        if name not in settings.frozen:
            assert value.grad.dtype == torch.float32
            assert _distance(value.grad, part[name].grad) < 0.03, name


@pytest.mark.parametrize("method", ROUTED)
def test_an_expert_without_tokens_gets_a_zero_gradient(method: str) -> None:
    torch.manual_seed(0)
    layer = make_layer(config(method, balance_factor=0.0, top_k=2))
    settings = layer.malora_config["default"]
    with torch.no_grad():
        layer.malora_router["default"].zero_()
        layer.malora_router["default"][:2, 0] = 50.0
    x = torch.randn(TOKENS, IN)
    x[:, 0] = 1.0
    layer(x).sum().backward()
    for name, axis in EXPERT_AXES[type(layer.malora_structure["default"]).__name__].items():
        if name in settings.frozen:
            continue
        grad = live(layer)[name].grad
        assert grad is not None
        by_expert = grad.movedim(axis, 0).reshape(settings.experts, -1)
        assert by_expert[:2].abs().amax(1).min() > 0, name
        assert torch.equal(by_expert[2:], torch.zeros_like(by_expert[2:])), name
    assert layer.malora_router["default"].grad is not None
