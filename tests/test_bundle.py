"""Routed models as folders that plain transformers loads: what is in them, and that they compute what the run does."""

from __future__ import annotations

import ast
import copy
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel

import tiny_gguf
from malora_cli.adapters.config import MaloraConfig
from malora_cli.errors import MaloraError
from malora_cli.export.bundle.refusals import check_bundle, check_config
from malora_cli.export.bundle.write import write_bundle
from malora_cli.export.planned import bytes_of
from malora_cli.export.request import Request
from malora_cli.modeling import BaseModel, load_base, load_tokenizer, resolve_base
from malora_cli.recipe import ModelSettings
from malora_cli.results import file_sha256, read_json
from presets import ROUTED, routed, settings
from tiny_models import gemma3_with_pictures, tiny, tokens

KINDS = ["llama", "qwen2", "qwen3", "gemma3_text", "mistral", "phi", "gpt2"]
IDS = tokens(2, 7)
#: Tokens that a fresh process answers with.
NEW = {**dict.fromkeys(KINDS, 16), "llama": 64}


@pytest.fixture(scope="module", autouse=True)
def _own_module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where transformers copies a bundle's Python files to, in place of the user's cache."""
    place = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", place)
        yield
    if place in sys.path:
        sys.path.remove(place)


@dataclass(frozen=True)
class Written:
    """A run's model, its base and the bundle of it."""

    model: PeftModel
    base: Path
    folder: Path

    def load(self, **arguments: Any) -> PreTrainedModel:
        model, found = AutoModelForCausalLM.from_pretrained(
            self.folder, trust_remote_code=True, output_loading_info=True, **arguments
        )
        assert not any(found.values()), found
        return model.eval()


def write(place: Path, kind: str, method: str, tokenizer: Path, dtype: torch.dtype = torch.float32) -> Written:
    base = place / kind
    if not base.exists():
        tiny(kind, dtype=dtype).save_pretrained(base)
    model = routed(method, AutoModelForCausalLM.from_pretrained(base)).eval()
    folder = place / f"{kind}-{method}"
    write_bundle(model, BaseModel(str(base), str(base)), AutoTokenizer.from_pretrained(tokenizer), folder)
    return Written(model, base, folder)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Callable[..., Written]:
    """Bundles by architecture and method, each written once."""
    place, made = tmp_path_factory.mktemp("bundles"), {}

    def of(kind: str, method: str = "malora") -> Written:
        if (kind, method) not in made:
            made[kind, method] = write(place, kind, method, tiny_model)
        return made[kind, method]

    return of


def logits(model: nn.Module, ids: Tensor = IDS, **inputs: Any) -> Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


#: Left to themselves, random models repeat a token for ever.
GREEDILY = {"do_sample": False, "no_repeat_ngram_size": 2, "suppress_tokens": [0]}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a page."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def answers(model: Any, ids: Tensor = IDS, new: int = 16, **inputs: Any) -> Tensor:
    """What is generated, so many tokens of it."""
    length = {"max_new_tokens": new, "min_new_tokens": new}
    everything = {"attention_mask": torch.ones_like(ids), **length, **GREEDILY, **inputs}
    return model.generate(input_ids=ids, **everything)[:, ids.shape[1] :]


# ---------------------------------------------------------------- what they compute


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", method) for method in ROUTED] + [(k, m) for k in KINDS[1:] for m in ("malora", "mixlora")],
)
def test_logits_are_those_of_the_run(bundles: Callable[..., Written], kind: str, method: str) -> None:
    written = bundles(kind, method)
    expected = logits(written.model)
    torch.testing.assert_close(logits(written.load()), expected, atol=1e-6, rtol=1e-6)
    with written.model.disable_adapter():
        assert not torch.allclose(logits(written.model), expected, atol=0.1)  # the experts matter
    without_top_k = copy.deepcopy(written.load())
    for module in without_top_k.modules():
        if hasattr(module, "top_k"):
            module.top_k = 1
    assert not torch.allclose(logits(without_top_k), expected, atol=1e-2)  # and which are taken


