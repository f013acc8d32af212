"""Broken recipes and broken run folders, made from whole ones by a seed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

DEEP: Any = 0
for _ in range(400):
    DEEP = [DEEP]
#: What may stand where something else belongs. NaN and infinities are what Python's own JSON writes for them.
WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "nan",
    "\0",
    "a/b",
    "../..",
    "x" * 300,
]
WRONG += [[], {}, [[]], {"": None}, [None, 1, "x"], {"a": {"b": []}}, "\x1b[2J\u202e", "step", DEEP]


def wrong(rng: random.Random) -> Any:
    """One of these, as a copy of its own: what is put somewhere may be broken in turn."""
    return json.loads(json.dumps(rng.choice(WRONG)))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in plain data."""
    if path:
        yield path
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


def mutated(data: Any, rng: random.Random) -> Any:
    """The data with one to three values replaced, taken away, doubled, or put somewhere else."""
    data = json.loads(json.dumps(data))
    for _ in range(rng.randint(1, 3)):
        everywhere = list(places(data))
        if not everywhere:
            return wrong(rng)
        *before, last = rng.choice(everywhere)
        inner = data
        for key in before:
            inner = inner[key]
        match rng.choice(["replace", "replace", "replace", "remove", "add", "move"]):
            case "replace":
                inner[last] = wrong(rng)
            case "remove":
                del inner[last]
            case "add" if isinstance(inner, dict):
                inner[rng.choice(["x", "", "name", "mix", f"{last}s"])] = wrong(rng)
            case "move" if isinstance(inner, dict):
                inner[last], inner[f"{last}2"] = wrong(rng), inner[last]
    return data if rng.random() > 0.02 else wrong(rng)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file cut, flipped, doubled or filled up."""
    at = rng.randrange(len(content) + 1)
    match rng.choice(["cut", "flip", "nul", "insert", "double", "empty"]):
        case "cut":
            return content[:at]
        case "flip" if content:
            at = min(at, len(content) - 1)
            return content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :]
        case "nul":
            return content + b"\0" * rng.randint(1, 5000)
        case "insert":
            return content[:at] + rng.choice([b"\xff\xfe", b"{", b"\n\n", b'"', b": ", b"- ", b"\t"]) + content[at:]
        case "double":
            return content + content
    return b""


def break_file(path: Path, rng: random.Random) -> str:
    """Break one file of a run folder, or put something else in its place; says what was done."""
    kind = rng.choice(["values", "values", "values", "bytes", "bytes", "gone", "folder"])
    content = path.read_bytes()
    if kind == "values" and path.suffix == ".json":
        path.write_text(json.dumps(mutated(json.loads(content), rng)), encoding="utf-8")
    elif kind == "values" and path.suffix == ".jsonl":
        lines = content.decode().splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(mutated(json.loads(lines[number]), rng))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif kind in ("gone", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        kind = "bytes"
        path.write_bytes(damaged(content, rng))
    return f"{kind} of {path.name}"


def broken_recipe(recipe: Path, path: Path, seed: int) -> Path:
    """Write a recipe with its mix inside to a path, broken."""
    rng = random.Random(seed)
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    data["mix"] = yaml.safe_load(recipe.with_name("mix.yaml").read_text(encoding="utf-8"))
    path.write_text(json.dumps(mutated(data, rng)), encoding="utf-8")
    if rng.random() < 0.2:
        path.write_bytes(damaged(path.read_bytes(), rng))
    return path


def broken_run(whole: Path, run: Path, seed: int) -> tuple[str, list[str]]:
    """Copy a run to a path, with one file broken; says what was done, and names a command that reads it."""
    rng = random.Random(seed)
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(whole, run)
    files = sorted(path for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".yaml"))
    readers = [
        ["report", str(run)],
        ["compare", "runs", str(run), str(whole)],
        ["eval", str(run), "--limit", "1"],
        ["merge-export", str(run)],
        ["train", str(run / "recipe.yaml"), "--resume"],
    ]
    return break_file(rng.choice(files), rng), readers[seed % len(readers)]


def attempt(command: Callable[..., Any], *arguments: str) -> int:
    """The exit code of a command in this process; 1 is an internal error."""
    try:
        command(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("a command ends by SystemExit")
