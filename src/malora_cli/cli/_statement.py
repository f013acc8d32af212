"""What ``malora check`` and the head of ``malora train`` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.text import Text

from malora_cli.characters import plural
from malora_cli.cli._terminal import SafeConsole, plain_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from malora_cli.data.statement import Statement
    from malora_cli.recipe import LoadedRecipe, ModelSettings
    from malora_cli.results import NotedRows
    from malora_cli.train.probe import StepCost

_GIB = 2**30
_SHOWN = 700


def print_statement(statement: Statement, console: SafeConsole) -> None:
    """Print what every task brings, what it gets, what is not used of it and what training gives away."""
    from malora_cli.data.overlap import RUN

    mixture = plain_table(
        ("task", "domain"),
        ("rows", "input tokens", "label tokens", "tokens", "passes", "of rows", "of label tokens"),
        title=f"Mixture: {plural(statement.steps, 'step')} of {plural(statement.batch_size, 'row')}",
    )
    rows = plain_table(
        ("task",),
        (
            "read",
            "tokens at most",
            "cut",
            "left out",
            "validation",
            "test",
            "test in training",
            f"test sharing {RUN} words",
        ),
        title="\nRows of each split; training rows that were cut or left out; test rows that training gives away",
    )
    for entry in console.start(statement.tasks):
        task, train = entry.task, entry.task.train
        mixture.add_row(
            Text(task.name),
            Text(task.settings.domain),
            f"{len(train):,}",
            f"{entry.input_tokens:,}",
            f"{train.label_tokens:,}",
            f"{train.tokens:,}",
            f"{entry.passes:.2f}",
            f"{entry.share:.1%}",
            f"{entry.label_share:.1%}",
        )
        left_out = sum(unused.rows for unused in train.unused)
        rows.add_row(
            Text(task.name),
            f"{train.read:,}",
            f"{train.longest:,}",
            f"{train.cut / train.read:.1%}",
            f"{left_out / train.read:.1%}",
            f"{len(task.validation):,}",
            f"{len(task.test):,}",
            f"{task.overlap.exact:,}",
            f"{task.overlap.runs:,}",
        )
    console.print_table(mixture)
    console.print_table(rows)
    console.tell_left_out(len(statement.tasks), "tasks")
    lines = [*_row_notes(statement), *_column_notes(statement), *_usual_tests(statement)]
    for line in console.start(lines):
        console.print(Text(line), soft_wrap=True)
    console.tell_left_out(len(lines), "lines on rows and columns")
    console.print(Text("\n" + _packing(statement)), soft_wrap=True)


def plain_statement(
    statement: Statement,
    cost: StepCost | None,
    model: ModelSettings,
    examples: Mapping[str, list[tuple[str, bool]]],
) -> dict[str, Any]:
    """All of it as plain data, for ``malora check --json``; seconds, bytes, and shares from 0 to 1.

    Args:
        statement: What tasks bring and get.
        cost: What the longest step took, where it was measured.
        model: Settings of the base model, in the number format that it has here.
        examples: The first row of each task in parts, and whether each is supervised.
    """
    from malora_cli.modeling.device import own_device

    return {
        "dtype": model.dtype,
        "quantise": model.quantise,
        "device": own_device(model.device).type,
        "tasks": [
            {
                "name": entry.task.name,
                "domain": entry.task.settings.domain,
                "rows": len(entry.task.train),
                "validation_rows": len(entry.task.validation),
                "test_rows": len(entry.task.test),
                "input_tokens": entry.input_tokens,
                "label_tokens": entry.task.train.label_tokens,
                "longest_tokens": entry.task.train.longest,
                "passes": entry.passes,
                "share": entry.share,
                "label_share": entry.label_share,
                "read": entry.task.train.read,
                "cut": entry.task.train.cut,
                "unused": {name: [unused.model_dump() for unused in split.unused] for name, split in entry.task.splits},
                "also_in_training": entry.task.overlap.exact,
                "share_words": entry.task.overlap.runs,
                "example": [{"text": text, "supervised": told} for text, told in examples[entry.task.name]],
            }
            for entry in statement.tasks
        ],
        "notes": [*_row_notes(statement), *_column_notes(statement), *_usual_tests(statement)],
        "steps": statement.steps,
        "batch_size": statement.batch_size,
        "step_tokens": statement.step_tokens,
        "micro_batches": statement.micro_batches,
        "longest_step": None
        if cost is None
        else {
            "tokens": cost.tokens,
            "seconds": cost.seconds,
            "peak_bytes": cost.peak_bytes,
            "training_seconds": cost.training_seconds(statement.step_tokens * statement.steps),
        },
    }


def _row_notes(statement: Statement) -> list[str]:
    """Which rows are not used, and what is to be known of others."""
    return [
        f"{entry.task.name}: {line}"
        for entry in statement.tasks
        for name, split in entry.task.splits
        for line in (
            *(_told(unused, f"{name} row", "is not used,", "are not used,") for unused in split.unused),
            *(_told(noted, f"{name} row", "has", "have") for noted in split.remarks),
        )
    ]


def _column_notes(statement: Statement) -> list[str]:
    """What is to be known of the columns of every task's sources, once where several have it."""
    return [
        f"{entry.task.name}: {note}"
        for entry in statement.tasks
        for note in dict.fromkeys(note for _, split in entry.task.splits for note in split.column_notes)
    ]


