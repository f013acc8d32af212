"""The rows of a source for which its condition holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from malora_cli.data.cache import cached, key_of
from malora_cli.data.encode_rows import MEND_ROW, together
from malora_cli.data.formats._base import RowError
from malora_cli.data.order import Ints
from malora_cli.data.parts import Filled, columns_of_template, is_template
from malora_cli.data.rows import Rows
from malora_cli.data.templates import Templates
from malora_cli.data.typed import no_text
from malora_cli.errors import DataError, MaloraError
from malora_cli.results import NotedRows

_PICKED = "picked.arrow"
_BATCH = 1000
#: Texts that say whether something is so: as texts that are not empty, all of them would hold.
_WORDS = ("true", "false", "yes", "no", "0", "1")


def kept(rows: Rows, bad_rows: str) -> Rows:
    """The rows for which `where` of their source holds; the others are counted.

    Args:
        rows: All rows of a source.
        bad_rows: What becomes of rows whose cells the condition cannot take.

    Raises:
        DataError: It is no condition over their columns, a row does not suit it, or it holds for none.
    """
    where = rows.settings.where
    if where is None:
        return rows
    condition = _condition(where, rows)
    key = key_of("where", rows.dataset._fingerprint, where, bad_rows)
    folder, about = cached(key, lambda scratch: _sift(rows, condition, bad_rows, scratch))
    picked = pa.ipc.open_file(pa.memory_map(str(folder / _PICKED))).read_all()["row"].to_numpy()
    unused = tuple(
        NotedRows(reason=reason["reason"], rows=reason["rows"], samples=map(rows.places.number, reason["samples"]))
        for reason in about["left_out"]
    )
    if not len(picked):
        told = "; ".join(f"{reason.rows:,}: {reason.reason}" for reason in unused[:3])
        raise DataError(f"`where` leaves no row ({told})", where=rows.source, fix="Mend `where` of the source.")
    return replace(rows.select(picked), unused=unused)


def _condition(where: str, rows: Rows) -> Filled:
    text = where if is_template(where) else f"{{{{ {where} }}}}"
    columns = columns_of_template(text, "where", rows.columns, rows.source)
    rows.check(columns, ())
    if Templates().expression(text) is None:
        raise DataError(
            "`where` is a text, not a condition", where=rows.source, fix="Write one, such as `label and not image`."
        )
    if not columns:
        raise DataError("`where` names no column, so it is the same for every row", where=rows.source)
    return Filled("where", text, columns, may_be_none=False, values=True)


def _sift(rows: Rows, condition: Filled, bad_rows: str, scratch: Path) -> dict[str, Any]:
    picked = list[Ints]()
    left_out = together(_notes(rows, condition, bad_rows, picked))
    table = pa.table({"row": np.concatenate(picked)})
    with pa.ipc.new_file(str(scratch / _PICKED), table.schema) as writer:
        writer.write_table(table)
    return {"source": rows.source, "rows": len(table), "left_out": left_out}


def _notes(rows: Rows, condition: Filled, bad_rows: str, picked: list[Ints]) -> Iterator[tuple[str, int]]:
    """Which rows are left out and why, a batch at a time; the others are added to ``picked``."""
    not_so = f"`{rows.settings.where}` does not hold"
    for start, batch in _batches(rows, condition):
        faults = dict[int, str]()
        held = [number for number, row in enumerate(batch, start) if _holds(condition, row, number, faults)]
        if faults and bad_rows == "error":
            first = min(faults)
            fix = MEND_ROW if len(faults) < len(batch) else "Mend `where` of the source: it suits no row."
            what = f"{rows.places.name(first)} has {faults[first]}"
            raise DataError(what, where=rows.places.file(first), fix=fix)
        picked.append(np.array(held, dtype=np.int64))
        others = sorted({*range(start, start + len(batch))} - {*held})
        yield from ((faults.get(number, not_so), number) for number in others)


def _holds(condition: Filled, row: Mapping[str, Any], number: int, faults: dict[int, str]) -> bool:
    try:
        value = condition(row)
        if isinstance(value, str) and value.strip().casefold() in _WORDS:
            raise RowError(
                f"the text {value!r} as the condition; compare it, as in `{condition.text.strip('{ }')} == {value!r}`"
            )
        return bool(value)
    except RowError as error:
        faults[number] = str(error)
        return False


def _batches(rows: Rows, condition: Filled) -> Iterator[tuple[int, list[Mapping[str, Any]]]]:
    dataset = rows.dataset
    aside = [column for column in condition.columns if no_text(dataset.features[column]) is not None]
    texts = dataset.select_columns([column for column in condition.columns if column not in aside])
    others = dataset.select_columns(aside).with_format("arrow")
    try:
        for start in range(0, len(dataset), _BATCH):
            end = min(start + _BATCH, len(dataset))
            cells = {**(texts[start:end] if texts.column_names else {}), **_there(others, start, end)}
            yield start, [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    except MaloraError:
        raise
    except Exception as error:  # a cell that cannot be made a Python object of, for one of many reasons
        raise DataError(f"rows cannot be read ({error})", where=rows.source, fix="Mend or remove them.") from error


def _there(pictures: Dataset, start: int, end: int) -> dict[str, list[bool | None]]:
    """Of cells that are no text, such as pictures, only whether there are any."""
    if not pictures.column_names:
        return {}
    table = pictures[start:end]
    return {name: [bool(there) or None for there in _any(table[name]).to_pylist()] for name in table.column_names}


def _any(cells: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.greater(pc.list_value_length(cells), 0) if pa.types.is_list(cells.type) else pc.is_valid(cells)
