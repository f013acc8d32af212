"""What a backend has to show before it is used: a right answer passes, a wrong one and six ways out of it fail."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from malora_cli.errors import RunError
from malora_cli.evals.sandbox._outcome import Job, Outcome

_RIGHT = "import re, math\n\ndef way(place, parent, port, memory, processes):\n    return 1\n"
#: Each returns 1 where it gets out. None of them does harm where there is no boundary at all.
_WAYS_OUT = {
    "it writes files outside its folder": """
    with open(place + "/written", "w") as file:
        file.write("x")
    return 1""",
    "it reads files of others": """
    with open(place + "/secret") as file:
        return len(file.read()) // 32""",
    "it reaches the network": """
    import socket
    socket.create_connection(("127.0.0.1", port), timeout=2)
    return 1""",
    "it can signal other processes": """
    import os
    os.kill(parent, 0)
    return 1""",
    "its memory has no limit": """
    return len(bytearray(2 * memory)) // (2 * memory)""",
    "its processes have no limit": """
    import os, time
    for _ in range(2 * processes):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
    return 1""",
}
_HEAD = "def way(place, parent, port, memory, processes):"


def why_untrusted(run: Callable[[Sequence[Job]], list[Outcome]], memory: int, processes: int) -> str | None:
    """Why a sandbox is not to be believed; None where it is."""
    with tempfile.TemporaryDirectory() as place, socket.create_server(("127.0.0.1", 0)) as server:
        Path(place, "secret").write_text(secrets.token_hex(16))
        known = (place, os.getpid(), server.getsockname()[1], memory, processes)

        def job(code: str) -> Job:
            return Job(code, f"assert way{known!r} == 1\n", ("way",))

        codes = [_RIGHT, _RIGHT.replace("1", "2"), *(f"{_HEAD}{body}\n" for body in _WAYS_OUT.values())]
        try:
            right, wrong, *ways_out = run([job(code) for code in codes])
        except RunError as error:
            return error.what
        if Path(place, "written").exists():
            return next(iter(_WAYS_OUT))
    if not right.passed:
        return f"a right answer does not pass there ({right.kind}{right.reason and ': ' + right.reason})"
    if wrong.passed:
        return "a wrong answer passes there"
    return next((why for why, outcome in zip(_WAYS_OUT, ways_out, strict=True) if outcome.passed), None)