def _usual_tests(statement: Statement) -> list[str]:
    """What is held out of tasks whose mix does not say what to test on."""
    from malora_cli.data.holdout import USUAL_ROWS, USUAL_SHARE

    tasks = [entry.task for entry in statement.tasks]
    unsaid = [task for task in tasks if task.settings.test is None and task.settings.holdout is None]
    held = ", ".join(f"{len(task.test):,} of {task.name}" for task in unsaid)
    rule = f"{USUAL_SHARE:.0%}, at most {USUAL_ROWS}, by mix.seed"
    return [f"Rows held out where neither test nor holdout is given ({rule}): {held}"] if unsaid else []


def _told(noted: NotedRows, row: str, does: str, do: str) -> str:
    samples = ", ".join(f"{number:,}" for number in noted.samples)
    return f"{plural(noted.rows, row)} {does if noted.rows == 1 else do} {noted.reason} (row {samples})"


def _packing(statement: Statement) -> str:
    line = (
        f"A step: {statement.step_tokens:,.0f} tokens in {statement.micro_batches:.1f} micro-batches, all of them real "
        f"(rows are never padded)"
    )
    return line if statement.filled is None else f"{line}; {statement.filled:.1%} of train.micro_batch_tokens used"


def print_example(task: str, parts: list[tuple[str, bool]], console: SafeConsole) -> None:
    """Print a row as the model sees it; what is supervised is green, and stands between » and « in plain text."""
    text = Text()
    for part, supervised in parts:
        shown = part if len(part) <= _SHOWN else f"{part[: _SHOWN // 2]} … {part[-_SHOWN // 2 :]}"
        text.append(f"»{shown}«" if supervised else shown, style="bold green" if supervised else "dim")
    console.print(Text(f"\nThe first row of {task}, supervised between » and «", style="bold"))
    console.print(text, soft_wrap=True)


def print_template(tokenizer: PreTrainedTokenizerBase, console: SafeConsole) -> None:
    """Print what is to be known of the model's chat template."""
    from malora_cli.data.chat.notes import notes

    for line in notes(tokenizer):
        console.print(Text(f"\n{line}"), soft_wrap=True)


def print_format(loaded: LoadedRecipe, console: SafeConsole) -> None:
    """Print in what the base model is held, and where."""
    from malora_cli.modeling.device import own_device, settled

    model = settled(loaded).recipe.model
    packed = f", {model.quantise} by bitsandbytes" if model.quantise else ""
    chosen = " (model.dtype: auto)" if loaded.recipe.model.dtype == "auto" else ""
    line = f"Frozen weights: {model.dtype}{chosen}{packed}, on {own_device(model.device).type}"
    console.print(Text(f"\n{line}"), soft_wrap=True)


def print_cost(cost: StepCost, statement: Statement, console: SafeConsole) -> None:
    """Print what the longest step took, and what training will take at that pace."""
    seconds = cost.training_seconds(statement.step_tokens * statement.steps)
    line = (
        f"The longest step: {cost.tokens:,} tokens in {cost.seconds:.2f} s, peak memory "
        f"{cost.peak_bytes / _GIB:.2f} GiB; at its pace training takes {duration(seconds)}, evaluations aside"
    )
    console.print(Text(line), soft_wrap=True)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
