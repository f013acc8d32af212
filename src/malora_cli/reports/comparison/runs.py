"""What a comparison's page shows that is not in its record: what lies in the folders of its runs, if they are there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from malora_cli.errors import RunError
from malora_cli.reports.view import newest_routing
from malora_cli.results import Digest, ExpertGeometry, RunRecord
from malora_cli.results.comparison import MethodRun
from malora_cli.results.metrics import ExpertShare, GateEntropy


@dataclass(frozen=True)
class Routing:
    """How the runs of one method use their experts: means over these runs.

    Args:
        seeds: Of the runs.
        load: Shares of the experts by task and layer group; experts are ranked within each router, so that those of
            different runs can be averaged.
        entropy: Of the gates, by task and layer group.
        experts: What the experts have in common.
    """

    seeds: list[int]
    load: dict[str, ExpertShare]
    entropy: dict[str, GateEntropy]
    experts: ExpertGeometry | None


def routing_of(runs: Sequence[MethodRun], folder: Path) -> Routing | None:
    """What runs of one method keep of their routers; None where they keep nothing, as without routers.

    A run that is gone or damaged is left out: the page of a comparison does not depend on it.

    Args:
        runs: The runs.
        folder: Where their folders lie.
    """
    found = [(run.seed, routing) for run in runs if (routing := _routing(RunRecord(folder / run.run))) is not None]
    if not found:
        return None
    loads, entropies = [it.load for _, it in found], [it.entropy for _, it in found]
    geometries = [it.experts for _, it in found if it.experts is not None]
    return Routing(
        seeds=[seed for seed, _ in found],
        load={
            task: {group: _mean([load[task][group] for load in loads]) for group in groups}
            for task, groups in loads[0].items()
        },
        entropy={
            task: {group: fmean(entropy[task][group] for entropy in entropies) for group in groups}
            for task, groups in entropies[0].items()
        },
        experts=ExpertGeometry.mean_of(geometries) if geometries else None,
    )


#: By step the mean cosine of two tasks' gradients, over pairs of tasks and over runs.
Conflict = dict[int, float]


def conflict_of(runs: Sequence[MethodRun], folder: Path) -> Conflict:
    """How far tasks pulled against each other in runs of one method; empty where these did not measure it.

    Of each run the measurements that its report shows are taken. A run that is gone or damaged is left out.

    Args:
        runs: The runs.
        folder: Where their folders lie.
    """
    found = dict[int, list[float]]()
    for run in runs:
        with suppress(RunError):
            for measured in Digest(RunRecord(folder / run.run).metrics).conflicts.with_last():
                if "all" in measured.cosine:
                    found.setdefault(measured.step, []).append(measured.cosine["all"])
    return {step: fmean(found[step]) for step in sorted(found)}


def _mean(shares: Sequence[Sequence[float]]) -> list[float]:
    return [fmean(values) for values in zip(*shares, strict=True)]


def _routing(record: RunRecord) -> Routing | None:
    """That of one run, as it was measured last."""
    with suppress(RunError):
        load, entropy = newest_routing(Digest(record.metrics), record.evaluations_of_the_end())
        experts = ExpertGeometry.load(record.experts_path)
        if load or entropy or experts:
            return Routing([], load[1] if load else {}, entropy[1] if entropy else {}, experts)
    return None


def evaluations_of(runs: Sequence[MethodRun], folder: Path) -> dict[int, Path]:
    """By seed the file of the newest evaluation at the end of each run, of all tasks that the comparison has of it."""
    return {run.seed: file for run in runs for file in _evaluation(run, RunRecord(folder / run.run))}


def _evaluation(run: MethodRun, record: RunRecord) -> Iterator[Path]:
    with suppress(RunError):
        steps = record.manifest.steps
        found = [
            file
            for file, result in record.evaluations_by_file().items()
            if result.step == steps and result.of_test_rows and result.tasks.keys() == run.scores.keys()
        ]
        yield from found[-1:]
