"""``model.dtype: auto``: what it comes to, that a run keeps to it, and that all of a run computes in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from malora_cli import processor
from malora_cli.adapters.methods.malora import Malora
from malora_cli.chat.speaker import Decoding, Speaker
from malora_cli.cli import main
from malora_cli.compare.planner import Planner
from malora_cli.data.batch import Packer, TrainExample, collate
from malora_cli.data.encoding import Encoder
from malora_cli.evals import predict
from malora_cli.evals.choices import choice_nats
from malora_cli.evals.subject import Models
from malora_cli.modeling import device, load_base, resolve_base, wrap
from malora_cli.modeling.device import dtype_of, slow_format
from malora_cli.modeling.loss import example_nats
from malora_cli.modeling.quantised import quantisation
from malora_cli.named import vocabulary
from malora_cli.recipe import ModelSettings
from malora_cli.train import run as run_module
from tiny_models import randomise
from train_runs import load, train_run

AUTO = "model.dtype=auto"


def exit_code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    return int(caught.value.code or 0)


def put_gpu(monkeypatch: pytest.MonkeyPatch, *, bfloat16: bool) -> None:
    """Let torch say that there is one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)


def model(**settings: Any) -> ModelSettings:
    return ModelSettings(base="tiny", **settings)


def test_auto_is_bfloat16_where_a_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dtype_of(model()) == "float32"
    for bfloat16, expected in ((True, "bfloat16"), (False, "float32")):
        put_gpu(monkeypatch, bfloat16=bfloat16)
        assert dtype_of(model()) == expected
        assert dtype_of(model(device="cpu")) == "float32"
        assert dtype_of(model(dtype="float16")) == "float16"


@pytest.mark.parametrize(("gpu", "settings", "expected"), [(True, {}, "bfloat16"), (False, {}, "float32")])
def test_bases_in_four_bits_are_multiplied_in_it(
    gpu: bool, settings: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if gpu:
        put_gpu(monkeypatch, bfloat16=True)
    config = quantisation(model(quantise="nf4", **settings))["quantization_config"]
    assert config.bnb_4bit_compute_dtype == getattr(torch, expected)


def test_a_run_keeps_to_what_it_began_with(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_module, "dtype_of", lambda settings: "bfloat16")  # as on a GPU

    def stop(step: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_run(tiny_recipe, AUTO, at_step=stop)
    monkeypatch.undo()
    assert dtype_of(load(tiny_recipe, AUTO).recipe.model) == "float32"
    record = train_run(tiny_recipe, AUTO, resume=True)
    assert record.manifest.dtype == record.recipe["model"]["dtype"] == "bfloat16"
    models = Models.of_run(record, load(record.recipe_path).recipe)
    assert next(models.loaded.parameters()).dtype == torch.bfloat16
    # Another format is another run.
    assert exit_code("eval", str(record.path), "model.dtype=float32") == 2
    assert "model.dtype (was 'bfloat16', is 'float32')" in capsys.readouterr().err


def test_what_it_came_to_is_shown(tiny_recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("train", str(tiny_recipe), "--dry-run", AUTO) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model.dtype")]
    assert line.split() == ["model.dtype", "float32", "auto,", "command", "line"]
    assert exit_code("check", str(tiny_recipe), "--no-step", AUTO) == 0
    assert "\nFrozen weights: float32 (model.dtype: auto), on cpu\n" in capsys.readouterr().out
    assert exit_code("check", str(tiny_recipe), "--no-step") == 0
    assert "\nFrozen weights: float32, on cpu\n" in capsys.readouterr().out


def test_runs_of_a_comparison_have_one_format_on_all_machines(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_gpu(monkeypatch, bfloat16=True)
    planner = Planner(tiny_recipe, [AUTO], {}, vocabulary())
    run = planner.run("lora", 0)
    assert planner.own.recipe.model.dtype == run.loaded.recipe.model.dtype == "bfloat16"
    assert "model.dtype=bfloat16" in run.train_command()
    assert "model.dtype=bfloat16" not in Planner(tiny_recipe, [], {}, vocabulary()).run("lora", 0).train_command()


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("computes", [False, True])
def test_bfloat16_on_a_processor_without_it_is_said(
    computes: bool, machine: str, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: computes and machine == "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: computes or machine == "x86_64")
    assert slow_format(model()) is None
    told = slow_format(model(dtype="bfloat16"))
    assert (told is None) == computes
    assert told is None or "\n" not in told
    put_gpu(monkeypatch, bfloat16=True)
    assert slow_format(model()) is None


def test_a_check_says_it(
    tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(device, "multiplies_bfloat16", lambda: False)
    assert exit_code("check", str(tiny_recipe), "--no-step", "model.dtype=bfloat16") == 0
    assert "model.dtype is bfloat16, which this processor does not compute in: steps take" in capsys.readouterr().err


class _Silent:
    def thinks(self, text: str) -> None:
        pass

    says = thinks


@pytest.fixture
def mixed(tiny_model: Path) -> PeftModel:
    settings = ModelSettings(base=str(tiny_model), dtype="bfloat16")
    wrapped = wrap(load_base(resolve_base(settings), settings), Malora(r=4, subspace_rank=8, num_experts=4)).eval()
    randomise(wrapped)
    return wrapped


def test_answers_and_scores_are_computed_as_in_training(
    mixed: PeftModel, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Generated by ours, by transformers' way and in a chat; choices and losses."""
    formats: list[torch.dtype | None] = []

    def note(*_: object) -> None:
        formats.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    base: PreTrainedModel = mixed.get_base_model()
    base.model.layers[0].register_forward_pre_hook(note)
    prompts = [encoder.tokenizer("copy bal")["input_ids"]]

    def answers() -> list[str]:
        return predict.predict(mixed, encoder, prompts, max_new_tokens=4, batch=Packer(2))

    ours = answers()
    monkeypatch.setattr(predict, "can_decode", lambda decoder: False)
    assert answers() == ours
    speaker = Speaker("tiny", mixed, encoder)
    speaker.ask("copy bal", Decoding(max_new_tokens=2), _Silent())
    list(choice_nats(mixed, prompts, [[[70, 71], [72]]], batch=Packer(2)))
    example_nats(mixed, [collate([TrainExample(prompts[0], [(2, 5)], 0)])])
    assert len(formats) > 10
    assert set(formats) == {torch.bfloat16}
