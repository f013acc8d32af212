"""The analyses of trained experts on matrices whose structure is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from malora_cli.adapters.analysis import analyse_experts, cca_similarity, effective_rank, experts_of, spectrum
from malora_cli.adapters.config import MixtureConfig
from malora_cli.adapters.kernel import Factors, Load, Seen, gate_entropy
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import Routing, RoutingTally, routing_of, tallying
from malora_cli.errors import RunError
from malora_cli.modeling import wrap
from malora_cli.results import ExpertGeometry
from tiny_models import randomise, tiny, tokens

ROUTED = [name for name, method in METHODS.items() if "num_experts" in method.model_fields]


def orthonormal(rows: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(features, rows, generator=generator))[0].T


def test_experts_that_span_the_same_space_are_alike_whatever_their_matrices() -> None:
    frame, (one, two) = orthonormal(4, 30), torch.randn(2, 4, 4)
    similarity = cca_similarity(torch.stack([one @ frame, two @ frame]))
    torch.testing.assert_close(similarity, torch.ones(2, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("common", [0, 1, 3])
def test_similarity_is_the_share_of_common_directions(common: int) -> None:
    frame = orthonormal(8, 30)
    one, two = frame[:4], torch.cat([frame[:common], frame[4 : 8 - common]])
    similarity = cca_similarity(torch.stack([3 * one, torch.randn(4, 4) @ two]))
    torch.testing.assert_close(similarity[0, 1], torch.tensor(common / 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(similarity, similarity.T)


def test_an_angle_is_its_cosine() -> None:
    one, other = torch.eye(2)
    tilted = math.cos(0.3) * one + math.sin(0.3) * other
    similarity = cca_similarity(torch.stack([one, tilted]).unsqueeze(1))
    assert similarity[0, 1].item() == pytest.approx(math.cos(0.3), abs=1e-6)


def test_random_experts_share_what_chance_gives() -> None:
    torch.manual_seed(0)
    similarity = cca_similarity(torch.randn(6, 3, 3000))
    assert similarity[~torch.eye(6, dtype=torch.bool)].mean().item() == pytest.approx(math.sqrt(3 / 3000), rel=0.2)


def test_an_expert_without_directions_is_like_none() -> None:
    similarity = cca_similarity(torch.stack([torch.zeros(3, 9), orthonormal(3, 9), orthonormal(3, 9)]))
    assert similarity[0].tolist() == [0, 0, 0]
    assert similarity[1, 2].item() == pytest.approx(1, abs=1e-5)
    # One of lower rank is compared by the directions that it has.
    low = torch.cat([orthonormal(3, 9)[:1], torch.zeros(2, 9)])
    assert cca_similarity(torch.stack([low, orthonormal(3, 9)]))[0, 1].item() == pytest.approx(1, abs=1e-5)


def test_a_planted_spectrum_is_found_over_its_mean() -> None:
    planted = torch.tensor([6.0, 3.0, 2.0, 1.0])
    rows = orthonormal(4, 4, seed=1) @ (planted.unsqueeze(1) * orthonormal(4, 20))
    torch.testing.assert_close(spectrum(rows.view(2, 2, 20)), planted / 3, atol=1e-5, rtol=1e-5)
    assert spectrum(torch.zeros(2, 2, 20)).tolist() == [0.0] * 4


def test_effective_rank_counts_equal_directions_and_little_else() -> None:
    assert effective_rank(torch.ones(12)) == pytest.approx(12)
    assert effective_rank(torch.tensor([1.0] * 5 + [0.0] * 7)) == pytest.approx(5)
    assert 1 < effective_rank(torch.tensor([100.0] + [0.1] * 11)) < 1.2
    assert effective_rank(torch.zeros(3)) == 0.0


def test_experts_are_their_whole_projections() -> None:
    down, coefficient, up = torch.randn(5, 9), torch.randn(6, 5), torch.randn(7, 6)
    experts = experts_of(Factors(down, coefficient, up), 2)
    torch.testing.assert_close(experts.down_ERI[1], coefficient[3:] @ down)
    torch.testing.assert_close(experts.up_ERO[1], up[:, 3:].T)


@pytest.mark.parametrize("method", ROUTED)
def test_every_routed_method_can_be_analysed(method: str) -> None:
    model = wrap(tiny("llama"), METHODS[method]())
    assert isinstance(model.peft_config["default"], MixtureConfig)
    started = analyse_experts(model)
    assert started is not None
    assert {p["up"].similarity for group in started.groups.values() for p in group.values()} == {0.0}
    randomise(model)
    found = analyse_experts(model)
    assert found is not None
    assert list(found.groups) == ["layer 0", "layer 1"]
    for linears in found.groups.values():
        assert set(linears) == {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}
        for sides in linears.values():
            for side in sides.values():
                assert side.similarity is not None
                assert 0 < side.similarity <= 1 + 1e-5
                assert 1 < side.effective_rank <= side.rank + 1e-3
                assert side.spectrum == sorted(side.spectrum, reverse=True)
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    randomise(model, seed=1)
    assert analyse_experts(model, weights) == found
    if method == "hydralora":  # one A for all
        assert found.groups["layer 0"]["q_proj"]["down"].similarity == pytest.approx(1, abs=1e-4)


def test_a_model_without_routers_has_no_experts_to_analyse() -> None:
    assert analyse_experts(wrap(tiny("llama"), METHODS["lora"]())) is None


def test_an_analysis_comes_back_from_its_file(tmp_path: Path) -> None:
    model = wrap(tiny("llama"), METHODS["malora"]())
    found = analyse_experts(model)
    assert found is not None
    found.save(tmp_path / "experts.json")
    assert ExpertGeometry.load(tmp_path / "experts.json") == found
    assert ExpertGeometry.load(tmp_path / "nowhere.json") is None
    (tmp_path / "experts.json").write_text("{", encoding="utf-8")
    with pytest.raises(RunError, match=r"experts.json: the analysis of the experts cannot be read"):
        ExpertGeometry.load(tmp_path / "experts.json")


# Gate entropy


def test_entropy_is_one_at_uniform_and_zero_when_certain() -> None:
    uniform, certain = torch.full((5, 8), 1 / 8), torch.eye(8)[:5]
    assert gate_entropy(uniform, None).item() == pytest.approx(5)
    assert gate_entropy(certain, None).item() == pytest.approx(0)
    halves = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert gate_entropy(halves, None).item() == pytest.approx(0.5)
    assert gate_entropy(torch.ones(3, 1), None).item() == 0.0


def test_padding_has_no_entropy() -> None:
    probability = torch.cat([torch.full((2, 4), 0.25), torch.eye(4)])
    mask = torch.tensor([[1, 0, 1], [1, 0, 0]])
    assert gate_entropy(probability, mask).item() == pytest.approx(1)


@pytest.mark.parametrize("method", ["malora", "mixlora", "mola"])
def test_entropy_is_tallied_for_every_linear(method: str) -> None:
    changes: dict[str, Any] = {"num_experts": (2, 4)} if method == "mola" else {}
    model = wrap(tiny("llama"), METHODS[method](**changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "malora_router" in name:
                parameter.zero_()
    routing = routing_of(model)
    assert routing is not None
    with tallying(model) as even:
        model(input_ids=tokens(2, 7))
    assert even.mean_entropy_L.tolist() == pytest.approx([1.0] * 12)
    assert routing.entropy_by_group({"t": even})["t"] == pytest.approx({"layer 0": 1.0, "layer 1": 1.0})
    randomise(model, scale=3.0)
    with tallying(model) as sure:
        model(input_ids=tokens(2, 7))
    assert all(0 <= entropy < 0.95 for entropy in sure.mean_entropy_L.tolist())


def test_entropy_leaves_out_routers_that_saw_nothing() -> None:
    routing = Routing(names=["layers.0.q", "layers.0.k", "layers.1.q"])
    tally = RoutingTally(3, 2, torch.device("cpu"))
    tally.add(0, Load(torch.tensor([4.0, 0.0]), 4), Seen(torch.tensor([4.0, 0.0]), torch.tensor(1.0)))
    assert routing.entropy_by_group({"a": tally}) == {"a": {"layer 0": 0.25}}
