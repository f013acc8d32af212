"""How Sphinx makes these pages a site: Markdown stays Markdown, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

README = Path(__file__).parents[1] / "README.md"

project = "malora"
html_title = project
html_theme = "furo"
extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings work as they do on GitHub
highlight_language = "text"  # of blocks that name none


def setup(app: Sphinx) -> None:
    """Let the README be the first page."""
    app.connect("source-read", _with_the_readme)


def _with_the_readme(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the README in front of the index, and let links of other pages lead there."""
    if page == "index":
        _, toctree, groups = source[0].partition("```{toctree}")
        text = re.sub(r"\]\((?!https?:|#)", "](path:../", README.read_text(encoding="utf-8"))
        text = re.sub(r"\]\(path:\.\./docs/([^)]+\.(?:md\b|png))", r"](\1", text)
        source[0] = text + toctree + groups
    else:
        source[0] = source[0].replace("](../README.md", "](index.md")
