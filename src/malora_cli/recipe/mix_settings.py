"""The mix of a recipe: its tasks, where their rows come from, and how often each is drawn."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, SerializeAsAny, Tag, ValidationInfo, field_validator

from malora_cli.recipe.settings import Count, MetricSettings, Name, Settings, Text, metric_of_text
from malora_cli.registry import did_you_mean


def _column_kind(value: Any) -> str:
    return "[columns]" if isinstance(value, list | tuple) else "[column]"


#: A column, or several that make one list. The tags are for the union alone; messages leave them out.
Column = Annotated[
    Annotated[Text, Tag("[column]")] | Annotated[tuple[Text, ...], Field(min_length=1), Tag("[columns]")],
    Discriminator(_column_kind),
]
Columns = dict[Text, Column]
Weighting = Literal["proportional", "uniform", "temperature", "explicit"]
References = Literal["first", "all"]
LengthPolicy = Literal["error", "drop", "truncate_left", "truncate_right", "split"]


def _known_format(value: str | None, info: ValidationInfo) -> str | None:
    vocabulary = (info.context or {}).get("vocabulary")
    if vocabulary is not None and value is not None and value not in vocabulary.formats:
        raise ValueError(f"unknown format; {did_you_mean(value, vocabulary.formats)}")
    return value


class SourceSettings(Settings):
    """Where rows come from. In a recipe, plain text stands for ``path`` alone."""

    path: Text = Field(
        description="File, pattern such as data/*.jsonl, folder or hub id; relative to the file that names it, with "
        "environment variables as $NAME"
    )
    config: Text | None = Field(default=None, description="Configuration (subset) of a hub dataset")
    split: Text | None = Field(
        default=None,
        description="Split of a hub dataset or a folder, several as train+validation, a part as train[:10%]; null is "
        "the usual one",
    )
    revision: Text | None = Field(default=None, description="Branch, tag or commit of a hub dataset")
    stream: Count | None = Field(
        default=None,
        description="Take only so many rows, as they come, without fetching or keeping the rest; null is all rows",
    )
    records: Column | None = Field(
        default=None,
        description="Where the rows are inside a JSON file, as data.*.paragraphs.*.qas.*: names, positions and * for "
        "every item of a list or value of an object; a list at the end means its items. Fields of what they lie in "
        "are columns too, the nearest of each name, and _key is the name that a * stands for. A list of paths is of "
        "lists that lie side by side, each a column; null is one row after another",
    )
    where: Text | None = Field(
        default=None,
        description="Condition over the columns, in Jinja, of the rows to use, as label and not image, or "
        "score | float > 0.5: what a text file has between quotes, and all of a CSV, is text; null uses all",
    )
    encoding: Text | None = Field(
        default=None, description="Encoding of a text file, as latin-1, cp1252 or utf-16; null is UTF-8"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        default=None, description='What parts the fields of a CSV or TSV file, as ";"; null is a comma or a tab'
    )
    header: bool | None = Field(
        default=None,
        description="Whether the first line of a CSV or TSV file names its columns; false names them by their "
        "positions, from 0; null is true",
    )
    quotes: bool | None = Field(
        default=None,
        description='Whether "..." is one field of a CSV or TSV file; false takes quotes as text. Null is true, and '
        "refuses a field of a TSV file that goes over lines with tabs",
    )
    columns: Columns | None = Field(default=None, description="Columns of this source, where they are not the task's")
    format: Text | None = Field(default=None, description="Prompt format of this source, where it is not the task's")

    _known = field_validator("format")(_known_format)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        try:
            "".encode(encoding or "utf-8")
        except LookupError:
            raise ValueError("unknown encoding; examples are latin-1, cp1252, utf-16, gb18030, shift-jis") from None
        return encoding

    @field_validator("delimiter")
    @classmethod
    def _parting(cls, delimiter: str | None) -> str | None:
        if delimiter is not None and delimiter in '\r\n"':
            raise ValueError("it cannot be the end of a line or a quote")
        return delimiter

    @field_validator("records")
    @classmethod
    def _whole_paths(cls, records: Column | None) -> Column | None:
        paths = [records] if isinstance(records, str) else records or ()
        if any(not part for path in paths for part in path.split(".")):
            raise ValueError("a path has an empty part; parts are names, positions or *, with a dot between two")
        columns = [[part for part in path.split(".") if part != "*"][-1:] for path in paths]
        if any(columns.count(column) > 1 for column in columns):
            raise ValueError("two paths end in one name, and each becomes a column of its last name")
        return records


class HoldoutSettings(Settings):
    """Test rows taken out of the training rows, the same ones for every run of the mix's seed."""

    rows: Count | None = Field(default=None, description="Rows to hold out; this or share")
    share: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, validate_default=True, description="Share of the rows to hold out; this or rows"
    )
    stratify: Text | None = Field(
        default=None, description="Column whose values keep their proportions; null holds out whichever rows"
    )
    group: Text | None = Field(
        default=None,
        description="Column whose equal values stay together, such as that of the prompt: whole groups are held out, "
        "as many rows as asked for at most; null parts any two rows",
    )

    @field_validator("share")
    @classmethod
    def _one_size(cls, share: float | None, info: ValidationInfo) -> float | None:
        if "rows" in info.data and (info.data["rows"] is None) == (share is None):
            raise ValueError("exactly one of rows and share must be set")
        return share

    @field_validator("group")
    @classmethod
    def _whole_groups(cls, group: str | None, info: ValidationInfo) -> str | None:
        if group is not None and info.data.get("stratify") is not None:
            raise ValueError("one of stratify and group may be set: whole groups keep no proportions")
        return group


