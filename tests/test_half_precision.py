"""Half precision in training, every routed preset: as near to float32 as the format lets it be, and routed the same.

On a GPU where there is one; elsewhere a stand-in is what a GPU multiplies by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from malora_cli.adapters import fused as fused_module
from malora_cli.adapters import layer as layer_module
from malora_cli.adapters import logits as logits_module
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.dropout import Drawn, draw_kept, drop_again, drop_by_device
from malora_cli.adapters.fused import can_fuse
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.logits import halves, router_logits, sum_of, terms_of
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import Routing
from malora_cli.modeling import round_experts
from malora_cli.modeling.modes import as_trained
from presets import ROUTED, config, routed
from reference import PlainDropout
from tiny_models import tiny

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
IN, OUT, TOKENS, DROPOUT = 96, 80, 64, 0.4
#: Largest distance from float32 of an output and of a gradient, relative, by format.
WITHIN = {torch.bfloat16: (0.004, 0.008), torch.float16: (0.0006, 0.0012)}


@contextmanager
def _no_fusing() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_module, "can_fuse", lambda *_: False)
        yield


@contextmanager
def _fused_calls() -> Iterator[list[bool]]:
    """Whether each linear called within the block was fused."""
    calls: list[bool] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_module, "can_fuse", lambda *given: (calls.append(can_fuse(*given)), calls[-1])[1])
        yield calls


@contextmanager
def _drawn_as_plainly() -> Iterator[None]:
    """A dropout draws as `PlainDropout` does within the block: a GPU's own kernel would take other numbers."""

    def drop(x: Tensor, p: float) -> tuple[Tensor, Drawn]:
        kept, factor = draw_kept(x, p)
        return x * kept, Drawn(kept, 1.0, factor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused_module, "drop", drop)
        yield


def _layer(settings: MixtureConfig, dtype: torch.dtype) -> MixtureLinear:
    """A layer whose weights the format holds exactly, so that what is compared is the arithmetic."""
    torch.manual_seed(0)
    base = nn.Linear(IN, OUT).requires_grad_(False)
    made = MixtureLinear(base, "default", config=settings, routing=Routing(), name="linear").train()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "router" not in name:
                parameter.copy_(parameter.normal_(0, 0.2).to(dtype))
    return made.to(DEVICE)


def _outcome(made: MixtureLinear, x: Tensor) -> dict[str, Tensor]:
    """Output and every gradient, under one draw of the dropout."""
    made.zero_grad()
    x = x.detach().to(DEVICE).requires_grad_()
    torch.manual_seed(1)
    with torch.autocast(DEVICE, x.dtype, enabled=x.dtype != torch.float32):
        y = made(x)
    upstream = torch.linspace(-1, 2, y.numel(), device=DEVICE).sin().view_as(y)
    (y * upstream.to(y.dtype)).sum().backward()
    gradients = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    assert x.grad is not None
    return {"output": y.detach(), "input": x.grad, **gradients}


def _distance(ours: Tensor, exact: Tensor) -> float:
    return float((ours.float() - exact.float()).norm() / exact.float().norm())


def _assert_near(ours: dict[str, Tensor], exact: dict[str, Tensor], dtype: torch.dtype) -> None:
    output, gradient = WITHIN[dtype]
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        distance = _distance(ours[name], value)
        assert distance < (output if name == "output" else gradient), (name, distance)


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("dtype", WITHIN)
@pytest.mark.parametrize("method", ROUTED)
def test_is_as_near_to_float32_as_the_format_allows(method: str, dtype: torch.dtype, dropout: float) -> None:
    made = _layer(config(method, lora_dropout=dropout), dtype)
    x = torch.randn(2, TOKENS, IN).to(dtype)
    if dropout:
        made.malora_dropout["default"] = PlainDropout(DROPOUT)
    with _no_fusing():
        exact = _outcome(made, x.float())
    if dropout:
        made.malora_dropout["default"] = nn.Dropout(dropout)
    made.base_layer.to(dtype)
    with _fused_calls() as calls, _drawn_as_plainly():
        ours = _outcome(made, x)
    assert calls == [True]
    assert ours["output"].dtype == dtype
    _assert_near(ours, exact, dtype)


