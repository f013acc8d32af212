"""Loads exports as others will, in a process of its own, and compares their logits with those that were expected.

Run as a script by `verify`, with what is asked as JSON on standard input, an object an export. It imports torch,
safetensors and what the export is for: transformers, PEFT, llama.cpp or mlx-lm. Everything else that could make the
export work is kept away.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any


def main() -> None:
    """Print what was found as JSON, a line an export."""
    asked = json.load(sys.stdin)
    for name in asked[0]["without"]:
        sys.modules[name] = None  # type: ignore[assignment] # its import raises ImportError
    for one in asked:
        print(json.dumps(_found(one)), flush=True)


def _found(asked: dict[str, Any]) -> dict[str, Any]:
    began = time.perf_counter()
    import torch

    if asked["threads"]:
        torch.set_num_threads(asked["threads"])
    if asked["runtime"] == "llama.cpp":
        found, versions = _in_llama_cpp(asked)
    else:
        with (_in_mlx if asked["runtime"] == "mlx-lm" else _in_transformers)(asked) as (logits_of, versions):
            found = _compare(logits_of, asked["rows"], asked["expected"])
    return {**found, "versions": versions, "seconds": time.perf_counter() - began}


#: Logits of a row's tokens at some places, shape ``(places, vocabulary)``, float32.
Logits = Callable[[Any, Any], Any]


@contextmanager
def _in_transformers(asked: dict[str, Any]) -> Iterator[tuple[Logits, dict[str, str]]]:
    """The export's logits; the base model of adapters is loaded once for all of them, and has none afterwards."""
    import torch
    import transformers

    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    if asked["base"] is None:
        yield _logits_of(_model(asked["folder"], None, asked["dtype"], asked["trust"])), versions
        return
    import peft

    base = _model(asked["base"], asked["revision"] or "main", asked["dtype"], asked["trust"])
    model = peft.PeftModel.from_pretrained(base, asked["folder"])
    yield _logits_of(model.eval()), {**versions, "peft": peft.__version__}
    model.unload()


def _logits_of(model: Any) -> Logits:
    return lambda ids, at: model(input_ids=ids.unsqueeze(0)).logits[0, at].float()


