"""What an error of somebody else's library says, in one line."""

from __future__ import annotations


def first_line(error: Exception) -> str:
    """The error's first line, or its kind where it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
