"""Ctrl-C, SIGTERM, a closed terminal: the step at hand is finished and saved; a second time, all is dropped at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

#: A launcher passes on what the terminal has sent to all of its processes already: the same wish, not a second one.
_ECHO_SECONDS = 0.5


class StopRequest:
    """Within its block, remembers the first signal to stop instead of obeying it at once.

    A closed terminal is no wish to stop where whoever started the process has it ignore that, as `nohup` does.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._first = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {number: signal.signal(number, self._heard) for number in _heeded()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is not None:
            if now - self._first < _ECHO_SECONDS:
                return
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        self.signal, self._first = number, now


def _heeded() -> tuple[int, ...]:
    hangup: int | None = getattr(signal, "SIGHUP", None)  # which Windows does not have
    if hangup is None or signal.getsignal(hangup) is signal.SIG_IGN:
        return signal.SIGINT, signal.SIGTERM
    return signal.SIGINT, signal.SIGTERM, hangup