class ValidationSettings(Settings):
    """Training rows that are kept out of training to measure and choose by, so that test rows stay unseen.

    They are the same ones for every run of the mix's seed: which they are is decided by a hash of each row's prompt.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05, description="Share of each task's prompts, each with all of its rows"
    )
    rows: Count = Field(default=200, description="Rows of each task at most")


class TaskSettings(Settings):
    """One task: its rows, how they become text, how often they are drawn, and how answers are scored."""

    domain: Text = Field(
        default="", description="Domain whose average this task counts towards; left out, it is the task's name"
    )
    train: SourceSettings = Field(description="Rows to train on")
    test: SourceSettings | None = Field(
        default=None, description="Held-out rows, which `malora eval` alone scores; this or holdout"
    )
    validation: SourceSettings | None = Field(
        default=None,
        description="Rows to measure and choose by while training; null takes them out of the training rows, as the "
        "mix's validation says",
    )
    holdout: HoldoutSettings | None = Field(
        default=None,
        description="Training rows to evaluate on instead of training; this or test. With neither, 5% are held out, at "
        "most 200",
    )
    columns: Columns = Field(
        default_factory=dict,
        description="What of the data each role of the format is: a column, a field or position within one (a.b, "
        "a.0.b), a Jinja template over columns ('{{ a }}: {{ row[\"b c\"] | trim }}'), or a list of these; a role left "
        "out is a column of the same name",
    )
    format: Text = Field(description="Prompt format")
    metric: SerializeAsAny[MetricSettings] = Field(
        description="Metric of the answers; plain text stands for its name alone, or as evaluate:PATH for a module "
        "of your own, and a mapping gives options beside it"
    )
    speakers: dict[Text, Literal["system", "user", "assistant", "tool"]] = Field(
        default_factory=dict,
        description="Roles of names in messages that are not usual ones, as in {agent: assistant}; where a "
        'conversation is one text, what its turns begin with, as in {"Human:": user, "Assistant:": assistant}',
    )
    supervise: Literal["all", "last"] = Field(
        default="all", description="Which answers of a conversation are trained: all of them, or the last alone"
    )
    references: References | None = Field(
        default=None,
        description="Which of several right answers of a row are trained: the first, or all, each as a row of its own; "
        "null is the first, and says of which rows. Any of them is right where answers are scored",
    )
    system: str | None = Field(
        default=None, description="System prompt; empty text is an empty one, null takes the mix's"
    )
    weight: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="Share of the training relative to other tasks; only with explicit weighting. A task of 0 is "
        "measured and not trained",
    )
    loss_weight: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="Weight of its loss in the gradient; how often it is drawn is another matter"
    )
    max_rows: Count | None = Field(
        default=None, description="Training rows at most, chosen at random by the mix's seed; null is all of them"
    )
    repeats: Count = Field(
        default=1, description="Passes over its rows after which this task counts as exhausted, and its size as often"
    )
    too_long: LengthPolicy = Field(
        default="drop",
        description="What becomes of training rows over train.max_length; validation and test rows are never cut, only "
        "left out",
    )
    bad_rows: Literal["error", "drop"] = Field(
        default="error", description="What becomes of rows that are not an example, such as one without an answer"
    )
    max_new_tokens: Count = Field(default=64, description="Longest answer to generate, in tokens")

    _known = field_validator("format")(_known_format)

    @field_validator("metric", mode="before")
    @classmethod
    def _with_its_options(cls, given: Any, info: ValidationInfo) -> Any:
        """The settings of the metric that is named, which are those that its own file declares."""
        vocabulary = (info.context or {}).get("vocabulary")
        given = metric_of_text(given) if isinstance(given, str) else given
        name = given.get("name") if isinstance(given, dict) else None
        if vocabulary is None or not isinstance(name, str) or name not in vocabulary.metrics:
            return given
        return vocabulary.metrics[name].model_validate_json(json.dumps(given), strict=True, context=info.context)

    @field_validator("holdout")
    @classmethod
    def _one_test(cls, holdout: HoldoutSettings | None, info: ValidationInfo) -> HoldoutSettings | None:
        if holdout is not None and info.data.get("test") is not None:
            raise ValueError("one of test and holdout may be given, and test is there too")
        return holdout


class MixSettings(Settings):
    """The tasks and how often each is drawn."""

    description: str | None = Field(default=None, description="What this mix is for, in one line")
    weighting: Weighting = Field(
        default="uniform",
        description="How often tasks are drawn: by size, equally, by size to the power of 1 / temperature, or by the "
        "weight each task then has",
    )
    temperature: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        validate_default=True,
        description="1 is proportional, the higher the nearer to uniform; only with temperature weighting",
    )
    unit: Literal["examples", "label_tokens"] = Field(
        default="examples", description="What sizes, weights and shares count: examples or supervised tokens"
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**32,
        description="Seed of held-out and validation rows, of max_rows and of the rows that are chosen where not all "
        "are used",
    )
    validation: ValidationSettings | None = Field(
        default_factory=ValidationSettings,
        description="Rows of every task that training does not see and that its evaluations measure, "
        "where the task names none of its own; null keeps none, and then nothing can be chosen by them",
    )
    system: str | None = Field(
        default=None, description="System prompt of tasks without their own; null is the chat template's default"
    )
    tasks: dict[Name, TaskSettings] = Field(min_length=1, description="Every task under its name")

    @property
    def code(self) -> list[str]:
        """Files of Python code that its metrics run."""
        return list(dict.fromkeys(task.metric.code for task in self.tasks.values() if task.metric.code is not None))

    @field_validator("temperature")
    @classmethod
    def _heated(cls, temperature: float | None, info: ValidationInfo) -> float | None:
        weighting = info.data.get("weighting")
        if weighting == "temperature" and temperature is None:
            raise ValueError("temperature weighting needs a temperature")
        if weighting is not None and weighting != "temperature" and temperature is not None:
            raise ValueError(f"a temperature goes with 'weighting: temperature', not '{weighting}'")
        return temperature

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        seen: dict[str, str] = {}
        for name in tasks:
            other = seen.setdefault(name.casefold(), name)
            if other != name:
                raise ValueError(f"'{other}' and '{name}' are one file name where case does not count; rename one")
        return tasks

    @field_validator("tasks")
    @classmethod
    def _in_a_domain(cls, tasks: dict[str, TaskSettings]) -> dict[str, TaskSettings]:
        return {name: task if task.domain else task.model_copy(update={"domain": name}) for name, task in tasks.items()}

    @field_validator("tasks")
    @classmethod
    def _weighted(cls, tasks: dict[str, TaskSettings], info: ValidationInfo) -> dict[str, TaskSettings]:
        explicit = info.data.get("weighting") == "explicit"
        wrong = ", ".join(f"'{name}'" for name, task in tasks.items() if (task.weight is None) == explicit)
        if wrong and explicit:
            raise ValueError(f"explicit weighting needs a weight for every task; missing for {wrong}")
        if explicit and tasks and not any(task.weight for task in tasks.values()):
            raise ValueError("every task has weight 0, so nothing would be trained")
        if wrong and "weighting" in info.data:
            weighting = info.data["weighting"]
            raise ValueError(f"weights go with 'weighting: explicit', not '{weighting}'; given for {wrong}")
        return tasks
