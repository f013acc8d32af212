"""Models of the Hugging Face hub: which commit a name stands for, and what its files are before they are loaded."""

from __future__ import annotations

import warnings
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub.constants import CONFIG_NAME, SAFETENSORS_INDEX_FILE
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from malora_cli.modeling.reason import first_line
from malora_cli.modeling.weights import chosen_weights, indexed_files

_PATIENCE_SECONDS = 10.0


def commit_of(name: str, revision: str | None) -> str:
    """The commit that a hub id stands for: what the hub says now, or what this machine has where it cannot be asked.

    The hub's library tries each file again for half a minute before it gives up, so it is asked once, and no more by
    this process where it does not answer.

    Args:
        name: The hub id.
        revision: Branch, tag or commit; None is the newest.

    Raises:
        OSError: There is no such model, or the hub cannot be asked and this machine does not have it.
        ValueError: There cannot be a model of this name.
    """
    commit = cached_commit(name, revision)
    try:
        return str(HfApi().model_info(name, revision=revision, timeout=_PATIENCE_SECONDS).sha)
    except (RepositoryNotFoundError, RevisionNotFoundError, GatedRepoError, HFValidationError):
        raise
    except Exception as error:  # of the hub's library, and of the library for HTTP that it uses
        if commit is None:
            if isinstance(error, OfflineModeIsEnabled):
                raise OSError("it is not on this machine, and HF_HUB_OFFLINE is set") from error
            raise OSError(f"the hub cannot be reached, and it is not on this machine: {first_line(error)}") from error
        if not constants.HF_HUB_OFFLINE:
            warnings.warn(
                f"the hub cannot be reached ({first_line(error)}); model '{name}' is taken as this machine has it, at "
                f"commit {commit}",
                stacklevel=2,
            )
            constants.HF_HUB_OFFLINE = True
        return commit


def cached_commit(name: str, revision: str | None) -> str | None:
    """The commit of a hub id that this machine has; None where it has none."""
    cached = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def check_weights(name: str, commit: str) -> None:
    """Make sure that a model's weights are safetensors of its own, before transformers goes by what it says of them.

    Raises:
        ModelError: They are not.
        OSError: A file cannot be had.
    """
    config = _file(name, commit, CONFIG_NAME)
    chosen = (None if config is None else chosen_weights(config)) or SAFETENSORS_INDEX_FILE
    if chosen.endswith(".json") and (index := _file(name, commit, chosen)) is not None:
        indexed_files(index)


def _file(name: str, commit: str, file: str) -> Path | None:
    """A file of a model on this machine; None where the model has none of this name."""
    try:
        return Path(hf_hub_download(name, file, revision=commit))
    except EntryNotFoundError:
        return None
