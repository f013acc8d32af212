"""The rows of one split of a task: encoded once, kept in the cache, counted as they are made."""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import nlargest
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value

from malora_cli.data.batch import TrainExample
from malora_cli.data.cache import cached, key_of
from malora_cli.data.columns import RowReader
from malora_cli.data.encoding import Encoded, Encoder, Segment
from malora_cli.data.formats._base import RowError
from malora_cli.data.lengths import fit
from malora_cli.data.order import Ints, Shuffle
from malora_cli.data.rows import Places, Rows, joined
from malora_cli.errors import DataError, MaloraError
from malora_cli.recipe import LengthPolicy
from malora_cli.results import UnusedRows, read_json, write_json

_ENCODED = Features(
    {
        "row": Value("int64"),
        "prompt": Value("string"),
        "references": List(Value("string")),
        "input_ids": List(Value("int32")),
        "spans": List(Value("int32")),
        "tokens": Value("int32"),
        "label_tokens": Value("int32"),
    }
)
#: Rows that are worth a process of their own.
_ROWS_A_PROCESS = 20_000
_BATCH = 1000
#: Characters that go through the tokenizer in one call: it takes a hundred times their size in memory.
_CHARACTERS = 4_000_000
_LOT = 100_000
_SAMPLES = 5
_REASONS = 20
#: What to do about a row that is no example.
MEND_ROW = "Mend or remove the row, or set the task's bad_rows to drop."
_CAP, _SAMPLE = 2, 3  # what a random stream is for, beside the seed


@dataclass(frozen=True)
class Split:
    """The encoded rows of one split of one task, those of ``picked`` where there are more than the task may use.

    Args:
        encoded: Columns ``row`` (its number in the source, from 0), ``prompt``, ``references`` (right answers, the
            one it is trained on first), ``input_ids``, ``spans`` (starts and ends in turns), ``tokens`` (all) and
            ``label_tokens``.
        source: Where they came from.
        key: Name of their cache entry.
        sha256: Hash of the tokens of all encoded rows, in order.
        read: Rows of the source.
        longest: Tokens of the longest encoded row.
        cut: Rows of which the length policy used a part, or made several.
        left_out: Rows that were not used, by reason.
        totals: Tokens and label tokens of all encoded rows.
        places: Where the rows of the source stand in it.
        seed: What its rows are drawn by.
        picked: Position among the encoded rows of each row of the split; None for all in their order.
    """

    encoded: Dataset
    source: str
    key: str
    sha256: str
    read: int
    longest: int
    cut: int
    left_out: tuple[UnusedRows, ...]
    totals: tuple[int, int]
    places: Places
    seed: tuple[int, ...] = ()
    picked: Ints | None = None

    def __len__(self) -> int:
        return len(self.encoded) if self.picked is None else len(self.picked)

    @cached_property
    def rows(self) -> Dataset:
        """The rows of this split alone, all columns."""
        return self.encoded if self.picked is None else self.encoded.select(self.picked)

    @cached_property
    def _tokens(self) -> Dataset:
        return self.encoded.select_columns(["input_ids", "spans"])

    @cached_property
    def _counts(self) -> Dataset:
        return self.encoded.select_columns(["tokens", "label_tokens"]).with_format("numpy")

    def examples(self, rows: Sequence[int], task: int) -> list[TrainExample]:
        """Some rows, as examples of task number ``task``."""
        found = self._tokens[self._chosen(rows)]
        return [
            TrainExample(ids, list(zip(spans[::2], spans[1::2], strict=True)), task)
            for ids, spans in zip(found["input_ids"], found["spans"], strict=True)
        ]

    def source_rows(self, rows: Sequence[int]) -> list[int]:
        """Where some rows stand in their source: the line of each in its text file, or its number from 1."""
        return [self.places.number(row) for row in self.encoded[self._chosen(rows)]["row"]]

    def _chosen(self, rows: Sequence[int]) -> list[int]:
        """Where some rows are among the encoded ones."""
        return list(rows) if self.picked is None else self.picked[np.asarray(rows)].tolist()

    def lengths(self, rows: Ints) -> Ints:
        """Tokens of some rows."""
        return self._counted("tokens", rows)

    def _counted(self, column: str, rows: Ints) -> Ints:
        chosen = rows if self.picked is None else self.picked[rows]
        if len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and (np.diff(chosen) == 1).all():
            return np.asarray(self._counts[int(chosen[0]) : int(chosen[-1]) + 1][column], dtype=np.int64)
        return np.asarray(self._counts[chosen.tolist()][column], dtype=np.int64)

    def longest_rows(self, count: int) -> list[int]:
        """The rows with the most tokens, longest first."""
        found: list[tuple[int, int]] = []
        for start in range(0, len(self), _LOT):
            rows = np.arange(start, min(start + _LOT, len(self)))
            found = nlargest(count, [*found, *zip(self.lengths(rows).tolist(), (-rows).tolist(), strict=True)])
        return [-row for _, row in found]

    @cached_property
    def tokens(self) -> int:
        """All tokens."""
        return self.totals[0] if self.picked is None else self._sum("tokens")

    @cached_property
    def label_tokens(self) -> int:
        """Supervised tokens."""
        return self.totals[1] if self.picked is None else self._sum("label_tokens")

    def _sum(self, column: str) -> int:
        return int(self._counted(column, np.arange(len(self))).sum())

    @property
    def too_long(self) -> int:
        """Rows that were left out because of their length."""
        return sum(unused.rows for unused in self.left_out if unused.reason.startswith(_LONGER))

    @property
    def unused(self) -> list[UnusedRows]:
        """Rows of the source that are not in this split, by reason."""
        if self.picked is None:
            return list(self.left_out)
        beyond = np.setdiff1d(np.arange(len(self.encoded)), self.picked, assume_unique=True)
        numbers = self.encoded.select(beyond[:_SAMPLES])["row"]
        samples = [self.places.number(number) for number in numbers]
        return [*self.left_out, UnusedRows(reason="beyond max_rows", rows=len(beyond), samples=samples)]

    def capped(self, rows: int | None) -> Split:
        """At most so many rows, chosen at random: a smaller cap keeps a part of what a larger one does."""
        if rows is None or rows >= len(self.encoded):
            return self
        return replace(self, picked=_drawn(rows, len(self.encoded), [*self.seed, _CAP]))

    def sample(self, rows: int | None) -> Sequence[int]:
        """Numbers of at most so many rows, chosen at random: a smaller sample is a part of a larger one.

        Files are often sorted, so their first rows stand for nothing but themselves.
        """
        if rows is None or rows >= len(self):
            return range(len(self))
        drawn: list[int] = _drawn(rows, len(self), [*self.seed, _SAMPLE]).tolist()
        return drawn


