"""The chat template that a recipe names in the place of the model's own."""

from __future__ import annotations

from pathlib import Path

from malora_cli.errors import ModelError


def read_template(name: str) -> str | None:
    """The template of a Jinja file; None, which writes plain text, for ``plain``.

    Raises:
        ModelError: It cannot be read, or is no Jinja.
    """
    if name == "plain":
        return None
    import jinja2

    try:
        text = Path(name).read_text(encoding="utf-8")
        jinja2.Environment().parse(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ModelError(f"the chat template cannot be read ({reason})", where=name) from error
    except jinja2.TemplateSyntaxError as error:
        raise ModelError(
            f"the chat template is not valid Jinja ({error.message})", where=f"{name}:{error.lineno}"
        ) from error
    return text
