"""Whether comparisons of real runs are honest, and what `malora compare` costs beside its runs.

    python benchmarks/compare.py honesty    LoRA against itself under other seeds, and against a tenth of its rate
    python benchmarks/compare.py overhead   `malora compare baselines` against its runs' own seconds, and a shell loop
    python benchmarks/compare.py trl        LoRA with three rates, the best by validation loss, then test losses of two
                                            seeds: against a script of TRL's SFTTrainer (packed) with PEFT's LoRA

On the mix `quickstart_pairs` and the tiny model of the tests. With `--base NAME` the overhead is that of two runs of a
real model. Figures are printed and kept in ``benchmarks/results/compare.json``, by scenario and processor.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # compiling what is imported again and again is nobody's cost
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


from rich.console import Console

from conftest import write_model
from malora_cli.cli._common import prepare_libraries
from malora_cli.compare.planner import Planner
from malora_cli.compare.record import rows_of
from malora_cli.compare.run import Crew
from malora_cli.named import vocabulary
from malora_cli.processor import processor
from malora_cli.results import runs_under, write_json
from malora_cli.results.comparison import Comparison, Verdict
from malora_cli.results.verdicts import RunRows, SeveralRuns, decided, effect
from train_runs import SilentView

RESULTS = Path(__file__).parent / "results" / "compare.json"
#: Seeds of the runs that are compared with one another, pairs of disjoint threes, and verdicts that chance may give.
SEEDS, PAIRS, MOST = 12, 20, 3
RATE, STEPS = 1e-2, 60
SEVERAL = ("lora", "malora")
#: Of the comparison that a script does as well; nothing is generated.
SCRIPT_STEPS, SCRIPT_SEEDS, RATES = 20, (0, 1), (3e-4, 1e-3, 3e-3)
SCRIPT = ["method={name: lora, r: 64, lora_alpha: 128}"]
TASKS = ("numbers_ascending", "numbers_descending", "words_reversed", "words_sorted")
SCRIPT += [f"mix.tasks.{task}.metric=likelihood" for task in TASKS]
console = Console(width=120)


def write_recipe(folder: Path, base: str | None = None, **train: Any) -> Path:
    """A recipe on the base model, by default the tiny one, with its runs beside it."""
    settings = {"steps": STEPS, "batch_size": 16, "micro_batch_size": 16, "learning_rate": RATE, **train}
    recipe = {
        "model": {"base": base or str(write_model(folder / "model"))},
        "method": {"name": "lora", "r": 8, "lora_alpha": 16},
        "mix": "quickstart_pairs",
        "train": {"eval_every": settings["steps"], "eval_rows": 8, "checkpoint_every": settings["steps"], **settings},
        "eval": {"rows": 50},
        "output": {"folder": str(folder / "runs"), "name": "tiny"},
    }
    path = folder / "tiny.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


# ---------------------------------------------------------------- honesty


def honesty(_rounds: int, _base: str | None) -> dict[str, Any]:
    """Verdicts on threes of LoRA's own seeds, and on a tenth of its learning rate."""
    prepare_libraries()
    with tempfile.TemporaryDirectory() as name:
        recipe = write_recipe(Path(name))
        full = measured(recipe, RATE, range(SEEDS))
        tenth = measured(recipe, RATE / 10, range(3))
    chance, seen = random.Random(0), list[Verdict]()
    for _ in range(PAIRS):
        drawn = chance.sample(range(SEEDS), 6)
        seen.append(verdict([full[seed] for seed in drawn[:3]], [full[seed] for seed in drawn[3:]]))
    told = sum(one in (Verdict.BETTER, Verdict.WORSE) for one in seen)
    slow = verdict(tenth, full[:3])
    console.print(
        f"LoRA against LoRA: {told} verdicts of {PAIRS}, at most {MOST}; at a tenth of its rate: {slow.value}"
    )
    losses = [float(SeveralRuns([run], "loss").values.mean()) for run in [*full, *tenth]]
    if told > MOST or slow is not Verdict.WORSE:
        raise SystemExit("these verdicts are not honest")
    return {
        "seeds": SEEDS,
        "steps": STEPS,
        "pairs": PAIRS,
        "verdicts": told,
        "a tenth of its rate": slow.value,
        "losses": losses[:SEEDS],
        "losses at a tenth": losses[SEEDS:],
    }


def measured(recipe: Path, rate: float, seeds: range) -> list[RunRows]:
    """The rows of LoRA's runs at one learning rate."""
    planner = Planner(recipe, [], {}, vocabulary())
    runs = [planner.run("lora", seed, rate=rate) for seed in seeds]
    outcome = Crew(SilentView, console.print).carry_out(runs)
    assert not outcome.failures
    return [rows_of(it.file, "loss") for it in outcome.evaluated]


def verdict(method: list[RunRows], baseline: list[RunRows]) -> Verdict:
    """What a comparison of two methods alone would say, without a margin."""
    [found] = decided([effect(SeveralRuns(method, "loss"), SeveralRuns(baseline, "loss"))], "loss", 0.0)
    return found.verdict


# ---------------------------------------------------------------- overhead


