"""Test rows that training gives away: the same prompt, or a long run of the same words.

The words of the test rows are few enough to be kept as hashes; the training rows go by once, a lot at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from malora_cli.data.cache import cached, key_of
from malora_cli.data.splits import Split
from malora_cli.words import UNSPACED

#: Words of a run that tells (Brown et al., Language Models are Few-Shot Learners, appendix C).
RUN = 13
#: A phrase that so many test rows of a task share is the wording of its prompts; runs are looked for beside it.
_PHRASE = 5
_WORDING = 0.1
_FEWEST = 5
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
_INVERSE = np.uint64(pow(int(_BASE), -1, 2**64))

Hashes = NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Test rows of a task whose prompt is also a training prompt of any task, or shares a run of words with one."""

    exact: int
    runs: int


def overlaps(splits: Mapping[str, tuple[Split, Split]]) -> dict[str, Overlap]:
    """The overlap of every task's test rows with the training rows of all tasks; kept in the cache.

    Args:
        splits: Training and test rows of each task.
    """
    parts = [[train.key, train.selection, test.key] for train, test in splits.values()]
    _, found = cached(key_of("overlap", parts), lambda scratch: _scan(splits, scratch))
    counts = found["tasks"]
    return {name: Overlap(*pair) for name, pair in zip(splits, counts, strict=True)}


def _scan(splits: Mapping[str, tuple[Split, Split]], _scratch: Path) -> dict[str, Any]:
    tests = [_Tested.of(test) for _, test in splits.values()]
    prompts = _Seen(np.concatenate([test.prompts for test in tests]))
    runs = _Seen(np.concatenate([test.runs for test in tests]))
    for train, _ in splits.values():
        for texts in train.texts("prompt"):
            prompts.look_for(_whole(texts))
            runs.look_for(_Words.of(texts).runs(RUN)[0])
    counts = []
    for test in tests:
        hit = test.rows[runs.seen(test.runs)]
        counts.append((int(prompts.seen(test.prompts).sum()), len(np.unique(hit))))
    return {"source": "overlap of test and training rows", "tasks": counts}


@dataclass(frozen=True)
class _Tested:
    """The test rows of a task: the hash of each prompt, and the runs in them with the row of each."""

    prompts: Hashes
    runs: Hashes
    rows: NDArray[np.int64]

    @classmethod
    def of(cls, split: Split) -> _Tested:
        texts = pa.concat_arrays(list(split.texts("prompt")))
        words = _Words.of(texts)
        phrases, starts = words.runs(_PHRASE)
        pairs = np.unique(np.stack([phrases, words.text[starts].astype(np.uint64)]), axis=1)
        values, counts = np.unique(pairs[0], return_counts=True)
        usual = starts[np.isin(phrases, values[counts > max(_FEWEST, _WORDING * len(texts))])]
        wording = np.zeros(len(words.hashes), dtype=bool)
        for offset in range(_PHRASE):
            wording[usual + offset] = True
        runs, starts = words.runs(RUN)
        before = np.concatenate([[0], np.cumsum(wording)])
        own = before[starts + RUN] == before[starts]
        return cls(_whole(texts), runs[own], words.text[starts[own]])


class _Seen:
    """Which of some hashes have come by."""

    def __init__(self, wanted: Hashes) -> None:
        self.wanted = np.unique(wanted)
        self.found = np.zeros(len(self.wanted), dtype=bool)

    def look_for(self, hashes: Hashes) -> None:
        if len(self.wanted):
            at = np.searchsorted(self.wanted, hashes).clip(max=len(self.wanted) - 1)
            self.found[at[self.wanted[at] == hashes]] = True

    def seen(self, hashes: Hashes) -> NDArray[np.bool_]:
        return self.found[np.searchsorted(self.wanted, hashes)] if len(hashes) else np.zeros(0, dtype=bool)


def _whole(texts: pa.Array) -> Hashes:
    """One hash a text; case, white space and the punctuation at its ends aside."""
    spaced = pc.replace_substring_regex(pc.utf8_lower(texts), r"\s+", " ")
    return _hashed(pc.utf8_trim(spaced, characters=" .?!,;:"))


def _hashed(texts: pa.Array) -> Hashes:
    # Good within this process, and no hash leaves it. Two of 64 bits all but never agree by chance.
    numbers = (hash(text) for text in texts.to_pylist())
    return np.fromiter(numbers, dtype=np.int64, count=len(texts)).view(np.uint64)


@dataclass(frozen=True)
class _Words:
    """The words of some texts, one text after another: the hash of each, case aside, and the text it is in.

    Of scripts that are written without spaces, every character is a word.
    """

    hashes: Hashes
    text: NDArray[np.int64]

    @classmethod
    def of(cls, texts: pa.Array) -> _Words:
        if not pc.all(pc.string_is_ascii(texts)).as_py():
            texts = pc.replace_substring_regex(texts, f"({UNSPACED})", r" \1 ")
        words = pc.utf8_split_whitespace(pc.utf8_lower(pc.utf8_trim_whitespace(texts)))
        encoded = words.flatten().dictionary_encode()
        lengths = words.value_lengths().to_numpy()
        hashes = _hashed(encoded.dictionary)[encoded.indices.to_numpy()] if len(encoded) else np.zeros(0, np.uint64)
        return cls(hashes, np.repeat(np.arange(len(lengths)), lengths))

    def runs(self, length: int) -> tuple[Hashes, NDArray[np.int64]]:
        """A hash for every run of so many words within a text, and where each starts.

        A run's hash is a polynomial of its words' hashes, from differences of running sums, all modulo 2^64.
        """
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(self.hashes * _powers(_BASE, len(self.hashes)))])
        ends = np.arange(length - 1, len(self.hashes))
        starts = (ends - length + 1)[self.text[ends] == self.text[ends - length + 1]]
        return (sums[starts + length] - sums[starts]) * _powers(_INVERSE, len(self.hashes))[starts], starts


def _powers(base: np.uint64, count: int) -> Hashes:
    powers = np.full(count, base, dtype=np.uint64)
    powers[:1] = 1
    return np.cumprod(powers)
