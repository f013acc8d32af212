"""The pieces of the kernel: gates, scaling, dropout, dtypes, and the balance loss."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import two_processes
from malora_cli.adapters.config import MaloraConfig, MixtureConfig, MoloraConfig
from malora_cli.adapters.kernel import Load, balance_by_expert, balance_pulls, expert_load, seen_of
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.logits import router_logits
from malora_cli.adapters.routing import Routing, RoutingTally
from two_processes import route

IN, OUT, TOKENS = 10, 7, 12
FACTOR = 0.7  # far above what is sensible, so that a wrong balance gradient shows


def malora(**changes: object) -> MaloraConfig:
    return MaloraConfig(
        **{"r": 3, "subspace_rank": 5, "num_experts": 4, "top_k": 2, "lora_alpha": 7.5, "balance_factor": FACTOR}
        | changes
    )


def molora(**changes: object) -> MoloraConfig:
    return MoloraConfig(**{"r": 3, "num_experts": 4, "top_k": 2, "lora_alpha": 7.5, "balance_factor": FACTOR} | changes)


def make_layer(config: MixtureConfig, *, bias: bool = True, seed: int = 0) -> MixtureLinear:
    torch.manual_seed(seed)
    base = nn.Linear(IN, OUT, bias=bias).requires_grad_(False)
    layer = MixtureLinear(base, "default", config=config, routing=Routing(), name="layers.0.linear")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "malora_" in name:
                parameter.normal_(0, 0.5)
    return layer.train()


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_gates_are_the_top_k_of_the_softmax(top_k: int) -> None:
    torch.manual_seed(0)
    x, router = torch.randn(50, IN), torch.randn(4, IN)
    literal = route(x, router, top_k=top_k, renormalize=False)
    normed = route(x, router, top_k=top_k, renormalize=True)
    kept = literal.gate_TE > 0
    assert kept.sum(-1).eq(top_k).all()
    torch.testing.assert_close(literal.gate_TE[kept], literal.probability_TE[kept], rtol=0, atol=0)
    lowest_kept = literal.probability_TE.where(kept, torch.inf).amin(-1)
    assert (lowest_kept >= literal.probability_TE.masked_fill(kept, 0.0).amax(-1)).all()
    torch.testing.assert_close(normed.gate_TE.sum(-1), torch.ones(50))
    torch.testing.assert_close(normed.gate_TE, literal.gate_TE / literal.gate_TE.sum(-1, keepdim=True))


@pytest.mark.parametrize("make", [malora, molora])
def test_scaling_is_alpha_over_r_once(make) -> None:
    x = torch.randn(5, IN)
    unit, scaled = make_layer(make(lora_alpha=3)), make_layer(make(lora_alpha=12))
    base = unit.base_layer(x)
    torch.testing.assert_close(scaled(x) - base, 4 * (unit(x) - base))


class _Spy(nn.Module):
    """Takes the dropout's place: keeps what it was given and lets nothing through."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.given.append(x)
        return torch.zeros_like(x)


def test_dropout_comes_once_before_the_down_projection_and_never_to_the_router() -> None:
    layer, x = make_layer(malora(lora_dropout=0.5)), torch.randn(TOKENS, IN)
    assert isinstance(layer.malora_dropout["default"], nn.Dropout)
    assert layer.malora_dropout["default"].p == 0.5
    layer.malora_dropout["default"] = spy = _Spy()
    layer.malora_routing.tally, seen = RoutingTally(1, 4, x.device), []
    layer.malora_routing.observer = lambda _number, _x, gate: seen.append(gate.detach())
    y = layer(x)
    assert len(spy.given) == 1
    assert torch.equal(spy.given[0], x)
    assert torch.equal(y, layer.base_layer(x))  # all of the update comes through it
    gates = route(x, layer.malora_router["default"], top_k=2, renormalize=True).gate_TE
    torch.testing.assert_close(seen[0].sum(0), gates.sum(0))  # the router saw x itself
    torch.testing.assert_close(layer.malora_routing.tally.assigned_LE[0], (gates > 0).sum(0).float())


