"""ms-swift: the arguments of ``swift sft``, as JSON, as YAML or as the line of a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malora_cli.errors import RecipeError
from malora_cli.importing import _data
from malora_cli.importing._base import Found, Ledger, Tool
from malora_cli.importing._data import Mixed, Places, Source, Task
from malora_cli.importing._files import read_keys
from malora_cli.importing._ms_swift_keys import KEYS, ROW_KEYS
from malora_cli.importing._trainer import DEFAULTS
from malora_cli.yaml_lines import Origin, read_yaml

_MODELSCOPE = "the id of ModelScope, looked up on Hugging Face; use_hf: true says that it is one of theirs"
_CALL = re.compile(r"\bswift\s+(\w+)")
_LINE_ENDS = re.compile(r"\\\r?\n")
_ITEM = re.compile(r"(?:(?:HF|MS)::)?(?P<path>.+?)(?::(?P<subset>[\w/.-]+))?(?:#(?P<count>\d+))?")
#: The names that its AutoPreprocessor looks for; of several for one thing none counts but the first.
_MESSAGES = ("messages", "conversation", "conversations")
_QUERY = ("query", "prompt", "input", "instruction", "question", "problem")
_RESPONSE: tuple[str, ...] = ("response", "answer", "output", "targets", "target", "answer_key", "answers", "solution")
_RESPONSE += ("text", "completion", "content")
_SYSTEM = ("system", "system_prompt")


def _items(found: Found, to: Ledger) -> list[str]:
    given = [found.value] if isinstance(found.value, str) else found.value
    if not isinstance(given, list) or not all(isinstance(one, str) and one.strip() for one in given):
        raise to.wrong(found.key, "must be a list of datasets")
    return given


def _mix(found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    if "datasets" not in found:
        raise to.wrong("dataset", "no dataset is named")
    if (used := found.get("use_hf")) is None or not used.value:
        _tell_of_modelscope(found, at, to)
    given = _items(found["datasets"], to)
    labels = _data.task_names([_ITEM.sub(r"\g<path>", one, count=1) for one in given])
    tasks = [
        _task(label, one, f"dataset[{number}]", found, at, to)
        for number, (label, one) in enumerate(zip(labels, given, strict=True))
    ]
    mixed = Mixed(tasks)
    if "system" in found:
        mixed.settings["system"] = _system(found["system"].value, at)
    if shares := found.get("shares"):
        if len(shares.value) != len(tasks):
            raise to.wrong(shares.key, "one for each dataset")
        _data.interleave(mixed, shares.value, found["ending"].value if "ending" in found else "first_exhausted")
        mixed.stop = None if "steps" in found else mixed.stop
    _validate(found, mixed, at, to)
    if "train.max_length" not in found:
        to.approximated("max_length (not given)", "train.max_length: 2048, not the longest that the model takes")
    return mixed


def _tell_of_modelscope(found: Mapping[str, Found], at: Places, to: Ledger) -> None:
    base = found.get("model.base")
    if base is not None and at.local(base.value) is None:
        to.approximated(base.key, f"model.base: {_MODELSCOPE}")


def _system(given: str, at: Places) -> str:
    """A system prompt, or the text of the file that holds it."""
    path = at.local(given) if given.endswith(".txt") else None
    try:
        return path.read_text(encoding="utf-8") if path else given.replace("\\n", "\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the system prompt cannot be read ({error})", where=str(path)) from None


def _validate(found: Mapping[str, Found], mixed: Mixed, at: Places, to: Ledger) -> None:
    others = found.get("val_datasets")
    if others is not None:
        listed = _items(others, to)
        if len(listed) == 1 and len(mixed.tasks) == 1:
            settings = _task("validation", listed[0], others.key, found, at, to).settings
            inside = {key: settings[key] for key in ("format", "columns") if key in settings}
            mixed.tasks[0].settings["validation"] = {**settings["train"], **inside}
        else:
            to.left_out(others.key, "whose rows they are is not said; name them as the validation of a task")
    elif "validation" in found:
        to.approximated(found["validation"].key, _data.keep_for_validation(mixed, found["validation"].value))


def _task(label: str, item: str, key: str, found: Mapping[str, Found], at: Places, to: Ledger) -> Task:
    """The task of ``path:subset#count``."""
    match = _ITEM.fullmatch(item.strip())
    if match is None:
        raise to.wrong(key, f"got '{item}'; a dataset is written as path:subset#count")
    path, subset = match["path"], match["subset"]
    source = at.source(path, key, config=subset)
    hub = "path" in source.settings and source.columns is None
    differs = f"tasks.train.path: {_MODELSCOPE}; taken for messages, since its columns were not looked at"
    (to.approximated if hub else to.carried)(key, differs if hub else "tasks.train.path")
    settings = _settings(source, key, found.get("columns", Found("", {})).value, to)
    settings["too_long"] = found["cut"].value if "cut" in found else "drop"
    settings["bad_rows"] = "error" if "strict" in found and found["strict"].value else "drop"
    if "supervise" in found and found["supervise"].value == "last" and settings["format"] == "messages":
        settings["supervise"] = "last"
    task = Task(label, settings, source.rows)
    if match["count"]:
        wanted = int(match["count"])
        differs = _data.limited(task, wanted) if wanted else ""
        (to.approximated if differs else to.carried)(f"{key}#{wanted}", differs or "all of its rows")
    return task


