"""Line charts as inline SVG that follow the page: its fonts, its colours, light and dark.

matplotlib can write only fixed colours, so charts are drawn in stand-ins (``INK`` and the like), each of which is
replaced by a variable of the style sheet afterwards. No text from users goes into a chart: names stand in the HTML
around it, where they are escaped, wrapped and searched like any other text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from malora_cli.reports.view import COLOURS

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", SURFACE: "--card"}
_VARIABLES.update({f"#0500{slot:02x}": f"--task-{slot}" for slot in range(COLOURS)})

#: CSS pixels at which text has its nominal size; the page stretches charts a little.
WIDTH, HEIGHT = 300, 178
_STEPS = [1, 2, 2.5, 5, 10]  # distances of ticks, up to powers of ten
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "malora",  # ids are the same each time
    "text.parse_math": False,
    "font.size": 11,
    "text.color": MUTED,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
}


def task_ink(slot: int) -> str:
    """The stand-in for a task's colour, see ``Task.slot``."""
    return f"#0500{slot:02x}"


@dataclass(frozen=True)
class Line:
    """One line of a chart; ``y`` may be shorter of points than others, each has its own ``x``."""

    x: Sequence[float]
    y: Sequence[float]
    ink: str = INK
    width: float = 1.8
    opacity: float = 1.0
    dots: bool = False


def line_chart(
    lines: Sequence[Line],
    *,
    key: str,
    label: str,
    x_max: float,
    reference: float | None = None,
    from_zero: bool = True,
    as_percent: bool = False,
) -> Markup:
    """Draw lines over training steps.

    Args:
        lines: What to draw, the last one on top.
        key: Unique on the page; it goes into the ids that the drawing refers to.
        label: What the chart shows, for people who cannot see it.
        x_max: Last step of the axis, so that neighbouring charts line up.
        reference: Height of a dotted line to compare with.
        from_zero: Whether the vertical axis starts at zero.
        as_percent: Whether heights are shares, labelled as percentages.

    Returns:
        An ``<svg>`` element, as wide as what holds it.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((38 / WIDTH, 26 / HEIGHT, (WIDTH - 48) / WIDTH, (HEIGHT - 34) / HEIGHT))
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(axis="both", length=0, pad=5)
        if reference is not None:
            axes.axhline(reference, color=MUTED, linewidth=1.1, linestyle=(0, (1.5, 2.5)))
        for line in lines:
            _draw(axes, line)
        axes.set_xlim(-0.02 * max(x_max, 1), 1.02 * max(x_max, 1))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=_STEPS, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=_STEPS))
        if from_zero:
            axes.set_ylim(0, axes.get_ylim()[1])
        axes.yaxis.set_major_formatter((lambda y, _: f"{100 * y:.4g}%") if as_percent else (lambda y, _: f"{y:.4g}"))
        return _inline(figure, key=key, label=label)


def _draw(axes: matplotlib.axes.Axes, line: Line) -> None:
    style: dict[str, Any] = {"color": line.ink, "linewidth": line.width, "alpha": line.opacity, "clip_on": False}
    if line.dots:
        style |= {"marker": "o", "markersize": 6, "markeredgecolor": SURFACE, "markeredgewidth": 1.2}
    axes.plot(line.x, line.y, **style)


def _inline(figure: Figure, *, key: str, label: str) -> Markup:
    """What matplotlib wrote, cut down to an element that may stand in a page beside others."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = re.sub(r"^.*?<svg [^>]*>", "", file.getvalue(), count=1, flags=re.DOTALL)
    # matplotlib's style sheet is meant for a file of its own; in a page it would hold for everything.
    svg = re.sub(r"<style.*?</style>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variable(found.group()), svg)
    # Ids are unique in a file, not in a page: those that are referred to get the key, the others go.
    svg = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", svg)
    svg = re.sub(r'( id="|xlink:href="#|url\(#)([mp][0-9a-f]{10})', rf"\g<1>{key}-\2", svg)
    svg = re.sub(r"\s*\n\s*", "\n", svg.replace("xlink:href", "href"))
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return Markup(head + svg)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour
