"""``python benchmarks/light.py RUN... FOLDER``: copies of runs without weights and without the texts of their rows.

What stays is enough for `malora compare` to come to the same verdicts: recipes, manifests, metrics, scores, and the
losses of every row. Prompts become hashes, so that rows of one prompt still are one cluster.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from malora_cli.results.predictions import hashed

#: Files of a run, or of a comparison, that are copied as they are.
KEPT = ("recipe.yaml", "metrics.jsonl", "experts.json", "comparison.json", "comparison.csv", "plan.json", "tuning.json")
#: What is kept of a row besides its numbers.
NAMES = ("task", "cluster")


def light_row(row: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row, and a hash in place of its prompt."""
    numbers = {key: value for key, value in row.items() if not isinstance(value, str | list) or key in NAMES}
    return {**numbers, "prompt": hashed(row["prompt"])}


def main() -> None:
    *runs, out = map(Path, sys.argv[1:])
    for run in runs:
        place = out / run.name
        (place / "eval").mkdir(parents=True)
        for name in KEPT:
            if (run / name).is_file():
                shutil.copyfile(run / name, place / name)
        if (run / "manifest.json").is_file():
            manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
            (place / "manifest.json").write_text(json.dumps({**manifest, "folder": None}, indent=2), encoding="utf-8")
        for file in sorted((run / "eval").glob("*.json")):
            shutil.copyfile(file, place / "eval" / file.name)
        for file in sorted((run / "eval").glob("*.predictions.jsonl")):
            rows = [light_row(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
            (place / "eval" / file.name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
        if not any((place / "eval").iterdir()):
            (place / "eval").rmdir()


if __name__ == "__main__":
    main()
