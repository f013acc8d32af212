"""The resolved recipe, one fold-out for each part of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from malora_cli.reports.html import render
from malora_cli.reports.section import Section
from malora_cli.reports.view import RunView

#: Longer parts, such as a mix of many tasks, start folded.
_OPEN_UP_TO = 20
#: Values of a part that the page holds, folded or not.
_MOST = 2000

_TEMPLATE = """
<div class="settings">
{% for name, rows in parts %}
<details{{ " open" if rows|length <= open_up_to }}>
<summary>{{ name }}<span class="quiet">{{ rows|length|plural("value") }}</span></summary>
<dl>{% for key, value in rows[:most] %}<div><dt>{{ key }}</dt><dd>{{ value }}</dd></div>{% endfor %}</dl>
{%- if rows|length > most %}<p class="note">… and {{ (rows|length - most)|plural("value") }} more: see
<code>recipe.yaml</code>.</p>{% endif %}</details>
{% endfor %}
</div>
"""


def flat(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys and values as the YAML file would have them."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{key}.{name}" if key else str(name))
    else:
        yield key, _text(value)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return '""' if value == "" else str(value)


def _render(run: RunView) -> str | None:
    if not run.recipe:
        return None
    parts = [(name, list(flat(part, "" if isinstance(part, dict) else name))) for name, part in run.recipe.items()]
    return render(_TEMPLATE, parts=parts, open_up_to=_OPEN_UP_TO, most=_MOST)


SECTION = Section(title="Settings", order=80, render=_render)