@cache
def _model(name: str, revision: str | None, dtype: str, trust: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options = {"dtype": getattr(torch, dtype), "trust_remote_code": trust}
    options |= {} if revision is None else {"revision": revision}
    return AutoModelForCausalLM.from_pretrained(name, **options).eval()


@contextmanager
def _in_mlx(asked: dict[str, Any]) -> Iterator[tuple[Logits, dict[str, str]]]:
    """The same in mlx-lm, on the processor: graphics cards multiply less exactly."""
    import torch

    try:
        import mlx.core
        from mlx_lm.tuner.utils import load_adapters, remove_lora_layers
    except (ImportError, OSError) as error:
        raise _unavailable(error) from error
    from importlib.metadata import version

    model = load_adapters(_mlx_model(asked["base"], asked["revision"], asked["dtype"]), asked["folder"])
    model.eval()

    def logits(ids: Any, at: Any) -> Any:
        found = model(mlx.core.array([ids.tolist()]))[0, mlx.core.array(at.tolist())]
        return torch.tensor(found.astype(mlx.core.float32).tolist())

    yield logits, {name: version(name) for name in ("mlx-lm", "mlx")}
    remove_lora_layers(model)


@cache
def _mlx_model(name: str, revision: str | None, dtype: str) -> Any:
    from pathlib import Path

    import mlx.core
    from huggingface_hub import snapshot_download
    from mlx_lm.utils import load_model

    mlx.core.set_default_device(mlx.core.cpu)
    model, _ = load_model(Path(name if revision is None else snapshot_download(name, revision=revision)))
    model.set_dtype(getattr(mlx.core, dtype))
    return model


def _unavailable(error: Exception) -> SystemExit:
    """Tells that a runtime does not load on this machine, which ends the process."""
    print(json.dumps({"unavailable": str(error).splitlines()[0]}))
    return SystemExit(0)


def _in_llama_cpp(asked: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """The same in llama.cpp, and how far it is from transformers on the base model alone: it computes otherwise."""
    from importlib.metadata import version

    base, adapter, model, rows = (asked[name] for name in ("base", "adapter", "model", "rows"))
    length = _longest(rows)
    runtime = _llama_cpp(model or base, asked["threads"], length)
    with runtime.adapted(adapter):
        found = _compare(runtime, rows, asked["expected"])
    alone = _base_alone(base, asked["threads"], rows)
    nats = sum(alone(row) for row in _numbers(asked["expected"]))
    return {**found, "base_divergence": nats / found["tokens"]}, {"llama-cpp-py-sync": version("llama-cpp-py-sync")}


@cache
def _longest(rows: str) -> int:
    """Tokens of the longest row."""
    from safetensors import safe_open

    with safe_open(rows, framework="pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("ids.")]  # noqa: SIM118 - it is not a mapping
        return max(len(tensors.get_tensor(name)) for name in names)


@cache
def _base_alone(base: str, threads: int, rows: str) -> Callable[[int], float]:
    """How far llama.cpp is from transformers on a row with the base model alone, in nats; each is computed once."""
    from safetensors import safe_open

    runtime = _llama_cpp(base, threads, _longest(rows))

    @cache
    def nats(row: int) -> float:
        with safe_open(rows, framework="pt") as tensors:
            ids, at, expected = (tensors.get_tensor(f"{name}.{row}") for name in ("ids", "positions", "base"))
        return _divergence(expected, runtime(ids, at))

    return nats


def _library() -> tuple[Any, Any]:
    """llama.cpp and what talks to it."""
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

        return get_lib(), get_ffi()
    except (ImportError, OSError, RuntimeError) as error:
        raise _unavailable(error) from error


class _LlamaCpp:
    """A GGUF file in llama.cpp, in float32 wherever it lets one choose; called with a row, it has the row's logits.

    Args:
        file: The file.
        threads: Threads that compute.
        context_length: Tokens of the longest row.
    """

    def __init__(self, file: str, threads: int, context_length: int) -> None:
        self.lib, self.ffi = lib, ffi = _library()
        lib.llama_backend_init()
        options = lib.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(file.encode(), options)
        if self.model == ffi.NULL:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        settings = lib.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = context_length
        settings.type_k = settings.type_v = settings.flash_attn_type = 0  # float32 keys and values, plain attention
        settings.n_threads = settings.n_threads_batch = threads or 1
        self.context = lib.llama_init_from_model(self.model, settings)
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    @contextmanager
    def adapted(self, file: str | None) -> Iterator[None]:
        """Within the block it computes with a LoRA."""
        if file is None:
            yield
            return
        lora = self.lib.llama_adapter_lora_init(self.model, file.encode())
        if lora == self.ffi.NULL:
            raise RuntimeError(f"llama.cpp cannot load {file}")
        self._take([lora])
        yield
        self._take([])
        self.lib.llama_adapter_lora_free(lora)

    def _take(self, loras: list[Any]) -> None:
        adapters = self.ffi.new("struct llama_adapter_lora *[]", loras)
        self.lib.llama_set_adapters_lora(
            self.context, adapters, len(loras), self.ffi.new("float[]", [1.0] * len(loras))
        )

    def __call__(self, ids: Any, at: Any) -> Any:
        """Logits of a row at some places, shape ``(places, vocabulary)``."""
        import torch

        lib, context = self.lib, self.context
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        batch = lib.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens, asked_for = len(ids), set(at.tolist())
        for place, token in enumerate(ids.tolist()):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, place, 1
            batch.seq_id[place][0], batch.logits[place] = 0, place in asked_for
        if lib.llama_decode(context, batch) != 0:
            raise RuntimeError("llama.cpp cannot decode a row")
        size = 4 * self.vocabulary
        rows = [self.ffi.buffer(lib.llama_get_logits_ith(context, place), size)[:] for place in at.tolist()]
        lib.llama_batch_free(batch)
        return torch.stack([torch.frombuffer(bytearray(row), dtype=torch.float32) for row in rows])


#: One of each file; a LoRA's base is loaded once for all of them.
_llama_cpp = cache(_LlamaCpp)


def _numbers(expected: str) -> list[int]:
    """The rows that an export is compared on."""
    from safetensors import safe_open

    with safe_open(expected, framework="pt") as tensors:
        return sorted(int(name.removeprefix("logits.")) for name in tensors.keys())  # noqa: SIM118 - it is not a mapping


def _divergence(expected: Any, logits: Any) -> float:
    """KL of a row from what is expected, in nats, summed over its tokens."""
    import torch.nn.functional as F

    wanted, found = F.log_softmax(expected, -1), F.log_softmax(logits, -1)
    return float(F.kl_div(found, wanted, reduction="sum", log_target=True))


def _compare(logits_of: Logits, rows: str, expected_in: str) -> dict[str, Any]:
    import torch
    from safetensors import safe_open

    sums, largest, tokens, size, numbers = [0.0] * 5, 0.0, 0, 0.0, _numbers(expected_in)
    with (
        torch.no_grad(),
        safe_open(rows, framework="pt") as tensors,
        safe_open(expected_in, framework="pt") as those_expected,
    ):
        for row in numbers:
            ids, at, base = (tensors.get_tensor(f"{name}.{row}") for name in ("ids", "positions", "base"))
            expected = those_expected.get_tensor(f"logits.{row}")
            logits = logits_of(ids, at)
            change = (logits - expected).abs()
            largest, size = max(largest, float(change.max())), max(size, float(expected.abs().max()))
            tokens += len(at)
            sums[0] += float(change.mean(1).sum())
            sums[1] += _divergence(expected, logits)
            sums[2] += float((logits.argmax(1) == expected.argmax(1)).sum())
            sums[3] += float((expected - base).abs().mean(1).sum())
            sums[4] += float((~logits.isfinite()).sum())
    mean, divergence, same, effect, unknown = (total / max(tokens, 1) for total in sums)
    if unknown:
        raise ValueError("NaN or infinite logits")
    return {
        "rows": len(numbers),
        "tokens": tokens,
        "largest_difference": largest,
        "largest_logit": size,
        "mean_difference": mean,
        "mean_effect": effect,
        "divergence": divergence,
        "same_top": same,
    }


if __name__ == "__main__":
    main()
