"""The keeper of a sandbox: a small process that starts interpreters, so that none is forked from one with a model.

It reads one job a line from its standard input, and writes one outcome a line; where that input ends, so does it.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from malora_cli.evals.sandbox._backends import BACKENDS
from malora_cli.evals.sandbox._base import Limits
from malora_cli.evals.sandbox._outcome import Job
from malora_cli.evals.sandbox._trial import Court

_MOST_DIGITS = 100_000  # of a number in an answer; reading them takes the square of that


def main(name: str, limits: Limits) -> None:
    """Serve until the input ends; the next job finds its interpreters started."""
    backend = BACKENDS[name]()
    sys.set_int_max_str_digits(_MOST_DIGITS)
    court = Court(backend, limits)
    try:
        for line in sys.stdin:
            job = json.loads(line)
            _say(asdict(court.run(Job(**job | {"names": job["names"] and tuple(job["names"])}))))
            court.ready()
    finally:
        court.close()


def _say(outcome: dict[str, Any]) -> None:
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    try:
        main(sys.argv[1], Limits(**json.loads(sys.argv[2])))
    except OSError as error:
        with suppress(OSError):
            _say({"error": f"{error.strerror or error}"})
