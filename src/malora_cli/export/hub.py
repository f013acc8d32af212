"""Sending an export to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils._validators import validate_repo_id

from malora_cli.errors import MaloraError, RecipeError, RunError
from malora_cli.export.request import Request
from malora_cli.modeling.reason import first_line

_WHERE = "--push-to-hub"
#: Names of models on the hub; the oldest have no owner.
_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
#: What a new repository of the hub has.
_EMPTY = {".gitattributes"}


def check_push(request: Request, base: str | None) -> None:
    """Make sure that an export can be pushed, before anything slow happens.

    Args:
        request: What was asked for.
        base: What the export calls its base model; None where that is a name of this machine.

    Raises:
        RecipeError: It is not a name of the hub, or the base model cannot be found by others.
        RunError: There is no connection, no token, or a repository that is in the way.
    """
    name = str(request.push)
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise RecipeError(f"got '{name}', expected OWNER/NAME", where=_WHERE) from error
    if name.count("/") != 1:
        raise RecipeError(f"got '{name}', expected OWNER/NAME", where=_WHERE)
    if base is None or not _MODEL.fullmatch(base):
        what = "others cannot find the base model by the name that this machine has for it"
        raise RecipeError(what, where=_WHERE, fix="Name it as the hub does: --base OWNER/MODEL.")
    if constants.HF_HUB_OFFLINE:
        raise RunError("HF_HUB_OFFLINE is set", where=_WHERE, fix="Unset it, or leave out --push-to-hub.")
    with _told():
        api = HfApi()
        token = api.whoami().get("auth", {}).get("accessToken", {})
        if token.get("role") == "read":
            raise RunError("the token may only read", where=_WHERE, fix="Make one that may write.")
        _check_repository(api, name, request)


def _check_repository(api: HfApi, name: str, request: Request) -> None:
    """Refuse a repository that would show or mix up what is pushed."""
    try:
        found = api.model_info(name)
    except RepositoryNotFoundError:
        return
    if not found.private and not request.public:
        fix = "Add --public if that is meant, or name another."
        raise RunError(f"{name} is there, and public", where=_WHERE, fix=fix)
    if not request.force and {file.rfilename for file in found.siblings or ()} - _EMPTY:
        fix = "Name another, or add --force to replace all of its files."
        raise RunError(f"{name} has files already", where=_WHERE, fix=fix)


def push(folder: Path, request: Request, tell: Callable[[str], None]) -> str:
    """Create a repository on the hub, unless it is there, and commit a folder to it in place of what it holds.

    Args:
        folder: The export.
        request: What was asked for.
        tell: Told what goes up.

    Returns:
        The address of the repository.

    Raises:
        RunError: The hub refuses it, or cannot be reached; the export lies in its folder all the same.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        tell(f"uploading {path.relative_to(folder).as_posix()} ({path.stat().st_size / 2**20:,.1f} MiB)")
    name = str(request.push)
    with _told(f"The export lies in {folder}."):
        api = HfApi()
        made = api.create_repo(name, private=not request.public, exist_ok=True)
        _check_repository(api, name, request)  # somebody may have made it since
        message = "Export of malora merge-export"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, delete_patterns="*")
    return str(made)


@contextmanager
def _told(fix: str | None = None) -> Iterator[None]:
    """Errors of the hub as one line; none of them has the token in it."""
    try:
        yield
    except MaloraError:
        raise
    except LocalTokenNotFoundError as error:
        raise RunError("there is no token", where=_WHERE, fix="Log in first: hf auth login.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = {401: "the hub does not know the token", 403: "the token may not write there"}
        raise RunError(what.get(status, f"the hub answered {status}"), where=_WHERE, fix=fix) from error
    except Exception as error:  # of the library for HTTP that the hub's library uses, among others
        raise RunError(f"the hub cannot be reached ({first_line(error)})", where=_WHERE, fix=fix) from error