@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_that_of_the_run_cached_or_not_alone_or_in_a_batch(
    bundles: Callable[..., Written], kind: str
) -> None:
    written = bundles(kind)
    model = written.load()
    expected = answers(written.model)
    assert len(set(expected.flatten().tolist())) > 10
    assert torch.equal(answers(model), expected)
    assert torch.equal(answers(model, use_cache=False), expected)
    assert torch.equal(torch.cat([answers(model, row[None]) for row in IDS]), expected)
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), IDS], 1)
    mask = (padded > 0).long()
    mask[1, :4], padded[1, :4] = 0, 0  # the second row is shorter by a token
    batch = answers(model, padded, attention_mask=mask)
    assert torch.equal(batch[0], expected[0])
    assert torch.equal(batch[1], answers(model, IDS[1:, 1:])[0])


def test_a_fresh_process_needs_neither_malora_nor_peft(
    bundles: Callable[..., Written], tmp_path: Path, tiny_model: Path
) -> None:
    """All architectures in one process, for a start takes seconds."""
    written = {kind: bundles(kind) for kind in KINDS}
    code = f"""
        import json, sys, torch
        sys.modules["malora_cli"] = sys.modules["peft"] = None
        from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
        found = {{}}
        for kind, folder in json.loads(sys.argv[1]).items():
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
            ids = torch.tensor({IDS.tolist()})
            with torch.no_grad():
                logits = model(input_ids=ids).logits
            new = {NEW}.get(kind, 8)
            length = dict(max_new_tokens=new, min_new_tokens=new)
            new = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, **{GREEDILY})
            found[kind] = [logits.tolist(), new[:, 7:].tolist()]
        speak = pipeline("text-generation", model=folder, trust_remote_code=True)
        said = speak([{{"role": "user", "content": "hi"}}], max_new_tokens=8, min_new_tokens=8, **{GREEDILY})
        found["pipeline"] = said[0]["generated_text"][-1]["content"]
        found["template"] = AutoTokenizer.from_pretrained(folder, trust_remote_code=True).chat_template
        print(json.dumps(found))
    """
    # The last one has the vocabulary of the tokenizer.
    llama = tmp_path / "chat"
    model = routed("malora", AutoModelForCausalLM.from_pretrained(tiny_model)).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    write_bundle(model, BaseModel(str(tiny_model), str(tiny_model)), tokenizer, llama)
    folders = {**{kind: str(one.folder) for kind, one in written.items()}, "chat": str(llama)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), json.dumps(folders)],
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    for kind, one in written.items():
        torch.testing.assert_close(torch.tensor(found[kind][0]), logits(one.model), atol=1e-6, rtol=1e-6)
        assert found[kind][1] == answers(one.model, new=NEW[kind]).tolist()
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    new = answers(model, prompt["input_ids"], new=8)
    assert found["pipeline"] == tokenizer.decode(new[0], skip_special_tokens=True)
    assert found["template"] == tokenizer.chat_template


def test_compiled_as_one_graph_it_computes_the_same(bundles: Callable[..., Written]) -> None:
    torch._dynamo.reset()
    model = bundles("llama").load()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(logits(compiled, use_cache=False), logits(model), atol=1e-6, rtol=1e-6)


def test_a_module_whose_linears_share_a_router_is_compiled_as_one_graph(bundles: Callable[..., Written]) -> None:
    torch._dynamo.reset()
    module = bundles("llama", "mixlora").load().model.layers[0].mlp
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for given in (x, x[:2], -x):  # gates that were kept would not fit, or be others
            torch.testing.assert_close(compiled(given), module(given), atol=1e-6, rtol=1e-6)


