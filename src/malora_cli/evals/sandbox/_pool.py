"""The sandbox as the rest of the toolkit sees it: answers go in, outcomes come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from queue import SimpleQueue
from types import TracebackType
from typing import Any

from malora_cli.errors import RunError
from malora_cli.evals.sandbox._backends import BACKENDS
from malora_cli.evals.sandbox._base import Limits
from malora_cli.evals.sandbox._outcome import Job, Outcome
from malora_cli.evals.sandbox._probes import why_untrusted


class CodeSandbox:
    """A backend with as many keepers as rows are tried at once.

    Args:
        backend: Name of the backend.
        limits: What each interpreter may use.
        workers: Rows at once; None is one a processor.

    Raises:
        RunError: The backend cannot start anything.
    """

    def __init__(self, backend: str, limits: Limits | None = None, workers: int | None = None) -> None:
        self.backend, self.limits = backend, limits or Limits()
        self.workers = workers or os.cpu_count() or 1
        self._keepers = [_Keeper(backend, self.limits) for _ in range(self.workers)]

    def run(self, jobs: Sequence[Job]) -> list[Outcome]:
        """What becomes of each answer.

        Raises:
            RunError: A keeper has ended, so nothing that it says can be believed.
        """
        free: SimpleQueue[_Keeper] = SimpleQueue()
        for keeper in self._keepers:
            free.put(keeper)

        def one(job: Job) -> Outcome:
            keeper = free.get()
            try:
                return keeper.ask(job)
            finally:
                free.put(keeper)

        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(one, jobs))

    def close(self) -> None:
        """End all that was started."""
        for keeper in self._keepers:
            keeper.close()

    def __enter__(self) -> CodeSandbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Keeper:
    def __init__(self, backend: str, limits: Limits) -> None:
        self._backend = backend
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "malora_cli.evals.sandbox._keeper", backend, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, job: Job) -> Outcome:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(asdict(job)) + "\n")
            self._process.stdin.flush()
        said: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"error": "it has ended"}')
        if "error" in said:
            raise RunError(f"the sandbox '{self._backend}' cannot go on ({said['error']})")
        return Outcome(**said)

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._process.communicate()


def open_sandbox(limits: Limits | None = None, workers: int | None = None) -> CodeSandbox:
    """The first backend that works here: a right answer passes, a wrong one and all ways out fail.

    Raises:
        RunError: None does; what each of them lacks is named.
    """
    lacking = []
    for name, backend in sorted(BACKENDS.items(), key=lambda item: item[1].rank):
        why = backend().lacks()
        if why is None:
            sandbox = CodeSandbox(name, limits, workers)
            why = why_untrusted(sandbox.run, sandbox.limits.memory, sandbox.limits.processes)
            if why is None:
                return sandbox
            sandbox.close()
        lacking.append(f"{name}: {why} (it wants {backend.wants})")
    raise RunError(
        "code that a model wrote cannot be run here, since no sandbox works",
        fix=f"Nothing was scored. {'; '.join(lacking)}",
    )
