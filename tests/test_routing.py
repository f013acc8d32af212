"""The balance loss on its way to the gradient, and the tally of what routers choose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from malora_cli import MaloraConfig, MoloraConfig
from malora_cli.adapters import kernel
from malora_cli.adapters.kernel import Load, balance_pulls, expert_load
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.routing import Routing, RoutingTally, routing_of, scale_balance_with, tallying
from tiny_models import LAYERS, randomise, tiny, tokens

FACTOR = 5.0  # far above what is sensible, so that a wrong balance gradient shows
ROUTERS = 6 * LAYERS


def wrapped(**changes: Any) -> PeftModel:
    torch.manual_seed(0)
    settings = {"r": 3, "subspace_rank": 5, "num_experts": 4, "lora_alpha": 6, "balance_factor": FACTOR}
    model = get_peft_model(tiny("llama"), MaloraConfig(task_type="CAUSAL_LM", **(settings | changes)))
    randomise(model)
    return model.train()


def batch(rows: int = 3, seed: int = 1) -> dict[str, Tensor]:
    """Rows padded on the right, by more each."""
    ids = tokens(rows, 9, seed=seed)
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, 9 - row :] = 0
    ids = ids.masked_fill(mask == 0, 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients so far, by parameter, which are then cleared."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_same(ours: dict[str, Tensor], plain: dict[str, Tensor], *, atol: float = 2e-5) -> None:
    assert ours.keys() == plain.keys()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], atol=atol, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def balance_in_the_open(model: PeftModel, run: Callable[[], Any]) -> tuple[Any, Tensor]:
    """Run a forward pass and compute the mean balance loss with plain autograd, from the inputs of the linears."""
    terms: list[Tensor] = []

    def hook(layer: MixtureLinear, inputs: tuple[Tensor, ...]) -> None:
        config = layer.malora_config["default"]
        probability = (inputs[0] @ layer.malora_router["default"].T).softmax(-1).flatten(0, 1)
        mask = layer.malora_routing.token_mask
        real = torch.ones(len(probability), dtype=torch.bool) if mask is None else mask.flatten().bool()
        probability = probability[real]
        chosen = probability.topk(config.top_k, dim=-1).indices.flatten()
        share = torch.bincount(chosen, minlength=config.num_experts) / len(chosen)
        terms.append(config.num_experts * (share * probability.mean(0)).sum())

    layers = [module for module in model.modules() if isinstance(module, MixtureLinear)]
    handles = [layer.register_forward_pre_hook(hook) for layer in layers]
    output = run()
    for handle in handles:
        handle.remove()
    return output, torch.stack(terms).mean()


def plain_gradients(scale: float = 1.0, **changes: Any) -> dict[str, Tensor]:
    """Of ``scale * (loss + factor * mean balance)``, by autograd alone."""
    model, data = wrapped(**changes), batch()
    for config in model.peft_config.values():
        config.balance_factor = 0.0  # ours is off
    output, balance = balance_in_the_open(model, lambda: model(**data))
    (scale * (output.loss + FACTOR * balance)).backward()
    return gradients(model)


@pytest.mark.parametrize("renormalize", [True, False])
def test_gradient_is_that_of_the_loss_plus_the_mean_balance(renormalize: bool) -> None:
    model = wrapped(renormalize=renormalize)
    model(**batch()).loss.backward()
    with_balance = gradients(model)
    assert_same(with_balance, plain_gradients(renormalize=renormalize))
    # The balance is no small part of it, so that the comparison above means something.
    without = wrapped(renormalize=renormalize, balance_factor=0.0)
    without(**batch()).loss.backward()
    name = next(name for name in with_balance if "malora_router" in name)
    assert (with_balance[name] - gradients(without)[name]).norm() > 0.05 * with_balance[name].norm()


@pytest.mark.parametrize("divide", [1, 4])
def test_balance_follows_what_a_trainer_does_to_the_loss(divide: int) -> None:
    """Accumulation divides ``outputs.loss``, and a float16 scaler multiplies it."""
    model = wrapped()
    (model(**batch()).loss / divide * 8).backward()
    assert_same(gradients(model), plain_gradients(scale=8 / divide), atol=2e-4)


def test_balance_counts_once_over_accumulated_micro_batches() -> None:
    """Two micro-batches of the same rows are one step: half the loss each, half the balance each."""
    model, data = wrapped(), batch()
    for _ in range(2):
        (model(**data).loss / 2).backward()
    assert_same(gradients(model), plain_gradients())


def test_balance_weighs_as_the_share_of_supervised_tokens_where_their_number_is_given() -> None:
    model, data = wrapped(), batch()
    supervised = int((data["labels"][:, 1:] != -100).sum())
    model(**data, num_items_in_batch=torch.tensor(4 * supervised)).loss.backward()
    assert_same(gradients(model), plain_gradients(scale=0.25))


def test_a_loss_of_ones_own_is_scaled_by_share() -> None:
    model, data = wrapped(), batch()
    routing = routing_of(model)
    assert routing is not None
    loss = model(**data).loss.detach() * 0 + model(**{k: v for k, v in data.items() if k != "labels"}).logits.mean()
    (scale_balance_with(loss, 0.25, routing) * 3).backward()
    assert float(routing.balance_weight) == pytest.approx(0.75)
    ours = gradients(model)

    plain = wrapped(balance_factor=0.0)
    output, balance = balance_in_the_open(
        plain, lambda: plain(input_ids=data["input_ids"], attention_mask=data["attention_mask"])
    )
    (3 * (output.logits.mean() + 0.25 * FACTOR * balance)).backward()
    assert_same(ours, gradients(plain))


def test_a_loss_that_nobody_scales_weighs_one_whatever_was_before() -> None:
    model, fresh, data = wrapped(), wrapped(), batch()
    (model(**data).loss * 7).backward()
    gradients(model)
    for one in (model, fresh):
        one(input_ids=data["input_ids"]).logits.mean().backward()
    assert_same(gradients(model), gradients(fresh), atol=0.0)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_changes_no_gradient(reentrant: bool) -> None:
    model = wrapped()
    plain = wrapped()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    assert model.base_model.model.is_gradient_checkpointing
    (model(**batch()).loss * 3).backward()
    (plain(**batch()).loss * 3).backward()
    ours = {name: grad for name, grad in gradients(model).items() if "malora_" in name}
    assert_same(ours, gradients(plain), atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_uses_the_mask_of_its_own_forward_pass_under_accumulation(reentrant: bool) -> None:
    found = []
    for checkpointing in (True, False):
        model = wrapped()
        if checkpointing:
            model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        for seed, rows in ((1, 3), (2, 5)):
            (model(**batch(rows, seed)).loss / 2).backward()
        found.append({name: grad for name, grad in gradients(model).items() if "malora_" in name})
    assert_same(*found, atol=1e-6)


@pytest.mark.parametrize("reentrant", [True, False])
def test_tally_under_checkpointing_shows_the_same_shares(reentrant: bool) -> None:
    model, plain = wrapped(), wrapped()
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    tallies = []
    for one in (model, plain):
        with tallying(one) as tally:
            one(**batch()).loss.backward()
        tallies.append(tally)
    torch.testing.assert_close(tallies[0].share_LE, tallies[1].share_LE)
    torch.testing.assert_close(tallies[0].mean_gate_LE, tallies[1].mean_gate_LE)
    assert tallies[0].balance == pytest.approx(tallies[1].balance, rel=1e-5)


def test_evaluation_has_no_balance_loss() -> None:
    model = wrapped().eval()
    model(**batch()).loss.backward()
    with_factor = gradients(model)
    without = wrapped(balance_factor=0.0).eval()
    without(**batch()).loss.backward()
    assert_same(with_factor, gradients(without), atol=0.0)
    with tallying(model) as tally:
        model(**batch())
    assert tally.balance is None


def test_mean_over_routers_counts_those_of_the_adapter() -> None:
    """A further adapter on fewer linears must not have its balance loss diluted by the linears it leaves out."""
    model = wrapped(target_modules=["q_proj", "up_proj"])
    alone = wrapped(target_modules=["q_proj"])
    settings = {"r": 3, "subspace_rank": 5, "num_experts": 4, "lora_alpha": 6, "balance_factor": FACTOR}
    model.add_adapter("second", MaloraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **settings))
    model.set_adapter("second")
    state = {name: value for name, value in alone.state_dict().items() if "malora_" in name}
    missing = model.load_state_dict({n.replace(".default", ".second"): v for n, v in state.items()}, strict=False)
    assert not missing.unexpected_keys
    model(**batch()).loss.backward()
    alone(**batch()).loss.backward()
    ours = {name.replace(".second", ".default"): grad for name, grad in gradients(model).items()}
    assert_same(ours, gradients(alone), atol=1e-6)
    model.delete_adapter("second")
    routing = routing_of(model)
    assert routing is not None
    assert [len(rows) for rows in routing.routers.values()] == [2 * LAYERS, 0]


def test_tally_leaves_padding_out() -> None:
    model = wrapped().eval()
    data = batch(rows=1)
    padded = {
        "input_ids": torch.cat([torch.zeros(1, 4, dtype=torch.long), data["input_ids"]], 1),
        "attention_mask": torch.cat([torch.zeros(1, 4, dtype=torch.long), data["attention_mask"]], 1),
    }
    with tallying(model) as plain:
        model(input_ids=data["input_ids"])
    with tallying(model) as left_out:
        model(**padded)
    with tallying(model) as counted:
        model(input_ids=padded["input_ids"])
    assert plain.tokens_L.tolist() == left_out.tokens_L.tolist() == [9.0] * ROUTERS
    assert counted.tokens_L.tolist() == [13.0] * ROUTERS
    torch.testing.assert_close(plain.assigned_LE[0], left_out.assigned_LE[0])
    torch.testing.assert_close(plain.mean_gate_LE[0], left_out.mean_gate_LE[0])
    torch.testing.assert_close(plain.share_LE.sum(1), torch.ones(ROUTERS))
    torch.testing.assert_close(plain.mean_gate_LE.sum(1), torch.ones(ROUTERS))


def test_a_mask_is_not_kept_for_generation() -> None:
    """``generate`` calls the model inside, so that no mask of its own is handed on."""
    model = wrapped().eval()
    ids = tokens(1, 4)
    model(input_ids=ids, attention_mask=torch.tensor([[0, 1, 1, 1]]))
    with tallying(model) as tally:
        model.generate(input_ids=ids, max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert tally.tokens_L.tolist() == [4.0] * ROUTERS


def test_tally_sums_over_passes_and_reads_balance() -> None:
    model = wrapped()
    with tallying(model) as tally:
        first = model(**batch(seed=1))
        first.loss.backward()
        one = tally.balance
        second, expected = balance_in_the_open(model, lambda: model(**batch(seed=1)))
        second.loss.backward()
    assert one == pytest.approx(expected.item(), rel=1e-5)
    assert tally.tokens_L.tolist() == [2.0 * (9 + 8 + 7)] * ROUTERS
    assert tally.sum("calls_L").tolist() == [2.0] * ROUTERS


def test_routers_may_lie_on_several_devices() -> None:
    """As in a model whose layers are spread over GPUs; no tensor here has any numbers."""
    with FakeTensorMode():
        loads = [Load(torch.ones(4, device=f"cuda:{gpu}"), torch.ones((), device=f"cuda:{gpu}")) for gpu in (0, 1)]
        tally = RoutingTally(2, 4, torch.device("cuda:0"))
        for router, load in enumerate(loads):
            tally.add(router, load, None)
            tally.add_balance(router, load.assigned_E)
        assert {total.device for total in (*balance_pulls(loads), *tally.sums())} == {torch.device("cuda:0")}
        routing = Routing(token_mask=torch.ones(2, 3, device="cuda:0"))
        mask = routing.mask_of(6, torch.device("cuda:1"))
        assert mask is not None
        assert mask.device == torch.device("cuda:1")


def test_an_inner_tally_takes_the_place_of_the_outer_one() -> None:
    model = wrapped().eval()
    with tallying(model) as outer:
        model(input_ids=tokens(1, 5))
        with suppress(RuntimeError), tallying(model) as inner:
            model(input_ids=tokens(1, 3))
            raise RuntimeError
        model(input_ids=tokens(1, 2))
    assert outer.tokens_L[0] == 7
    assert inner.tokens_L[0] == 3
    routing = routing_of(model)
    assert routing is not None
    assert routing.tally is None


def test_tallying_needs_a_router() -> None:
    plain = tiny("llama")
    assert routing_of(plain) is None
    with pytest.raises(ValueError, match="no router"), tallying(plain):
        pass


def test_groups_are_consecutive_layers() -> None:
    names = [f"model.layers.{layer}.{part}" for layer in range(8) for part in ("self_attn.q_proj", "mlp.up_proj")]
    groups = Routing(names=names).layer_groups()
    assert list(groups) == ["layers 0-2", "layers 3-5", "layers 6-7"]
    assert groups["layers 6-7"] == [12, 13, 14, 15]
    assert list(Routing(names=names[:4]).layer_groups()) == ["layer 0", "layer 1"]
    assert list(Routing(names=["head", "tail"]).layer_groups()) == ["layer 0"]


def test_load_by_group_is_the_mean_over_routers_that_saw_tokens() -> None:
    routing = Routing(names=["layers.0.q", "layers.0.k", "layers.1.q", "layers.2.q"])
    tally = RoutingTally(4, 2, torch.device("cpu"))
    tally.assigned_LE.copy_(torch.tensor([[8.0, 0.0], [0.0, 0.0], [1.0, 3.0], [0.0, 0.0]]))
    tally.tokens_L.copy_(torch.tensor([4.0, 0.0, 2.0, 0.0]))
    assert routing.load_by_group({"all": tally}) == {"all": {"layer 0": [1.0, 0.0], "layer 1": [0.75, 0.25]}}


def test_load_shows_routers_that_collapsed_onto_different_experts() -> None:
    routing = Routing(names=["layers.0.q", "layers.0.k"])
    tally = RoutingTally(2, 2, torch.device("cpu"))
    tally.assigned_LE.copy_(torch.tensor([[8.0, 0.0], [0.0, 8.0]]))
    tally.tokens_L.copy_(torch.tensor([8.0, 8.0]))
    assert routing.load_by_group({"all": tally}) == {"all": {"layer 0": [1.0, 0.0]}}


def test_load_ranks_the_experts_of_a_router_alike_for_all_tasks() -> None:
    routing = Routing(names=["layers.0.q"])
    first, second = RoutingTally(1, 2, torch.device("cpu")), RoutingTally(1, 2, torch.device("cpu"))
    for tally, assigned in ((first, [0.0, 8.0]), (second, [2.0, 0.0])):
        tally.add(0, Load(torch.tensor(assigned), int(sum(assigned))), None)
    loads = routing.load_by_group({"many": first, "few": second})
    assert loads == {"many": {"layer 0": [1.0, 0.0]}, "few": {"layer 0": [0.0, 1.0]}}


def test_a_copy_has_a_routing_of_its_own() -> None:
    model = wrapped()
    twin = copy.deepcopy(model)
    ours, theirs = routing_of(model), routing_of(twin)
    assert ours is not None
    assert theirs is not None
    assert theirs is not ours
    assert {id(m.malora_routing) for m in twin.modules() if isinstance(m, MixtureLinear)} == {id(theirs)}
    (model(**batch()).loss * 5).backward()
    with tallying(twin) as tally:
        (twin(**batch()).loss * 5).backward()
    assert tally.sum("calls_L").all()
    assert ours.tally is None
    assert_same(gradients(twin), gradients(model), atol=0.0)


def test_several_experts_counts_fit_one_tally() -> None:
    model = get_peft_model(
        tiny("llama"), MoloraConfig(r=2, num_experts=3, task_type="CAUSAL_LM", target_modules=["q_proj"])
    )
    model.add_adapter("wide", MoloraConfig(r=2, num_experts=5, task_type="CAUSAL_LM", target_modules=["q_proj"]))
    with tallying(model.eval()) as tally:
        model(input_ids=tokens(1, 6))
    assert tally.share_LE.shape == (LAYERS, 5)
    torch.testing.assert_close(tally.share_LE.sum(1), torch.ones(LAYERS))
    assert not tally.assigned_LE[:, 3:].any()


@pytest.mark.parametrize(("checkpointing", "exchanges"), [(None, 1), (False, 1), (True, LAYERS)])
def test_loads_are_exchanged_at_once(
    checkpointing: bool | None, exchanges: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all routers together, or by those of a layer that a reentrant checkpoint computes again; by none forward."""
    model, alone = wrapped(), wrapped()
    for one in (model, alone):
        if checkpointing is not None:
            one.base_model.model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
            one.enable_input_require_grads()
    alone(**batch()).loss.backward()
    exchanged: list[int] = []
    monkeypatch.setattr(kernel, "_processes", lambda: 2)
    # Another process with the same tokens has the same loads.
    monkeypatch.setattr(kernel.dist, "all_reduce", lambda sums: (exchanged.append(sums.numel()), sums.mul_(2)))
    loss = model(**batch()).loss
    assert not exchanged
    loss.backward()
    sizes = [size for size in exchanged if size > 1]  # the other is the weight of the loss
    assert len(sizes) == exchanges
    assert sum(sizes) >= ROUTERS * (model.peft_config["default"].num_experts + 1)  # what is computed again comes twice
    assert_same(gradients(model), gradients(alone), atol=1e-7)


def test_routers_of_several_sizes_pull_as_each_alone() -> None:
    torch.manual_seed(0)
    loads = [expert_load(torch.rand(5, experts).softmax(-1), None) for experts in (2, 4, 4)]
    for some in (loads, loads[1:]):
        for load, pull_E in zip(some, balance_pulls(some), strict=True):
            share_E = load.assigned_E / load.assigned_E.sum()
            torch.testing.assert_close(pull_E, len(share_E) * share_E / 5)
