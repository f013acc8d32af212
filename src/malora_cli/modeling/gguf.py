"""GGUF files as ordinary model folders: converted once into the user's cache, checked by hash."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from malora_cli.errors import ModelError
from malora_cli.results import file_sha256, read_json, write_json

_RECORD = "conversion.json"
_WEIGHTS = "model.safetensors"
#: Raise it when a change here makes folders of older versions wrong.
_VERSION = 1


def converted_folder(gguf: Path) -> Path:
    """The safetensors folder that stands for a GGUF file, made when it is not there yet.

    The folder's name holds the hash of the GGUF file, so a changed file is converted anew. A conversion appears
    whole or not at all, also when several processes start at once.

    Args:
        gguf: The file; weights, tokenizer and chat template are read from it.

    Returns:
        The folder, with float32 weights: what the quantised numbers stand for, exactly.

    Raises:
        ModelError: The file is no GGUF model that transformers can read, or the cache cannot be written.
    """
    source = file_sha256(gguf)
    folder = user_cache_path("malora") / "models" / f"{gguf.stem}-{source[:16]}-v{_VERSION}"
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not _intact(folder):
                _convert(gguf, source, folder)
    except OSError as error:
        raise ModelError(
            f"the converted model cannot be written ({error})",
            where=str(folder.parent),
            fix="Free some space there, or set XDG_CACHE_HOME to another folder.",
        ) from error
    return folder


def _intact(folder: Path) -> bool:
    """Whether the weights are those that were written, by size and time, or by hash where these have changed.

    Hashing half a gigabyte takes as long as loading it, so it is kept for files that something has touched.
    """
    record, weights = folder / _RECORD, folder / _WEIGHTS
    if not record.is_file() or not weights.is_file():
        return False
    expected = read_json(record)
    if _stamp(weights) == expected["stamp"]:
        return True
    if file_sha256(weights) != expected["sha256"]:
        return False
    write_json(record, {**expected, "stamp": _stamp(weights)})
    return True


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _convert(gguf: Path, source: str, folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(f"it cannot be read as a GGUF model ({reason})", where=str(gguf)) from error
        # The weights are no longer quantised; with this left in, trainers refuse the model.
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        tied = set(model.all_tied_weights_keys)
        weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
        save_file(weights, scratch / _WEIGHTS, metadata={"format": "pt"})
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(scratch)
        model.generation_config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        sha256, stamp = file_sha256(scratch / _WEIGHTS), _stamp(scratch / _WEIGHTS)
        write_json(scratch / _RECORD, {"source_sha256": source, "sha256": sha256, "stamp": stamp})
        if folder.exists():  # damaged, or `_intact` would have held
            shutil.rmtree(folder)
        os.rename(scratch, folder)  # noqa: PTH104 - never onto an existing folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
