"""axolotl: its YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from malora_cli.importing import _data
from malora_cli.importing import _readers as read
from malora_cli.importing._axolotl_keys import KEYS, ROW_KEYS, USER_DEFINED
from malora_cli.importing._base import Found, Ledger, Tool
from malora_cli.importing._data import Mixed, Places, Source, Task
from malora_cli.importing._files import read_keys
from malora_cli.importing._trainer import DEFAULTS

_OWN_PROMPT = "tasks.format: prompts go through the chat template, without the words that axolotl puts around them"
#: Columns of question, input, answer and system prompt, by type.
_TYPES: dict[str, tuple[str, str | None, str, str | None]] = {
    "alpaca": ("instruction", "input", "output", None),
    "alpaca_chat.load": ("instruction", "input", "output", None),
    "alpaca_instruct.load": ("instruction", "input", "output", None),
    "alpaca_chat.load_qa": ("question", None, "answer", None),
    "gpteacher": ("instruction", "input", "response", None),
    "alpaca_w_system.load": ("instruction", "input", "output", "system"),
    "alpaca_w_system.load_chat": ("instruction", "input", "output", "system"),
    "alpaca_w_system.load_instruct": ("instruction", "input", "output", "system"),
    "alpaca_w_system.load_open_orca": ("question", None, "response", "system_prompt"),
    "alpaca_w_system.load_open_orca_chatml": ("question", None, "response", "system_prompt"),
}
_CHATS = ("chat_template", "sharegpt")


def _mix(found: Mapping[str, Found], at: Places, to: Ledger) -> Mixed:
    if "datasets" not in found:
        raise to.wrong("datasets", "names no rows")
    given = found["datasets"]
    labels = _data.labels(given.value)
    said = [to.read(_flat(one), ROW_KEYS, f"{given.key}[{number}].") for number, one in enumerate(given.value)]
    mixed = Mixed([_task(label, one, at, to, given.key) for label, one in zip(labels, said, strict=True)])
    for task in mixed.tasks:
        task.settings["too_long"] = found["cut"].value if "cut" in found else "drop"
    if "system" in found:
        mixed.settings["system"] = found["system"].value
    _weigh(mixed, said, to)
    if "test_datasets" in found:
        _validate_on(found["test_datasets"], mixed, at, to)
    elif "validation" in found:
        to.approximated(found["validation"].key, _data.keep_for_validation(mixed, found["validation"].value))
    return mixed


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a dataset, those of a type of the user's own with what they stand in."""
    kind = entry.get("type")
    if not isinstance(kind, dict):
        return dict(entry)
    return {**entry, "type": "user-defined", **{f"type.{key}": value for key, value in kind.items()}}


def _weigh(mixed: Mixed, said: list[dict[str, Found]], to: Ledger) -> None:
    """Draw datasets by their weights, where all have one."""
    weights = [one["weight"] for one in said if "weight" in one]
    if len(weights) == len(mixed.tasks) > 1:
        mixed.settings["weighting"] = "explicit"
        for task, weight in zip(mixed.tasks, weights, strict=True):
            task.settings["weight"] = weight.value
    else:
        for weight in weights:
            to.left_out(weight.key, "shares are relative, so every dataset has to have one")


