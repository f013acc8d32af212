"""Mistakes that take no heavy library to tell are told before one is imported, which takes seconds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from train_runs import train_run

#: What takes a second or more to import, alone or by what it brings.
HEAVY = ("torch", "transformers", "datasets", "peft", "scipy")
MISTAKES = {
    "bench --methods lorra": "unknown method 'lorra'",
    "bench --shape nope": "unknown shape 'nope'",
    "bench --model nope": "not on this machine",
    "check recipe.yaml model.base=nope": "not on this machine",
    "check recipe.yaml model.base=nope.gguf": "GGUF file not found",
    "check recipe.yaml model.base=./nope": "folder not found",
    "check recipe.yaml model.base=.": "config.json is missing",
    "check recipe.yaml model.chat_template=nope.jinja": "template cannot be read",
    "train recipe.yaml model.base=nope": "not on this machine",
    "train recipe.yaml --dry-run model.base=nope": "not on this machine",
    "train recipe.yaml output.name=done": "exists already",
    "train recipe.yaml --nproc 2 output.name=done": "exists already",
    "train recipe.yaml --resume": "no run to resume",
    "train recipe.yaml --resume output.name=done": "this run is finished",
    "train recipe.yaml train.shard=true": "nothing to spread weights over",
    "eval done --tasks nope": "unknown task 'nope'",
    "eval done --tasks domain:nope": "unknown domain 'nope'",
    "eval done --step 7": "checkpoint of step 7 not found",
    "eval done --against nope": "run not found",
    "eval done train.steps=3": "differs from the run's own",
    "eval done model.base=nope": "not on this machine",
    "eval nope --mix mix.yaml": "not on this machine",
    "compare baselines recipe.yaml --methods lora,malra": "unknown method 'malra'",
    "compare baselines recipe.yaml --methods lora": "nothing to be compared with",
    "compare baselines recipe.yaml --seeds a": "not a list of seeds",
    "compare baselines recipe.yaml --tune fast": "not a tuning",
    "compare baselines recipe.yaml --jobs x": "not a number of jobs",
    "compare baselines recipe.yaml model.base=nope": "not on this machine",
    "compare remedies recipe.yaml --baseline nope": "not among the methods compared",
    "compare runs done nope": "run not found",
    "compare runs done done": "not been evaluated",
    "merge-export done --to lora --gates nope": "names no gates",
    "merge-export done --to dense --format mlx": "not a format",
    "merge-export --check nope": "not found as a folder",
    "merge-export done --check runs": "it takes nothing else",
    "report nope": "run not found",
    "doctor nope": "recipe 'nope' not found",
    "chat nope": "not found as a run",
    "chat done --task nope": "unknown task 'nope'",
    "chat done --step 7": "checkpoint of step 7 not found",
}
_MAKE_THEM = """
import contextlib, io, json, shlex, sys
from malora_cli.cli import main
told = {}
for mistake in json.loads(sys.argv[1]):
    before = set(sys.modules)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        try:
            main(shlex.split(mistake))
        except SystemExit as ended:
            code = ended.code
    told[mistake] = [code, errors.getvalue(), sorted({*json.loads(sys.argv[2])} & {*sys.modules} - before)]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, tuple[int, str, list[str]]]:
    """Exit code, standard error and newly imported heavy libraries of each mistake, all made in one process."""
    folder = tmp_path_factory.mktemp("early")
    template = yaml.safe_load(Path(__file__).with_name("mistakes.yaml").read_text(encoding="utf-8"))["folder"]
    for name, text in template.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "model").symlink_to(tiny_model)
    train_run(folder / "recipe.yaml", "output.name=done", "train.steps=1", f"output.folder={folder / 'runs'}")
    done = subprocess.run(
        [sys.executable, "-c", _MAKE_THEM, json.dumps([*MISTAKES]), json.dumps(HEAVY)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, tuple[int, str, list[str]]] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_told_before_a_heavy_library_is_imported(
    mistake: str, told: dict[str, tuple[int, str, list[str]]]
) -> None:
    code, errors, imported = told[mistake]
    assert code == 2
    assert MISTAKES[mistake] in errors
    assert imported == []
