"""The rows of one task, from their sources to encoded splits."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from malora_cli.data.columns import RowReader
from malora_cli.data.encode_rows import Encoding
from malora_cli.data.encoding import Encoder
from malora_cli.data.filters import kept
from malora_cli.data.formats import FORMATS
from malora_cli.data.formats._base import Turn
from malora_cli.data.holdout import hold_out
from malora_cli.data.rows import Rows
from malora_cli.data.sources import load_rows
from malora_cli.data.splits import Split
from malora_cli.data.validation import kept_back
from malora_cli.errors import DataError
from malora_cli.recipe import LengthPolicy, MixSettings, SourceSettings, TaskSettings

#: The rows of a task to train on, to choose by and to test on.
Splits = tuple[Split, Split, Split]
#: Longest row where solved rows stand in front of it: what the model has positions for is checked of the longest.
_ANY_LENGTH = 10**6


@dataclass(frozen=True)
class TaskRows:
    """Reads the rows of one task.

    Args:
        name: The task.
        settings: The mix's of the task.
        mix: The mix.
        encoder: From examples to tokens.
        max_length: Tokens of a row at most.
    """

    name: str
    settings: TaskSettings
    mix: MixSettings
    encoder: Encoder
    max_length: int

    def splits(self) -> Splits:
        """The rows to train on, to choose by and to test on.

        Raises:
            DataError: A source or a row cannot be used.
        """
        settings = self.settings
        rows, held, tested = self._parted()
        train = self._encoded(rows, settings.train, settings.too_long, settings.bad_rows, once=False)
        test = self._encoded(held, tested, self._whole, settings.bad_rows, once=True, scored=True)
        validation = train.none()
        if settings.validation is not None:
            own = self._rows(settings.validation, "validation")
            validation = self._encoded(own, settings.validation, self._whole, settings.bad_rows, once=True, scored=True)
        elif self.mix.validation is not None:
            cut_at = None if settings.too_long == self._whole else self.max_length
            train = replace(train, aside=kept_back(train, self.mix.validation, seed=self.mix.seed, cut_at=cut_at))
            validation = self._spared(rows, train)
        return train.capped(settings.max_rows), validation, test

    def behind_solved(self, train: Split, shots: int) -> Split:
        """The test rows with solved training rows in front of each prompt, as turns of one conversation.

        They are the same for all rows, drawn by the mix's seed: more are those of fewer and others.

        Args:
            train: The task's training rows.
            shots: How many to show.

        Raises:
            DataError: There are not as many training rows.
        """
        if len(train) < shots:
            what = f"{shots} solved rows are to be shown, and there are {len(train)} training rows"
            raise DataError(what, where=f"task '{self.name}'", fix="Take fewer --shots.")
        rows, held, tested = self._parted()
        before = self._solved(rows, train, shots)
        wide = replace(self, max_length=_ANY_LENGTH)
        return wide._encoded(held, tested, "error", self.settings.bad_rows, once=True, scored=True, before=before)

    @property
    def system(self) -> str | None:
        """System prompt of rows without their own; None leaves it to the chat template."""
        return self.settings.system if self.settings.system is not None else self.mix.system

    @property
    def _whole(self) -> LengthPolicy:
        """What becomes of rows that are scored: one that was cut is another question, and pieces would be rows."""
        return "error" if self.settings.too_long == "error" else "drop"

    def _parted(self) -> tuple[Rows, Rows, SourceSettings]:
        """Rows to train on, rows to test on, and where these are from."""
        rows = self._rows(self.settings.train, "train")
        if self.settings.test is None:
            rows, held = hold_out(rows, self.settings.holdout, self.mix.seed)
            return rows, held, self.settings.train
        return rows, self._rows(self.settings.test, "test"), self.settings.test

    def _rows(self, source: SourceSettings, split: str) -> Rows:
        rows = kept(load_rows(source, split=split), self.settings.bad_rows)
        if source.where is not None and not rows.unused:
            warnings.warn(f"task '{self.name}': {source.path}: `{source.where}` holds for every row", stacklevel=4)
        return rows

    def _spared(self, rows: Rows, train: Split) -> Split:
        """The validation rows that training can do without."""
        if not len(train.aside):
            return train.none()
        chosen = np.unique(train.encoded[train.aside]["row"])
        some = replace(rows.select(chosen), unused=())  # which are told of once
        # What was good enough to be trained on may yet be nothing that can be scored.
        spared = partial(self._encoded, some, self.settings.train, self._whole, "drop", once=True)
        try:
            return spared(scored=True)
        except DataError:  # training rows need not have what the metric wants of a row beside its answer
            return spared()

    def _solved(self, rows: Rows, train: Split, shots: int) -> tuple[Turn, ...]:
        """The turns of some training rows, none of them supervised."""
        reader = self._reader(rows, self.settings.train, scored=False)
        numbers = train.rows.select(train.sample(shots))["row"]
        examples = [reader(row) for row in rows.used(reader.used).select(numbers)]
        turns = [turn for example in examples for turn in example.turns if turn.role not in ("system", "developer")]
        return tuple(replace(turn, supervised=False) for turn in turns)

    def _reader(self, rows: Rows, source: SourceSettings, *, scored: bool) -> RowReader:
        settings, form = self.settings, source.format or self.settings.format
        columns = settings.columns if source.columns is None else source.columns
        if settings.supervise == "last" and not FORMATS[form].keys:
            raise DataError(f"format '{form}' has one answer a row", where=source.path, fix="Leave supervise out.")
        return RowReader(
            form,
            FORMATS[form],
            columns,
            rows.columns,
            rows.source,
            settings.speakers,
            needs=settings.metric.needs,
            wants=settings.metric.wants,
            scored=scored,
        )

    def _encoded(
        self,
        rows: Rows,
        source: SourceSettings,
        policy: LengthPolicy,
        bad_rows: str,
        *,
        once: bool,
        scored: bool = False,
        before: Sequence[Turn] = (),
    ) -> Split:
        reader = self._reader(rows, source, scored=scored)
        rows.check(reader.used, reader.needed)
        encoding = Encoding(
            reader,
            self.encoder,
            self.system,
            self.max_length,
            policy,
            bad_rows,
            last=self.settings.supervise == "last",
            once=once,
            references="first" if once else self.settings.references,
            before=tuple(before),
        )
        return replace(encoding.split(rows), seed=(self.mix.seed, zlib.crc32(self.name.encode())))
