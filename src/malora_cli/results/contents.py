"""What was written into a folder, by the hashes of its files: whether it is still that, whoever it came from."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from malora_cli.results.files import file_sha256, flush, read_json

#: What an adapter in PEFT's format is loaded from; nothing else in its folder ever is.
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
#: What a checkpoint says of its own files.
CONTENTS = "checkpoint.json"


def seal(folder: Path, names: Collection[str]) -> dict[str, str]:
    """See to it that a folder's files are on disk, and give back the SHA-256 of some of them by name.

    Args:
        folder: The folder.
        names: Files in it.
    """
    flush(folder)
    return {name: file_sha256(folder / name) for name in names}


def difference(folder: Path, files: Mapping[str, str], names: Collection[str] | None = None) -> str | None:
    """What is wrong with some files of a folder; None where they are those that were sealed.

    Args:
        folder: The folder.
        files: SHA-256 of its files by name.
        names: Those that matter; None is all.
    """
    for name in files if names is None else names:
        if name not in files:
            return f"no hash is recorded for {name}"
        # Neither devices, which have no end, nor files elsewhere.
        if os.pardir in Path(name).parts or Path(name).is_absolute() or not (folder / name).is_file():
            return f"{name} is missing"
        if file_sha256(folder / name) != files[name]:
            return f"{name} is not what was written"
    return None


def checkpoint_damage(checkpoint: Path, step: int, names: Collection[str] | None = None) -> str | None:
    """What is wrong with a checkpoint's files; None where they are those that were written.

    Args:
        checkpoint: Its folder.
        step: The step that it is of, by its name.
        names: Files that matter; None is all.
    """
    try:
        contents = read_json(checkpoint / CONTENTS)
        if contents.get("step", step) != step:
            return f"it is of step {contents['step']}"
        return difference(checkpoint, contents["files"], names)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        return f"{getattr(error, 'filename', None) or checkpoint / CONTENTS} cannot be read"
