"""Write the pages of `docs/reference/` from the code: `python docs/generate.py`."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from malora_cli.adapters.methods import METHODS
from malora_cli.cli import _application
from malora_cli.evals.metrics import METRICS
from malora_cli.named import vocabulary
from malora_cli.recipe import recipe_schema
from malora_cli.results import comparison, evaluation, manifest, run
from malora_cli.results import metrics as log

Schema = dict[str, Any]

#: The mistakes whose lines are tested, and what `--json` prints.
MISTAKES, JSON_OUTPUT = (Path(__file__).parents[1] / "tests" / name for name in ("mistakes.yaml", "json_output.yaml"))

#: Sections of a recipe and what lies in them, by the heading that each gets: the name of its schema.
SECTIONS = {
    "model": "ModelSettings",
    "mix": "MixSettings",
    "mix.tasks.NAME": "TaskSettings",
    "Sources: train, test, validation": "SourceSettings",
    "mix.tasks.NAME.holdout": "HoldoutSettings",
    "mix.validation": "ValidationSettings",
    "train": "TrainSettings",
    "remedies": "RemediesSettings",
    "eval": "EvalSettings",
    "output": "OutputSettings",
}
#: What a setting that has a section or a page of its own is called in a table.
CALLED = {
    "SourceSettings": "a [source](#sources-train-test-validation)",
    "HoldoutSettings": "a [holdout](#mixtasksnameholdout)",
    "ValidationSettings": "[validation rows](#mixvalidation)",
    "TaskSettings": "a [task](#mixtasksname)",
    "metric": "a [metric](metrics.md)'s name, or a mapping of it and its options",
}
_PLAIN = {"boolean": "true or false", "null": "null", "object": "mapping", "string": "text"}
_NUMBER = {"integer": "whole number", "number": "number"}
_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def pages() -> dict[str, str]:
    """Every generated page by its file's name."""
    made = {
        "recipe.md": _recipe(),
        "commands.md": _commands(),
        "methods.md": _methods(),
        "metrics.md": _metrics(),
        "run-folder.md": _run_folder(),
        "json.md": _json(),
        "errors.md": _errors(),
    }
    return {name: "\n".join([*lines, ""]) for name, lines in made.items()}


def _recipe() -> Iterator[str]:
    schema = recipe_schema(vocabulary())
    definitions: Schema = schema["$defs"]
    yield from _heading(1, "Every setting of a recipe")
    yield "`malora recipes schema` prints the same as a JSON Schema, with which an editor completes and checks recipes."
    yield "The [method](methods.md)'s settings and the options of"
    yield "[metrics](metrics.md) have pages of their own; [data.md](../data.md) explains mixes."
    for title, name in SECTIONS.items():
        yield from _heading(2, title)
        yield _text(_sentence(schema["properties"].get(title, definitions[name])["description"]))
        yield from _settings(definitions[name], definitions)
    for name, remedy in definitions["RemediesSettings"]["properties"].items():
        kind = remedy["anyOf"][0]["$ref"].rpartition("/")[2]
        if definitions[kind]["properties"]:
            yield from _heading(3, f"remedies.{name}")
            yield from _settings(definitions[kind], definitions)[1:]


def _methods() -> Iterator[str]:
    yield from _heading(1, "Methods")
    yield "What `method.name` may be, with formula, source and settings; `malora methods` prints the same."
    yield "[Choosing a method](../choosing-a-method.md) says what is known of which to take."
    for name, method in METHODS.items():
        yield from _heading(2, name)
        yield _sentence(method.model_fields["name"].description or name)
        yield from ["", *_doc(method)]
        yield from _settings_of(method)


def _metrics() -> Iterator[str]:
    yield from _heading(1, "Metrics")
    yield "What a task's `metric` may be, with its options. [scores.md](../scores.md) says what each counts."
    for name, metric in METRICS.items():
        yield from _heading(2, name)
        yield from _doc(metric)
        wanted = [f"needs the columns {_listed(metric.needs)}"] if metric.needs else []
        wanted += [f"uses {_listed(metric.wants)} where `columns` name them"] if metric.wants else []
        yield from ["", _sentence("; ".join([f"kind: {metric.kind}", *wanted]))]
        yield from _settings_of(metric)


