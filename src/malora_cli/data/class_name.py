"""The name of a class in a row; a module of its own, so that formats can be listed without loading what reads rows."""

from __future__ import annotations


class ClassName(str):
    """The name of a class, which knows its number."""

    __slots__ = ("number",)

    number: int

    def __new__(cls, name: str, number: int) -> ClassName:
        """That of a number."""
        found = super().__new__(cls, name)
        found.number = number
        return found

    def __getnewargs__(self) -> tuple[str, int]:  # type: ignore[override]
        return str(self), self.number
