"""The files that hold a model's weights: which are read, and that they are safetensors of the model's own folder."""

from __future__ import annotations

import hashlib
from pathlib import Path, PureWindowsPath
from typing import Any

from huggingface_hub.constants import SAFETENSORS_INDEX_FILE as INDEX
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE as WEIGHTS

from malora_cli.errors import ModelError
from malora_cli.results import read_json, remembered_sha256

_SUFFIX = ".safetensors"


def weight_files(folder: Path) -> list[Path]:
    """The files that a folder's weights are read from, an index and the files that it names.

    Raises:
        ModelError: One is no safetensors file of this folder, or it holds no weights.
    """
    name = chosen_weights(folder / "config.json")
    if name is None:
        name = next((name for name in (WEIGHTS, INDEX) if (folder / name).is_file()), None)
    if name is None:
        raise ModelError(
            f"no safetensors weights found in this folder ({WEIGHTS} is missing); no other format is read",
            where=str(folder),
        )
    files = [folder / name]
    if not name.endswith(_SUFFIX):
        files += [folder / part for part in indexed_files(folder / name)]
    for file in files:
        if not file.is_file():
            raise ModelError("this file of weights is missing", where=str(file))
    return files


def chosen_weights(config: Path) -> str | None:
    """The file of weights, or the index, that a model's configuration asks for; None is the usual one.

    Raises:
        ModelError: The configuration cannot be read, or asks for another kind of file.
    """
    name = _object(config).get("transformers_weights")
    if name is not None and not (_is_own(name, _SUFFIX) or _is_own(name, f"{_SUFFIX}.index.json")):
        raise _not_own(name, config)
    return name


def indexed_files(index: Path) -> list[str]:
    """The names of the files that an index spreads a model's weights over, sorted.

    Raises:
        ModelError: It cannot be read, or names something else than safetensors files beside it.
    """
    names = _object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ModelError("this index of weights names no files (weight_map)", where=str(index))
    for name in names.values():
        if not _is_own(name, _SUFFIX):
            raise _not_own(name, index)
    return sorted(set(names.values()))


def weights_sha256(files: list[Path]) -> str:
    """One hash over the contents of some files."""
    return hashlib.sha256("".join(map(remembered_sha256, files)).encode()).hexdigest()


def _object(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "not valid JSON"
        raise ModelError(f"it cannot be read ({reason})", where=str(path)) from error


def _is_own(name: object, suffix: str) -> bool:
    """Whether this is the name of such a file in the folder, on any system."""
    if not isinstance(name, str) or not name.endswith(suffix):
        return False
    path = PureWindowsPath(name)  # which knows both kinds of separators
    return not (path.drive or path.root or ".." in path.parts)


def _not_own(name: object, where: Path) -> ModelError:
    return ModelError(
        f"it names {str(name)!r} as weights, and only safetensors files of the model's own folder are read",
        where=str(where),
        fix="Take the model from where it was published.",
    )
