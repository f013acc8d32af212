"""One router for the linears of a block, and experts by groups of layers, through all that PEFT and training do."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma3Config

from malora_cli.adapters.block import BlockRouter
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import observed, routing_of, tallying
from malora_cli.adapters.tuner import MixtureModel
from malora_cli.modeling import wrap
from presets import routed, settings
from tiny_models import LAYERS, gemma3_with_pictures, tiny, tokens

IDS = tokens(3, 9)


def linears(model: nn.Module) -> dict[str, MixtureLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MixtureLinear)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None and "malora_" in name}
    model.zero_grad()
    return found


def loss(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    value = model(input_ids=ids, labels=ids).loss
    assert isinstance(value, Tensor)
    return value


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def checkpointed(model: PeftModel, *, reentrant: bool) -> PeftModel:
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    return model


# One router a block


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("llama", {"self_attn.q_proj", "mlp.gate_proj"}),
        ("gemma3_text", {"self_attn.q_proj", "mlp.gate_proj"}),
        ("phi", {"self_attn.q_proj", "mlp.fc1"}),
        ("gpt2", {"attn.c_attn", "mlp.c_fc"}),
    ],
)
def test_the_first_linear_of_a_block_has_its_router(kind: str, first: set[str]) -> None:
    model = routed("mixlora", tiny(kind))
    with_router = {".".join(name.split(".")[-2:]) for name, layer in linears(model).items() if layer.malora_router}
    assert with_router == first
    routing = routing_of(model)
    assert routing is not None
    assert len(routing.routers["default"]) == 2 * LAYERS


def test_the_linears_of_a_block_choose_alike_and_are_balanced_once() -> None:
    model = routed("mixlora")
    gates: dict[int, Tensor] = {}
    with (
        tallying(model) as tally,
        observed(model, lambda number, _x, gate: gates.update({number: gate.detach().flatten(0, -2)})),
    ):
        loss(model).backward()
    for start in range(0, 6 * LAYERS, 3):
        for row in (start + 1, start + 2):
            assert torch.equal(tally.assigned_LE[start], tally.assigned_LE[row])
            assert torch.equal(gates[start], gates[row])
    assert tally.sum("calls_L").tolist() == [1.0, 0.0, 0.0] * 2 * LAYERS
    assert not torch.equal(tally.assigned_LE[0], tally.assigned_LE[3])


@pytest.mark.parametrize("kind", ["opt", "gptj"])
def test_the_order_of_calls_is_learned_where_it_is_not_that_of_the_list(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OPT and GPT-J list k before q, and call q first."""
    targets = ["q_proj", "k_proj", "v_proj"]
    model = routed("mixlora", tiny(kind, "eager"), target_modules=targets)
    with tallying(model) as tally:
        loss(model).backward()
    model.zero_grad()
    assert torch.equal(tally.assigned_LE[0], tally.assigned_LE[1])
    assert torch.equal(tally.assigned_LE[0], tally.assigned_LE[2])
    assert tally.sum("calls_L").sum() == LAYERS  # balanced once a block
    loss(model).backward()
    ours = gradients(model)
    twin = copy.deepcopy(model)
    loss(twin).backward()
    assert_same(gradients(twin), ours, atol=0.0)
    with monkeypatch.context() as patched:
        # Each linear by its own input, which is the same for all, and one of them balanced.
        patched.setattr(BlockRouter, "router_for", lambda block, _, adapter, __: block._weights[adapter])
        patched.setattr(BlockRouter, "give", lambda *_: None)
        for layer in linears(twin).values():
            if not layer.malora_router:
                layer.malora_config["default"] = replace(layer.malora_config["default"], balance_factor=0.0)
        loss(twin).backward()
        assert_same(gradients(twin), ours)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny(kind, "eager"), tmp_path)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_a_linear_of_another_size_that_is_called_first_is_told() -> None:
    mlp = routed("mixlora").base_model.model.model.layers[0].mlp
    with pytest.raises(
        RuntimeError, match="of 48 inputs is called before the first of its block, whose router reads 32"
    ):
        mlp.down_proj(torch.randn(2, 48))


