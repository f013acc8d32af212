"""What of a generated text is the answer: what stands behind the reasoning, without marks."""

from __future__ import annotations

#: What opens reasoning, and what closes it, where a chat template has no marks of its own.
THINK = ("<think>", "</think>")


def spoken(text: str, thinks: tuple[str, str], *, opened: bool = False) -> str:
    """The part of a text that answers.

    Args:
        text: What was generated, or what the data say.
        thinks: What opens reasoning, and what closes it.
        opened: The prompt has opened a block of reasoning.

    Returns:
        What stands behind the last block; nothing where a block was not closed, for then the answer was not reached.
    """
    opening, closing = thinks
    _, closed, behind = text.rpartition(closing)
    if closed:
        return behind.lstrip("\n")
    return "" if opened or text.lstrip().startswith(opening) else text


def ended(text: str, end: str) -> str:
    """A text with its end, once, which data may hold already."""
    mark = end.strip()
    while mark and text.rstrip().endswith(mark):
        text = text.rstrip().removesuffix(mark)
    return text + end


def parted(text: str) -> tuple[str, str]:
    """The reasoning that begins a text of the data, and what stands behind it; no reasoning, and all of it."""
    reasoning, closed, behind = text.partition(THINK[1])
    if not closed or not reasoning.lstrip().startswith(THINK[0]):
        return "", text
    return reasoning.replace(THINK[0], "", 1).strip(), behind.lstrip("\n")
