"""Code that a model wrote: what each backend that works here lets it do, and what it is called."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from malora_cli.errors import RunError
from malora_cli.evals.sandbox import BACKENDS, CodeSandbox, Job, Limits, Outcome, open_sandbox
from malora_cli.evals.sandbox._base import Backend, Cell, PopenCell, interpreter, limit
from malora_cli.evals.sandbox._probes import why_untrusted
from malora_cli.evals.sandbox._trial import Court
from malora_cli.evals.sandbox.seatbelt import profile
from sandbox_escapes import ESCAPES, TESTS

RIGHT = "def f(x):\n    return x + 1\n"
WRONG = "def f(x):\n    return x\n"


@pytest.fixture(scope="module", params=sorted(BACKENDS))
def sandbox(request: pytest.FixtureRequest) -> Iterator[CodeSandbox]:
    if (why := BACKENDS[request.param]().lacks()) is not None:
        pytest.skip(why)
    with CodeSandbox(request.param, Limits(seconds=2.0, memory=256 << 20), workers=2) as opened:
        if (why := why_untrusted(opened.run, opened.limits.memory, opened.limits.processes)) is not None:
            pytest.skip(why)
        yield opened


def test_one_backend_works_where_the_project_is_tested() -> None:
    with open_sandbox(workers=1) as opened:
        assert opened.run([Job(RIGHT, TESTS, ("f",)), Job(WRONG, TESTS, ("f",))]) == [
            Outcome("passed"),
            Outcome("failed", "AssertionError: "),
        ]


def test_nothing_gets_out_and_nothing_wrong_is_called_right(sandbox: CodeSandbox, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "secret").chmod(0o600)
    word = uuid4().hex
    with socket.create_server(("127.0.0.1", 0)) as server:
        known = {"place": tmp_path, "parent": os.getpid(), "port": server.getsockname()[1], "word": word}
        jobs = [Job(code.replace("{{", "{").replace("}}", "}"), TESTS, ("f",)) for code in filled(known)]
        outcomes = dict(zip(ESCAPES, sandbox.run(jobs), strict=True))
    assert {name for name, outcome in outcomes.items() if outcome.passed} == set()
    assert {path.name for path in tmp_path.iterdir()} == {"secret"}
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600
    assert not [process for process in psutil.process_iter(["cmdline"]) if word in (process.info["cmdline"] or [])]
    assert sandbox.run([Job(RIGHT, TESTS, ("f",))])[0].passed


def filled(known: dict[str, object]) -> Iterator[str]:
    for code in ESCAPES.values():
        for name, value in known.items():
            code = code.replace(f"{{{name}}}", str(value))
        yield code


KINDS = {
    "passed": RIGHT,
    "failed": WRONG,
    "timeout": "def f(x):\n    while True:\n        pass\n",
    "memory": "def f(x):\n    return len(bytearray(1 << 30))\n",
    "crashed": "import os\ndef f(x):\n    os._exit(0)\n",
    "blocked": "import socket\ndef f(x):\n    socket.create_connection(('127.0.0.1', 1))\n",
}


def test_outcomes_are_told_apart(sandbox: CodeSandbox) -> None:
    outcomes = sandbox.run([Job(code, TESTS, ("f",)) for code in KINDS.values()])
    assert [outcome.kind for outcome in outcomes] == [*KINDS]


def test_what_programs_may_do(sandbox: CodeSandbox) -> None:
    codes = [
        "import threading\ndef f(x):\n    said = []\n    thread = threading.Thread(target=said.append, args=(x + 1,))\n"
        "    thread.start()\n    thread.join()\n    return said[0]\n",
        "def f(x):\n    with open('a.txt', 'w') as file:\n        file.write('x' * x)\n"
        "    return len(open('a.txt').read()) + 1\n",
        "import math, re, collections, itertools, heapq, datetime, hashlib, random, string, json, typing, dataclasses\n"
        + RIGHT,
        "print('a' * 1000)\n" + RIGHT,
    ]
    assert [str(outcome) for outcome in sandbox.run([Job(code, TESTS, ("f",)) for code in codes])] == ["passed"] * 4


def test_each_interpreter_starts_with_nothing(sandbox: CodeSandbox) -> None:
    code = (
        "import os\ndef files():\n    return os.listdir('.')\ndef environment():\n"
        "    return sorted(set(os.environ) - {'HOME', 'LC_CTYPE', 'PWD'})\ndef is_open(number):\n"
        "    try:\n        return bool(os.fstat(number))\n    except OSError:\n        return False\n"
    )
    tests = "assert files() == environment() == []\nassert [n for n in range(60) if is_open(n)] == [0, 1, 2, 3]\n"
    names = ("environment", "files", "is_open")
    assert sandbox.run([Job(code, tests, names)] * 2) == [Outcome("passed")] * 2


def test_files_are_limited(sandbox: CodeSandbox) -> None:
    big = "def f(x):\n    with open('a', 'wb') as file:\n        file.write(bytes(2 << 20))\n    return x + 1\n"
    many = (
        "def f(x):\n    for number in range(1000):\n        with open(str(number), 'wb') as file:\n"
        "            file.write(bytes(1 << 20))\n    import time\n    time.sleep(5)\n    return x + 1\n"
    )
    outcomes = sandbox.run([Job(code, TESTS, ("f",)) for code in (big, many)])
    assert not any(outcome.passed for outcome in outcomes)
    assert outcomes[1].kind == "blocked"


class _Open(Backend):
    """No boundary at all."""

    rank, wants = 0, "nothing"

    def lacks(self) -> str | None:
        return None

    def start(self, folder: Path, limits: Limits) -> Cell:
        return PopenCell(interpreter(), folder, lambda: None)


class _Limited(_Open):
    def start(self, folder: Path, limits: Limits) -> Cell:
        return PopenCell(interpreter(), folder, lambda: limit(limits))


@contextmanager
def court(backend: Backend) -> Iterator[Court]:
    opened = Court(backend, Limits(seconds=3.0))
    try:
        yield opened
    finally:
        opened.close()


def test_what_has_no_boundary_is_not_believed() -> None:
    limits = Limits()
    with court(_Open()) as opened:
        why = why_untrusted(lambda jobs: [opened.run(job) for job in jobs], 64 << 20, 2)
    assert why == "it writes files outside its folder"
    blocked = [Outcome("passed"), Outcome("failed"), *[Outcome("blocked")] * 6]
    for place, way in enumerate(("files", "others", "network", "signal", "memory", "processes")):
        outcomes = [*blocked[: 2 + place], Outcome("passed"), *blocked[3 + place :]]
        assert way in str(why_untrusted(lambda _, said=outcomes: said, limits.memory, limits.processes))
    for outcomes, said in (([Outcome("crashed")] * 8, "a right answer"), ([Outcome("passed")] * 8, "a wrong answer")):
        assert said in str(why_untrusted(lambda _, said=outcomes: said, limits.memory, limits.processes))


def test_nothing_is_scored_without_a_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, backend in BACKENDS.items():
        monkeypatch.setattr(backend, "lacks", lambda self, name=name: f"there is no {name}")
    with pytest.raises(RunError, match=r"no sandbox works\. Nothing was scored") as caught:
        open_sandbox()
    said = str(caught.value)
    assert "\n" not in said
    assert "pip install 'malora[sandbox]'" in said
    places = [said.index(f"{name}: there is no {name}") for name in ("landlock", "bubblewrap", "sandlock", "seatbelt")]
    assert places == sorted(places)


def test_a_backend_that_cannot_start_is_told() -> None:
    with CodeSandbox("seatbelt", workers=1) as opened, pytest.raises(RunError, match="'seatbelt' cannot go on"):
        opened.run([Job(RIGHT, TESTS, ("f",))])


def test_the_profile_of_macos_names_what_is_allowed(tmp_path: Path) -> None:
    folder = tmp_path / 'a "b"'
    folder.mkdir()
    said = profile(folder)
    assert said.startswith("(version 1)\n(deny default)\n")
    assert f'(allow file-read* file-write* (subpath "{tmp_path.resolve()}/a \\"b\\""))' in said
    assert "network" not in said
    assert "process-fork" not in said