def test_gates_of_a_block_are_forgotten_with_the_call(bundles: Callable[..., Written]) -> None:
    written = bundles("llama", "mixlora")
    model = written.load()

    def fail(*_: Any) -> None:
        raise RuntimeError("cut short")

    blocks = {id(m.shared): m.shared for m in model.modules() if getattr(m, "shared", None) is not None}
    assert len(blocks) == 4
    handle = model.model.layers[0].mlp.up_proj.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="cut short"):
        logits(model)
    handle.remove()
    assert all(block.gate_TE is None for block in blocks.values())
    torch.testing.assert_close(logits(model), logits(written.model), atol=1e-6, rtol=1e-6)
    copied = copy.deepcopy(model)
    del model
    torch.testing.assert_close(logits(copied), logits(written.model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["malora", "mixlora"])
def test_routers_are_float32_in_a_model_of_bfloat16(
    bundles: Callable[..., Written], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = bundles("llama", method)
    written.model.save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(written.base, dtype=torch.bfloat16)
    run = PeftModel.from_pretrained(base, tmp_path / "adapter", autocast_adapter_dtype=False).eval()
    model = written.load(dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == (torch.float32 if name.endswith(".malora_router") else torch.bfloat16), name
    saved = load_file(written.folder / "malora.safetensors")
    assert all(torch.equal(model.get_parameter(name), w) for name, w in saved.items() if name.endswith("_router"))
    assert torch.equal(logits(model), logits(run))
    assert torch.equal(answers(model), answers(run))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = logits(written.load())
        torch.testing.assert_close(mixed, logits(written.model), atol=0.1, rtol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_mixture_is_part_of_the_model_below_the_head(bundles: Callable[..., Written], kind: str) -> None:
    written = bundles(kind)
    below = AutoModel.from_pretrained(written.folder, trust_remote_code=True).eval()
    run = written.model.get_base_model()
    with torch.no_grad():
        expected = run(input_ids=IDS, output_hidden_states=True).hidden_states[-1]
        torch.testing.assert_close(below(input_ids=IDS).last_hidden_state, expected, atol=1e-6, rtol=1e-6)
    config = AutoConfig.from_pretrained(written.folder, trust_remote_code=True)
    built = AutoModel.from_config(config, trust_remote_code=True, dtype=torch.bfloat16)
    assert type(built).__name__ == f"Malora{type(run.base_model).__name__}"
    assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in below.named_parameters()}
    dtypes = {p.dtype for n, p in built.named_parameters() if n.endswith(".malora_router")}
    assert dtypes == {torch.float32}
    assert not config.base_model_tp_plan
    adapted = [m for m in built.modules() if type(m).__name__ == "MaloraLinear"]
    assert adapted
    assert not any(isinstance(m, nn.Linear) for m in adapted)


def test_it_can_be_saved_again(bundles: Callable[..., Written], tmp_path: Path) -> None:
    written = bundles("llama", "mixlora")
    written.load().save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(logits(again), logits(written.load()))


# ---------------------------------------------------------------- what is in the folder


def test_the_base_stays_as_it_is_beside_one_more_file(tmp_path: Path, tiny_model: Path) -> None:
    for shards, size in ((1, "1GB"), (3, "20KB")):
        base, folder = tmp_path / f"base-{shards}", tmp_path / f"bundle-{shards}"
        tiny("llama", dtype=torch.bfloat16).save_pretrained(base, max_shard_size=size)
        (base / "LICENSE").write_text("terms")
        model = routed("malora", AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)).eval()
        bundle = write_bundle(model, BaseModel(str(base), str(base)), AutoTokenizer.from_pretrained(tiny_model), folder)
        assert bundle.unchanged
        originals = sorted(file_sha256(file) for file in base.glob("*.safetensors"))
        assert sorted(file_sha256(folder / name) for name in bundle.shards) == originals
        assert len(originals) >= shards
        assert {file.name for file in folder.glob("*.safetensors")} == {*bundle.shards, "malora.safetensors"}
        index = read_json(folder / "model.safetensors.index.json")
        stored = {name: file.name for file in folder.glob("*.safetensors") for name in load_file(file)}
        assert index["weight_map"] == stored
        tensors = [tensor for file in folder.glob("*.safetensors") for tensor in load_file(file).values()]
        assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors)
        config = read_json(folder / "config.json")
        assert (config["model_type"], config["architectures"]) == ("malora_llama", ["MaloraLlamaForCausalLM"])
        assert list(config["auto_map"]) == ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]
        for name in ("LICENSE", "generation_config.json"):
            assert (folder / name).read_bytes() == (base / name).read_bytes()
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert loaded.dtype == torch.bfloat16  # the base's, though the experts are stored as they were trained
        exact = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
        torch.testing.assert_close(logits(exact), logits(model), atol=1e-6, rtol=1e-6)


