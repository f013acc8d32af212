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
    """Let the README be the first page, and put the Markdown beside the pages for language models."""
    app.connect("source-read", _with_the_readme)
    app.connect("build-finished", _with_markdown)


def _with_the_readme(_app: Sphinx, page: str, source: list[str]) -> None:
    """Put the README in front of the index, and let links of other pages lead there."""
    if page == "index":
        _, toctree, groups = source[0].partition("```{toctree}")
        text = re.sub(r"\]\((?!https?:|#)", "](path:../", README.read_text(encoding="utf-8"))
        text = re.sub(r"\]\(path:\.\./docs/([^)]+\.(?:md\b|png|svg))", r"](\1", text)
        source[0] = text + toctree + groups
    else:
        source[0] = source[0].replace("](../README.md", "](index.md")


def _with_markdown(app: Sphinx, error: Exception | None) -> None:
    """Copy every page as it was written, and list them in llms.txt (https://llmstxt.org)."""
    if error is not None:
        return
    lines = [f"# {project}", "", f"> {_paragraph(README)}", "", "## Pages", ""]
    for page in sorted(app.env.found_docs):
        written = README if page == "index" else Path(app.srcdir) / f"{page}.md"
        copied = Path(app.outdir) / f"{page}.md"
        copied.write_text(written.read_text(encoding="utf-8"), encoding="utf-8")
        title = written.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}]({page}.md): {_paragraph(written)}")
    (Path(app.outdir) / "llms.txt").write_text("\n".join([*lines, ""]), encoding="utf-8")


def _paragraph(page: Path) -> str:
    """The first paragraph of a page, in one line, its links as plain words."""
    paragraphs = page.read_text(encoding="utf-8").split("\n\n")
    first = next(text for text in paragraphs if not text.startswith(("#", "|", "```")))
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", " ".join(first.split()))
