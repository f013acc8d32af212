"""From the rows of a source to those of a split: encoded once, kept in the cache, counted as they are made."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, groupby, islice
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from malora_cli.data.cache import cached, key_of
from malora_cli.data.chat.template import APART, Segment
from malora_cli.data.columns import CHOICES, RowReader
from malora_cli.data.encoding import Encoded, Encoder
from malora_cli.data.formats._base import Example, RowError, Turn
from malora_cli.data.lengths import fit
from malora_cli.data.rows import Rows, joined
from malora_cli.data.splits import LONGER, SAMPLES, Split
from malora_cli.data.typed import column_notes
from malora_cli.errors import DataError, MaloraError
from malora_cli.recipe import LengthPolicy, References
from malora_cli.results import NotedRows, read_json, write_json

_ENCODED = Features(
    {
        "row": Value("int64"),
        "prompt": Value("string"),
        "references": List(Value("string")),
        "facts": Value("string"),
        "input_ids": List(Value("int32")),
        "spans": List(Value("int32")),
        "choices": List(List(Value("int32"))),
        "tokens": Value("int32"),
        "label_tokens": Value("int32"),
    }
)
#: Rows that are worth a process of their own.
_ROWS_A_PROCESS = 20_000
_BATCH = 1000
#: Characters that go through the tokenizer in one call: it takes a hundred times their size in memory.
_CHARACTERS = 4_000_000
_REASONS = 20
#: What to do about a row that is no example.
MEND_ROW = "Mend or remove the row, or set the task's bad_rows to drop."
_SEVERAL = (
    "several right answers, of which the first is trained (`references` of the task: first or all; a template with "
    "`| join(', ')` makes one of them)"
)


class _RowFaultError(Exception):
    """A row that may not be left out: its number from 0, what it has, and what to do."""


def processes_for(rows: int) -> int | None:
    """Processes that encode so many rows; None for this one alone."""
    processes = min(os.cpu_count() or 1, rows // _ROWS_A_PROCESS)
    return processes if processes > 1 else None


@dataclass(frozen=True)
class Encoding:
    """How the rows of a split become tokens; all of it decides the cache entry.

    Args:
        reader: From a row to its example.
        encoder: From an example to its tokens.
        system: System prompt of examples without their own.
        max_length: Tokens of a row at most.
        too_long: What becomes of longer rows.
        bad_rows: What becomes of rows that are no example.
        last: Supervise the last answer of a conversation alone.
        once: One row an example, that of the last answer: it is what is scored.
        references: Which of several right answers are trained; None is the first, and says so.
        before: Turns in front of each example, behind its system prompt.
    """

    reader: RowReader
    encoder: Encoder
    system: str | None
    max_length: int
    too_long: LengthPolicy
    bad_rows: str
    last: bool = False
    once: bool = False
    references: References | None = None
    before: tuple[Turn, ...] = ()

    def split(self, rows: Rows) -> Split:
        """The encoded rows, from the cache where they are there.

        Raises:
            DataError: A row cannot be used and the mix does not say to drop it, or no row is left.
        """
        parts = [self.reader.fingerprint, self.system, self.encoder.fingerprint]
        policy = [self.max_length, self.too_long, self.bad_rows, self.last, self.once, self.references]
        shown = [[turn.role, turn.text, turn.extra] for turn in self.before]
        key = key_of("encoded", rows.sha256(self.reader.used), *parts, *policy, *([shown] if shown else []))
        try:
            folder, about = cached(key, lambda scratch: self._fill(rows, scratch))
        except _RowFaultError as fault:
            row, what, fix = fault.args
            if fix == MEND_ROW and (looked_at := self._all_bad(rows)):
                what = f"{what}, as have all of the first {looked_at:,} rows" if looked_at > 1 else what
                fix = "Check the task's `columns`, `format` and `where`."
            raise DataError(f"{rows.places.name(row)} has {what}", where=rows.places.file(row), fix=fix) from None
        encoded = joined([Dataset.from_file(str(folder / name)) for name in about["files"]])
        # The same rows may stand elsewhere in another file, so where they do is none of the cache's business.
        left_out, remarks = (
            tuple(
                NotedRows(reason=note["reason"], rows=note["rows"], samples=map(rows.places.number, note["samples"]))
                for note in about[kind]
            )
            for kind in ("left_out", "remarks")
        )
        if not len(encoded):
            raise _nothing_left(rows.source, left_out)
        self._check(encoded, rows.source, [*left_out, *remarks])
        return Split(
            encoded=encoded,
            source=rows.source,
            key=key,
            sha256=about["sha256"],
            read=about["read"] + sum(unused.rows for unused in rows.unused),
            longest=about["longest"],
            cut=about["cut"],
            left_out=(*rows.unused, *left_out),
            remarks=remarks,
            totals=(about["tokens"], about["label_tokens"]),
            places=rows.places,
            column_notes=column_notes(rows.dataset.features, self.reader.used),
        )

    def _first(self, rows: Rows) -> list[dict[str, Any]]:
        """Some rows, which stand for all."""
        columns = rows.used(self.reader.used)[:_BATCH]
        return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]

    def _all_bad(self, rows: Rows) -> int:
        """How many rows were looked at, where none of them is an example: to leave such out would leave none."""
        found = self._first(rows)
        for row in found:
            with suppress(RowError):
                self.encoder.rendered(self.reader(row), self.system, last=self.last)
                return 0
        return len(found)

    def _check(self, encoded: Dataset, source: str, noted: Sequence[NotedRows]) -> None:
        """Refuse rows that their format finds wrong as soon as it sees all of them."""
        if self.reader.form.wrong is not None:
            answers = pc.unique(pc.list_element(encoded.data.column("references"), 0)).to_pylist()
            wrong = self.reader.form.wrong(answers, [note.reason for note in noted])
            if wrong is not None:
                raise DataError(wrong[0], where=source, fix=wrong[1])

    def _fill(self, rows: Rows, scratch: Path) -> dict[str, Any]:
        (scratch / "unused").mkdir()
        try:
            # A few test rows may well lack what others have.
            if not self.once and (path := self.reader.unfound(self._first(rows))) is not None:
                fix = "See how its parts are spelt, or leave it out."
                raise DataError(f"none of the first rows has anything at '{path}'", where=rows.source, fix=fix)
            encoded = self._encoded(rows.used(self.reader.used), scratch)
        except (MaloraError, OSError, _RowFaultError):
            raise
        except Exception as error:  # a cell that cannot be made a Python object of, for one of many reasons
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"rows cannot be read ({reason})", where=rows.source, fix="Mend or remove them.") from error
        tokens = encoded.data.column("tokens")
        notes = [read_json(path) for path in sorted((scratch / "unused").iterdir())]
        shutil.rmtree(scratch / "unused")
        return {
            "source": rows.source,
            "files": [Path(file["filename"]).name for file in encoded.cache_files],
            "read": len(rows.dataset),
            "rows": len(encoded),
            "tokens": pc.sum(tokens).as_py() or 0,
            "label_tokens": pc.sum(encoded.data.column("label_tokens")).as_py() or 0,
            "longest": pc.max(tokens).as_py() or 0,
            "cut": sum(note["cut"] for note in notes),
            "left_out": together(pair for note in notes for pair in note["unused"]),
            "remarks": together(pair for note in notes for pair in note["remarks"]),
            "sha256": _sha256(encoded),
        }

    def _encoded(self, rows: Dataset, scratch: Path) -> Dataset:
        return rows.map(
            _EncodeBatch(self, scratch / "unused"),
            batched=True,
            batch_size=_BATCH,
            with_indices=True,
            remove_columns=rows.column_names,
            features=_ENCODED,
            new_fingerprint=scratch.name[-32:],  # the library allows 64, and adds to it
            cache_file_name=str(scratch / "rows.arrow"),
            num_proc=processes_for(len(rows)),
        )


@dataclass(frozen=True)
class _Readable:
    """A row that is to be tokenised."""

    number: int
    prompt: str
    references: list[str]
    facts: str
    segments: Sequence[Segment]
    choices: Sequence[Sequence[Segment]] = ()


@dataclass(frozen=True)
class _EncodeBatch:
    """Encodes rows by the batch; what it does not use it writes down, since processes share nothing but the disk."""

    encoding: Encoding
    notes: Path

    def __call__(self, batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        # A batch is many small objects and no cycles; looking for these takes a fifth of the time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._encoded(batch, numbers)
        finally:
            if collecting:
                gc.enable()

    def _encoded(self, batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
        rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        unused: list[tuple[str, int]] = []
        remarks: list[tuple[str, int]] = []
        readable: list[_Readable] = []
        for number, row in zip(numbers, rows, strict=True):
            try:
                found, told = self._read(row, number)
            except RowError as error:
                unused.append((self._bad(str(error), number), number))
                continue
            readable += found
            remarks += [(remark, number) for remark in told]
        columns: dict[str, list[Any]] = {name: [] for name in _ENCODED}
        cut: set[int] = set()
        tokenised = self._tokenised([text.segments for text in readable])
        chosen = self._tokenised([row for text in readable for row in text.choices])
        for text, encoded in zip(readable, tokenised, strict=True):
            choices = [_answer_of(row, like=encoded) for row in islice(chosen, len(text.choices))]
            pieces = self._pieces(encoded, choices, text.number, unused)
            if pieces and pieces != [encoded]:
                cut.add(text.number)
            for piece in pieces:
                spans = [end for span in piece.spans for end in span]
                counts = (len(piece.input_ids), piece.label_tokens)
                texts = (text.number, text.prompt, text.references, text.facts)
                values = (*texts, piece.input_ids, spans, choices, *counts)
                for name, value in zip(_ENCODED, values, strict=True):
                    columns[name].append(value)
        if unused or cut or remarks:
            # Of an example that became several rows the same may be said of each; rows of the source are counted.
            notes = {"unused": list(dict.fromkeys(unused)), "remarks": remarks, "cut": len(cut)}
            write_json(self.notes / f"{numbers[0]:012d}.json", notes)
        return columns

    def _read(self, row: dict[str, Any], number: int) -> tuple[list[_Readable], tuple[str, ...]]:
        """The rows that an example becomes, and what is to be said of it."""
        example = self.encoding.reader(row).behind(self.encoding.before)
        encoder = self.encoding.encoder
        found: list[_Readable] = []
        told = dict.fromkeys(example.remarks)
        for one in example.each() if self.encoding.references == "all" else (example,):
            rendered = encoder.rendered(one, self.encoding.system, last=self.encoding.last)
            references = encoder.references(one, rendered)
            if self.encoding.once and not all(map(str.strip, references)):  # to say nothing would be right
                raise RowError("an answer of nothing but reasoning or special tokens, so it cannot be scored")
            rows = rendered.rows[-1:] if self.encoding.once else rendered.rows
            facts = json.dumps(one.facts, ensure_ascii=False) if one.facts else ""
            choices = self._choices(one, references)
            found += [_Readable(number, one.prompt, references, facts, segments, choices) for segments in rows]
            told |= dict.fromkeys((*rendered.remarks, *encoder.remarks(one)))
        if example.others and self.encoding.references is None and not self.encoding.once:
            told[_SEVERAL] = None
        if self.encoding.once:
            told.pop(APART, None)
        return found, tuple(told)

    def _choices(self, example: Example, references: Sequence[str]) -> Sequence[Sequence[Segment]]:
        """The text of every choice, where the metric weighs them."""
        if CHOICES not in self.encoding.reader.needs:
            return ()
        texts: list[str] = example.facts[CHOICES]
        if not {text.strip() for text in texts} & {reference.strip() for reference in references}:
            raise RowError(f"the answer '{references[0][:40]}', which is not one of its {len(texts)} choices")
        return self.encoding.encoder.choices(example, self.encoding.system, last=self.encoding.last)

    def _tokenised(self, rows: Sequence[Sequence[Segment]]) -> Iterator[Encoded]:
        """Tokens of many rows, those of a few at a time where the rows are long."""
        ends = accumulate(sum(len(segment.text) for segment in row) for row in rows)
        for _, lot in groupby(zip(ends, rows, strict=True), key=lambda pair: pair[0] // _CHARACTERS):
            yield from self.encoding.encoder.tokenise([row for _, row in lot])

    def _pieces(
        self, encoded: Encoded, choices: Sequence[Sequence[int]], number: int, unused: list[tuple[str, int]]
    ) -> list[Encoded]:
        if choices and not (all(choices) and encoded.prompt_tokens):
            unused.append((self._bad("a choice or a prompt of no token, so nothing can be weighed", number), number))
            return []
        if not encoded.label_tokens:
            unused.append((self._bad("a completion of no token, so nothing of it is supervised", number), number))
            return []
        longest, policy = self.encoding.max_length, self.encoding.too_long
        tokens = max([len(encoded.input_ids), *(encoded.prompt_tokens + len(choice) for choice in choices)])
        pieces = [] if choices and tokens > longest else fit(encoded, longest, policy)
        if pieces:
            return pieces
        if policy == "error":
            what = f"{tokens:,} tokens, more than train.max_length {longest}"
            raise _RowFaultError(number, what, "Raise it, or set the task's too_long.")
        reason = f"{LONGER} {longest} tokens"
        unused.append((reason if policy == "drop" else f"{reason}, and nothing left of the answer", number))
        return []

    def _bad(self, what: str, number: int) -> str:
        if self.encoding.bad_rows == "error":
            raise _RowFaultError(number, what, MEND_ROW)
        return what


def _answer_of(row: Encoded, *, like: Encoded) -> Sequence[int]:
    """Tokens of the last answer; none where it came to nothing beside that of another row."""
    return row.input_ids[row.prompt_tokens :] if row.spans and len(row.spans) == len(like.spans) else []


def together(notes: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
    """What is to be said of rows, most frequent first; rows are counted from 0 here."""
    counts: Counter[str] = Counter()
    samples: dict[str, list[int]] = {}
    for reason, number in notes:
        kept = reason if reason in counts or len(counts) < _REASONS else "other reasons"
        counts[kept] += 1
        if len(samples.setdefault(kept, [])) < SAMPLES:
            samples[kept].append(number)
    return [{"reason": reason, "rows": rows, "samples": samples[reason]} for reason, rows in counts.most_common()]


def _nothing_left(source: str, left_out: Sequence[NotedRows]) -> DataError:
    if len(left_out) == 1 and left_out[0].reason.startswith(LONGER):
        limit = left_out[0].reason.removeprefix(f"{LONGER} ")
        ways = "Raise it, or have training rows cut: the task's too_long may be truncate_left, truncate_right or split."
        return DataError(f"every row is longer than train.max_length {limit}", where=source, fix=ways)
    told = "; ".join(f"{unused.rows:,} with {unused.reason}" for unused in left_out[:3])
    return DataError(f"no row can be used ({told})", where=source, fix="Look at row " + _first(left_out) + ".")


def _first(left_out: Sequence[NotedRows]) -> str:
    return str(min(sample for unused in left_out for sample in unused.samples))


def _sha256(rows: Dataset) -> str:
    """Hash of the tokens and of what is supervised of them, whatever lots they lie in."""
    digest = hashlib.sha256()
    for lot in rows.with_format("arrow", columns=["tokens", "spans", "input_ids"]).iter(1000):
        spans = lot["spans"].combine_chunks()
        for numbers in (
            lot["tokens"],
            spans.value_lengths(),
            spans.flatten(),
            lot["input_ids"].combine_chunks().flatten(),
        ):
            digest.update(numbers.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()