def test_a_base_that_does_not_say_its_number_format_keeps_it(tmp_path: Path, tiny_model: Path) -> None:
    base = tmp_path / "base"
    tiny("llama", dtype=torch.bfloat16).save_pretrained(base)
    config = read_json(base / "config.json")
    del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    written = write(tmp_path, "base", "malora", tiny_model)
    assert written.load().dtype == torch.bfloat16


def test_the_section_of_a_mixture_is_small(bundles: Callable[..., Written]) -> None:
    section = read_json(bundles("llama").folder / "config.json")["malora"]
    [group] = section.pop("groups")
    assert section == {"renormalize": True, "blocks": {}}
    assert {name: value for name, value in group.items() if name != "linears"} == {
        "experts": 4,
        "top_k": 2,
        "rank": 3,
        "subspace_rank": 8,
        "scaling": 2.5,
    }
    assert len(group["linears"]) == 12
    mola = read_json(bundles("llama", "mola").folder / "config.json")["malora"]["groups"]
    assert [(g["experts"], g["subspace_rank"], len(g["linears"])) for g in mola] == [(3, None, 6), (4, None, 6)]
    assert all(name.startswith("layers.0.") for name in mola[0]["linears"])
    blocks = read_json(bundles("llama", "mixlora").folder / "config.json")["malora"]["blocks"]
    assert blocks == {
        f"layers.{layer}.{module}": {"experts": 4, "in_features": 32}
        for layer in (0, 1)
        for module in ("self_attn", "mlp")
    }


@pytest.mark.parametrize("kind", KINDS)
def test_its_python_files_need_torch_and_transformers_alone(bundles: Callable[..., Written], kind: str) -> None:
    for name in ("configuration_malora.py", "modeling_malora.py"):
        text = (bundles(kind).folder / name).read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(text)))
        imported = {a.name.partition(".")[0] for node in nodes if isinstance(node, ast.Import) for a in node.names}
        imported |= {(n.module or "").partition(".")[0] for n in nodes if isinstance(n, ast.ImportFrom) and not n.level}
        assert imported <= {"__future__", "typing", "torch", "transformers"}
        assert kind == "llama" or "llama" not in text.lower()
        assert max(map(len, text.splitlines())) <= 120


def test_a_gguf_base_becomes_shards_in_the_number_format_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny_gguf.write(tiny_gguf.llama(tied=True), file := tmp_path / "Tiny.Q8_0.gguf", quantised=True)
    for dtype in ("float32", "bfloat16"):
        chosen = ModelSettings(base=str(file), dtype=dtype)
        base, folder = resolve_base(chosen), tmp_path / dtype
        model = routed("malora", load_base(base, chosen)).eval()
        bundle = write_bundle(model, base, load_tokenizer(base, chosen), folder)
        assert not bundle.unchanged
        [name] = bundle.shards
        weights = load_file(folder / name).values()
        assert {str(weight.dtype) for weight in weights} == {f"torch.{dtype}"}
        assert bytes_of(Request("bundle"), 0, [], base, chosen) == sum(weight.nbytes for weight in weights)
        loaded = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        assert str(loaded.dtype) == f"torch.{dtype}"
        if dtype == "float32":
            torch.testing.assert_close(logits(loaded), logits(model), atol=1e-6, rtol=1e-6)
        assert AutoTokenizer.from_pretrained(folder, trust_remote_code=True).chat_template == tiny_gguf.TEMPLATE


# ---------------------------------------------------------------- what is refused


class OwnConfig(PreTrainedConfig):
    """A configuration that is not one of transformers'."""

    model_type = "own"


