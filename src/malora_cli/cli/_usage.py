"""Mistyped commands, options and arguments, as one line like every other mistake."""

from __future__ import annotations

import re
from typing import Any

import typer

from malora_cli.errors import MaloraError
from malora_cli.registry import nearest, unknown

#: What Typer raises for them, under whose own copy of click it may lie.
UsageMistake: type[Exception] = next(it for it in typer.BadParameter.__mro__ if it.__name__ == "ClickException")

#: What the argument of settings is called in every command that takes them.
_SETTINGS = "KEY=VALUE"
#: How versions of Typer say what a value must be, and how every other line does.
_RULES = {
    r".*valid integer.*": "must be a whole number",
    r".*valid (number|float).*": "must be a number",
    r".*(greater than or equal to |range x>=)(\S+)": r"must be at least \2",
    r".*(less than or equal to |range x<=)(\S+)": r"must be at most \2",
    r".*range (\S+)<=x<=(\S+)": r"must be from \1 to \2",
}


def as_one_line(error: Any) -> MaloraError | None:
    """What is wrong with a command line; None where its help has been shown instead.

    Args:
        error: A `UsageMistake`.
    """
    kind, context = type(error).__name__, getattr(error, "ctx", None)
    if kind == "NoArgsIsHelpError":
        return None
    if kind == "BadOptionUsage":
        return MaloraError("requires a value", where=error.option_name, fix=f"Write {error.option_name} VALUE.")
    if context is None:
        return MaloraError(error.format_message().rstrip("."))
    path = context.command_path
    how = f"`{path} --help` shows how it is used."
    if kind == "NoSuchOption":
        return _unknown_option(error.option_name, context)
    if match := re.match(r"No such command '(.*?)'\.", error.message):
        return MaloraError(unknown("command", match[1], context.command.commands), where=path)
    if kind == "MissingParameter":
        return MaloraError(f"missing argument {_name(error.param)}", where=path, fix=how)
    if kind == "BadParameter" and error.param is not None:
        return MaloraError(_bad_value(error), where=_name(error.param))
    if match := re.search(r"unexpected extra argument.*\((.+)\)", error.message):
        return MaloraError(f"unexpected argument '{match[1]}'", where=path, fix=how)
    return MaloraError(_lowered(error.format_message().rstrip(".")), where=path, fix=how)


def _unknown_option(name: str, context: Any) -> MaloraError:
    parameters, path = context.command.get_params(context), context.command_path
    options = {option for parameter in parameters for option in parameter.opts if option[:2] == "--"} - {"--help"}
    if near := nearest(name, options, cutoff=0.7):  # dashes alone make them alike
        return MaloraError(f"unknown option '{name}'; {near}", where=path)
    settings = any(parameter.metavar == _SETTINGS for parameter in parameters)
    more = "; settings of a recipe are written without dashes, as train.steps=8" if settings else ""
    return MaloraError(f"unknown option '{name}'", where=path, fix=f"`{path} --help` lists them{more}.")


def _name(parameter: Any) -> str:
    """An option or an argument as its help names it."""
    option = str(parameter.opts[0])
    return option if option[:1] == "-" else _bare(parameter.metavar or option.upper())


def _bare(metavar: str) -> str:
    """Without the brackets of what may be left out, where they are around all of it, and without dots."""
    bare = metavar.removesuffix("...")
    return bare[1:-1] if re.fullmatch(r"\[[^][]*\]", bare) else bare


def _bad_value(error: Any) -> str:
    message = error.message.removeprefix("Value error, ").rstrip(".")
    if match := re.fullmatch(r"'(.*?)' is not one of (.*)", message):
        names = re.findall(r"'(.*?)'", match[2])
        near = nearest(match[1], names)
        listed = f"got '{match[1]}'; must be one of {', '.join(names)}"
        return f"{listed}; {near}" if near else listed
    rules = (re.sub(theirs, ours, message) for theirs, ours in _RULES.items() if re.fullmatch(theirs, message))
    return f"got '{_given(error)}'; {next(rules, _lowered(message))}"


def _given(error: Any) -> str:
    """The value: Typer's newer versions keep it in pydantic's error, click's messages begin with it."""
    if callable(errors := getattr(error.__cause__, "errors", None)):
        return str(errors()[0]["input"])
    return str(error.message.partition(" is not ")[0].strip("'"))


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
