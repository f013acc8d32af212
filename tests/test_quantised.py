"""Adapters on a base model whose linears are quantised to 4 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, PreTrainedModel

from malora_cli import MaloraConfig, MoloraConfig
from malora_cli.adapters import layer as layer_module
from malora_cli.adapters.fused import can_fuse
from malora_cli.adapters.layer import MixtureLinear
from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.routing import Routing
from malora_cli.errors import ModelError
from malora_cli.evals.evaluate import Wanted, evaluate_run
from malora_cli.export.request import Request
from malora_cli.export.run import export_run
from malora_cli.modeling import count_parameters, load_base, resolve_base, wrap
from malora_cli.modeling.quantised import dequantised, quantised_linears
from malora_cli.recipe import ModelSettings
from reference import PlainDropout
from tiny_models import randomise, tokens
from train_runs import Killed, kill_at, load, same_weights, train_run, workplace

bitsandbytes = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")

IDS = tokens(2, 9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose sizes are whole blocks of the quantisation."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    )
    path = tmp_path_factory.mktemp("base")
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def quantised(folder: Path) -> PreTrainedModel:
    how = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    # In evaluation on a CPU bitsandbytes packs its weights into a form that has no backward pass, for good.
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=how).train()


@pytest.mark.parametrize("config", [MaloraConfig, MoloraConfig])
def test_trains_on_four_bits_and_comes_back(config: type, folder: Path, tmp_path: Path) -> None:
    base = quantised(folder)
    with torch.no_grad():
        expected = base(input_ids=IDS).logits
    model = get_peft_model(base, config(task_type="CAUSAL_LM"))
    layer = next(module for module in model.modules() if isinstance(module, MixtureLinear))
    assert isinstance(layer.base_layer, bitsandbytes.nn.Linear4bit)
    with torch.no_grad():
        assert torch.equal(model(input_ids=IDS).logits, expected)
    randomise(model, scale=0.1)
    model(input_ids=IDS, labels=IDS).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if "malora_" in name}
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(quantised(folder), tmp_path).eval()
    with torch.no_grad():
        ours = model.eval()(input_ids=IDS).logits
        assert not torch.allclose(ours, expected, atol=1e-3)
        assert torch.equal(loaded(input_ids=IDS).logits, ours)


def _layer(kind: str) -> MixtureLinear:
    torch.manual_seed(0)
    weight = 0.1 * torch.randn(48, 64)
    if kind == "nf4":
        base = bitsandbytes.nn.Linear4bit(64, 48, quant_type="nf4")
        base.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        base = bitsandbytes.nn.Linear8bitLt(64, 48, has_fp16_weights=False)
        base.weight = bitsandbytes.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    config = MaloraConfig(r=4, subspace_rank=8, num_experts=4, lora_dropout=0.4)
    made = MixtureLinear(base.requires_grad_(False).to("cpu"), "default", config=config, routing=Routing(), name="up")
    torch.nn.init.normal_(made.malora_up["default"])
    return made.train()


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_fused_update_of_a_quantised_layer_is_that_of_the_plain_kernel(kind: str, autocast: bool) -> None:
    made, found = _layer(kind), []
    x = torch.randn(2, 20, 64, dtype=torch.bfloat16 if autocast else torch.float32)
    for fuse in (can_fuse, lambda *_: False):
        made.zero_grad()
        ours = x.clone().requires_grad_()
        torch.manual_seed(1)
        with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            patch.setattr(layer_module, "can_fuse", fuse)
            given = made.base_layer, ours, made.malora_up["default"], made.malora_dropout["default"]
            assert layer_module.can_fuse(*given) == (fuse is can_fuse)
            y = made(ours)
        y.float().square().sum().backward()
        found.append([y, ours.grad, *(p.grad for name, p in made.named_parameters() if "malora_" in name)])
        made.malora_dropout["default"] = PlainDropout(0.4)
    for one, other in zip(*found, strict=True):
        assert (one.float() - other.float()).norm() < (0.02 if autocast else 1e-5) * other.float().norm()


def test_the_package_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    settings = ModelSettings(base=str(folder), quantise="nf4")
    with pytest.raises(
        ModelError, match=r"model.quantise: .* needs the package bitsandbytes.*pip install bitsandbytes"
    ):
        load_base(resolve_base(settings), settings)


def test_weights_are_counted_not_bytes(folder: Path) -> None:
    counts = []
    for how in (None, "nf4"):
        settings = ModelSettings(base=str(folder), quantise=how)
        model = wrap(load_base(resolve_base(settings), settings), METHODS["lora"]())
        counts.append(count_parameters(model))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
@pytest.mark.parametrize("method", ["malora", "lora"])
def test_a_recipe_trains_and_evaluates_on_a_quantised_base(
    quantise: str, method: str, tmp_path: Path, tiny_model: Path
) -> None:
    """Evaluations come between the steps, and a run that is killed ends as one that is not."""
    recipe = workplace(tmp_path, tiny_model)
    settings = [f"model.quantise={quantise}", f"method={{name: {method}, r: 4}}", "train.learning_rate=0.02"]
    whole = train_run(recipe, *settings, "output.name=whole")
    first, last = whole.metrics.evals()[0], whole.metrics.evals()[-1]
    assert sum(task.loss or 0 for task in last.tasks.values()) < sum(task.loss or 0 for task in first.tasks.values())
    result = evaluate_run(whole, load(recipe, *settings).recipe, Wanted(split="validation"))
    assert result.tasks["add"].model.loss == pytest.approx(last.tasks["add"].loss, rel=1e-3)
    with pytest.raises(Killed):
        train_run(recipe, *settings, "output.name=killed", at_step=kill_at(5))
    assert same_weights(whole, train_run(recipe, *settings, "output.name=killed", resume=True))


@pytest.mark.parametrize("quantise", ["nf4", "int8"])
def test_a_whole_model_of_a_quantised_base(quantise: str, tmp_path: Path, tiny_model: Path) -> None:
    """It has the rounded weights that the adapter was trained on, or the base's own where these are asked for."""
    recipe = workplace(tmp_path, tiny_model)
    settings = (f"model.quantise={quantise}", "method={name: lora, r: 4}", "train.learning_rate=0.02")
    run, own = train_run(recipe, *settings, "output.name=x"), load(recipe, *settings).recipe

    def exported(name: str, **asked: Any) -> Path:
        verify = (quantise, name) == ("nf4", "rounded")  # the other ways of a read-back are tested elsewhere
        export_run(run, own, Request("dense", verify=verify, **asked), tmp_path / name)
        return tmp_path / name

    for name, folder in (("rounded", exported("rounded")), ("original", exported("original", onto="original"))):
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        if name == "rounded":
            loaded = load_base(resolve_base(own.model), own.model)
            with torch.no_grad():
                for linear, module in quantised_linears(loaded).items():
                    base.get_submodule(linear).weight.copy_(dequantised(module))
            assert not torch.equal(base(IDS).logits, AutoModelForCausalLM.from_pretrained(tiny_model)(IDS).logits)
        expected = PeftModel.from_pretrained(base, run.adapter_dir).eval()(input_ids=IDS).logits
        found = AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (f"those that {quantise} stands for" in (folder / "README.md").read_text()) == (name == "rounded")