def _run_folder() -> Iterator[str]:
    yield from _heading(1, "Files of a run")
    layout = (run.__doc__ or "").split("\n\n")[1].rstrip().splitlines()
    width = max(len(line.split()[0]) for line in layout) + 2
    lines = (re.sub(r" \(see \w+\.py\)", "", line).split(maxsplit=1) for line in layout)
    yield from ["```text", *(f"{name.ljust(width)}{what}" for name, what in lines), "```"]
    tables: dict[str, type[BaseModel]] = {
        "manifest.json": manifest.Manifest,
        "manifest.json: train_data, validation_data, test_data": manifest.TaskData,
        "metrics.jsonl: a log step": log.TrainEvent,
        "metrics.jsonl: an evaluation": log.EvalEvent,
        "metrics.jsonl: a comparison of gradients": log.ConflictEvent,
        "metrics.jsonl: tasks": log.TaskLoss,
        "eval/NAME.json": evaluation.EvalResult,
        "eval/NAME.json: tasks": evaluation.TaskEval,
        "eval/NAME.json: model, against": evaluation.Scores,
        "eval/NAME.json: difference": evaluation.Difference,
    }
    yield from _records(tables)


def _records(tables: dict[str, type[BaseModel]]) -> Iterator[str]:
    """A table of the fields of each record, by its heading."""
    for title, record in tables.items():
        yield from _heading(2, title)
        yield from _doc(record)
        yield from _settings_of(record)