def overhead(rounds: int, base: str | None) -> dict[str, Any]:
    """Wall of a comparison, the seconds of its runs by their own account, and wall of a shell loop, in turns."""
    train = {"steps": 100, "batch_size": 8, "micro_batch_size": 8} if base else {"steps": 30}
    seeds = [0] if base else [0, 1, 2]
    asked = ["--methods", ",".join(SEVERAL), "--seeds", ",".join(map(str, seeds)), "--tune", "none"]
    whole, own, loop = [], [], []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            one, other = (write_recipe(make(folder / part), base, **train) for part in ("compare", "loop"))
            whole.append(timed(["compare", "baselines", str(one), *asked], folder / "cache"))
            own.append(seconds_of(one.parent / "runs"))
            console.print(f"{number + 1}: compare {whole[-1]:.1f} s, its runs {own[-1]:.1f} s")
            lines = listed(["compare", "plan", str(other), *asked, "--phase", "report"])
            loop.append(sum(timed(command, folder / "other-cache") for command in lines))
            console.print(f"{number + 1}: loop {loop[-1]:.1f} s")
    return {
        "base": base or "tiny",
        "runs": len(SEVERAL) * len(seeds),
        **train,
        "compare_seconds": whole,
        "own_seconds": own,
        "loop_seconds": loop,
        "over_own": median(a / b for a, b in zip(whole, own, strict=True)),
        "times_as_fast": median(b / a for a, b in zip(whole, loop, strict=True)),
    }


# ---------------------------------------------------------------- against a script


def trl(rounds: int, base: str | None) -> dict[str, Any]:
    """Wall of a comparison of LoRA with itself, which is all of it twice, against twice that of the script."""
    ours, theirs, losses = [], [], dict[str, Any]()
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            recipe = write_recipe(folder, base, steps=SCRIPT_STEPS)
            asked = ["--methods", "lora,again=lora", "--seeds", ",".join(map(str, SCRIPT_SEEDS))]
            asked += ["--tune", f"lr={','.join(map(repr, RATES))}", *SCRIPT]
            ours.append(timed(["compare", "baselines", str(recipe), *asked], folder / "cache"))
            found = Comparison.load(recipe.parent / "runs" / "tiny.compare").of("lora")
            since = time.perf_counter()
            script = [sys.executable, __file__, "script", "--recipe", str(recipe)]
            done = subprocess.run(script, check=True, capture_output=True, text=True, env=os.environ)
            theirs.append(time.perf_counter() - since)
            again = json.loads(done.stdout.splitlines()[-1])
            losses = {"malora": [found.tuned.learning_rate, found.value], "trl": again}
            console.print(f"{number + 1}: compare {ours[-1]:.1f} s, the script once {theirs[-1]:.1f} s; {losses}")
    return {
        "base": base or "tiny",
        "steps": SCRIPT_STEPS,
        "compare_seconds": ours,
        "script_seconds": theirs,
        "rate and test loss": losses,
        "times_as_fast": median(2 * b / a for a, b in zip(ours, theirs, strict=True)),
    }


def script(recipe: str) -> None:
    """What somebody writes with TRL: three rates, the best by validation loss, then two seeds and their test losses."""
    from peer import rows_of, sft_trainer

    from malora_cli.cli._common import read_recipe
    from malora_cli.train.materials import gather

    prepare_libraries()

    def trained(rate: float, seed: int, split: str) -> float:
        asked = read_recipe(recipe, [*SCRIPT, f"train.learning_rate={rate}", f"train.seed={seed}"]).recipe
        materials = gather(asked)
        rows = rows_of(materials.mixture.__getitems__(list(range(len(materials.mixture)))))
        held_out = {}
        for task in materials.tasks:
            own, most = (task.validation, 200) if split == "validation" else (task.test, asked.eval.rows)
            held_out[task.name] = rows_of(own.examples(own.sample(most), 0))
        with tempfile.TemporaryDirectory() as folder:
            trainer = sft_trainer(
                asked, materials, rows, Path(folder), steps=SCRIPT_STEPS, packed=True, evaluated=held_out
            )
            trainer.train()
            found = trainer.evaluate()
        return sum(found[f"eval_{name}_loss"] for name in held_out) / len(held_out)

    losses = {rate: trained(rate, 1000, "validation") for rate in RATES}
    best = min(losses, key=losses.__getitem__)
    print(json.dumps([best, sum(trained(best, seed, "test") for seed in SCRIPT_SEEDS) / len(SCRIPT_SEEDS)]))


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def timed(arguments: list[str], cache: Path) -> float:
    """Seconds that a command takes in a process of its own, with a cache of its own."""
    since = time.perf_counter()
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    subprocess.run([sys.executable, "-m", "malora_cli", *arguments], check=True, capture_output=True, env=environment)
    return time.perf_counter() - since


def listed(arguments: list[str]) -> list[list[str]]:
    """The commands that `malora compare plan` prints, without the name of the program."""
    done = subprocess.run(
        [sys.executable, "-m", "malora_cli", *arguments], check=True, capture_output=True, text=True, env=os.environ
    )
    return [shlex.split(part)[1:] for line in done.stdout.splitlines() for part in line.split(" && ")]


def seconds_of(runs: Path) -> float:
    """Seconds of training and evaluation by the runs' own account."""
    return sum(
        record.manifest.train_seconds + sum(result.seconds for result in record.evaluations())
        for record in runs_under(runs)
    )


def main() -> None:
    """Run one scenario."""
    scenarios = {"honesty": honesty, "overhead": overhead, "trl": trl}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=[*scenarios, "script"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--base", help="of the runs, but those of honesty; the tiny model without it")
    parser.add_argument("--recipe", help="of the script that `trl` calls")
    arguments = parser.parse_args()
    if arguments.scenario == "script":
        script(arguments.recipe)
        return
    if arguments.base:
        os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
    found = scenarios[arguments.scenario](arguments.rounds, arguments.base)
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    name = f"{arguments.scenario} of {arguments.base}" if arguments.base else arguments.scenario
    on_each = known.get(name, {}) | {processor(): {"cores": os.cpu_count(), **found}}
    write_json(RESULTS, known | {name: on_each})


if __name__ == "__main__":
    main()
