"""What an error of somebody else's library says, in one line."""

from __future__ import annotations

from malora_cli.errors import ModelError


def first_line(error: BaseException) -> str:
    """The error's first line, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def does_not_fit(what: str, error: BaseException, *, where: str) -> ModelError:
    """What is raised where memory does not suffice for a model or an adapter."""
    return ModelError(
        f"{what} does not fit into memory ({first_line(error)})",
        where=where,
        fix="Set model.dtype to bfloat16 or model.quantise to nf4, or take a smaller model.",
    )
