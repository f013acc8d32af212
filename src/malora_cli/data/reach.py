"""Answers that teach nothing, and right answers that no generated one can equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow.compute as pc

from malora_cli.data.encoding import Encoder
from malora_cli.data.splits import Split
from malora_cli.recipe import TaskSettings

#: Training rows that may have one answer by chance, or to try something out.
_FEW = 50
#: Test rows that are looked at; they stand for the others.
_ROWS = 500
_SAMPLES = 5


def out_of_reach(settings: TaskSettings, test: Split, encoder: Encoder) -> Iterator[str]:
    """A line for every reason for which test rows cannot be answered right.

    Args:
        settings: The task's.
        test: Its test rows.
        encoder: What they were encoded by.
    """
    numbers = test.sample(_ROWS)
    references: list[list[str]] = test.rows.select(numbers)["references"]
    metric, longest = settings.metric, settings.max_new_tokens
    unread = [row for row, rights in zip(numbers, references, strict=True) if not any(map(metric.reads, rights))]
    if unread:
        yield f"{_some(unread, test)} have an answer that {metric} can read nothing from, so they can only score 0"
    cut = [
        row
        for row, rights, example in zip(numbers, references, test.examples(numbers, 0), strict=True)
        # Of several right answers another may be shorter.
        if len(rights) == 1 and _is_longer(example.input_ids[example.prompt_tokens :], longest, encoder)
    ]
    if cut and metric.kind == "generation":
        yield f"{_some(cut, test)} have an answer longer than max_new_tokens {longest}, so none is generated whole"


def one_answer(train: Split) -> str | None:
    """What is to be said of many training rows that all have one answer, as where the right choice stands first."""
    answers = train.encoded.data.column("references")
    if len(answers) < _FEW:
        return None
    first = answers[0][0].as_py()
    if not all(pc.all(pc.equal(pc.list_element(chunk, 0), first)).as_py() for chunk in answers.chunks):
        return None
    way = 'choices of which the right one stands first may be sorted, as in `choices: "{{ [A, B] | sort }}"`'
    return f"all {len(answers):,} train rows have the answer '{first[:40]}', so nothing else is learned ({way})"


def _is_longer(answer: Sequence[int], tokens: int, encoder: Encoder) -> bool:
    """Whether an answer has more tokens before the one that ends it."""
    return len(answer) > tokens and not set(answer[: tokens + 1]) & set(encoder.stop_ids)


def _some(rows: Sequence[int], test: Split) -> str:
    looked_at = min(_ROWS, len(test))
    of = f"{looked_at:,} test rows" + (" that were looked at" if looked_at < len(test) else "")
    samples = ", ".join(str(number) for number in test.source_rows(rows[:_SAMPLES]))
    return f"{len(rows):,} of {of} (row {samples})"