@pytest.mark.parametrize(
    ("method", "quantise", "config", "message"),
    [
        ("lora", None, None, r"--to: method 'lora' routes nothing.*Use --to lora or --to dense\."),
        ("rslora", None, None, r"method 'rslora' routes nothing"),
        ("dora", None, None, r"method 'dora' routes nothing.*\. Use --to dense\."),
        ("malora", "nf4", None, r"model 'b': its weights are quantised.*Use --to adapter or --to lora\."),
        ("malora", None, {"quantization_config": {"quant_method": "gptq"}}, "its weights are quantised"),
        ("malora", None, {"model_type": "own", "auto_map": {}}, "a 'own' model brings Python code of its own"),
        ("malora", None, transformers.Gemma3Config().to_dict(), "a 'gemma3' model reads more than text"),
        ("mixlora", None, None, None),
    ],
)
def test_what_cannot_be_bundled_is_refused_before_anything_is_loaded(
    method: str, quantise: Any, config: Any, message: str | None
) -> None:
    given = config or transformers.LlamaConfig().to_dict()
    chosen = ModelSettings(base="b", quantise=quantise, trust_remote_code=True)
    if message is None:
        check_bundle(chosen, settings(method), given)
        return
    with pytest.raises(MaloraError, match=message) as caught:
        check_bundle(chosen, settings(method), given)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_transformers_own_is_refused_once_it_is_loaded() -> None:
    check_config(transformers.LlamaConfig(), "b")
    for config, message in ((OwnConfig(), "brings Python code of its own"), (transformers.Gemma3Config(), "more than")):
        with pytest.raises(MaloraError, match=message):
            check_config(config, "b")


def with_tokens(base: PreTrainedModel) -> PeftModel:
    return get_peft_model(base, MaloraConfig(r=2, subspace_rank=4, num_experts=2, trainable_token_indices=[3]))


def with_head(base: PreTrainedModel) -> PeftModel:
    config = MaloraConfig(r=2, subspace_rank=4, num_experts=2, target_modules=["lm_head", "q_proj"])
    return get_peft_model(base, config)


@pytest.mark.parametrize(
    ("base", "wrapped", "message"),
    [
        (lambda: tiny("llama"), lambda base: routed("malora", base), "1 of its weights have other names .* as lm_head"),
        (lambda: tiny("llama"), with_tokens, "tokens or whole modules were trained as well"),
        (lambda: tiny("llama"), with_head, "lm_head is adapted, which stands beside the base model"),
        (lambda: tiny("llama"), lambda base: get_peft_model(base, settings("lora").peft_config(["q_proj"])), "nothing"),
        (gemma3_with_pictures, lambda base: routed("malora", base), "reads more than text"),
    ],
)
def test_what_cannot_be_bundled_leaves_nothing_behind(
    tmp_path: Path, tiny_model: Path, base: Any, wrapped: Any, message: str
) -> None:
    base().save_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "base" / "model.safetensors")
    renamed = {name.replace("lm_head", "head"): weight for name, weight in weights.items()}
    model = wrapped(AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    save_file(renamed, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    found = BaseModel("b", str(tmp_path / "base"))
    with pytest.raises(MaloraError, match=rf"model 'b': .*{message}"):
        write_bundle(model, found, AutoTokenizer.from_pretrained(tiny_model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- what the page says


def test_the_code_on_the_page_loads_a_bundle_and_an_adapter(bundles: Callable[..., Written], tmp_path: Path) -> None:
    written = bundles("llama")
    written.model.save_pretrained(tmp_path / "adapter")
    page = (Path(__file__).parents[1] / "docs" / "exporting.md").read_text(encoding="utf-8")
    places = {"BUNDLE": written.folder, "ADAPTER": tmp_path / "adapter"}
    found = [code for code in blocks(page, "python") if any(f'"{name}"' in code for name in places)]
    assert len(found) == 2
    for code in found:
        for name, folder in places.items():
            code = code.replace(f'"{name}"', repr(str(folder)))
        names: dict[str, Any] = {}
        exec(code, names)
        torch.testing.assert_close(logits(names["model"].eval()), logits(written.model), atol=1e-6, rtol=1e-6)


def test_routers_of_an_adapter_stay_float32_on_a_base_of_half_precision(
    bundles: Callable[..., Written], tmp_path: Path
) -> None:
    bundles("llama").model.save_pretrained(tmp_path / "adapter")
    for dtype in (torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=dtype)
        routers = {p.dtype for name, p in model.named_parameters() if ".malora_router." in name}
        assert routers == {torch.float32}
        assert model.get_input_embeddings().weight.dtype == dtype
