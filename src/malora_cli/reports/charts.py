"""Charts as inline SVG that follow the page: its fonts, its colours, light and dark.

matplotlib can write only fixed colours, so charts are drawn in stand-ins (``INK`` and the like), each of which is
replaced by a variable of the style sheet afterwards. No text from users goes into a chart: names stand in the HTML
around it, where they are escaped, wrapped and searched like any other text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from malora_cli.reports.view import COLOURS

INK, MUTED, GRID, SURFACE = "#010101", "#020202", "#030303", "#040404"
_VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line", SURFACE: "--card"}
_VARIABLES.update({f"#0500{slot:02x}": f"--task-{slot}" for slot in range(COLOURS)})

#: CSS pixels at which text has its nominal size; the page stretches charts a little.
WIDTH, HEIGHT = 300, 178
#: Shapes of matplotlib that look smaller or larger than a dot of the same size.
_SIZES = {"*": 1.6, "P": 1.25, "X": 1.25, "^": 1.2, "v": 1.2, "D": 0.95}
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
    """One line of a chart; ``y`` may be shorter of points than others, each has its own ``x``.

    Args:
        x: Where its points are.
        y: Their heights.
        ink: Stand-in for its colour.
        width: Of the line; 0 leaves the dots alone.
        opacity: Of line and dots.
        dots: Whether each point has a dot.
        marker: Shape of the dots, as matplotlib names it.
        size: Of the dots.
        clipped: Whether what lies outside the axes is left out.
    """

    x: Sequence[float]
    y: Sequence[float]
    ink: str = INK
    width: float = 1.8
    opacity: float = 1.0
    dots: bool = False
    marker: str = "o"
    size: float = 6
    clipped: bool = False


@dataclass(frozen=True)
class Ring:
    """A circle around a point, and what it says; never text of users."""

    x: float
    y: float
    text: str = ""


def _number(value: float) -> str:
    return f"{value:.4g}"


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        low: Where it starts.
        high: Where it ends.
        title: What it shows; never text of users.
        ticks: What is labelled, and how; None lets the chart choose, and then `form` writes the labels.
        form: Writes a label.
        log: Whether equal steps are equal factors.
    """

    low: float
    high: float
    title: str = ""
    ticks: Sequence[tuple[float, str]] | None = None
    form: Callable[[float], str] = _number
    log: bool = False

    @property
    def middle(self) -> float:
        """What is half-way."""
        return sqrt(self.low * self.high) if self.log else (self.low + self.high) / 2

    @classmethod
    def over(
        cls,
        values: Sequence[float],
        *,
        title: str = "",
        form: Callable[[float], str] = _number,
        log: bool = False,
        pad: float = 0.08,
    ) -> Axis:
        """An axis on which all of some values have room."""
        low, high = min(values), max(values)
        if log:
            factor = max(high / low, 1.5) ** pad
            return cls(low / factor, high * factor, title=title, form=form, log=True)
        room = pad * ((high - low) or abs(high) or 1.0)
        return cls(low - room, high + room, title=title, form=form)


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
        figure, axes = _empty((WIDTH, HEIGHT), left=38, bottom=26)
        axes.grid(axis="y")
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
        return _inline(figure, (WIDTH, HEIGHT), key=key, label=label)