@pytest.mark.parametrize("top_k", [1, 4])
@pytest.mark.parametrize("dtype", WITHIN)
def test_one_expert_active_or_all_of_them(dtype: torch.dtype, top_k: int) -> None:
    made = _layer(config("malora", top_k=top_k, renormalize=top_k > 1), dtype)
    x = torch.randn(2, TOKENS, IN).to(dtype)
    with _no_fusing():
        exact = _outcome(made, x.float())
    made.base_layer.to(dtype)
    _assert_near(_outcome(made, x), exact, dtype)


def _into_float32(a: Tensor, b: Tensor, *, out_dtype: torch.dtype) -> Tensor:
    """What a GPU's product of half precision with a result in float32 gives."""
    with torch.autocast(DEVICE, enabled=False):
        return a.to(out_dtype) @ b.to(out_dtype)


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE != "cpu":
        return
    for module in (logits_module, fused_module):
        monkeypatch.setattr(module, "multiplies_into_float32", lambda x: True)
    monkeypatch.setattr(torch, "mm", _into_float32)
    monkeypatch.setattr(fused_module, "drop", drop_by_device)


@pytest.mark.parametrize("dtype", WITHIN)
def test_two_halves_of_a_router_are_as_good_as_float32(dtype: torch.dtype, as_on_a_gpu: None) -> None:
    torch.manual_seed(0)
    router, x = torch.randn(8, 4096, device=DEVICE) / 64, torch.randn(2000, 4096, device=DEVICE).to(dtype)
    high, low = halves(router, dtype).split(len(router))
    assert high.dtype == low.dtype == dtype
    exact = x.double() @ router.double().T
    logits = sum_of(terms_of(x, router))
    assert logits.dtype == torch.float32
    assert (logits - exact).abs().max() < 1e-4
    assert torch.equal(logits.topk(2).indices, exact.topk(2).indices)
    assert (x.double() @ high.double().T - exact).abs().max() > 5e-4  # one half would not do


def test_a_layer_that_trains_has_the_same_logits_without_gradients(as_on_a_gpu: None) -> None:
    """A reentrant checkpoint computes them in both ways."""
    torch.manual_seed(0)
    x, router = torch.randn(50, 512, device=DEVICE).bfloat16(), torch.randn(8, 512, device=DEVICE)
    with torch.no_grad():
        first = router_logits(x, router)
        evaluated = router_logits(x, router, training=False)
    assert torch.equal(router_logits(x, router), first)
    assert not torch.equal(evaluated, first)


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("dtype", WITHIN)
def test_a_gpus_products_give_what_a_processors_do(dtype: torch.dtype, dropout: float, as_on_a_gpu: None) -> None:
    made = _layer(config("malora", lora_dropout=dropout), dtype)
    made.base_layer.to(dtype)
    x = torch.randn(2, TOKENS, IN).to(dtype)
    ours = _outcome(made, x)
    with pytest.MonkeyPatch.context() as patch:
        for module in (logits_module, fused_module):
            patch.setattr(module, "multiplies_into_float32", lambda x: False)
        plain = _outcome(made, x)
    for name, value in plain.items():
        if name in ("output", "input"):
            assert _distance(ours[name], value) < 1e-4, name
        else:  # a GPU sums the gradients of weights into float32, as the weights are
            rounded = ours[name] if dtype == torch.float16 and "router" in name else ours[name].to(dtype)
            assert _distance(rounded, value) < 1e-4, name
            assert not torch.equal(ours[name].to(dtype).float(), ours[name]), name


