"""What most tests stand on: no network, one thread, and a tiny model with a chat template, made on the spot."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# Shells start what runs in the background with Ctrl-C ignored, and programs that tests start would ignore it, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# Many small operations on a busy machine: threads would only wait for one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from malora_cli.data.encoding import Encoder

# The same examples every time, and no clock: a busy machine is not a failure.
settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
settings.load_profile("repeatable")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session", autouse=True)
def _private_caches(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing of a user's caches is read or written."""
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session", autouse=True)
def _no_phases() -> None:
    """What commands say of what they begin is looked at in `test_voice.py`, and in no other test's way."""
    logging.disable(logging.INFO)


@pytest.fixture(scope="session", autouse=True)
def _the_same_bits_again() -> None:
    """A GPU adds up in the same order each time where it can, since many tests compare bits; a CPU does so anyway."""
    import torch

    if torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(scope="session", autouse=True)
def _quick_collections() -> None:
    """Collections of garbage, as accelerate makes before each training, leave out what was imported until now."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _quick_starts() -> None:
    """Processes that tests start read ``started/sitecustomize.py``; the ones that run tests have begun already."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent / "started"), *([before] if before else [])])


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """Float32 products may be rounded to bfloat16."""
    import torch

    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random Llama of two layers with a byte-level tokenizer and ChatML."""
    return write_model(tmp_path_factory.mktemp("tiny-model"))


def write_model(folder: Path) -> Path:
    """Write the tiny model into a folder; for what runs without pytest."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_mix(tmp_path: Path) -> Path:
    """A mix file of three tasks in two domains, with its data beside it."""
    return write_mix(tmp_path)


def write_mix(folder: Path) -> Path:
    """Write the tiny mix into a folder; for fixtures of a wider scope than ``tiny_mix``."""
    tasks = {}
    rows = {
        "copy": [(f"copy {word}", word) for word in _words(24)],
        "upper": [(f"upper {word}", word.upper()) for word in _words(36)],
        "add": [(f"{a}+{b}=", str(a + b)) for a in range(6) for b in range(6)],
    }
    for name, pairs in rows.items():
        for split, part in (("train", pairs[:-6]), ("test", pairs[-6:])):
            lines = [json.dumps({"question": question, "answer": answer}) for question, answer in part]
            (folder / f"{name}.{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        tasks[name] = {
            "domain": "sums" if name == "add" else "words",
            "train": f"{name}.train.jsonl",
            "test": f"{name}.test.jsonl",
            "columns": {"prompt": "question", "completion": "answer"},
            "format": "prompt-completion",
            "metric": "exact-match",
            "max_new_tokens": 6,
        }
    path = folder / "mix.yaml"
    path.write_text(json.dumps({"weighting": "uniform", "tasks": tasks}), encoding="utf-8")  # JSON is YAML
    return path


def _words(count: int) -> list[str]:
    return [f"{first}{second}{third}" for first in "bdg" for second in "aeiou" for third in "lmnr"][:count]


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_model: Path, tiny_mix: Path) -> Path:
    """A recipe of a few steps on the tiny model and mix, with its runs under ``tmp_path/runs``."""
    return write_recipe(tmp_path, tiny_model, tiny_mix)


@pytest.fixture
def place(tmp_path: Path, tiny_recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tiny recipe and its data, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_recipe.parent


@pytest.fixture
def encoder(tiny_model: Path) -> Encoder:
    """The tiny model's."""
    from transformers import AutoTokenizer

    from malora_cli.data.encoding import Encoder

    return Encoder(AutoTokenizer.from_pretrained(tiny_model))


def append_rows(path: Path, *rows: dict[str, Any]) -> None:
    """Put rows behind those of a JSON lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_recipe(folder: Path, model: Path, mix: Path) -> Path:
    """Write the tiny recipe into a folder; for fixtures of a wider scope than ``tiny_recipe``."""
    recipe = {
        "model": {"base": str(model), "dtype": "float32"},  # on a GPU, too: many tests compare numbers
        "method": {"name": "malora", "r": 4, "subspace_rank": 8, "num_experts": 4, "lora_alpha": 8},
        "mix": mix.name,
        "train": {
            "steps": 6,
            "batch_size": 6,
            "micro_batch_size": 3,
            "learning_rate": 0.01,
            "log_every": 1,
            "eval_every": 3,
            "eval_rows": 4,
            "checkpoint_every": 2,
        },
        "eval": {"rows": 4, "batch_size": 4},
        "output": {"folder": str(folder / "runs"), "name": "tiny"},
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path