def _task(label: str, said: Mapping[str, Found], at: Places, to: Ledger, where: str) -> Task:
    one = {name: value.value for name, value in said.items()}
    if "path" not in one:
        raise to.wrong(where, "a dataset has no path")
    key = said["path"].key
    path = _data.files_given(one["path"], one.get("data_files"), lambda rule: to.wrong(f"{key} and data_files", rule))
    more = {"config": one.get("name"), "split": one.get("split", "train"), "revision": one.get("revision")}
    source = at.source(path, key, **more)
    task = Task(label, _settings(source, one, said, to, where), source.rows)
    if "shards" in one and task.rows is not None:
        _data.limited(task, max(1, task.rows // one["shards"]))
    elif "shards" in one:
        to.left_out(said["shards"].key, "how many rows there are is not known here; set tasks.max_rows")
    return task


def _settings(
    source: Source, one: Mapping[str, Any], said: Mapping[str, Found], to: Ledger, where: str
) -> dict[str, Any]:
    kind = one.get("type")
    if not isinstance(kind, str):
        raise to.wrong(where, "a dataset has no type, so its rows are tokens already", fix="Name the text they are of.")
    if kind == "user-defined":
        return _own(source, one, to, said["type"].key)
    plain = kind.partition(":")[0]
    if plain.startswith(_CHATS):
        return _chat(source, one, said, to, "conversations" if plain.startswith("sharegpt") else "messages")
    if plain not in _TYPES:
        rule = f"got '{kind}'; known are {', '.join((*_CHATS, *_TYPES))} and a mapping of fields"
        raise to.wrong(said["type"].key, rule)
    to.approximated(said["type"].key, _OWN_PROMPT)
    question, more, answer, system = _TYPES[plain]
    asked = [question, *([more] if more and source.has(more) else [])]
    return _data.pair(source, _data.lines_of(asked, "\\n\\n"), answer, system)


def _own(source: Source, one: Mapping[str, Any], to: Ledger, key: str) -> dict[str, Any]:
    """The settings of a type that the file spells out."""
    fields = {name: one.get(f"type.{name}") for name in USER_DEFINED.split()}
    question, more, answer = fields["field_instruction"], fields["field_input"], fields["field_output"]
    if question is None or answer is None:
        raise to.wrong(key, "names no field_instruction or no field_output")
    more = more if more and source.has(more) else None
    asked = _data.lines_of([question, *([more] if more else [])])
    if wording := fields["format"]:
        asked = _worded(wording, fields["no_input_format"], question, more)
        to.approximated(f"{key}.format", "tasks.columns: its words stand inside the user's turn of the chat template")
    if fields["system_format"]:
        to.approximated(f"{key}.system_format", "the chat template writes the system prompt")
    settings = _data.pair(source, asked, answer, fields["field_system"])
    prompt = fields["system_prompt"]
    return settings | ({"system": prompt} if prompt and not fields["field_system"] else {})


def _worded(wording: str, without: str | None, question: str, more: str | None) -> str:
    """A format of axolotl as a template."""

    def filled(text: str) -> str:
        text = text.replace("{instruction}", f"{{{{ {_data.named_column(question)} }}}}")
        return text.replace("{input}", f"{{{{ {_data.named_column(more)} }}}}" if more else "")

    if more is None or without is None:
        return filled(wording if more or without is None else without)
    return f"{{% if {_data.named_column(more)} %}}{filled(wording)}{{% else %}}{filled(without)}{{% endif %}}"


def _chat(
    source: Source, one: Mapping[str, Any], said: Mapping[str, Found], to: Ledger, messages: str
) -> dict[str, Any]:
    """The settings of a task of conversations."""
    keys = one.get("message_property_mappings", {})
    role, content = (
        one.get(f"message_field_{name}") or (keys.get(name) if isinstance(keys.get(name), str) else None)
        for name in ("role", "content")
    )
    columns = {
        name: one.get(f"field_{name}") or (name if source.columns is not None and source.has(name) else None)
        for name in ("system", "tools")
    }
    speakers = _speakers(one.get("roles", {}), said, to)
    return _data.conversation(
        source, one.get("field_messages", messages), role=role, content=content, speakers=speakers, **columns
    )


def _speakers(roles: Mapping[str, Any], said: Mapping[str, Found], to: Ledger) -> dict[str, str]:
    """Who speaks under which name, from the names of each role."""
    speakers: dict[str, str] = {}
    for role, given in roles.items():
        try:
            listed, _ = read.names(given), read.one_of(dict.fromkeys(("system", "user", "assistant", "tool")))(role)
        except ValueError as error:
            raise to.wrong(f"{said['roles'].key}.{role}", str(error)) from None
        speakers |= dict.fromkeys(listed, role)
    return speakers


def _validate_on(given: Found, mixed: Mixed, at: Places, to: Ledger) -> None:
    """Measure the validation loss on rows of their own, where it is plain whose they are."""
    if len(given.value) != 1 or len(mixed.tasks) != 1:
        to.left_out(given.key, "whose rows they are is not said; name them as the validation of a task")
        return
    own = mixed.tasks[0].settings
    said = to.read(_flat(given.value[0]), ROW_KEYS, f"{given.key}[0].")
    other = _task("validation", said, at, to, given.key).settings
    own["validation"] = {**other["train"], **{key: other[key] for key in ("format", "columns") if key in other}}


def _load(file: Path) -> dict[str, Any]:
    return read_keys(file, "configuration of axolotl")


TOOL = Tool(
    name="axolotl",
    reads="its YAML file",
    load=_load,
    keys=KEYS,
    row_keys=ROW_KEYS,
    defaults=DEFAULTS
    | {
        "epochs": 1,
        "rows": 1,
        "train.schedule": "cosine",
        "warmup": 0.03,
        "adapter": False,
        "dropout": 0,
        "train.max_length": 512,
    },
    mix=_mix,
)