def test_dropout_is_off_in_evaluation() -> None:
    layer, x = make_layer(malora(lora_dropout=0.5)), torch.randn(TOKENS, IN)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_router_is_float32_under_autocast_and_for_a_half_precision_input() -> None:
    torch.manual_seed(0)
    x, router = torch.randn(40, IN), torch.randn(4, IN)
    exact = route(x, router, top_k=2, renormalize=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = route(x, router, top_k=2, renormalize=True)
    assert under.gate_TE.dtype == under.probability_TE.dtype == torch.float32
    assert torch.equal(under.probability_TE, exact.probability_TE)
    assert torch.equal(under.gate_TE, exact.gate_TE)
    half = route(x.bfloat16(), router, top_k=2, renormalize=True)
    widened = route(x.bfloat16().float(), router, top_k=2, renormalize=True)
    assert half.gate_TE.dtype == torch.float32
    assert torch.equal(half.gate_TE, widened.gate_TE)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_of_a_half_precision_input_keep_that_input_alone(dtype: torch.dtype, autocast: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, TOKENS, IN, dtype=dtype, requires_grad=True)
    router = torch.randn(4, IN, requires_grad=True)
    upstream, kept = torch.randn(3, TOKENS, 4), {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    following = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with following, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = router_logits(x, router)
        logits.backward(upstream)
    assert kept == {x.data_ptr(): x.nbytes, router.data_ptr(): router.nbytes}
    ours, x.grad, router.grad = (x.grad, router.grad), None, None
    plain = nn.functional.linear(x.float(), router)
    plain.backward(upstream)
    torch.testing.assert_close(logits, plain, rtol=0, atol=0)
    for half, exact in zip(ours, (x.grad, router.grad), strict=True):  # as the gradients of the experts
        assert (half.float() - exact.float()).norm() < 2 * torch.finfo(dtype).eps * exact.float().norm()


def test_a_small_pull_is_not_lost_in_float16() -> None:
    torch.manual_seed(0)
    x, router = torch.randn(TOKENS, IN, dtype=torch.float16), torch.randn(4, IN, requires_grad=True)
    upstream = 1e-8 * torch.randn(TOKENS, 4)
    router_logits(x, router).backward(upstream)
    torch.testing.assert_close(router.grad, upstream.T @ x.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_router_is_float32_where_float32_products_may_be_rounded(dtype, rounded_products, monkeypatch) -> None:
    matmul, seen, linear = torch.backends.mkldnn.matmul, [], nn.functional.linear
    monkeypatch.setattr(nn.functional, "linear", lambda *given: (seen.append(matmul.fp32_precision), linear(*given))[1])
    router_logits(torch.randn(TOKENS, IN, dtype=dtype), torch.randn(4, IN))
    assert seen == ["ieee"]
    assert matmul.fp32_precision == "bf16"


def test_a_half_precision_base_keeps_float32_adapters() -> None:
    base = nn.Linear(IN, OUT).bfloat16()
    layer = MixtureLinear(base, "default", config=malora(), routing=Routing(), name="linear")
    assert {p.dtype for n, p in layer.named_parameters() if "malora_" in n} == {torch.float32}
    nn.init.normal_(layer.malora_up["default"])
    x = torch.randn(5, IN).bfloat16()
    y = layer(x)
    assert y.dtype == torch.bfloat16
    wide = make_layer(malora())
    wide.load_state_dict({name: value.float() for name, value in layer.state_dict().items()})
    torch.testing.assert_close(y.float(), wide(x.float()), atol=0.1, rtol=0.02)
    y.float().sum().backward()
    assert layer.malora_router["default"].grad.dtype == torch.float32


@pytest.mark.parametrize("incoming", [torch.float32, torch.bfloat16])
def test_autocast_computes_the_experts_in_its_own_dtype(incoming: torch.dtype) -> None:
    layer, x = make_layer(malora()), torch.randn(TOKENS, IN).to(incoming)
    layer.malora_dropout["default"] = spy = _Spy()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
    assert spy.given[0].dtype == incoming  # no float32 copy of what is half precision already
    layer.malora_dropout["default"] = nn.Identity()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), layer(x.float()), atol=0.15, rtol=0.03)


@pytest.mark.parametrize("masked", [False, True])
def test_load_counts_exactly_under_autocast(masked: bool) -> None:
    """bfloat16 knows 256 and 258, but not 257."""
    gate = torch.zeros(257, 2)
    gate[:, 0] = 1.0
    mask = torch.ones(257) if masked else None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        load, seen = expert_load(gate, mask), seen_of(gate, gate, mask)
    assert load.assigned_E.tolist() == [257.0, 0.0]
    assert seen.gate_E.tolist() == [257.0, 0.0]
    assert load.tokens == 257.0


def balance_of(probability: Tensor, top_k: int, mask: Tensor | None = None) -> float:
    kept, expert = probability.topk(top_k, dim=-1)
    gate = torch.zeros_like(probability).scatter(-1, expert, kept)
    [pull_E] = balance_pulls([expert_load(gate, mask)])
    return float(balance_by_expert(probability, pull_E, mask).sum())


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_balance_is_one_when_the_load_is_even(top_k: int) -> None:
    """Each expert is first, second ... of as many tokens, and the mean probability is 1/N."""
    probability = torch.stack([torch.tensor([0.4, 0.3, 0.2, 0.1]).roll(shift) for shift in range(4)])
    assert balance_of(probability, top_k) == pytest.approx(1.0)


def test_balance_of_each_collapsed_router_is_high_though_together_they_look_even() -> None:
    """Two routers, each with all tokens on an expert of its own: pooled, f and p would be uniform."""
    left = torch.tensor([[0.97, 0.03]]).repeat(8, 1)
    right = left.flip(1)
    assert balance_of(torch.cat([left, right]), 1) == pytest.approx(1.0)
    assert balance_of(left, 1) == pytest.approx(1.94)
    assert balance_of(right, 1) == pytest.approx(1.94)


def test_padding_changes_neither_load_nor_balance() -> None:
    torch.manual_seed(0)
    probability = torch.randn(6, 4).softmax(-1)
    skewed = torch.tensor([[0.9, 0.1, 0.0, 0.0]]).repeat(3, 1)
    padded, mask = torch.cat([skewed, probability]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1])
    assert balance_of(padded, 2, mask) == pytest.approx(balance_of(probability, 2))
    assert balance_of(padded, 2) != pytest.approx(balance_of(probability, 2), rel=0.05)
    ours, plain = expert_load(padded, mask), expert_load(probability, None)
    torch.testing.assert_close(ours.assigned_E, plain.assigned_E)
    assert ours.tokens == plain.tokens
    for seen, alone in zip(
        seen_of(padded, padded.log(), mask), seen_of(probability, probability.log(), None), strict=True
    ):
        torch.testing.assert_close(seen, alone)


