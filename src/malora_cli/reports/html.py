"""HTML from templates that escape by themselves, and how numbers are written on the page."""

from __future__ import annotations

import shlex
from base64 import b64encode
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from malora_cli.characters import plural, visible

MINUS = "−"  # typographic: as wide as a plus


def percent(share: float) -> str:
    """``0.613`` as ``61.3%``."""
    return f"{100 * share:.1f}%"


def css(share: float) -> str:
    """A share as a length of CSS."""
    return f"{100 * share:.2f}%"


def points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign: ``0.592`` as ``+59.2``."""
    return signed(100 * share, digits=1)


def about(value: float, low: float, high: float) -> str:
    """The interval around a share or a difference, by its farther end and in percentage points: ``±9.1``."""
    return f"±{100 * max(value - low, high - value):.1f}"


def probability(p: float) -> str:
    """A p-value: ``0.41``, ``0.013``, ``<0.001``."""
    return "<0.001" if p < 0.001 else f"{p:.2f}" if p >= 0.1 else f"{p:.3f}"


def nats(loss: float | None) -> str:
    """A loss in nats a token; a dash where it was not measured."""
    return "–" if loss is None else f"{loss:.3f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference with its sign; none when it rounds to nothing."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def count(number: float) -> str:
    """``1234567`` as ``1,234,567``."""
    return f"{number:,.0f}"


def short(number: float) -> str:
    """``1234567`` as ``1.23 M``."""
    for size, unit in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """``372.4`` as ``6 min 12 s``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.3g} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def rate(number: float) -> str:
    """A learning rate as people write it: ``0.0002`` as ``2e-4``."""
    digits, exponent = f"{number:.2e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


def shell(word: str) -> str:
    """A word of a command, so that a shell reads it as one: whoever copies a command runs that one only."""
    return shlex.quote(visible(word))


def base64(content: bytes) -> str:
    """Content of a file as a data URI has it."""
    return b64encode(content).decode("ascii")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = (percent, css, points, about, probability, nats, signed, count, short, rate)
    for function in (*numbers, duration, plural, shell, base64):
        environment.filters[function.__name__] = function
    return environment


@cache
def _template(source: str) -> Template:
    return _environment().from_string(source)


def render(source: str, **values: object) -> Markup:
    """Fill a template given as text. Everything in ``values`` that is not ``Markup`` is escaped.

    Macros come with ``{% import "macros.html.j2" as m %}``.
    """
    return Markup(_template(source).render(**values))


def render_file(name: str, /, **values: object) -> str:
    """Fill a template that lies beside this file."""
    return _environment().get_template(name).render(**values)
