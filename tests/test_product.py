"""Products by either library, and the linears and dropouts that take the faster way."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from malora_cli import processor
from malora_cli.adapters import product, quick
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.quick import QuickLinear, quicken
from malora_cli.modeling import wrap
from tiny_models import tiny, tokens

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="PyTorch was built without oneDNN")


@pytest.fixture
def onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN for every product, however small and whatever the processor."""
    monkeypatch.setattr(product, "prefers_onednn", lambda: True)
    monkeypatch.setattr(quick, "prefers_onednn", lambda: True)
    monkeypatch.setattr(product, "_WORTH_IT", 0)


def matrix(rows: int, columns: int, *, strided: bool) -> Tensor:
    torch.manual_seed(rows * columns)
    return torch.randn(columns, rows + 3).T[:rows] if strided else torch.randn(rows, columns)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("strided", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 64, 5), (37, 12, 96), (64, 300, 40)])
def test_both_libraries_multiply_alike(
    sizes: tuple[int, int, int], strided: tuple[bool, bool], bias: bool, onednn: None
) -> None:
    m, k, n = sizes
    a, b = matrix(m, k, strided=strided[0]), matrix(n, k, strided=strided[1])
    added = torch.randn(n) if bias else None
    expected = (a.double() @ b.double().T + (0 if added is None else added.double())).float()
    torch.testing.assert_close(product.product(a, b, added), expected, atol=1e-4, rtol=1e-5)
    y = torch.ones(m, n)
    assert product.add_product(y, a, b) is y
    torch.testing.assert_close(y, (a.double() @ b.double().T).float() + 1, atol=1e-4, rtol=1e-5)


GAPPED = {
    "number": torch.ones(()).expand(6, 4),
    "row": torch.ones(1, 4).expand(6, 4),
    "column": torch.ones(6, 1).expand(6, 4),
    "every-other": torch.ones(12, 8)[::2, ::2],
    "part-of-rows": torch.ones(6, 9)[:, :4],
    "part-of-columns": torch.ones(4, 9)[:, :6].T,
}


@needs_onednn
@pytest.mark.parametrize("m", GAPPED.values(), ids=GAPPED)
def test_a_matrix_with_gaps_is_closed_first(m: Tensor, onednn: None) -> None:
    assert product._laid_out(m).is_contiguous()
    for plain in (torch.ones(6, 4), torch.ones(4, 6).T):
        assert product._laid_out(plain) is plain
    torch.testing.assert_close(product.product(m, torch.ones(3, 4)), torch.full((6, 3), 4.0))
    torch.testing.assert_close(product.product(torch.ones(3, 4), m), torch.full((3, 6), 4.0))


@needs_onednn
def test_onednn_is_for_products_that_are_worth_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "prefers_onednn", lambda: True)
    assert product._by_onednn(torch.empty(512, 576), torch.empty(192, 576))
    assert not product._by_onednn(torch.empty(1, 576), torch.empty(192, 576))
    assert not product._by_onednn(torch.empty(512, 576).double(), torch.empty(192, 576).double())
    assert not product._by_onednn(torch.empty(512, 576, device="meta"), torch.empty(192, 576, device="meta"))
    monkeypatch.setattr(product, "prefers_onednn", lambda: False)
    assert not product._by_onednn(torch.empty(512, 576), torch.empty(192, 576))


def test_products_can_be_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "prefers_onednn", lambda: True)
    pair = torch.empty(512, 576), torch.empty(192, 576)
    with product.by_pytorch():
        assert not product._by_onednn(*pair)
    assert product._by_onednn(*pair)


@pytest.mark.parametrize(("vendor", "expected"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_processor_decides(vendor: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor.Path, "read_text", lambda *_, **__: f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert product.prefers_onednn.__wrapped__() is expected
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not product.prefers_onednn.__wrapped__()


@needs_onednn
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_quick_linear_is_the_linear_it_was(bias: bool, trained: bool, onednn: None) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(12, 7, bias=bias).requires_grad_(trained)
    quickened = copy.deepcopy(plain)
    quicken(quickened)
    assert type(quickened) is QuickLinear
    assert quickened.state_dict().keys() == plain.state_dict().keys()
    found = []
    for module in (plain, quickened):
        x = torch.linspace(-1, 1, 2 * 5 * 12).view(2, 5, 12).requires_grad_()
        y = module(x)
        (y * torch.arange(y.numel()).view_as(y)).sum().backward()
        found.append((y, x.grad, *(parameter.grad for parameter in module.parameters())))
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-5)


@needs_onednn
def test_a_linear_under_autocast_is_left_to_torch(onednn: None) -> None:
    module = nn.Linear(12, 7)
    quicken(module)
    x = torch.randn(3, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16


@needs_onednn
def test_only_float32_linears_on_a_processor_are_quickened(onednn: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [nn.Linear(2, 2), nn.Linear(2, 2).bfloat16(), nn.Linear(2, 2, device="meta"), nn.Conv1d(2, 2, 1)]
    model = nn.ModuleList(kinds)
    quicken(model)
    assert [isinstance(module, QuickLinear) for module in kinds] == [True, False, False, False]
    monkeypatch.setattr(quick, "prefers_onednn", lambda: False)
    other = nn.Linear(2, 2)
    quicken(other)
    assert type(other) is nn.Linear


@needs_onednn
@pytest.mark.parametrize("method", ["lora", "malora", "molora"])
def test_a_quickened_model_trains_to_the_same_gradients(method: str, onednn: None) -> None:
    ids, found = tokens(2, 9), []
    for quickened in (False, True):
        base = tiny("llama")
        torch.manual_seed(0)
        model = wrap(base, METHODS[method](lora_dropout=0.0), quick=quickened).train()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name or "malora_up" in name:
                    parameter.fill_(0.02)
        model(input_ids=ids, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4, rtol=1e-3, msg=name)


def test_the_dropout_of_lora_is_one() -> None:
    """What is kept is scaled, what is not gets no gradient, and evaluation changes nothing."""
    model = wrap(tiny("llama"), METHODS["lora"](lora_dropout=0.25))
    dropout = next(module for module in model.modules() if isinstance(module, quick.QuickDropout))
    x = torch.ones(400, 500, requires_grad=True)
    y = dropout.train()(x)
    kept = y.detach() != 0
    torch.testing.assert_close(y.detach()[kept].unique(), torch.tensor([4 / 3]))
    assert abs(kept.float().mean().item() - 0.75) < 0.005
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())
    assert torch.equal(dropout.eval()(x), x)
