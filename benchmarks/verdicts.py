"""Whether the verdicts of `malora compare` keep what they promise, on simulated comparisons.

    python benchmarks/verdicts.py honesty   coverage of the wider interval, and verdicts where nothing differs
    python benchmarks/verdicts.py power     how often a true difference of the size that is said to be seen is seen:
                                            of one method of three beside the baseline, corrected by Holm as always
    python benchmarks/verdicts.py speed     seconds for all effects of 7 methods, 3 seeds, 8 tasks of 1,000 rows
    python benchmarks/verdicts.py middle    the interval of the interquartile mean: its coverage and that of rliable's
                                            bootstrap, and the time of both for 7 methods, 3 seeds, 8 tasks; needs
                                            ``pip install rliable 'arch<8' 'pandas<3'``

A plan has four methods, four tasks of 60 rows and 2, 3 or 5 seeds. A row's loss is its own, plus the method's, plus
what a run adds to a task (new in every run), plus noise of run and row.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from malora_cli.processor import processor
from malora_cli.results import write_json
from malora_cli.results.comparison import Effect, Verdict
from malora_cli.results.statistics import resampling
from malora_cli.results.verdicts import SeveralRuns, TaskRows, decided, effect

RESULTS = Path(__file__).parent / "results" / "verdicts.json"
METHODS, TASKS, ROWS, TOKENS = 4, 4, 60, 8
#: Standard deviations of what a run adds to a task, and of noise of run and row, in nats a token.
RUN, NOISE = 0.02, 0.1
#: How much spread of runs is put in, as multiples of `RUN`: where rows decide, and where seeds do.
SPREADS = (0.0, 1.0, 4.0)
console = Console(width=120)


def method(rows: list[np.ndarray], shift: float, seeds: int, spread: float, chance: np.random.Generator) -> SeveralRuns:
    """The runs of one method."""
    clusters = [str(row) for row in range(len(rows[0]))]
    made = []
    for _ in range(seeds):
        losses = [own + shift + chance.normal(0, RUN * spread) + chance.normal(0, NOISE, len(own)) for own in rows]
        made.append(
            {
                f"task{number}": TaskRows((loss * TOKENS).tolist(), [TOKENS] * len(loss), [0.0] * len(loss), clusters)
                for number, loss in enumerate(losses)
            }
        )
    return SeveralRuns(made, "loss")


def plan(shift: float, seeds: int, spread: float, chance: np.random.Generator) -> list[Effect]:
    """The effects of one comparison in which the first method differs from the baseline by so much, and no other."""
    rows = [chance.gamma(4, 0.25, ROWS) for _ in range(TASKS)]
    baseline, *others = (method(rows, by, seeds, spread, chance) for by in (0.0, shift, *[0.0] * (METHODS - 2)))
    return decided([effect(other, baseline, family=len(others)) for other in others], "loss", 0.0)


def honesty(plans: int) -> dict[str, object]:
    """Coverage of the interval that verdicts take, and plans with any verdict where nothing differs."""
    found: dict[str, object] = {}
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            chance = np.random.default_rng([seeds, int(spread * 10)])
            drawn = [plan(0.0, seeds, spread, chance) for _ in range(plans)]
            covered = np.mean([abs(it.value) <= (it.half or 0) for effects in drawn for it in effects])
            false = np.mean([any(it.verdict in (Verdict.BETTER, Verdict.WORSE) for it in effects) for effects in drawn])
            found[f"{seeds} seeds, spread {spread:g}"] = {"covered": float(covered), "false": float(false)}
            console.print(
                f"{seeds} seeds, spread {spread:g}: covered {covered:.3f}, plans with a false one {false:.3f}"
            )
    return found


def power(plans: int) -> dict[str, object]:
    """How often a true difference has its verdict that is as large as such a plan says it would see."""
    found: dict[str, object] = {}
    for seeds in (2, 3, 5):
        for spread in SPREADS:
            chance = np.random.default_rng([seeds, int(spread * 10), 1])
            said = float(
                np.median([it.detectable or 0 for _ in range(plans // 4) for it in plan(0, seeds, spread, chance)])
            )
            drawn = [plan(said, seeds, spread, chance)[0] for _ in range(plans)]
            seen = np.mean([it.verdict is Verdict.WORSE for it in drawn])
            found[f"{seeds} seeds, spread {spread:g}"] = {"said": said, "seen": float(seen)}
            console.print(f"{seeds} seeds, spread {spread:g}: a difference of {said:.4f} is seen {seen:.3f}")
    return found


def speed(_plans: int) -> dict[str, object]:
    """Seconds for all effects of a large comparison."""
    chance = np.random.default_rng(0)
    rows = [chance.gamma(4, 0.25, 1000) for _ in range(8)]
    methods = [method(rows, 0.0, 3, 1.0, chance) for _ in range(7)]
    since = time.perf_counter()
    for other in methods[1:]:
        effect(other, methods[0])
        for task in other.measured:
            effect(other, methods[0], task)
    seconds = time.perf_counter() - since
    console.print(f"all effects in {seconds:.1f} s")
    return {"seconds": seconds, "processor": processor()}


def middle(plans: int) -> dict[str, object]:
    """Coverage of the interquartile mean's interval over seeds, and that of rliable's bootstrap."""
    from rliable.library import get_interval_estimates
    from rliable.metrics import aggregate_iqm

    def theirs(methods: dict[str, np.ndarray], draws: int) -> dict[str, np.ndarray]:
        _, ends = get_interval_estimates(methods, lambda of: np.array([aggregate_iqm(of)]), reps=draws)
        return {name: both[:, 0] for name, both in ends.items()}

    def drawn(seeds: int, shared: float, chance: np.random.Generator, levels: np.ndarray) -> np.ndarray:
        each = chance.normal(0, RUN, (seeds, len(levels)))
        return np.asarray(levels + chance.normal(0, shared, (seeds, 1)) + each)

    def ours(values: np.ndarray) -> tuple[float, float]:
        several = SeveralRuns(
            [{f"task{n}": TaskRows([float(v)], [1], [0.0], ["a"]) for n, v in enumerate(row)} for row in values], "loss"
        )
        middle, half = several.interquartile()
        assert half is not None
        return middle - half, middle + half

    found: dict[str, object] = {}
    for seeds in (2, 3, 5):
        for shared in (0.0, RUN):
            chance = np.random.default_rng([seeds, int(shared * 100), 2])
            covered = []
            for _ in range(plans):
                levels = chance.gamma(4, 0.25, 8)
                true = aggregate_iqm(drawn(20_000, shared, chance, levels))
                values = drawn(seeds, shared, chance, levels)
                both = [ours(values), theirs({"it": values}, resampling.DRAWS)["it"]]
                covered.append([low <= true <= high for low, high in both])
            own, peer = map(float, np.mean(covered, axis=0))
            found[f"{seeds} seeds, shared {shared:g}"] = {"covered": own, "rliable": peer}
            console.print(f"{seeds} seeds, shared spread {shared:g}: covered {own:.3f}, by rliable {peer:.3f}")
    methods = {f"method{n}": drawn(3, RUN, chance, levels) for n in range(7)}
    seconds = []
    for work in (lambda: [ours(values) for values in methods.values()], lambda: theirs(methods, 10_000)):
        since = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - since)
    console.print(f"7 methods, 3 seeds, 8 tasks: {seconds[0]:.4f} s, rliable with 10,000 draws {seconds[1]:.1f} s")
    return found | {"seconds": seconds[0], "rliable_seconds": seconds[1], "processor": processor()}


def main() -> None:
    scenarios = {"honesty": honesty, "power": power, "speed": speed, "middle": middle}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000, help="of each bootstrap and permutation test")
    arguments = parser.parse_args()
    if arguments.scenario != "speed":
        resampling.DRAWS = arguments.draws
    found = scenarios[arguments.scenario](arguments.plans)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    write_json(RESULTS, known | {arguments.scenario: {"plans": arguments.plans, "draws": resampling.DRAWS, **found}})


if __name__ == "__main__":
    main()