def _json() -> Iterator[str]:
    yield from _heading(1, "JSON output")
    yield "With `--json` a command prints one JSON document on standard output, and everything else on standard error."
    yield "Each document has `schema`, 1, beside what is listed here. Keys may be added; what is here keeps its meaning"
    yield "as long as `schema` is 1. `NAME` stands for any name, `[]` for each part of a list, and `.*` for what lies"
    yield "below. `malora eval --json` prints its [eval/NAME.json](run-folder.md) and a comparison its comparison.json,"
    yield "which is described last. `malora bench --json FILE` writes its figures to a file."
    file = yaml.load(JSON_OUTPUT.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    missing = dict.fromkeys(file["sometimes"], " (may be missing)")
    for command, keys in file["documents"].items():
        yield from _heading(2, command)
        rows = ((f"`{key}`", _text(what + missing.get(key, ""))) for key, what in keys.items())
        yield from list(_table(("key", "what it is"), rows))[1:]
    yield from _records(
        {
            "comparison.json": comparison.Comparison,
            "comparison.json: methods": comparison.MethodResult,
            "comparison.json: runs": comparison.MethodRun,
            "comparison.json: effect, tasks, alone": comparison.Effect,
            "comparison.json: tuned": comparison.Tuned,
            "comparison.json: trials": comparison.Trial,
            "comparison.json: failures": comparison.Failure,
        }
    )


def _commands() -> Iterator[str]:
    yield from _heading(1, "Commands")
    yield "What `malora COMMAND --help` says."
    root = typer.main.get_command(_application())
    yield from _command(root, root.make_context("malora", [], resilient_parsing=True))


def _command(command: Any, context: Any) -> Iterator[str]:
    """A command and all below it."""
    yield from _heading(2, context.command_path)
    parts = re.split(r"\n\s*\n", inspect.cleandoc(command.help or ""))
    for part in parts:
        example = part.removeprefix("Example: ")
        yield from [*(["```", example, "```"] if example != part else [_text(" ".join(part.split()))]), ""]
    yield from ["```text", context.command.get_usage(context).removeprefix("Usage: "), "```"]
    records = (parameter.get_help_record(context) for parameter in command.params)
    yield from _table(
        ("", "what it does"), ((f"`{_bare(names)}`", _text(what)) for names, what in filter(None, records))
    )
    for name, inner in getattr(command, "commands", {}).items():
        yield from _command(inner, inner.make_context(name, [], parent=context, resilient_parsing=True))


def _bare(names: str) -> str:
    """An argument without the Python type that Typer puts behind it."""
    return re.sub(r" <(path|str|list\[\w+\])>$", "", names)


def _errors() -> Iterator[str]:
    file = yaml.load(MISTAKES.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    yield from _heading(1, "Errors")
    yield "What people get wrong, and the line that `malora` answers with on standard error. Search this page for"
    yield "the words of yours. A line says where something is wrong, what stands there, what the rule is and what to"
    yield "do; `…` stands for your folder here. The exit code is 2 for what you can mend, and nothing has been written"
    yield "then. With `--debug` in front of the command, malora also shows where in the program it was found."
    for area, title in file["areas"].items():
        yield from _heading(2, title)
        for number, mistake in enumerate(it for it in file["mistakes"] if it["area"] == area):
            yield from [""] * (number > 0)
            yield f"{mistake['did']}:"
            yield from ["", "```text", *_given(mistake), f"$ {mistake['run']}", *mistake["says"], "```"]
            if "do" in mistake:
                yield from ["", mistake["do"]]


def _given(mistake: dict[str, Any]) -> Iterator[str]:
    """The lines of files that make the mistake, where they are few."""
    for name, changes in mistake.get("edit", {}).items():
        for old, new in changes.items():
            yield from (f"# {name}: {line.strip()}" for line in new.splitlines() if line not in old.splitlines())
    for name, content in mistake.get("write", {}).items():
        lines = content.splitlines() if isinstance(content, str) else []
        yield from (f"# {name}: {line}" for line in lines[:3])


def _settings_of(settings: type[BaseModel]) -> list[str]:
    schema = settings.model_json_schema()
    return _settings(schema, schema.get("$defs", {}))


def _settings(schema: Schema, definitions: Schema) -> list[str]:
    """A table of a section's settings, or of a record's fields."""
    required = schema.get("required", ())
    rows = [
        (
            f"`{name}`",
            CALLED.get(name) or _kind(it, definitions),
            "required" if name in required else _default(it),
            _text(it.get("description", "")),
        )
        for name, it in schema["properties"].items()
        if name != "name" or "const" not in it  # which a page of its own has as its heading
    ]
    return list(_table(("name", "type", "default", "what it is"), rows))


def _kind(schema: Schema, definitions: Schema) -> str:
    """The type of a setting in words."""
    if ways := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_kind(way, definitions) for way in ways))
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return CALLED[name] if name in CALLED else _kind(definitions[name], definitions)
    if "enum" in schema:
        return _listed(schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_kind(schema['items'], definitions)}" if "items" in schema else "list"
    if isinstance(inner := schema.get("additionalProperties"), dict):
        return f"mapping of names to {_kind(inner, definitions)}"
    if kind in _NUMBER:
        bounds = [f"{word} {schema[key]:,}" for key, word in _BOUNDS.items() if key in schema]
        return " ".join([_NUMBER[kind], " and ".join(bounds)]).strip()
    return _PLAIN[kind]


def _default(schema: Schema) -> str:
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def _heading(level: int, title: str) -> list[str]:
    return [*([""] if level > 1 else []), f"{'#' * level} {title}", ""]


def _table(headings: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    """A Markdown table behind an empty line; nothing where there are no rows."""
    lines = [" | ".join(cell.replace("|", r"\|") for cell in row) for row in rows]
    headings = list(headings)
    if lines:
        head = (" | ".join(headings), " | ".join(["---"] * len(headings)))
        yield from ["", *(f"| {line} |" for line in (*head, *lines))]


def _doc(thing: Any) -> list[str]:
    return [_text(line) for line in (inspect.getdoc(thing) or "").splitlines()]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:].rstrip('.')}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _text(text: str) -> str:
    """Plain text as Markdown, with what stands in backticks left as it is."""
    parts = re.split(r"(`[^`]*`)", text.replace("``", "`"))
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)


if __name__ == "__main__":
    folder = Path(__file__).parent / "reference"
    for name, page in pages().items():
        (folder / name).write_text(page, encoding="utf-8")
        sys.stdout.write(f"{folder / name}\n")
