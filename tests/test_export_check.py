"""``malora merge-export --check``: an export that has changed, and what each runtime makes of a LoRA."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from exports import export_adapter, export_lora
from json_output import assert_documented
from malora_cli import MaloraConfig
from malora_cli.cli import main
from malora_cli.errors import RunError
from malora_cli.export.lint import CONFIG, lint
from malora_cli.export.sums import SUMS, changed_files
from tiny_models import tiny
from train_runs import load, train_run, workplace

TARGETS = ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]
WEIGHTS = "adapter_model.safetensors"


def adapter(folder: Path, **settings: Any) -> Path:
    """A LoRA that PEFT has saved."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **settings}
    get_peft_model(tiny("llama"), LoraConfig(**options)).save_pretrained(folder)
    return folder


def told(folder: Path) -> dict[str, tuple[str, str]]:
    return {verdict.runtime: (verdict.does, verdict.why) for verdict in lint(folder)}


#: What each of vLLM, SGLang and llama.cpp does with what PEFT loads, and a part of what one of them says.
LINTED = {
    "as all read it": ({}, "loads", "loads", "loads", "with --max-lora-rank 8"),
    "rank_pattern": ({"rank_pattern": {"up_proj": 2}}, "differs", "refuses", "loads", "has rank 2, and the others 4"),
    "alpha_pattern": (
        {"alpha_pattern": {"up_proj": 2}},
        "differs",
        "differs",
        "differs",
        "is scaled by 2, in PEFT by 0.5: alpha_pattern is not read",
    ),
    "patterns without effect": (
        {"r": 4, "lora_alpha": 4, "rank_pattern": {"up_proj": 2}, "alpha_pattern": {"up_proj": 2}},
        "loads",
        "refuses",
        "differs",
        "is scaled by 2, in PEFT by 1: alpha_pattern is not read",
    ),
    "rsLoRA": ({"use_rslora": True}, "loads", "differs", "differs", "use_rslora is not read"),
    "DoRA": ({"use_dora": True}, "refuses", "differs", "refuses", "has no place for"),
    "biases": ({"lora_bias": True}, "refuses", "differs", "refuses", "has no place for"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "refuses", "differs", "refuses", "lm_head"),
    "norms": ({"modules_to_save": ["norm"]}, "refuses", "differs", "differs", "is converted, and then not read"),
    "a regular expression": ({"target_modules": r".*\.(q|v|gate|up)_proj"}, "loads", "refuses", "loads", "regular"),
    "q without v": ({"target_modules": ["q_proj"]}, "loads", "refuses", "loads", "and v_proj beside it is not"),
    "too high": ({"r": 600}, "refuses", "loads", "loads", "its rank is 600, and 512 the highest"),
    "aLoRA": ({"alora_invocation_tokens": [1, 2]}, "differs", "differs", "differs", "alora_invocation_tokens is not"),
    "lower by pattern": ({"r": 64, "rank_pattern": {".*_proj": 8}}, "differs", "refuses", "loads", "has rank 8"),
}


@pytest.mark.parametrize("case", LINTED)
def test_what_runtimes_make_of_a_lora(case: str, tmp_path: Path) -> None:
    settings, *expected, why = LINTED[case]
    found = told(adapter(tmp_path / "lora", **settings))
    assert [found[runtime][0] for runtime in ("PEFT", "vLLM", "SGLang", "llama.cpp")] == ["loads", *expected]
    assert any(why in told for _, told in found.values())


def test_scales_are_those_of_peft(tmp_path: Path) -> None:
    """What the rules take for PEFT's scale is what PEFT multiplies by."""
    folder = adapter(tmp_path / "lora", rank_pattern={"1.self_attn.q_proj": 2}, alpha_pattern={"up_proj": 3})
    model = PeftModel.from_pretrained(tiny("llama"), folder)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    said = re.match(r"(\S+) is scaled by 2, in PEFT by (\S+):", told(folder)["vLLM"][1])
    assert said is not None
    assert float(said[2]) == layers[f"base_model.model.{said[1]}"].scaling["default"] != 2.0


def edited(edit: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = load_file(folder / WEIGHTS)
        edit(weights)
        save_file(weights, folder / WEIGHTS)

    return change


def said(**settings: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**config, **settings}))

    return change


