"""Broken recipes and run folders by the thousand: how many are used, refused in a line, or end in an internal error.

    python benchmarks/fuzz.py --cases 1000 --seed 1000

Half of the cases are recipes, half are run folders that a command reads. What ends in an internal error is printed with
its seed. `tests/test_fuzz.py` goes through the first 150.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from conftest import write_model
from malora_cli.cli import main as command
from malora_cli.errors import MaloraError
from mutations import attempt, broken_recipe, broken_run
from train_runs import load, workplace


def quietly(*arguments: str) -> tuple[int, str]:
    """The exit code of a command and its last line on the error stream."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = attempt(command, *arguments)
    return code, (errors.getvalue().splitlines() or [""])[-1]


def recipes(recipe: Path, folder: Path, seeds: range) -> Counter[str]:
    """How broken recipes fare."""
    found: Counter[str] = Counter()
    for seed in seeds:
        path = broken_recipe(recipe, folder / "recipe.yaml", seed)
        try:
            load(path)
            found["used"] += 1
        except MaloraError:
            found["refused"] += 1
        except Exception as error:
            found["internal error"] += 1
            print(f"recipe, seed {seed}: {type(error).__name__}: {error}")
    return found


def runs(whole: Path, folder: Path, seeds: range) -> Counter[str]:
    """How the readers of broken run folders fare."""
    found: Counter[str] = Counter()
    for seed in seeds:
        done, arguments = broken_run(whole, folder / "broken", seed)
        code, said = quietly(*arguments)
        found[{0: "used", 2: "refused"}.get(code, "internal error")] += 1
        if code not in (0, 2):
            print(f"run, seed {seed}, {done}, {arguments[0]}: exit code {code}, {said}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args()
    seeds = range(options.seed, options.seed + options.cases // 2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        recipe = workplace(folder / "work", write_model(folder / "model"))
        smallest = ["train.steps=1", "train.batch_size=3", "train.micro_batch_size=3", "train.eval_rows=1"]
        smallest += ["train.conflict_rows=1"]
        whole = folder / "work" / "runs" / "whole"
        for arguments in (["train", str(recipe), "output.name=whole", *smallest], ["eval", str(whole), "--limit", "1"]):
            code, said = quietly(*arguments)
            if code:
                raise SystemExit(said)
        for kind, found in (("recipes", recipes(recipe, folder, seeds)), ("run folders", runs(whole, folder, seeds))):
            print(f"{kind}: {', '.join(f'{count} {how}' for how, count in sorted(found.items()))}")


if __name__ == "__main__":
    main()
