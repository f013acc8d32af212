"""GGUF files as ordinary model folders: converted once into the user's cache, checked by hash."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from malora_cli.errors import ModelError
from malora_cli.modeling.reason import first_line
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
    try:
        source = file_sha256(gguf)
    except OSError as error:
        raise ModelError(f"it cannot be read ({error.strerror})", where=str(gguf)) from error
    folder = user_cache_path("malora") / "models" / f"{gguf.stem}-{source[:16]}-v{_VERSION}"
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
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
    """Whether the folder holds the files that were written; of the weights, size and time are enough.

    Hashing half a gigabyte takes as long as loading it, so it is kept for weights that something has touched.
    """
    weights = folder / _WEIGHTS
    try:
        record = read_json(folder / _RECORD)
        stamp = _stamp(weights)
        if any(file_sha256(folder / name) != sha256 for name, sha256 in record["others"].items()):
            return False
        if stamp == record["stamp"]:
            return True
        if file_sha256(weights) != record["sha256"]:
            return False
    except (OSError, ValueError, LookupError, TypeError):  # a file is missing, or the record is none
        return False
    with suppress(OSError):  # a cache that others share may be for reading only
        write_json(folder / _RECORD, {**record, "stamp": stamp})
    return True


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _convert(gguf: Path, source: str, folder: Path) -> None:
    scratch = folder.with_name(f".converting-{folder.name}")  # ours alone, under the lock
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed conversion left
    scratch.mkdir()
    try:
        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        except Exception as error:  # whatever a parser meets in a file that is cut off or no GGUF at all
            raise ModelError(f"it cannot be read as a GGUF model ({first_line(error)})", where=str(gguf)) from error
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
        hashes = {file.name: file_sha256(file) for file in sorted(scratch.iterdir())}
        weights_hash = hashes.pop(_WEIGHTS)
        record = {"source_sha256": source, "sha256": weights_hash, "stamp": _stamp(scratch / _WEIGHTS)}
        write_json(scratch / _RECORD, {**record, "others": hashes})
        if folder.exists():  # damaged, or `_intact` would have held
            shutil.rmtree(folder)
        os.rename(scratch, folder)  # noqa: PTH104 - never onto an existing folder
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