def xy_chart(
    lines: Sequence[Line],
    *,
    key: str,
    label: str,
    x: Axis,
    y: Axis,
    rings: Sequence[Ring] = (),
    crosses: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (WIDTH, HEIGHT),
) -> Markup:
    """Draw lines and dots between two axes that are given.

    Args:
        lines: What to draw, the last one on top.
        key: Unique on the page; it goes into the ids that the drawing refers to.
        label: What the chart shows, for people who cannot see it.
        x: The horizontal axis.
        y: The vertical axis.
        rings: Points that stand out.
        crosses: Places at the upper edge, and their inks: what is there has no height.
        size: In CSS pixels at which text has its nominal size.

    Returns:
        An ``<svg>`` element, as wide as what holds it.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _empty(size, left=62 if y.title else 46, bottom=42 if x.title else 26)
        axes.grid(axis="both" if x.ticks is None else "y")
        for line in lines:
            _draw(axes, line)
        for ring in rings:
            _ring(axes, ring, to_left=ring.x > x.middle)
        for place, ink in crosses:
            shape: dict[str, Any] = {"marker": "x", "color": ink, "markersize": 8, "markeredgewidth": 2.2}
            axes.plot([place], [1], clip_on=False, transform=axes.get_xaxis_transform(), **shape)
        _scale(axes, "x", x)
        _scale(axes, "y", y)
        return _inline(figure, size, key=key, label=label)


def _empty(size: tuple[int, int], *, left: int, bottom: int) -> tuple[Figure, matplotlib.axes.Axes]:
    """Axes without anything in them, with room for labels beside and below."""
    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasSVG(figure)
    inner = (left / width, bottom / height, (width - left - 10) / width, (height - bottom - 8) / height)
    axes = figure.add_axes(inner)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(axis="both", which="both", length=0, pad=5)
    return figure, axes


def _ring(axes: matplotlib.axes.Axes, ring: Ring, *, to_left: bool) -> None:
    shape: dict[str, Any] = {"marker": "o", "markersize": 13, "markerfacecolor": "none", "markeredgecolor": INK}
    axes.plot([ring.x], [ring.y], linestyle="", markeredgewidth=1.4, clip_on=False, **shape)
    side = "right" if to_left else "left"
    apart = 6 if to_left else -6  # below: lines that come from above leave room there
    axes.annotate(ring.text, (ring.x, ring.y), xytext=(apart, -17), textcoords="offset points", ha=side, color=INK)


def _scale(axes: matplotlib.axes.Axes, which: str, axis: Axis) -> None:
    """Ends, ticks and title of one axis, ``x`` or ``y``."""
    drawn: matplotlib.axis.Axis = getattr(axes, f"{which}axis")
    scale = "log" if axis.log else "linear"
    axes.set(**{f"{which}scale": scale, f"{which}lim": (axis.low, axis.high), f"{which}label": axis.title})
    drawn.set_minor_locator(NullLocator())
    drawn.set_major_formatter(lambda value, _: axis.form(value))
    if axis.ticks is not None:
        drawn.set_ticks([value for value, _ in axis.ticks], [text for _, text in axis.ticks])
    elif axis.log:
        drawn.set_major_locator(FixedLocator(_decades(axis.low, axis.high)))
    else:
        drawn.set_major_locator(MaxNLocator(nbins=5, steps=_STEPS))


def _decades(low: float, high: float) -> list[float]:
    """What to label on a logarithmic axis: powers of ten, with twice and five times them where these are few."""
    powers = [10.0**power for power in range(-12, 16)]
    for factors in ((1,), (1, 5), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = sorted(power * factor for power in powers for factor in factors if low <= power * factor <= high)
        if len(found) >= 3:
            break
    return found[:: -(-len(found) // 6)]  # six at most


def _draw(axes: matplotlib.axes.Axes, line: Line) -> None:
    style: dict[str, Any] = {"color": line.ink, "linewidth": line.width, "alpha": line.opacity}
    style["clip_on"] = line.clipped
    if line.dots:
        size = line.size * _SIZES.get(line.marker, 1.0)
        style |= {
            "marker": line.marker,
            "markersize": size,
            "markeredgecolor": SURFACE,
            "markeredgewidth": 1.2 if line.marker == "o" else 0.8,
        }
    axes.plot(line.x, line.y, **style)


def _inline(figure: Figure, size: tuple[int, int], *, key: str, label: str) -> Markup:
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
    head = f'<svg viewBox="0 0 {size[0]} {size[1]}" role="img" aria-label="{escape(label)}">'
    return Markup(head + svg)


def _variable(colour: str) -> str:
    return f"var({_VARIABLES[colour]})" if colour in _VARIABLES else colour