def test_gates_of_other_tokens_are_not_taken() -> None:
    block, gate, entropy, weights = BlockRouter(), torch.rand(10, 4), torch.tensor(0.5), nn.ParameterDict()
    assert [block.joined(linear, weights) for linear in (7, 8, 9)] == [True, False, False]
    block.give(8, gate, entropy)  # the second is called first
    assert block.take(9, 10) == (gate, entropy)
    for linear, count in ((9, 10), (7, 8)):  # taken already; other tokens
        with pytest.raises(RuntimeError, match="which the first one of the block has not seen"):
            block.take(linear, count)
    block.take(7, 10)
    with pytest.raises(RuntimeError, match="which the first one of the block has not seen"):
        block.take(7, 10)


@pytest.mark.parametrize("method", ["mixlora", "mola", "hydralora", "malora-decomposed-up", "malora-unshared-subspace"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpointing_changes_no_gradient_under_accumulation(method: str, reentrant: bool) -> None:
    found = []
    for model in (checkpointed(routed(method), reentrant=reentrant), routed(method)):
        for seed, rows in ((1, 3), (2, 5)):
            ids = tokens(rows, 9, seed=seed)
            (loss(model, ids) / 2).backward()
        found.append(gradients(model))
    assert_same(*found, atol=1e-5)


def test_a_recomputation_that_stops_early_leaves_the_next_pass_alone() -> None:
    """With the experts frozen nothing needs the last linears' inputs, and what is computed again ends before them."""
    model, plain = checkpointed(routed("mixlora"), reentrant=False), routed("mixlora")
    for one in (model, plain):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_("q_proj.malora_up" in name)
    with torch.no_grad():
        model(input_ids=tokens(2, 4))
    for _ in range(2):
        for one in (model, plain):
            loss(one).backward()
        assert_same(gradients(model), gradients(plain))


def test_a_copy_in_the_middle_of_a_pass_has_blocks_of_its_own() -> None:
    model = routed("mixlora")
    attention = model.base_model.model.model.layers[0].self_attn
    attention.q_proj(torch.randn(2, 4, 32, requires_grad=True))  # k and v wait
    twin = copy.deepcopy(model)
    blocks = {id(layer.malora_block["default"]) for layer in linears(twin).values()}
    assert len(blocks) == 2 * LAYERS
    assert not blocks & {id(layer.malora_block["default"]) for layer in linears(model).values()}
    for one in (model, twin):
        loss(one).backward()
    assert_same(gradients(twin), gradients(model), atol=0.0)


def test_adapters_have_blocks_of_their_own() -> None:
    model, alone = routed("mixlora"), routed("mixlora", seed=4)
    other = settings("mixlora", num_experts=3).peft_config(["k_proj", "v_proj", "up_proj"])
    model.eval().add_adapter("other", other)
    plain = tiny("llama")(input_ids=IDS).logits
    with torch.no_grad():
        first = model(input_ids=IDS).logits
        layer = model.base_model.model.model.layers[0].self_attn
        assert "other" in layer.k_proj.malora_router  # q is not there to have it
        assert "other" not in layer.q_proj.malora_up
        model.base_model.set_adapter(["default", "other"])
        torch.testing.assert_close(model(input_ids=IDS).logits, first, atol=1e-5, rtol=1e-5)  # B is zero
        nn.init.normal_(layer.v_proj.malora_up["other"])
        assert not torch.allclose(model(input_ids=IDS).logits, first, atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(model(input_ids=IDS).logits, plain)
        model.set_adapter("default")
        model.delete_adapter("other")
        assert torch.equal(model(input_ids=IDS).logits, first)
    assert "other" not in layer.k_proj.malora_block
    model.train()
    for one in (model, alone):
        randomly = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                if "malora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=randomly) * 0.3)
        loss(one).backward()
    assert_same(gradients(model), gradients(alone), atol=0.0)


def test_deleting_the_adapter_of_a_block_and_adding_it_again_trains_on() -> None:
    model = routed("mixlora")
    model.add_adapter("second", settings("mixlora", num_experts=3).peft_config(["q_proj", "k_proj", "up_proj"]))
    model.delete_adapter("default")
    model.set_adapter("second")
    loss(model).backward()
    assert {name.rpartition(".")[2] for name in gradients(model)} == {"second"}
    routing = routing_of(model)
    assert routing is not None
    assert {name: len(rows) for name, rows in routing.routers.items()} == {"default": 0, "second": 2 * LAYERS}


@pytest.mark.parametrize("low_memory", [True, False])
@pytest.mark.parametrize("method", ["mixlora", "mola"])
def test_comes_back_bit_by_bit_with_its_routers(method: str, low_memory: bool, tmp_path: Path) -> None:
    model = routed(method).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama"), tmp_path, low_cpu_mem_usage=low_memory)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)
    again = PeftModel.from_pretrained(tiny("llama"), tmp_path, is_trainable=True).train()
    for one in (model.train(), again):
        loss(one).backward()
    assert_same(gradients(again), gradients(model), atol=0.0)


# Experts by groups of layers


def counts(model: nn.Module) -> dict[int, int]:
    """Experts of each layer; every linear of a layer agrees."""
    found: dict[int, set[int]] = {}
    for name, layer in linears(model).items():
        experts = layer.malora_router["default"].shape[0]
        assert layer.malora_up["default"].shape[1] == experts * layer.malora_config["default"].r
        found.setdefault(int(name.split(".layers.")[1].split(".")[0]), set()).add(experts)
    assert all(len(experts) == 1 for experts in found.values())
    return {number: experts.pop() for number, experts in found.items()}


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (8, [2, 2, 4, 4, 6, 6, 8, 8]),
        (6, [2, 2, 4, 6, 6, 8]),
        (4, [2, 4, 6, 8]),
        (3, [2, 4, 6]),
        (1, [2]),
    ],
)
def test_groups_are_of_one_size_as_nearly_as_can_be(layers: int, expected: list[int]) -> None:
    model = routed("mola", tiny("llama", layers=layers), num_experts=(2, 4, 6, 8))
    assert counts(model) == dict(enumerate(expected))


def test_all_groups_train_and_come_back(tmp_path: Path) -> None:
    model = routed("mola", tiny("llama", layers=8), num_experts=(2, 4, 6, 8))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if "malora_" in name}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    with tallying(model) as tally:
        loss(model).backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    # Every router spreads its tokens over its own experts and nowhere else, two to a token.
    assert tally.assigned_LE.sum(1).tolist() == [2.0 * IDS.numel()] * 6 * 8
    used = tally.assigned_LE.gt(0).view(8, 6, 8).any(1)
    assert [int(row.nonzero().max()) < count for row, count in zip(used, (2, 2, 4, 4, 6, 6, 8, 8), strict=True)]
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny("llama", layers=8), tmp_path)
    assert counts(loaded) == counts(model)
    assert torch.equal(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits)


def test_groups_count_in_the_whole_model_where_some_layers_are_adapted() -> None:
    made = settings("mola", num_experts=(2, 4)).peft_config(["q_proj"])
    made.layers_to_transform = [1, 2]
    torch.manual_seed(0)
    assert counts(PeftModel(tiny("llama", layers=4), made)) == {1: 2, 2: 4}


def test_groups_count_the_layers_of_the_text_model_alone() -> None:
    base = gemma3_with_pictures()
    base_config: Gemma3Config = base.config
    base_config.vision_config.num_hidden_layers = 7
    model = wrap(AutoModelForCausalLM.from_config(base_config), settings("mola", num_experts=(2, 4)))
    assert counts(model) == {0: 2, 1: 4}


def test_a_list_of_one_number_is_that_number() -> None:
    assert counts(routed("mola", num_experts=(3,))) == {0: 3, 1: 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts": (4, 1)}, "top_k 2 is above num_experts 1"),
        ({"num_experts": ()}, "num_experts is an empty list"),
    ],
)
def test_groups_that_cannot_be_are_told(changes: dict[str, Any], message: str) -> None:
    from malora_cli import MoloraConfig

    with pytest.raises(ValueError, match=message):
        MoloraConfig(**changes)


def test_blocks_and_groups_go_together() -> None:
    model = routed("mola", router="block", num_experts=(2, 3))
    assert isinstance(model.base_model, MixtureModel)
    assert [len(layer.malora_router) for layer in linears(model).values()] == [1, 0, 0] * 2 * LAYERS
    loss(model).backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if "malora_" in name)