@pytest.mark.parametrize("dtype", WITHIN)
def test_a_gpus_dropout_scales_at_once_what_a_processors_does_later(dtype: torch.dtype) -> None:
    """The same entries are kept, and outputs and gradients are the same."""
    made = _layer(config("malora", lora_dropout=DROPOUT), dtype)
    made.base_layer.to(dtype)
    x = torch.randn(2, TOKENS, IN).to(dtype)
    kept = torch.rand(2 * TOKENS, IN, device=DEVICE) >= DROPOUT
    outcomes = []
    for inner, outer in ((1 / (1 - DROPOUT), 1.0), (1.0, 1 / (1 - DROPOUT))):

        def dropped(x: Tensor, _: float, inner: float = inner, outer: float = outer) -> tuple[Tensor, Drawn]:
            drawn = Drawn(kept.to(torch.int8 if inner == 1.0 else torch.bool), inner, outer)
            return drop_again(x, drawn.kept, inner), drawn

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused_module, "drop", dropped)
            outcomes.append(_outcome(made, x))
    _assert_near(*outcomes, dtype)


def test_a_gpus_dropout_can_be_had_again() -> None:
    x = torch.randn(300, 400, device=DEVICE).bfloat16()
    dropped, drawn = drop_by_device(x, 0.25)
    torch.testing.assert_close(drop_again(x, drawn.kept, drawn.inner), dropped, rtol=2**-7, atol=0)
    assert drawn.inner * drawn.outer == pytest.approx(4 / 3)
    assert drawn.kept.float().mean().item() == pytest.approx(0.75, abs=0.01)


def _step(model: nn.Module, *, parts: int) -> dict[str, Tensor]:
    """Gradients of one step of four rows, taken in so many parts."""
    model.zero_grad()
    rows = torch.arange(4 * 12, device=DEVICE).view(4, 12) % 50
    torch.manual_seed(1)
    for part in rows.chunk(parts):
        with torch.autocast(DEVICE, torch.bfloat16):
            (model(input_ids=part, labels=part).loss / parts).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize("method", ROUTED)
def test_checkpointing_changes_nothing(method: str, reentrant: bool) -> None:
    model = routed(method, tiny("llama").to(DEVICE, torch.bfloat16), lora_dropout=DROPOUT)
    with _fused_calls() as calls:
        whole = _step(model, parts=1)
    assert calls
    assert all(calls)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    again = _step(model, parts=1)
    assert whole.keys() == again.keys()
    for name, value in whole.items():
        assert torch.equal(again[name], value), name


@pytest.mark.parametrize("method", ROUTED)
def test_a_step_in_two_parts_has_the_gradient_of_the_whole(method: str) -> None:
    model: Any = routed(method, tiny("llama").to(DEVICE, torch.bfloat16), balance_factor=0.0)
    whole, parted = _step(model, parts=1), _step(model, parts=2)
    for name, value in whole.items():
        assert (parted[name] - value).norm() < 0.02 * value.norm() + 1e-6, name


# ---------------------------------------------------------------- evaluation


@pytest.mark.parametrize("tokens", [1, 24])
@pytest.mark.parametrize("method", METHODS)
def test_experts_are_held_as_they_are_multiplied_and_answers_stay_the_same(method: str, tokens: int) -> None:
    model = routed(method, tiny("llama", dtype=torch.bfloat16).to(DEVICE)).eval()
    ids = torch.arange(3, 3 + tokens, device=DEVICE).unsqueeze(0)
    with torch.no_grad(), as_trained(model):
        before = model(input_ids=ids).logits
        round_experts(model)
        assert torch.equal(model(input_ids=ids).logits, before)
    in_float32 = [name for name, p in model.named_parameters() if p.dtype == torch.float32]
    kept = "lora_" if method == "dora" else "malora_router"  # PEFT computes DoRA's norms in the format of its weights
    assert all(kept in name for name in in_float32)
    assert bool(in_float32) == (method in ("dora", *ROUTED))


def test_experts_on_a_float32_base_stay_as_they_are() -> None:
    model = routed("malora").eval()
    round_experts(model)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
