"""Static LoRAs: the mixture under fixed gates, the least-squares fit, lower ranks, and names of targets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor

from exports import logits, mixture
from malora_cli.adapters.kernel import Factors, mixture_delta
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import observed
from malora_cli.export import fit
from malora_cli.export.fit import Moments, fitted_lora, moments
from malora_cli.export.formats.peft import suffixes
from malora_cli.export.measuring import uniform_gates
from malora_cli.export.static import LowRank, static_lora, static_up
from malora_cli.modeling import wrap
from tiny_models import VOCABULARY, tiny


@given(
    experts=st.integers(1, 5),
    rank=st.integers(1, 3),
    shared=st.integers(1, 6),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_static_lora_is_the_kernel_under_the_same_gates(
    experts: int, rank: int, shared: int, own: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    ranks = experts * rank
    down = torch.randn(ranks if own else shared, 7)
    factors = Factors(down, None if own else torch.randn(ranks, shared), torch.randn(5, ranks))
    x, gates, more = torch.randn(4, 7), torch.rand(experts), torch.rand(experts)

    def of(gate: Tensor) -> Tensor:
        return x @ down.T @ static_up(factors.up_OQ, factors.coefficient_QS, gate, scaling=1.5).T

    torch.testing.assert_close(
        of(gates), mixture_delta(x, gates.expand(4, -1), factors, scaling=1.5), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(of(0.3 * gates + 0.7 * more), 0.3 * of(gates) + 0.7 * of(more), atol=1e-4, rtol=1e-4)


def test_uniform_gates_sum_to_what_gates_sum_to() -> None:
    for settings, total in (({}, 1.0), ({"renormalize": False, "top_k": 2}, 0.5)):
        gates = uniform_gates(mixture(**settings))
        assert gates.sum(1).tolist() == pytest.approx([total] * len(gates))
        assert gates.std(1).max() == 0
    uneven = wrap(tiny("llama"), METHODS["mola"](num_experts=(2, 4)))  # type: ignore[call-arg]
    assert uniform_gates(uneven)[0].tolist() == pytest.approx([0.5, 0.5, 0, 0])


# ---------------------------------------------------------------- fit


def seen_by(model: PeftModel, ids: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Input and gates of every routed linear."""
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(router: int, x: Tensor, gate: Tensor) -> None:
        seen[router] = x.flatten(0, -2), gate.flatten(0, -2)

    with observed(model, keep):
        logits(model, ids)
    return seen


def rows(*ids: Tensor) -> list[dict[str, Tensor]]:
    """Batches of one row each."""
    return [
        {
            "input_ids": row.unsqueeze(0),
            "position_ids": torch.arange(len(row)).unsqueeze(0),
            "lengths": (len(row),),
            "positions": torch.arange(len(row) - 1),
            "targets": row[1:],
            "examples": torch.zeros(len(row) - 1, dtype=torch.int64),
        }
        for row in ids
    ]


def test_a_fit_is_least_squares_and_never_farther_than_mean_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixture()
    torch.manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (2, 40))
    found = [moments(model, rows(row)) for row in ids]
    monkeypatch.setattr(fit, "RIDGES", (0.0,))
    lora = fitted_lora(model, found)
    halves = [seen_by(model, row.unsqueeze(0)) for row in ids]
    for router, (name, one) in enumerate(lora.items()):
        layer = model.get_base_model().get_submodule(name)
        x, gate = (torch.cat([half[router][part] for half in halves]) for part in (0, 1))
        factors, scaling = layer.factors("default"), layer.malora_config["default"].scaling
        routed = mixture_delta(x, gate, factors, scaling=scaling).detach().double()
        z = (x @ factors.down_SI.T).detach().double()
        best = torch.linalg.lstsq(z, routed).solution.T
        torch.testing.assert_close(one.up_OS.double(), best, atol=1e-4, rtol=1e-3)
        mean = static_up(factors.up_OQ, factors.coefficient_QS, gate.mean(0), scaling=scaling).detach().double()

        def distance(up: Tensor, z: Tensor = z, routed: Tensor = routed) -> float:
            return float((z @ up.T - routed).square().sum())

        assert distance(one.up_OS.double()) <= distance(mean) * (1 + 1e-6)
        assert distance(mean) > 0


def test_a_fit_of_constant_gates_is_the_static_lora() -> None:
    model = mixture(top_k=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "malora_router" in name:
                parameter.zero_()  # a softmax of zeros is even for every token
    torch.manual_seed(3)
    found = [moments(model, rows(row)) for row in torch.randint(3, VOCABULARY, (2, 40))]
    fitted, static = fitted_lora(model, found), static_lora(model, uniform_gates(model))
    for name, one in fitted.items():
        torch.testing.assert_close(one.up_OS, static[name].up_OS, atol=1e-4, rtol=1e-3)


def test_moments_weigh_tasks_and_not_their_tokens() -> None:
    one, two = (Moments(torch.full((1, 1), v), torch.full((1, 1), v), tokens) for v, tokens in ((4.0, 4), (30.0, 10)))
    both = one.weighing(0.25) + two.weighing(0.75)
    assert (both.gated_QS.item(), both.tokens) == (0.25 * 1 + 0.75 * 3, 1.0)


# ---------------------------------------------------------------- ranks


def test_a_lower_rank_is_the_best_of_its_kind() -> None:
    torch.manual_seed(0)
    one = LowRank(torch.randn(6, 20), torch.randn(9, 6))
    whole = one.up_OS @ one.down_SI
    lower, left_out = one.reduced(2)
    u, s, vh = torch.linalg.svd(whole)
    torch.testing.assert_close(lower.up_OS @ lower.down_SI, u[:, :2] * s[:2] @ vh[:2], atol=1e-4, rtol=1e-4)
    assert left_out == pytest.approx(float(s[2:].square().sum() / s.square().sum()), rel=1e-4)
    padded = one.padded(8)
    assert padded.rank == 8
    torch.testing.assert_close(padded.up_OS @ padded.down_SI, whole)
    assert one.reduced(6) == (one, 0.0)


def test_targets_are_names_and_match_nothing_else() -> None:
    model = tiny("llama")
    whole = [name for name, module in model.named_modules() if name.endswith("q_proj")]
    assert suffixes(whole, model) == ["q_proj"]
    assert suffixes(whole[:1], model) == whole[:1] == ["model.layers.0.self_attn.q_proj"]
    with pytest.raises(AssertionError):  # a tail of a name is not that name
        assert suffixes([name for name, _ in model.named_modules() if name.endswith("gate_proj")], model) == ["proj"]
