"""``experts.json``: what the experts of a finished run have in common, and how far they spread."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Literal

from pydantic import Field, model_validator

from malora_cli.results.files import damaged, read_json, write_json
from malora_cli.results.record import Record


class ProjectionGeometry(Record):
    """The experts' down- or up-projections, means over the linears of one name in one layer group."""

    similarity: float | None = Field(description="mean canonical correlation of two experts, 0 to 1; null with one")
    effective_rank: float = Field(description="directions that all experts together amount to")
    rank: float = Field(description="directions they could amount to")
    spectrum: list[float] = Field(description="singular values of all experts together over their mean, largest first")

    @classmethod
    def mean_of(cls, projections: Iterable[ProjectionGeometry]) -> ProjectionGeometry:
        """The mean of several, of which those with one expert have no similarity."""
        listed = list(projections)
        similarities = [p.similarity for p in listed if p.similarity is not None]
        return cls(
            similarity=fmean(similarities) if similarities else None,
            effective_rank=fmean(p.effective_rank for p in listed),
            rank=fmean(p.rank for p in listed),
            spectrum=[fmean(values) for values in zip(*(p.spectrum for p in listed), strict=True)],
        )


#: The experts' "down" and "up" projections.
Sides = dict[Literal["down", "up"], ProjectionGeometry]


class ExpertGeometry(Record):
    """Every projection by layer group, then by the name of the linears."""

    groups: dict[str, dict[str, Sides]]

    @model_validator(mode="after")
    def _comparable(self) -> ExpertGeometry:
        sides = [sides for linears in self.groups.values() for sides in linears.values()]
        if any(found.keys() != {"down", "up"} for found in sides):
            raise ValueError("a linear lacks its down- or its up-projections")
        lengths = {len(side.spectrum) for found in sides for side in found.values()}
        if len(lengths) > 1 or lengths & {0, 1}:
            raise ValueError("spectra are not of one length of at least 2")
        return self

    @classmethod
    def mean_of(cls, runs: Sequence[ExpertGeometry]) -> ExpertGeometry:
        """The mean over runs of one method, which have the same linears."""
        groups = {
            group: {target: _mean_sides([run.groups[group][target] for run in runs]) for target in linears}
            for group, linears in runs[0].groups.items()
        }
        return cls(groups=groups)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        write_json(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> ExpertGeometry | None:
        """Read the file; None where there is none, as with methods that route nothing.

        Raises:
            RunError: It is damaged.
        """
        if not path.is_file():
            return None
        try:
            return cls.model_validate(read_json(path))
        except (ValueError, OSError) as error:
            raise damaged(path, "analysis of the experts", error, fix="Remove it.") from error


def _mean_sides(found: Sequence[Sides]) -> Sides:
    return {
        "down": ProjectionGeometry.mean_of(sides["down"] for sides in found),
        "up": ProjectionGeometry.mean_of(sides["up"] for sides in found),
    }
