"""A small recipe, its mix and a vocabulary, for the tests of the recipe room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field, model_validator

from malora_cli.evals.metrics.evaluate import Evaluate
from malora_cli.recipe import (
    InvalidRecipeError,
    LoadedRecipe,
    MethodSettings,
    MetricSettings,
    Vocabulary,
    load_recipe,
)


class Wide(MethodSettings):
    name: Literal["wide"] = Field(description="one rank")
    r: int = Field(default=8, gt=0, description="rank")
    alpha: float = Field(default=16, gt=0, description="scale")


class Shared(MethodSettings):
    name: Literal["shared"] = Field(description="a rank inside a rank")
    r: int = Field(default=12, gt=0, description="rank")
    subspace_rank: int = Field(default=32, gt=0, description="outer rank")

    @model_validator(mode="after")
    def _fits(self) -> Shared:
        if self.subspace_rank < self.r:
            raise ValueError(f"subspace_rank {self.subspace_rank} must be at least r {self.r}")
        return self


class Exact(MetricSettings):
    name: Literal["exact-match"] = "exact-match"
    ignore: tuple[Literal["case", "punctuation"], ...] = Field(default=(), description="what does not count")


class Rouge(MetricSettings):
    name: Literal["rouge-l"] = "rouge-l"


VOCABULARY = Vocabulary(
    methods={"wide": Wide, "shared": Shared},
    formats=("prompt-completion", "messages"),
    metrics={"exact-match": Exact, "rouge-l": Rouge, "evaluate": Evaluate},
)

RECIPE = """\
# learns two sums
model: {base: tiny}
method:
  name: shared
  r: 4
mix: mixes/sums.yaml
train:
  steps: 100
  batch_size: 24
  learning_rate: 2e-3
"""

MIX = """\
description: two sums
weighting: uniform
tasks:
  plus:
    domain: arithmetic
    train: plus.jsonl
    test: {path: owner/plus, split: test}
    columns: {prompt: question}
    format: prompt-completion
    metric: exact-match
  minus:
    domain: arithmetic
    train: data/minus
    test: ../elsewhere.jsonl
    format: prompt-completion
    metric: exact-match
    max_new_tokens: 8
"""


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything runs in a fresh folder, so that messages show paths as a user sees them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixes").mkdir()
    (tmp_path / "mixes" / "sums.yaml").write_text(MIX)
    (tmp_path / "mixes" / "plus.jsonl").touch()
    (tmp_path / "sums.yaml").write_text(RECIPE)


def load(*overrides: str, path: str = "sums.yaml") -> LoadedRecipe:
    return load_recipe(Path(path), overrides, vocabulary=VOCABULARY)


def problems(*overrides: str, path: str = "sums.yaml") -> list[str]:
    with pytest.raises(InvalidRecipeError) as caught:
        load(*overrides, path=path)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def change(old: str, new: str, path: str = "sums.yaml") -> None:
    text = Path(path).read_text()
    assert text.count(old) == 1
    Path(path).write_text(text.replace(old, new))


def flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[str]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, (*path, name))
    else:
        yield ".".join(path)