def test_what_padding_holds_is_never_counted() -> None:
    gate = torch.tensor([[0.7, 0.3, 0.0], [float("nan")] * 3])
    assert expert_load(gate, torch.tensor([1, 0])).assigned_E.tolist() == [1.0, 1.0, 0.0]
    assert all(value.isfinite().all() for value in seen_of(gate, gate, torch.tensor([1, 0])))


def test_a_batch_of_padding_alone_is_no_division_by_zero() -> None:
    probability, mask = torch.full((3, 4), 0.25), torch.zeros(3)
    assert balance_of(probability, 2, mask) == 0.0


def test_two_processes_balance_their_whole_batch(tmp_path: Path) -> None:
    """Data-parallel training averages gradients: the mean of the two must be that of all tokens in one process."""
    torch.multiprocessing.spawn(two_processes.run, (str(tmp_path),), nprocs=2)
    losses, gradients = zip(*(json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)), strict=True)
    x, router = two_processes.whole_batch()
    loss = two_processes.balance(x, router)
    loss.backward()
    assert sum(losses) / 2 == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(torch.tensor(gradients).mean(0), router.grad, atol=1e-6, rtol=1e-4)


def test_load_is_named_and_without_a_gradient() -> None:
    gate = torch.rand(4, 3, requires_grad=True)
    load = expert_load(gate, None)
    assert isinstance(load, Load)
    assert not load.assigned_E.requires_grad
    assert load.tokens == 4


def test_under_autocast_the_update_goes_into_the_output_of_the_frozen_linear() -> None:
    """No tensor of the update's own size is made, and the sum is that of the two."""
    layer, x = make_layer(malora()), torch.randn(TOKENS, IN).bfloat16()
    nn.init.normal_(layer.malora_up["default"])
    layer.base_layer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        whole, base = layer(x), layer.base_layer(x)
        apart = layer._delta(x, "default")
    assert whole.dtype == torch.bfloat16
    torch.testing.assert_close(whole.float(), base.float() + apart.float(), rtol=0.01, atol=0.01)