def _settings(source: Source, key: str, renamed: Mapping[str, Any], to: Ledger) -> dict[str, Any]:
    """The settings of a task, told from the names of columns as ms-swift's AutoPreprocessor tells them."""
    if source.columns is None:
        return _data.conversation(source, "messages")
    now = {str(renamed.get(column, column)).lower(): column for column in source.columns}
    system = _column(now, _SYSTEM)
    if messages := next((now[name] for name in _MESSAGES if name in now), None):
        return _chat(source, messages, now, system, key, to)
    answer = _column(now, ("output", *_RESPONSE) if "instruction" in now and "input" in now else _RESPONSE)
    asked = [now[name] for name in ("instruction", "input")] if {"instruction", "input"} <= set(now) else None
    asked = asked or [column for column in [_column(now, _QUERY)] if column]
    if not asked or answer is None:
        rule = f"its columns ({', '.join(source.columns)}) do not say which is the question and which the answer"
        raise to.wrong(key, rule, fix='Say so by columns, as in {"text1": "query", "text2": "response"}.')
    if past := now.get("history"):
        return _data.history(source, past, asked, answer, system)
    return _data.pair(source, _data.lines_of(asked), answer, system)


def _column(there: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The column of the first of some names, or of the only one that is there."""
    found = [there[name] for name in names if name in there]
    return there[names[0]] if names[0] in there else found[0] if len(found) == 1 else None


def _chat(
    source: Source, messages: str, now: Mapping[str, str], system: str | None, key: str, to: Ledger
) -> dict[str, Any]:
    first = source.first.get(messages)
    message = first[0] if isinstance(first, list) and first and isinstance(first[0], dict) else {}
    tools = now.get("tools")
    if not message or set(message) & {"role", "from"}:
        return _data.conversation(source, messages, system=system, tools=tools)
    asked, answered = (
        next((name for name in names if name in message), None)
        for names in (("user", "human"), ("assistant", "gpt", "bot"))
    )
    if asked is None or answered is None or list(message).index(asked) > list(message).index(answered):
        raise to.wrong(key, f"its messages ({', '.join(message)}) do not say who speaks")
    values = f"{_data.named_column(messages)} | map('items') | map('map', attribute=1) | map('list') | sum(start=[])"
    return _data.conversation(source, f"{{{{ {values} }}}}", system=system, tools=tools)


def _load(file: Path) -> dict[str, Any]:
    if file.suffix in (".json", ".yaml", ".yml"):
        return read_keys(file, "configuration of ms-swift")
    try:
        line = _LINE_ENDS.sub(" ", file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecipeError("file not found", where=str(file)) from None
    except UnicodeDecodeError:
        raise RecipeError("not UTF-8 text", where=str(file)) from None
    except OSError as error:
        raise RecipeError(f"cannot be read ({error.strerror})", where=str(file)) from None
    return _arguments(line, file) if _CALL.search(line) else read_keys(file, "configuration of ms-swift")


def _arguments(script: str, file: Path) -> dict[str, Any]:
    """The arguments of the first call of ``swift sft`` in a script, and the variables set for it."""
    line = next(line for line in script.splitlines() if _CALL.search(line) and not line.lstrip().startswith("#"))
    command = _CALL.search(line)
    assert command is not None
    if command[1] != "sft":
        rule = f"got swift {command[1]}; only supervised fine-tuning is imported, swift sft"
        raise RecipeError(rule, where=str(file))
    try:
        before, after = shlex.split(line[: command.start()]), shlex.split(line[command.end() :], comments=True)
    except ValueError as error:
        raise RecipeError(f"not the line of a shell: {error}", where=str(file)) from None
    given: dict[str, Any] = {
        name: _value(value) for name, sign, value in (one.partition("=") for one in before) if sign
    }
    name = ""
    for word in after:
        if word.startswith("--"):
            name, sign, value = word[2:].replace("-", "_").partition("=")
            given[name] = [value] if sign else []
        elif not name:
            raise RecipeError(f"got '{word}' before the first --argument", where=str(file))
        else:
            given[name].append(word)
    return {key: _one_or_all(value) if isinstance(value, list) else value for key, value in given.items()}


def _one_or_all(words: list[str]) -> Any:
    return True if not words else _value(words[0]) if len(words) == 1 else [_value(word) for word in words]


def _value(word: str) -> Any:
    """What a word of a shell means: a number, true or false, or text."""
    if word in ("None", "null") or word[:1] in "{[\"'&*!|>%@`#" or ":" in word or "#" in word:
        return None if word in ("None", "null") else word
    try:
        found = read_yaml(word, lambda _line: Origin("", Path())).data
    except Exception:
        return word
    return found if isinstance(found, bool | int | float) else word


TOOL = Tool(
    name="ms-swift",
    reads="the arguments of swift sft as JSON or YAML, or a script with the line itself",
    load=_load,
    keys=KEYS,
    row_keys=ROW_KEYS,
    defaults=DEFAULTS
    | {
        "rows": 1,
        "accumulate": None,
        "least": 16,
        "train.learning_rate": 1e-4,
        "train.schedule": "cosine",
        "train.weight_decay": 0.1,
        "rank": 8,
        "alpha": 32,
        "dropout": 0.05,
        "targets": ["all"],
        "train.max_length": 2048,
    },
    mix=_mix,
)
