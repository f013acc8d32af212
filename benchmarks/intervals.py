"""Whether intervals hold what they promise, by scenario. Figures are printed and kept in ``results/statistics.json``.

    python benchmarks/intervals.py coverage    how often 95% intervals hold the true score, difference and mean of tasks
    python benchmarks/intervals.py corpus      the same of macro-F1, whose score is not a mean over rows
    python benchmarks/intervals.py nulls       how often two equal models are told apart, one task and after Holm
    python benchmarks/intervals.py power       how often a difference as big as `detectable` is found
    python benchmarks/intervals.py bleu        a bootstrap of BLEU against lm-eval's `bootstrap_stderr`

Scores are drawn in clusters whose rows correlate (beta-binomial, 0.3), and every draw is seeded. ``--rounds`` is the
number of simulations of a cell; where they are bootstrapped, half as many, and of 1,000 rows a quarter. Bootstraps
have 2,000 draws here and permutations 500, for speed; `malora eval` draws 10,000.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from malora_cli.processor import processor
from malora_cli.results import write_json
from malora_cli.results.statistics import Interval, Measured, compare, holm, interval, macro, resampling
from malora_cli.results.statistics.paired import Pair
from malora_cli.results.statistics.resampling import Sample

RESULTS = Path(__file__).parent / "results" / "statistics.json"
ROWS, MEANS, CLUSTERS = (40, 160, 1000), (0.02, 0.3, 0.5, 0.98), (1, 4)
CORRELATION = 0.3
SHARED = 0.5  # clusters that both models answer alike
Scores = NDArray[np.float64]
console = Console(width=140)


def draw(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> Scores:
    """Scores of clusters of so many rows, whose expectation is the mean."""
    shares = np.full(rows, mean)
    if size > 1:
        spread = (1 - CORRELATION) / CORRELATION
        shares = np.repeat(chance.beta(mean * spread, (1 - mean) * spread, size=rows // size), size)
    if kind == "right or wrong":
        return (chance.random(rows) < shares).astype(np.float64)
    near = np.clip(shares, 1e-6, 1 - 1e-6)
    return chance.beta(2 * near, 2 * (1 - near))


def draw_pair(chance: np.random.Generator, kind: str, rows: int, means: tuple[float, float], size: int) -> list[Scores]:
    """Scores of two models that answer some clusters alike."""
    before, after = (draw(chance, kind, rows, mean, size) for mean in means)
    alike = np.repeat(chance.random(rows // size) < SHARED, size)
    return [before, np.where(alike, before, after)]


def measured(scores: Scores, size: int) -> Measured:
    return Measured.of_scores(scores, np.arange(len(scores)) // size)


def cells(kinds: tuple[str, ...] = ("right or wrong", "graded")) -> list[tuple[str, int, float, int]]:
    return list(product(kinds, ROWS, MEANS, CLUSTERS))


def rounds_of(kind: str, rows: int, rounds: int) -> int:
    """Fewer where each takes long."""
    return rounds if kind == "right or wrong" else max(1, rounds // (4 if rows == 1000 else 2))


# ---------------------------------------------------------------- coverage


def holds(found: Interval | None, truth: float) -> bool:
    return found is not None and found.low <= truth <= found.high


def score_cover(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> bool:
    return holds(interval(measured(draw(chance, kind, rows, mean, size), size)), mean)


def difference_cover(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> bool:
    other = mean + 0.1 if mean < 0.5 else mean - 0.1
    before, after = (measured(scores, size) for scores in draw_pair(chance, kind, rows, (mean, other), size))
    return holds(Pair(before, after).interval, (1 - SHARED) * (other - mean))


def equal_cover(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> bool:
    before, after = (measured(scores, size) for scores in draw_pair(chance, kind, rows, (mean, mean), size))
    return holds(Pair(before, after).interval, 0.0)


def macro_cover(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> bool:
    means = [mean, 0.02, 0.6, mean]
    tasks = [measured(draw(chance, kind, rows, one, size), size) for one in means]
    return holds(macro(tasks), float(np.mean(means)))


def coverage(rounds: int) -> dict[str, Any]:
    """The share of simulations whose interval holds the truth, cell by cell."""
    checks = {"score": score_cover, "difference": difference_cover, "no difference": equal_cover, "macro": macro_cover}
    resampling.DRAWS = 2000
    return {name: share_of(check, rounds) for name, check in checks.items()}


def share_of(check: Callable[..., bool], rounds: int, *, always: bool = False) -> dict[str, Any]:
    """How often a check is true, by cell, on average, and at least; with as many rounds of all cells, if always."""
    found = []
    for number, (kind, rows, mean, size) in enumerate(cells()):
        if check is macro_cover and rows == 1000:  # four tasks each
            continue
        chance, times = np.random.default_rng([7, number]), rounds if always else rounds_of(kind, rows, rounds)
        share = float(np.mean([check(chance, kind, rows, mean, size) for _ in range(times)]))
        found.append({"kind": kind, "rows": rows, "mean": mean, "cluster": size, "rounds": times, "share": share})
        console.print(f"{check.__name__:17} {kind:14} {rows:5} rows  mean {mean:4}  cluster {size}  {share:.3f}")
    shares = [cell["share"] for cell in found]
    console.print(f"{check.__name__}: {np.mean(shares):.3f} on average, {min(shares):.3f} to {max(shares):.3f}")
    return {"average": float(np.mean(shares)), "lowest": min(shares), "highest": max(shares), "cells": found}


# ---------------------------------------------------------------- corpus


def labelled(chance: np.random.Generator, rows: int, accuracy: float) -> tuple[Scores, Scores]:
    """Right and given labels, of which the rarest stands in one row of 25."""
    shares = np.array([0.4, 0.3, 0.16, 0.1, 0.04])
    right, other = (chance.choice(len(shares), size=rows, p=shares) for _ in range(2))
    return right, np.where(chance.random(rows) < accuracy, right, other)


def by_label(right: Scores, given: Scores) -> Measured:
    from malora_cli.evals.metrics._base import Answer
    from malora_cli.evals.metrics.macro_f1 import MacroF1

    pairs = zip(right, given, strict=True)
    metric, answers = MacroF1(), [Answer(f"label {given}", [f"label {right}"]) for right, given in pairs]
    return metric.measured(metric.marks(answers))


def corpus(rounds: int) -> dict[str, Any]:
    """How often the interval of macro-F1 holds that of a very large corpus."""
    resampling.DRAWS = 2000
    chance, found = np.random.default_rng(10), []
    for rows, accuracy in product(ROWS, (0.3, 0.8)):
        truth = by_label(*labelled(chance, 50_000, accuracy)).score
        alone = [interval(by_label(*labelled(chance, rows, accuracy))) for _ in range(rounds)]
        share = float(np.mean([holds(one, truth) for one in alone]))
        found.append({"rows": rows, "accuracy": accuracy, "rounds": rounds, "share": share})
        console.print(f"macro-f1 {rows:5} rows  accuracy {accuracy}  {share:.3f}")
    return {"cells": found}


# ---------------------------------------------------------------- nulls


def null_p(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> float:
    before, after = (measured(scores, size) for scores in draw_pair(chance, kind, rows, (mean, mean), size))
    return Pair(before, after).p


def null_found(chance: np.random.Generator, kind: str, rows: int, mean: float, size: int) -> bool:
    return null_p(chance, kind, rows, mean, size) < 0.05


def nulls(rounds: int) -> dict[str, Any]:
    """The share of simulations in which two equal models are told apart; of families of 8 tasks, any one of them."""
    resampling.DRAWS = 500
    found = {"one task": share_of(null_found, rounds, always=True)}
    chance, family = np.random.default_rng(8), [cell for cell in cells() if cell[1] == 160][::2]
    times = max(1, rounds // 3)
    any_found = [min(holm([null_p(chance, *cell) for cell in family])) < 0.05 for _ in range(times)]
    found["family of 8 after Holm"] = {"rounds": times, "share": float(np.mean(any_found))}
    console.print(f"any of 8 tasks after Holm: {np.mean(any_found):.3f}")
    return found


# ---------------------------------------------------------------- power


def power(rounds: int) -> dict[str, Any]:
    """The share of simulations that find a difference as big as a typical `detectable` of that design."""
    resampling.DRAWS = 1000
    found = []
    for number, (kind, rows, size) in enumerate(product(("right or wrong", "graded"), ROWS, CLUSTERS)):
        if rows // size < 40:  # of 10 clusters, half of them alike, too few differ for any test
            continue
        chance, times = np.random.default_rng([9, number]), rounds_of(kind, rows, rounds)
        seen, gap = power_of(chance, kind, rows, size, times)
        found.append({"kind": kind, "rows": rows, "cluster": size, "rounds": times, "difference": gap, "share": seen})
        console.print(f"power {kind:14} {rows:5} rows  cluster {size}  {gap:.3f} found {seen:.2f} of times")
    return {"cells": found}


def power_of(chance: np.random.Generator, kind: str, rows: int, size: int, times: int) -> tuple[float, float]:
    """Start from a mean of 0.1; the gap is set to the median of what such pairs say they can detect."""
    gap = 0.1
    for _ in range(8):  # the detectable difference depends on the difference, a little
        seen = [compare(*gapped(chance, kind, rows, size, gap)).detectable or 1.0 for _ in range(15)]
        gap = min(median(seen), 0.85 * (1 - SHARED))  # what there is room for
    return float(np.mean([Pair(*gapped(chance, kind, rows, size, gap)).p < 0.05 for _ in range(times)])), gap


def gapped(chance: np.random.Generator, kind: str, rows: int, size: int, gap: float) -> list[Measured]:
    means = (0.1, 0.1 + gap / (1 - SHARED))
    return [measured(scores, size) for scores in draw_pair(chance, kind, rows, means, size)]


# ---------------------------------------------------------------- bleu


def bleu(rounds: int, rows: int = 1000, draws: int = 1000, timed: int = 20) -> dict[str, Any]:
    """Draws of the corpus's sufficient counts, counting included, against as many corpora that are counted anew.

    Seconds are those of the processor, so that other work on it does not count. One draw of lm-eval takes as long as
    another, and only some are timed.
    """
    os.environ["DISABLE_MULTIPROC"] = "1"  # lm-eval's own switch: its draws in this process, where they are timed
    from lm_eval.api.metrics import bleu as corpus_bleu
    from lm_eval.api.metrics import bootstrap_stderr

    from malora_cli.evals.metrics._base import Answer
    from malora_cli.evals.metrics.bleu import Bleu

    texts = sentences(rows)

    def ours() -> float:
        metric = Bleu()
        marks = metric.marks([Answer(answer, [reference]) for reference, answer in texts])
        return float(Sample.of(metric.measured(marks)).bootstrap(draws).std(ddof=1))

    def theirs() -> float:
        return bootstrap_stderr(corpus_bleu, texts, iters=timed) / 100

    seconds: dict[str, list[float]] = {"malora": [], "lm-eval": []}
    errors: dict[str, float] = {}
    for _ in range(rounds):
        for name, run, factor in (("malora", ours, 1.0), ("lm-eval", theirs, draws / timed)):
            started = time.process_time()
            errors[name] = run()
            seconds[name].append((time.process_time() - started) * factor)
    ratio = median(b / a for a, b in zip(seconds["malora"], seconds["lm-eval"], strict=True))
    console.print(f"bleu, {rows} rows, {draws} draws: {ratio:.0f} times as fast; standard errors {errors}")
    return {
        "rows": rows,
        "draws": draws,
        "timed_draws_of_lm_eval": timed,
        "processor_seconds": seconds,
        "ratio": ratio,
        "standard_errors": errors,
    }


def sentences(rows: int) -> list[tuple[str, str]]:
    """References and answers that share most of their words."""
    chance = random.Random(0)
    words = [f"word{number}" for number in range(400)]
    pairs = []
    for _ in range(rows):
        reference = chance.choices(words, k=chance.randint(10, 30))
        answer = [word if chance.random() < 0.8 else chance.choice(words) for word in reference]
        pairs.append((" ".join(reference), " ".join(answer)))
    return pairs


# ---------------------------------------------------------------- command


def machine() -> dict[str, Any]:
    return {"processor": processor(), "cores": os.cpu_count(), "numpy": np.__version__}


def main() -> None:
    """Run one scenario and keep its figures beside those of the others."""
    scenarios = {
        "coverage": (coverage, 1000),
        "corpus": (corpus, 400),
        "nulls": (nulls, 1000),
        "power": (power, 600),
        "bleu": (bleu, 1),
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=scenarios)
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    run, rounds = scenarios[arguments.scenario]
    started = time.perf_counter()
    found = {"machine": machine(), **run(arguments.rounds or rounds)}
    found["took_seconds"] = round(time.perf_counter() - started, 1)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    write_json(RESULTS, {**known, arguments.scenario: found})


if __name__ == "__main__":
    main()
