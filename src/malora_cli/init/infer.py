"""What some rows are: their format, their columns, and how their answers are scored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from malora_cli.data.columns import RowReader
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import RowError
from malora_cli.data.rows import Rows
from malora_cli.data.sources import NAME_CONFIG, load_rows, splits_of
from malora_cli.data.typed import no_text
from malora_cli.errors import DataError
from malora_cli.recipe import SourceSettings

#: Rows that are looked at.
_ROWS = 1000
#: Rows that are held out, by their split, and what files of them are called; and how many of them are looked at.
_HELD_OUT = {"test": ("test", "eval"), "validation": ("validation", "valid", "val", "dev")}
_TEST_ROWS = 100
#: Names of columns, the usual ones first.
_PROMPTS = ("prompt", "question", "instruction", "query", "problem", "source", "input", "text", "sentence")
_ANSWERS = ("completion", "answer", "response", "output", "solution", "target", "label", "summary", "translation")
_CHOICES = ("choices", "options", "endings")
_CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")
#: Columns that change what a prompt means, so that one without them would be another task.
_CONTEXTS = ("context", "passage", "article", "document", "story", "paragraph", "schema", "table", "input")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")
#: How the worked answers of GSM8K and of what was made like it end.
_WORKED = re.compile(r".*####\s*" + _NUMBER.pattern, re.DOTALL)
#: Answers of so many words are compared as they are, longer ones by what they share.
_SHORT_WORDS = 6
#: Classes have many rows each, and are not many.
_ROWS_A_CLASS, _MOST_CLASSES = 8, 200
#: Characters of a token at least, so that no answer is cut off; what is allowed is a multiple.
_CHARACTERS, _MULTIPLE, _LONGEST = 2, 16, 512


@dataclass(frozen=True)
class Guess:
    """A task, as its rows suggest it.

    Args:
        name: Its name, from the file's.
        train: Where its rows are.
        held_out: Where ``test`` and ``validation`` rows are, beside them.
        format: Its prompt format.
        columns: The columns of the format's roles, where they are not of the same name.
        metric: How its answers are scored.
        max_new_tokens: Room for its longest answer.
        drop: Whether some of its rows are no examples, and are left out.
        reasons: Why, by the setting.
    """

    name: str
    train: SourceSettings
    held_out: Mapping[str, SourceSettings]
    format: str
    columns: Mapping[str, str]
    metric: str
    max_new_tokens: int
    drop: bool
    reasons: Mapping[str, str]


def guess_task(source: SourceSettings, name: str, prompt: str | None = None, completion: str | None = None) -> Guess:
    """What the rows of a file, a folder or a hub dataset are.

    Args:
        source: Where they are.
        name: Name of the task.
        prompt: The column of the question, where the user says so.
        completion: The column of the answer, likewise.

    Raises:
        DataError: It cannot be read, or its columns do not say what they are.
    """
    try:
        rows = _first_rows(source, _ROWS)
    except DataError as error:
        if error.fix == NAME_CONFIG:  # and no mix is there yet
            error.fix = f"Name one, as in {source.path}:CONFIG."
        raise
    _refuse_what_is_for_others(rows.columns, source.path)
    sample = _texts(rows)
    form, columns, why = _format_of(rows.columns, sample, source.path, prompt, completion)
    try:
        reader = RowReader(form, FORMATS[form], dict(columns), rows.columns, source.path)
    except DataError as error:
        if prompt is not None:  # a mix, in which the reader would have it mended, is not there yet
            error.fix = "Name it by --prompt or --completion."
        raise
    answers, bad = _answers_of(reader, sample)
    if not answers:
        raise DataError(f"none of its rows is an example of the format {form}: the first has {bad}", where=source.path)
    metric, because = _metric_of(form, answers)
    longest = max(map(len, answers))
    room = min(_LONGEST, -(-longest // _CHARACTERS // _MULTIPLE) * _MULTIPLE or _MULTIPLE)
    held_out, bad_tests = _held_out(source, form, columns)
    reasons = {
        "format": why,
        "metric": because,
        "max_new_tokens": f"the longest of {len(answers):,} answers has {longest:,} characters",
        **{role: _why(found) for role, found in held_out.items()},
    }
    if bad:
        reasons["bad_rows"] = f"{len(sample) - len(answers)} of the first {len(sample):,} rows; one has {bad}"
    elif bad_tests:
        reasons["bad_rows"] = f"some held-out rows are no examples; one has {bad_tests}"
    return Guess(name, source, held_out, form, columns, metric, room, bool(bad or bad_tests), reasons)


def _format_of(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]], where: str, prompt: str | None, completion: str | None
) -> tuple[str, dict[str, str], str]:
    """Format, columns and the reason."""
    if prompt is not None or completion is not None:
        return _as_told(where, prompt, completion)
    for column in columns:
        if column.lower() in _CONVERSATIONS and (keys := _keys_of(rows, column)):
            if {"role", "content"} <= keys:
                given = {} if column == "messages" else {"messages": column}
                return "messages", given, f"column {column} holds lists of role and content"
            if {"from", "value"} <= keys:
                given = {} if column == "conversations" else {"conversations": column}
                return "sharegpt", given, f"column {column} holds lists of from and value"
    if {"instruction", "output"} <= set(columns):
        return "alpaca", {}, "columns instruction and output, as Alpaca has them"
    questions, answers = _named(columns, _PROMPTS), _named(columns, _ANSWERS)
    options = [column for column in _named(columns, _CHOICES) if _holds_lists(rows, column)]
    if options and len(questions) == len(answers) == len(options) == 1:
        roles = {"question": questions[0], "choices": options[0], "answer": answers[0]}
        given = {role: column for role, column in roles.items() if role != column}
        return "multiple-choice", given, f"column {options[0]} holds lists, beside {questions[0]} and {answers[0]}"
    contexts = [column for column in _named(columns, _CONTEXTS) if column not in questions]
    if len(questions) == 1 and len(answers) == 1 and not contexts:
        roles = {"prompt": questions[0], "completion": answers[0]}
        given = {role: column for role, column in roles.items() if role != column}
        return "prompt-completion", given, f"columns {questions[0]} and {answers[0]}"
    raise DataError(
        f"its columns ({', '.join(columns)}) do not say which is the question and which the answer",
        where=where,
        fix='Say so: --prompt COLUMN --completion COLUMN, or a template: --prompt "{{ context }}\\n\\n{{ question }}".',
    )


def _refuse_what_is_for_others(columns: Sequence[str], where: str) -> None:
    names = {column.lower() for column in columns}
    if {"chosen", "rejected"} <= names:
        raise DataError(
            "these are pairs of a better and a worse answer, and malora trains on answers",
            where=where,
            fix="Use TRL's DPOTrainer, or say what is to be learned: --prompt COLUMN --completion chosen.",
        )
    if names & {"image", "images", "audio", "video"}:
        raise DataError(
            "it has pictures or sounds, and malora trains on text", where=where, fix="Take these columns out."
        )
    if names == {"text"}:
        fix = "Split them into questions and answers, or use TRL's SFTTrainer."
        raise DataError("these are plain texts without a question and an answer", where=where, fix=fix)


def _as_told(where: str, prompt: str | None, completion: str | None) -> tuple[str, dict[str, str], str]:
    if prompt is None or completion is None:
        missing = "--prompt" if prompt is None else "--completion"
        raise DataError("a question and an answer go together", where=where, fix=f"Add {missing} COLUMN.")
    roles = {"prompt": prompt, "completion": completion}
    given = {role: column for role, column in roles.items() if role != column}
    return "prompt-completion", given, "as you said"


def _named(columns: Sequence[str], names: Iterable[str]) -> list[str]:
    known = {column.lower(): column for column in columns}
    return [known[name] for name in names if name in known]


def _holds_lists(rows: Sequence[Mapping[str, Any]], column: str) -> bool:
    return all(isinstance(row.get(column), list | dict) for row in rows)


def _keys_of(rows: Sequence[Mapping[str, Any]], column: str) -> set[str]:
    """Keys that every message of a column has; none where it holds no lists of mappings."""
    keys: set[str] | None = None
    for row in rows:
        turns = row.get(column)
        if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
            return set()
        for turn in turns:
            has = {key for key, value in turn.items() if value is not None}
            keys = has if keys is None else keys & has
    return keys or set()


def _metric_of(form: str, answers: Sequence[str]) -> tuple[str, str]:
    """A metric and the reason."""
    if form == "multiple-choice":
        return "accuracy", "the choice whose text is most likely"
    if all(_NUMBER.fullmatch(answer.strip()) for answer in answers):
        return "last-number", "all answers are numbers"
    if all(_WORKED.fullmatch(answer.strip()) for answer in answers):
        return "last-number", "all answers end in #### and a number"
    longest = max(len(answer.split()) for answer in answers)
    classes = len(set(answers))
    if longest <= _SHORT_WORDS and classes <= min(_MOST_CLASSES, len(answers) // _ROWS_A_CLASS):
        return "label", f"{classes} different answers in {len(answers):,} rows"
    if longest <= _SHORT_WORDS:
        return "exact-match", f"answers of {longest} words at most"
    return "rouge-l", f"answers of up to {longest} words"


def _first_rows(source: SourceSettings, number: int) -> Rows:
    return load_rows(source.model_copy(update={"stream": number}), split="train")


def _texts(rows: Rows) -> list[dict[str, Any]]:
    """Rows without columns of pictures and sound, which would be decoded."""
    features = rows.dataset.features
    return list(rows.dataset.select_columns([name for name, kind in features.items() if no_text(kind) is None]))


def _answers_of(reader: RowReader, rows: Iterable[Mapping[str, Any]]) -> tuple[list[str], str]:
    """The answers of those that are examples, and what is wrong with the first that is none."""
    answers, bad = [], ""
    for row in rows:
        try:
            answers.append(reader(row).completion)
        except RowError as error:
            bad = bad or str(error)
    return answers, bad


def _held_out(source: SourceSettings, form: str, columns: Mapping[str, str]) -> tuple[dict[str, SourceSettings], str]:
    """The test and the validation rows that belong to some training rows, and what is wrong with one of them.

    Tests of the hub often keep their answers to themselves; then the validation rows are the test.
    """
    found, bad = dict[str, SourceSettings](), ""
    for role, held_out in _beside(source).items():
        rows = _first_rows(held_out, _TEST_ROWS)
        try:
            reader = RowReader(form, FORMATS[form], dict(columns), rows.columns, held_out.path)
        except DataError:  # it has other columns
            continue
        answers, wrong = _answers_of(reader, _texts(rows))
        if answers:
            found[role], bad = held_out, bad or wrong
    return {"test": found["validation"]} if found.keys() == {"validation"} else found, bad


def _why(held_out: SourceSettings) -> str:
    if held_out.split is None:
        return "it lies beside the training rows"
    return f"the split {held_out.split} has answers"


def _beside(source: SourceSettings) -> dict[str, SourceSettings]:
    """What may be held out: splits of the same dataset, or files beside one of training rows."""
    path = Path(source.path)
    if not path.is_file():
        splits = splits_of(source)
        return {role: source.model_copy(update={"split": role}) for role in _HELD_OUT if role in splits}
    if "train" not in path.name:
        return {}
    before, _, behind = path.name.rpartition("train")
    named = {role: [path.with_name(before + word + behind) for word in words] for role, words in _HELD_OUT.items()}
    first = {role: next((file for file in files if file.is_file()), None) for role, files in named.items()}
    return {role: SourceSettings(path=str(file)) for role, file in first.items() if file is not None}
