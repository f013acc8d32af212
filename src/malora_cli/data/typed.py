"""Values of files that have types: names of classes, whole numbers without a fraction, text of bytes, nothing for NaN.

A table keeps whole numbers as fractions as soon as one of its column is missing or is a fraction; what people put
there, and expect in a prompt and an answer, is 18 and not 18.0.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from datasets import Audio, ClassLabel, Dataset, Features, Image, LargeList, List, Value, Video

from malora_cli.data.class_name import ClassName

_Made = Callable[[Any], Any]
#: From here on not every whole number is one of its own as a fraction.
_WHOLE = 2**53
#: Types that have fewer digits than a float of Python, which would show some that nobody wrote.
_NARROW = {"float16": np.float16, "float32": np.float32}


def as_people_write(dataset: Dataset) -> Dataset:
    """The rows with values as people write them; untouched where none of them could differ."""
    makers = {name: maker for name, feature in dataset.features.items() if (maker := _maker(feature)) is not None}
    dataset.reset_format()
    if makers:
        dataset.set_transform(partial(_made, makers))
    return dataset


def _made(makers: Mapping[str, _Made], batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {
        name: [makers[name](value) for value in column] if name in makers else column for name, column in batch.items()
    }


def _maker(feature: Any) -> _Made | None:
    """What makes a value of a type one that people write; None where it is one already."""
    if isinstance(feature, ClassLabel):
        return partial(_class_name, [ClassName(name, number) for number, name in enumerate(feature.names)])
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        return partial(_number, _NARROW.get(feature.dtype))
    if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary"):
        return _text
    if isinstance(feature, Mapping):
        makers = {name: maker for name, inner in feature.items() if (maker := _maker(inner)) is not None}
        return partial(_fields, makers) if makers else None
    inner = _item(feature)
    maker = None if inner is None else _maker(inner)
    return None if maker is None else partial(_items, maker)


def _item(feature: Any) -> Any:
    if isinstance(feature, List | LargeList):
        return feature.feature
    return feature[0] if isinstance(feature, list) else None


def _class_name(names: Sequence[ClassName], number: int | None) -> ClassName | int | None:
    if number is None or number == -1:  # as datasets write a class that they do not tell
        return None
    return names[number] if 0 <= number < len(names) else number


def _text(value: bytes | None) -> str | bytes | None:
    """Text that a program wrote without saying that it is one."""
    try:
        return value if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def _number(narrow: Callable[[float], object] | None, value: float | None) -> float | int | None:
    if value is None or value != value:
        return None
    if value.is_integer() and abs(value) < _WHOLE:
        return int(value)
    return value if narrow is None else float(str(narrow(value)))


def _items(maker: _Made, values: Sequence[Any] | None) -> list[Any] | None:
    return None if values is None else [maker(value) for value in values]


def _fields(makers: Mapping[str, _Made], values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if values is None:
        return None
    return {name: makers[name](value) if name in makers else value for name, value in values.items()}


def _inner(feature: Any) -> Iterator[Any]:
    """A type and all types in it."""
    yield feature
    item = _item(feature)
    for inner in feature.values() if isinstance(feature, Mapping) else () if item is None else (item,):
        yield from _inner(inner)


def no_text(feature: Any) -> str | None:
    """What a column of a type holds that no text can be made of."""
    kinds = {Image: "pictures", Audio: "sound", Video: "films"}
    return next((kinds[type(inner)] for inner in _inner(feature) if type(inner) in kinds), None)


def column_notes(features: Features, used: Collection[str]) -> tuple[str, ...]:
    """What is to be known of columns because of their types: names of classes, and what no text can be made of."""
    notes = []
    for name, feature in features.items():
        classes = next((inner for inner in _inner(feature) if isinstance(inner, ClassLabel)), None)
        what = no_text(feature)
        if name in used and classes is not None:
            notes.append(f"{name}: names of {len(classes.names):,} classes ({name}.number is the number)")
        elif name not in used and what is not None:
            notes.append(f"{name}: {what}, which no role is given, so rows are trained without")
    return tuple(notes)
