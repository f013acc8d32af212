"""`import malora_cli` alone makes PEFT know the methods, and a saved adapter says that it takes that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForCausalLM

from malora_cli import HydraLoraConfig, MaloraConfig, MoloraConfig
from malora_cli.adapters.config import MixtureConfig
from tiny_models import randomise

CODE = """
import sys
import malora_cli
assert not {"torch", "peft", "transformers", "huggingface_hub", "importlib.resources"} & set(sys.modules)
import importlib.util
assert importlib.util.find_spec("peft") is not None  # as libraries look whether it is there
from transformers import AutoModelForCausalLM
from peft import AutoPeftModelForCausalLM, PeftConfig
import inspect, json, peft, torch
assert inspect.getsource(peft).strip()
assert type(PeftConfig.from_pretrained(sys.argv[1])).__name__ == "MaloraConfig"
ids = torch.arange(3, 12).unsqueeze(0)
models = [kind.from_pretrained(sys.argv[1]).eval() for kind in (AutoPeftModelForCausalLM, AutoModelForCausalLM)]
print(json.dumps([model(input_ids=ids).logits.sum().item() for model in models]))
"""


def saved(folder: Path, base: Path, make: type[MixtureConfig] = MaloraConfig, **changes: Any) -> torch.nn.Module:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), make(task_type="CAUSAL_LM", **changes)).eval()
    randomise(model)
    model.save_pretrained(folder)
    return model


def test_the_import_stays_light_and_is_all_that_loading_an_adapter_takes(tmp_path: Path, tiny_model: Path) -> None:
    model = saved(tmp_path / "adapter", tiny_model)
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "adapter")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = model(input_ids=torch.arange(3, 12).unsqueeze(0)).logits.sum().item()
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx([expected, expected], rel=1e-5)


def test_nothing_else_is_there_to_import() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        from malora_cli import Nonsense  # noqa: F401


@pytest.mark.parametrize("make", [MaloraConfig, MoloraConfig, HydraLoraConfig])
def test_a_saved_adapter_has_a_card_that_says_how_it_is_loaded(make: Any, tmp_path: Path, tiny_model: Path) -> None:
    saved(tmp_path, tiny_model, make, target_modules=["q_proj", "up_proj"])
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "More Information Needed" not in text
    assert f"# {make.__name__.removesuffix('Config')} adapter" in text
    assert "import malora_cli" in text
    assert f"KeyError: '{make().peft_type.value}'" in text
    assert "`q_proj`, `up_proj`" in text
    assert "(arXiv 24" in text or "(arXiv 23" in text
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.library_name, data.pipeline_tag) == ("peft", "text-generation")
    assert data.base_model is None  # a folder of this machine


def test_a_card_that_somebody_has_written_stays(tmp_path: Path, tiny_model: Path) -> None:
    model = saved(tmp_path, tiny_model)
    card = tmp_path / "README.md"
    card.write_text(card.read_text(encoding="utf-8") + "\nMy own remarks.\n", encoding="utf-8")
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert "My own remarks." in card.read_text(encoding="utf-8")


def test_an_adapter_that_transformers_saves_has_a_card_as_well(tmp_path: Path, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.add_adapter(MaloraConfig())
    model.save_pretrained(tmp_path)
    assert "import malora_cli" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert isinstance(PeftConfig.from_pretrained(tmp_path), MaloraConfig)