def _rank(weights: dict[str, torch.Tensor]) -> None:
    weights[next(name for name in weights if "lora_A" in name)] = torch.zeros(3, 16)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edited(lambda weights: weights.pop(min(weights))), "has only one of lora_A and lora_B"),
        (edited(_rank), "lora_A has rank 3, and lora_B 4"),
        (edited(dict.clear), "it has no weights of a LoRA"),
        (said(alpha_pattern={"(": 2.0}), "'(' is not a valid pattern"),
    ],
)
def test_an_adapter_that_peft_cannot_load(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(adapter(tmp_path / "lora"))
    found = told(tmp_path / "lora")
    assert all(does == "refuses" and message in why for does, why in found.values()), found


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no"), "it cannot be read"),
        (lambda folder: (folder / WEIGHTS).unlink(), r"adapter_model.safetensors not found.* \.bin file is not"),
        (edited(lambda weights: weights[min(weights)].fill_(torch.nan)), "has NaN or infinite weights"),
        (lambda folder: (folder / CONFIG).write_text("5"), "not a JSON object"),
        (lambda folder: (folder / CONFIG).write_text("{"), "it cannot be read .not valid JSON"),
        (said(lora_alpha="8"), "lora_alpha: Input should be"),
        (said(rank_pattern=["a"]), "rank_pattern: Input should be"),
        (said(peft_type=[]), "peft_type: Input should be"),
    ],
)
def test_weights_that_are_no_weights(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    damage(adapter(tmp_path / "lora"))
    with pytest.raises(RunError, match=message):
        lint(tmp_path / "lora")


def test_what_is_left_out_has_the_defaults_of_peft(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", r=8, lora_alpha=8)
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA"}))
    assert {does for does, _ in told(folder).values()} == {"loads"}
    (folder / CONFIG).write_text(json.dumps({"peft_type": "BOGUS"}))
    assert told(folder)["PEFT"] == ("refuses", "peft_type 'BOGUS' is unknown to it")


def test_a_mixture_is_for_peft_alone(tmp_path: Path) -> None:
    config = MaloraConfig(task_type="CAUSAL_LM", target_modules=TARGETS)
    get_peft_model(tiny("llama"), config).save_pretrained(tmp_path)
    found = told(tmp_path)
    assert found.pop("PEFT") == ("loads", "with `import malora_cli`")
    assert {does for does, _ in found.values()} == {"refuses"}
    assert all("merge-export RUN --to lora" in why for _, why in found.values())


def test_an_export_is_checked_by_its_hashes(
    tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workplace(tmp_path, tiny_model)
    run, own = train_run(recipe, "train.steps=2", "output.name=x"), load(recipe, "train.steps=2").recipe
    lora, copied = tmp_path / "lora", tmp_path / "adapter"
    export_lora(run, own, lora, gates="mix")
    export_adapter(run, own, copied)
    assert changed_files(copied) == []
    assert status(["--check", str(copied)]) == 0, "that servers do not load a mixture is no fault of it"
    told = capsys.readouterr().out
    assert told.count("MALORA is not a LoRA") == 3
    assert told.splitlines()[-1].startswith(".: an adapter with routed experts, as it was trained")
    assert status(["--check", str(lora)]) == 0
    assert "unchanged since it was written" in capsys.readouterr().out
    (lora / "README.md").write_text("other")
    (lora / "merge.json").unlink()
    (lora / "added.py").touch()
    (lora / ".gitattributes").touch()
    assert status(["--check", str(lora), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert_documented("malora merge-export --check", found)
    assert found["changed"] == ["README.md", "added.py", "merge.json"]
    assert [verdict["does"] for verdict in found["runtimes"]["."]] == ["loads"] * 4


def status(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", *arguments])
    return int(str(caught.value.code))


def test_what_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / SUMS).write_text("no hashes\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / SUMS).write_text("0" * 64 + "  ../outside\n" + "0" * 64 + "  a\0b\n")
    assert changed_files(tmp_path / "out") == ["../outside", "a\0b"]
    for arguments, message in (
        (["nothing"], "nothing: not found as a folder"),
        ([str(tmp_path / "empty")], f"{tmp_path}/empty: neither an export (no SHA256SUMS) nor an adapter in PEFT's"),
        ([str(tmp_path / "odd")], "it lists no hashes. Export the run again."),
    ):
        assert status(["--check", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert status(["some-run", "--check", str(tmp_path), "--to", "lora", "--push-to-hub", "a/b"]) == 2
    assert "--check: it takes nothing else than --json, and got RUN, --to, --push-to-hub" in capsys.readouterr().err