def _drawn(rows: int, of: int, seed: Sequence[int]) -> Ints:
    """Some of so many numbers in ascending order, the same for the same seed."""
    return np.sort(Shuffle(of, seed)(np.arange(rows)))


_LONGER = "longer than"


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
    """

    reader: RowReader
    encoder: Encoder
    system: str | None
    max_length: int
    too_long: LengthPolicy
    bad_rows: str

    def split(self, rows: Rows) -> Split:
        """The encoded rows, from the cache where they are there.

        Raises:
            DataError: A row cannot be used and the mix does not say to drop it, or no row is left.
        """
        parts = [self.reader.fingerprint, self.system, self.encoder.fingerprint]
        policy = [self.max_length, self.too_long, self.bad_rows]
        key = key_of("encoded", rows.sha256(self.reader.used), *parts, *policy)
        try:
            folder, about = cached(key, lambda scratch: self._fill(rows.used(self.reader.used), rows.source, scratch))
        except _RowFaultError as fault:
            row, what, fix = fault.args
            raise DataError(f"{rows.places.name(row)} has {what}", where=rows.places.file(row), fix=fix) from None
        encoded = joined([Dataset.from_file(str(folder / name)) for name in about["files"]])
        # The same rows may stand elsewhere in another file, so where they do is none of the cache's business.
        left_out = tuple(
            UnusedRows(reason=unused["reason"], rows=unused["rows"], samples=map(rows.places.number, unused["samples"]))
            for unused in about["left_out"]
        )
        if not len(encoded):
            raise _nothing_left(rows.source, left_out)
        self._check(encoded, rows.source, left_out)
        return Split(
            encoded=encoded,
            source=rows.source,
            key=key,
            sha256=about["sha256"],
            read=about["read"] + sum(unused.rows for unused in rows.unused),
            longest=about["longest"],
            cut=about["cut"],
            left_out=(*rows.unused, *left_out),
            totals=(about["tokens"], about["label_tokens"]),
            places=rows.places,
        )

    def _check(self, encoded: Dataset, source: str, left_out: Sequence[UnusedRows]) -> None:
        """Refuse rows that their format finds wrong as soon as it sees all of them."""
        if self.reader.form.wrong is not None:
            answers = pc.unique(pc.list_element(encoded.data.column("references"), 0)).to_pylist()
            wrong = self.reader.form.wrong(answers, [unused.reason for unused in left_out])
            if wrong is not None:
                raise DataError(wrong[0], where=source, fix=wrong[1])

    def _fill(self, rows: Dataset, source: str, scratch: Path) -> dict[str, Any]:
        (scratch / "unused").mkdir()
        try:
            encoded = self._encoded(rows, scratch)
        except (MaloraError, OSError, _RowFaultError):
            raise
        except Exception as error:  # a cell that cannot be made a Python object of, for one of many reasons
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            raise DataError(f"rows cannot be read ({reason})", where=source, fix="Mend or remove them.") from error
        tokens = encoded.data.column("tokens")
        notes = [read_json(path) for path in sorted((scratch / "unused").iterdir())]
        shutil.rmtree(scratch / "unused")
        return {
            "source": source,
            "files": [Path(file["filename"]).name for file in encoded.cache_files],
            "read": len(rows),
            "rows": len(encoded),
            "tokens": pc.sum(tokens).as_py() or 0,
            "label_tokens": pc.sum(encoded.data.column("label_tokens")).as_py() or 0,
            "longest": pc.max(tokens).as_py() or 0,
            "cut": sum(note["cut"] for note in notes),
            "left_out": together(notes),
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
        readable: list[tuple[int, str, list[str], list[Segment]]] = []
        for number, row in zip(numbers, rows, strict=True):
            try:
                example = self.encoding.reader(row)
            except RowError as error:
                unused.append((self._bad(str(error), number), number))
                continue
            segments = self.encoding.encoder.segments(example, self.encoding.system)
            readable.append((number, example.prompt, list(example.references), segments))
        found: dict[str, list[Any]] = {name: [] for name in _ENCODED}
        cut = 0
        tokenised = self._tokenised([segments for *_, segments in readable])
        for (number, prompt, references, _), encoded in zip(readable, tokenised, strict=True):
            pieces = self._pieces(encoded, number, unused)
            cut += bool(pieces) and pieces != [encoded]
            for piece in pieces:
                values = (number, prompt, references, piece.input_ids, [end for span in piece.spans for end in span])
                counts = (len(piece.input_ids), piece.label_tokens)
                for name, value in zip(_ENCODED, (*values, *counts), strict=True):
                    found[name].append(value)
        if unused or cut:
            write_json(self.notes / f"{numbers[0]:012d}.json", {"unused": unused, "cut": cut})
        return found

    def _tokenised(self, rows: list[list[Segment]]) -> Iterator[Encoded]:
        """Tokens of many rows, those of a few at a time where the rows are long."""
        ends = accumulate(sum(len(segment.text) for segment in row) for row in rows)
        for _, lot in groupby(zip(ends, rows, strict=True), key=lambda pair: pair[0] // _CHARACTERS):
            yield from self.encoding.encoder.tokenise([row for _, row in lot])

    def _pieces(self, encoded: Encoded, number: int, unused: list[tuple[str, int]]) -> list[Encoded]:
        if not encoded.label_tokens:
            unused.append((self._bad("a completion of no token, so nothing of it is supervised", number), number))
            return []
        longest, policy = self.encoding.max_length, self.encoding.too_long
        pieces = fit(encoded, longest, policy)
        if pieces:
            return pieces
        if policy == "error":
            what = f"{len(encoded.input_ids):,} tokens, more than train.max_length {longest}"
            raise _RowFaultError(number, what, "Raise it, or set the task's too_long.")
        reason = f"{_LONGER} {longest} tokens"
        unused.append((reason if policy == "drop" else f"{reason}, and nothing left of the answer", number))
        return []

    def _bad(self, what: str, number: int) -> str:
        if self.encoding.bad_rows == "error":
            raise _RowFaultError(number, what, MEND_ROW)
        return what


def together(notes: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were not used, by reason, most frequent first; rows are counted from 0 here."""
    counts: Counter[str] = Counter()
    samples: dict[str, list[int]] = {}
    for note in notes:
        for reason, number in note["unused"]:
            kept = reason if reason in counts or len(counts) < _REASONS else "other reasons"
            counts[kept] += 1
            if len(samples.setdefault(kept, [])) < _SAMPLES:
                samples[kept].append(number)
    return [{"reason": reason, "rows": rows, "samples": samples[reason]} for reason, rows in counts.most_common()]


def _nothing_left(source: str, left_out: Sequence[UnusedRows]) -> DataError:
    if len(left_out) == 1 and left_out[0].reason.startswith(_LONGER):
        limit = left_out[0].reason.removeprefix(f"{_LONGER} ")
        return DataError(f"every row is longer than train.max_length {limit}", where=source, fix="Raise it.")
    told = "; ".join(f"{unused.rows:,} with {unused.reason}" for unused in left_out[:3])
    return DataError(f"no row can be used ({told})", where=source, fix="Look at row " + _first(left_out) + ".")


def _first(left_out: Sequence[UnusedRows]) -> str:
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
