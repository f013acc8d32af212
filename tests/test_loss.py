"""The loss of examples that stand in one row: alone, apart, only where it is asked for, in a fixed budget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedModel

from malora_cli.adapters.methods import METHODS
from malora_cli.adapters.methods.malora import Malora
from malora_cli.data.batch import TrainExample, collate
from malora_cli.modeling import loss as loss_module
from malora_cli.modeling import wrap
from malora_cli.modeling.attention import PACKED_SDPA
from malora_cli.modeling.heldout import held_out
from malora_cli.modeling.loss import example_nats, note_plain_head, reads_across_examples, token_nats
from tiny_models import LAYERS, VOCABULARY, randomise, tiny, tokens
from train_runs import train_run, workplace

TINY = {"r": 4, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 8}


def examples() -> list[TrainExample]:
    sizes = ((9, 3), (14, 5), (2, 1), (20, 8))
    return [
        TrainExample(tokens(length, seed=seed).tolist(), [(prompt, length)], seed)
        for seed, (length, prompt) in enumerate(sizes)
    ]


def alone(model: nn.Module, example: TrainExample) -> torch.Tensor:
    """Cross entropy of one example on its own, by the plainest call there is."""
    ids = torch.tensor([example.input_ids])
    logits = model(input_ids=ids).logits[0, :-1]
    return F.cross_entropy(logits, ids[0, 1:], reduction="none")[example.prompt_tokens - 1 :]


@pytest.mark.parametrize("attention", ["sdpa", "eager", PACKED_SDPA])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi", "gpt2"])
@torch.no_grad()
def test_examples_in_one_row_are_as_good_as_alone(kind: str, attention: str) -> None:
    model = tiny(kind, attention)
    assert not reads_across_examples(model)
    for one in (model, wrap(model, Malora(**TINY)).eval()):
        randomise(one)
        together = token_nats(one, collate(examples()))
        expected = [alone(one, example) for example in examples()]
        torch.testing.assert_close(together, torch.cat(expected), atol=2e-5, rtol=1e-5)
        sums = example_nats(one, [collate(examples()[:2]), collate(examples()[2:])])
        assert [count for _, count in sums] == [6, 9, 1, 12]
        torch.testing.assert_close(torch.tensor([nats for nats, _ in sums]), torch.stack([e.sum() for e in expected]))


def test_the_head_runs_only_where_a_token_is_supervised() -> None:
    model, shapes = tiny("llama"), []
    model.lm_head.register_forward_hook(lambda _module, inputs, _output: shapes.append(inputs[0].shape))
    batch = collate(examples())
    for one in (model, get_peft_model(model, LoraConfig(target_modules=["q_proj"]))):
        token_nats(one, batch)
    assert shapes == [(1, 28, 32)] * 2
    assert len(batch["targets"]) == 28


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_head_runs_in_chunks_of_a_fixed_budget(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients are those of one call, and no call makes more logits than there is room for."""
    found, shapes = [], []
    for budget in (2**28, 5 * VOCABULARY * 4):
        monkeypatch.setattr(loss_module, "LOGITS_BYTES", budget)
        torch.manual_seed(0)
        base = tiny("llama")
        note_plain_head(base)
        model = wrap(base, Malora(**TINY)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        randomise(model)
        torch.manual_seed(1)
        handle = base.lm_head.register_forward_hook(lambda *call: shapes.append(call[2].shape[-2]))
        nats_K = token_nats(model, collate(examples()))
        handle.remove()
        (nats_K * torch.arange(28)).sum().backward()
        found.append({"nats": nats_K, **{name: p.grad for name, p in model.named_parameters() if p.requires_grad}})
    assert shapes[:1] + shapes[-6:] == [28, 5, 5, 5, 5, 5, 3]
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=1e-3, rtol=1e-4, msg=name)


def test_chunks_are_in_the_number_format_of_the_head(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """accelerate hands the hidden states of a bfloat16 model out in float32."""
    recipe, found = workplace(tmp_path, tiny_model), []
    for budget in (2**28, 5 * 259 * 4):
        monkeypatch.setattr(loss_module, "LOGITS_BYTES", budget)
        record = train_run(recipe, "model.dtype=bfloat16", "train.conflict_rows=2", f"output.name=b{budget}")
        found.append([task.loss for event in record.metrics.evals() for task in event.tasks.values()])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_model_that_does_more_to_its_logits_keeps_its_head_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=0.5,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    note_plain_head(model)
    expected = token_nats(model, collate(examples()))
    monkeypatch.setattr(loss_module, "LOGITS_BYTES", 1)
    assert torch.equal(token_nats(model, collate(examples())), expected)


def test_an_example_without_a_target_keeps_its_place() -> None:
    model = tiny("llama")
    one, two = TrainExample([5, 6, 7], [(1, 3)], 0), TrainExample([5, 6], [], 0)
    three = TrainExample([8, 9], [(1, 2)], 0)
    found = example_nats(model, [collate([one, two]), collate([two]), collate([two, three])])
    assert [count for _, count in found] == [2, 0, 0, 0, 1]
    assert found[1][0] == 0.0


def test_measuring_leaves_the_mode_alone() -> None:
    model = wrap(tiny("llama"), Malora(**TINY)).train()
    batches = [collate(examples())]
    result = held_out(model, batches)
    assert model.training
    assert result.tally is not None
    assert result.tally.tokens_L.tolist() == [45.0] * 6 * LAYERS
    assert (result.loss.tokens, result.loss.examples) == (28, 4)
    assert result.loss.nats == pytest.approx(sum(nats for nats, _ in example_nats(model, batches)))
    assert held_out(wrap(tiny("llama"), METHODS["lora"](r=4)), batches).tally is None


def test_padding_in_rows_agrees_with_examples_in_one_row() -> None:
    """transformers' own loss over padded rows and ours over one row are the same, gradients included."""
    gradients = []
    for flat in (True, False):
        torch.manual_seed(0)
        model = wrap(tiny("llama"), Malora(**TINY, lora_dropout=0.0))
        randomise(model)
        model.train()
        loss = token_nats(model, collate(examples())).mean() if flat else _padded_loss(model, examples())
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], atol=2e-5, rtol=1e-4, msg=name)


def _padded_loss(model: PeftModel | PreTrainedModel, rows: list[TrainExample]) -> torch.Tensor:
    width = max(len(row.input_ids) for row in rows)
    ids, mask, labels = (torch.full((len(rows), width), fill) for fill in (0, 0, -100))
    for index, row in enumerate(rows):
        size = len(row.input_ids)
        ids[index, :size] = torch.tensor(row.input_ids)
        mask[index, :size] = 1
        labels[index, row.prompt_tokens : size] = ids[index, row.prompt_tokens : size]
    return model(input_ids=ids, attention_mask=mask, labels=labels).loss
