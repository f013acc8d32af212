"""The pages that people read, and the blocks of code in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in
         (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A fenced block of code; ``line`` is that of its opening fence, counted from 1."""

    page: str
    line: int
    language: str
    text: str


_FENCED = re.compile(r"^```([\w{}-]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
    for page, text in PAGES.items()
    for match in _FENCED.finditer(text)
]


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return _FENCED.sub("", text)


#: Spans of code within text, by page.
SPANS = [(span, page) for page, text in PAGES.items() for span in re.findall(r"`([^`\n]+)`", prose(text))]


def blocks(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def words(line: str) -> list[str]:
    """The words behind ``malora`` in a line, without what is explained or done with it; empty where there are none."""
    match = re.search(r"(?:^|\$ |\| |/)malora ((?!\.\.\.|COMMAND).+)", line.strip())
    text = re.split(r"\s{2,}|\s[#>]|\s\|\s", match[1])[0] if match else ""
    return shlex.split(text) if text.count("'") % 2 == 0 else text.split()
