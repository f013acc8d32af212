"""Sending an export to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from malora_cli.errors import RecipeError, RunError
from malora_cli.modeling.reason import first_line

_WHERE = "--push-to-hub"
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def check_push(name: str, base: str) -> None:
    """Make sure that an export can be pushed, before anything slow happens.

    Args:
        name: ``OWNER/NAME``.
        base: What the export calls its base model.

    Raises:
        RecipeError: It is not a name of the hub, or the base model cannot be found by others.
        RunError: There is no connection, or no token.
    """
    if not _NAME.fullmatch(name):
        raise RecipeError(f"got '{name}', expected OWNER/NAME", where=_WHERE)
    if Path(base).exists():
        fix = "Name it as others find it: --base OWNER/MODEL."
        raise RecipeError(f"the base model is called '{base}', a path of this machine", where=_WHERE, fix=fix)
    if constants.HF_HUB_OFFLINE:
        raise RunError("HF_HUB_OFFLINE is set", where=_WHERE, fix="Unset it, or leave out --push-to-hub.")
    with _told():
        HfApi().whoami()


def push(folder: Path, name: str, *, public: bool, tell: Callable[[str], None]) -> str:
    """Create a repository on the hub, unless it is there, and commit a folder to it.

    Args:
        folder: The export.
        name: ``OWNER/NAME``.
        public: Whether a new repository can be seen by everybody.
        tell: Told what goes up.

    Returns:
        The address of the repository.

    Raises:
        RunError: The hub refuses it, or cannot be reached; the export lies in its folder all the same.
    """
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        tell(f"uploading {path.relative_to(folder).as_posix()} ({path.stat().st_size / 2**20:,.1f} MiB)")
    with _told(f"The export lies in {folder}."):
        api = HfApi()
        made = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of malora merge-export")
    return str(made)


@contextmanager
def _told(fix: str | None = None) -> Iterator[None]:
    """Errors of the hub as one line; none of them has the token in it."""
    try:
        yield
    except LocalTokenNotFoundError as error:
        raise RunError("there is no token", where=_WHERE, fix="Log in first: hf auth login.") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        what = {401: "the hub does not know the token", 403: "the token may not write there"}
        raise RunError(what.get(status, f"the hub answered {status}"), where=_WHERE, fix=fix) from error
    except Exception as error:  # of the library for HTTP that the hub's library uses, among others
        raise RunError(f"the hub cannot be reached ({first_line(error)})", where=_WHERE, fix=fix) from error
