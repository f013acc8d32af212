"""A metric of the user's own: a module of the `evaluate` package on disk, whose Python code is run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from malora_cli.errors import DataError
from malora_cli.evals.metrics._base import Answer, Mark, Metric
from malora_cli.recipe.settings import Text
from malora_cli.registry import did_you_mean

_OFFLINE = "Metrics of the hub are not fetched: save the module's folder, and give its path."


class Evaluate(Metric):
    """What a module computes of every row, alone or in a list; a task's score is the mean over its rows."""

    name: Literal["evaluate"] = "evaluate"
    path: Text = Field(
        description="Python file of the module, or the folder of the same name that it lies in; relative to the file "
        "that names it"
    )
    key: Text | None = Field(
        default=None, description="Which of the values that it computes is the score; null where there is only one"
    )
    scale: Annotated[float, Field(gt=0)] = Field(default=1.0, description="Its highest score, such as 100")
    arguments: dict[Text, Any] = Field(
        default_factory=dict, description="What its compute is given besides the answers, as {ignore_case: true}"
    )

    def __str__(self) -> str:
        """The file by its name alone: where it lies is not for everybody who is given a result."""
        options = ", ".join(f"{option}: {value}" for option, value in self._chosen if option != "path")
        named = f"{self.name}:{Path(self.path).name}"
        return f"{named} ({options})" if options else named

    @property
    def code(self) -> str | None:
        """The module."""
        return self.path

    def marks(self, answers: Sequence[Answer]) -> list[Mark]:
        """The score of each answer: the best over its right answers, where the module takes one at a time."""
        lists = _takes_lists(_module(self.path))
        ways = [[answer.references] if lists else answer.references for answer in answers]
        texts = [answer.text for answer, rights in zip(answers, ways, strict=True) for _ in rights]
        scores = iter(self._scores(texts, [right for rights in ways for right in rights]))
        return [Mark.of(max(next(scores) for _ in rights)) for rights in ways]

    def reads(self, reference: str) -> bool:
        """Whether it scores as an answer to itself."""
        return self.marks([Answer(reference, [reference])])[0].score > 0

    def _scores(self, texts: list[str], references: list[Any]) -> list[float]:
        """The score of each pair: of one call where the module lists scores, else of a call for each."""
        first = self._computed(texts[:1], references[:1])
        if _is_list(first):
            found = self._computed(texts, references)
        else:
            rest = zip(texts[1:], references[1:], strict=True)
            found = [first, *(self._computed([text], [reference]) for text, reference in rest)]
        if len(found) != len(texts):
            what = f"it computes {len(found):,} scores of {len(texts):,} answers"
            raise DataError(what, where=self.path, fix="Name another value as `key`.")
        return [self._scaled(value) for value in found]

    def _computed(self, texts: list[str], references: list[Any]) -> Any:
        """What the module computes, under the key."""
        try:
            found = _module(self.path).compute(predictions=texts, references=references, **self.arguments)
        except Exception as error:  # it is the user's code, and may raise anything
            raise _failed(self.path, error) from error
        key = next(iter(found)) if self.key is None and len(found) == 1 else self.key
        if key is None:
            what = f"it computes {', '.join(found)}, and nothing says which of these is the score"
            raise DataError(what, where=self.path, fix=f"Name one, as in `metric: {{..., key: {next(iter(found))}}}`.")
        if key not in found:
            raise DataError(f"it computes no '{key}'; {did_you_mean(key, found)}", where=self.path)
        return found[key]

    def _scaled(self, value: Any) -> float:
        try:
            score = float(value) / self.scale
        except (TypeError, ValueError):
            what = f"its score is {str(value)[:40]!r}, and one number for each row is wanted"
            raise DataError(what, where=self.path, fix="Name another value as `key`.") from None
        if not isfinite(score) or not 0 <= score <= 1 + 1e-9:
            fix = "Give its highest as `scale`, or name another value as `key`."
            raise DataError(f"its score is {score:g}, and scores go from 0 to 1", where=self.path, fix=fix)
        return min(score, 1.0)


@cache
def _module(path: str) -> Any:
    """The module at a path, as `evaluate` loads it.

    Raises:
        DataError: There is none, or its code fails.
    """
    if not os.path.exists(path):  # noqa: PTH110 (pathlib's raises for what cannot be a path)
        raise DataError("file not found", where=path, fix=_OFFLINE)
    import evaluate  # it takes seconds to load

    try:
        return evaluate.load(str(Path(path).absolute()), keep_in_memory=True)
    except Exception as error:  # it is the user's code, and may raise anything
        raise _failed(path, error) from error


def _failed(path: str, error: Exception) -> DataError:
    why = str(error).strip().partition("\n")[0]
    return DataError(f"the metric's code fails ({type(error).__name__}: {why})", where=path, fix="Mend it.")


def _takes_lists(module: Any) -> bool:
    """Whether a module takes all right answers of a row at once."""
    from datasets import Value

    ways = module.features if isinstance(module.features, list) else [module.features]
    return any(not isinstance(features.get("references"), Value) for features in ways)


def _is_list(value: Any) -> bool:
    return not isinstance(value, str) and hasattr(value, "__len__")


METRIC = Evaluate
